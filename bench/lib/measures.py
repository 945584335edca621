"""What is measured. Each function returns plain data that `report` prints and that goes to results/*.json."""
import os, shutil, subprocess, time

from . import tools
from .meter import Daemon, Peak, anonymous_kib, percentile, spread, timed


class Bench:
    """Programs, options, and the directory on the file system that is measured."""

    def __init__(self, programs, work, args, log):
        self.programs, self.work, self.args, self.log = programs, work, args, log
        self.probe = programs["probe"]

    def path(self, name):
        return f"{self.work}/{name}"

    def clear(self, *names):
        for name in names:
            for path in (self.path(name), self.path(name) + ".fs_mirror"):
                subprocess.run(["rm", "-rf", path], check=True)
        subprocess.run(["sync", "-f", self.work], check=True)

    def generate(self, name, files, *options):
        made = subprocess.run(
            [self.programs["gentree"], self.path(name), "--files", str(files), *options],
            check=True, capture_output=True, text=True,
        )
        say(f"  {name}: {made.stdout.strip()}")
        # Names beyond PATH_MAX stop the peers.
        subprocess.run(["rm", "-rf", self.path(name) + "/zoo/long"], check=True)
        warm(self.path(name))
        return made.stdout.strip().split(": ", 1)[1].rsplit(" in ", 1)[0]

    def differences(self, src, dst):
        """How the full comparison sees the copy: number of differences, and the kinds of the first ones."""
        done = subprocess.run([self.programs["treecmp"], src, dst], capture_output=True, text=True, errors="replace")
        if done.returncode not in (0, 1):
            return f"treecmp: {done.stderr.strip()}"
        lines = done.stdout.splitlines()
        with open(self.log, "a", errors="replace") as log:
            log.writelines(line + "\n" for line in lines[:20])
        return len(lines)


def say(text):
    print(text, flush=True)


def warm(tree):
    """Reads a tree once, so that it is in the page cache. Devices and FIFOs are left alone."""
    subprocess.run(["find", tree, "-type", "f", "-exec", "cat", "{}", "+"], stdout=subprocess.DEVNULL, check=True)


def first_copy(bench, src, reps):
    """Into an empty place, durable at the end. Tools take turns, in another order each time."""
    copiers = [tool for tool in tools.copiers(bench.programs["fs_mirror"]) if tools.there(tool)]
    rows = {tool.name: {"runs": []} for tool in copiers}
    floor = []
    for rep in range(reps):
        for tool in copiers[rep % len(copiers):] + copiers[: rep % len(copiers)]:
            bench.clear("dst")
            dst = bench.path("dst")
            if not tool.durable:
                os.mkdir(dst)
            sync = ["sync", "-f", bench.work]
            run = timed(tool.command(src, dst), bench.log, memory=rep == 0, after=None if tool.durable else sync)
            if tool.durable:
                # What a peer would still have to write: shows whether "durable" was true.
                start = time.monotonic()
                subprocess.run(sync, check=True)
                run["sync_after_s"] = time.monotonic() - start
            rows[tool.name]["runs"].append(run)
            if rep == 0:
                rows[tool.name]["differences"] = bench.differences(src, dst)
            say(f"  {tool.name:10} {run['seconds']:7.2f} s  cpu {run['cpu_s']:6.2f} s  code {run['code']}"
                + (f"  differences {rows[tool.name]['differences']}" if rep == 0 else ""))
        bench.clear("dst")
        os.mkdir(bench.path("dst"))
        floor.append(bench.probe("copy", src, bench.path("dst")))
        say(f"  {'floor':10} {floor[-1]['seconds']:7.2f} s")
    bench.clear("dst")
    return {"tools": summed(rows), "floor": spread([run["seconds"] for run in floor]), "files": floor[0]["files"]}


def summed(rows):
    for row in rows.values():
        for what in ("seconds", "cpu_s", "user_s"):
            row[what] = spread([run[what] for run in row["runs"]])
        row["codes"] = sorted({run["code"] for run in row["runs"]})
    return rows


def restart(bench, src, reps):
    """Again, with nothing changed."""
    ours, theirs = bench.path("dst"), bench.path("dst-rsync")
    bench.clear("dst", "dst-rsync")
    commands = {"find -printf": tools.finder(src)}
    for tool in tools.copiers(bench.programs["fs_mirror"]):
        if tool.name in ("fs_mirror", "rsync") and tools.there(tool):
            dst = ours if tool.durable else theirs
            if not tool.durable:
                os.mkdir(dst)
            # The second one settles what the first could not know yet (files too young to trust their times).
            for _ in range(2 if tool.durable else 1):
                timed(tool.command(src, dst), bench.log)
                time.sleep(1)
            commands[tool.name] = tool.command(src, dst)
    rows = {name: {"runs": []} for name in commands}
    order = list(commands)
    for rep in range(reps):
        for name in order[rep % len(order):] + order[: rep % len(order)]:
            with_output = bench.log if name != "find -printf" else os.devnull
            run = timed(commands[name], with_output)
            rows[name]["runs"].append(run)
            say(f"  {name:12} {run['seconds']:7.3f} s  cpu {run['cpu_s']:6.2f} s  code {run['code']}")
    bench.clear("dst", "dst-rsync")
    return {"tools": summed(rows)}


def live(bench, files, rounds, every_ms, rate, burst_files):
    """Latency of single changes, idle and under load, then bursts: one run of each follower, one after another."""
    out = {"tools": {}, "rate": rate, "burst_files": burst_files}
    tar = burst_tar(bench, burst_files)
    bench.generate("small", files)
    src = bench.path("small")
    bench.probe("latency", "prepare", src, rounds)
    out["self"] = latencies(bench.probe("latency", "run", src, src, rounds, 0, 5))
    say(f"  self: {told(out['self']['all'])}")
    for follower in (tools.Ours(bench.programs["fs_mirror"]), tools.Lsyncd()):
        if tools.there(follower):
            # What the tools before changed is made anew: each starts from the same tree.
            bench.clear("small", "dst")
            bench.generate("small", files)
            bench.probe("latency", "prepare", src, 2 * rounds)
            out["tools"][follower.name] = follow(bench, follower, src, tar, rounds, every_ms, rate)
    bench.clear("small", "dst")
    return out


def follow(bench, follower, src, tar, rounds, every_ms, rate):
    dst = bench.path("dst")
    scratch = bench.path("scratch")
    os.makedirs(scratch, exist_ok=True)
    daemon = Daemon(follower.command(src, dst, scratch), bench.log)
    row = {"bursts": {}}
    try:
        if not equal(bench, follower, src, dst, 120)["equal"] or not watching(src, dst):
            say(f"  {follower.name}: never became equal")
            row["failed"] = "never became equal"
            return row
        time.sleep(2)
        cpu, start = daemon.cpu_s(), time.monotonic()
        time.sleep(3)
        row["idle_cores"] = (daemon.cpu_s() - cpu) / (time.monotonic() - start)
        row["idle"] = latencies(bench.probe("latency", "run", src, dst, rounds, 0, every_ms))
        say(f"  {follower.name}: idle {told(row['idle']['all'])}")
        load = bench.probe.start("load", src, rate)
        try:
            time.sleep(2)
            cpu, start = daemon.cpu_s(), time.monotonic()
            row["loaded"] = latencies(bench.probe("latency", "run", src, dst, rounds, rounds, every_ms))
            row["loaded_cores"] = (daemon.cpu_s() - cpu) / (time.monotonic() - start)
        finally:
            load.stop()
        say(f"  {follower.name}: under {rate}/s {told(row['loaded']['all'])}")
        settled = equal(bench, follower, src, dst, 30)
        row["equal_after_load"] = settled["equal"]
        row["left_after_load"] = settled["different"]
        burst(bench, follower, daemon, row, "untar", src, dst, lambda: untar(tar, src))
        burst(bench, follower, daemon, row, "rewrite 5,000", src, dst, lambda: bench.probe("rewrite", src + "/burst", 5000))
        burst(bench, follower, daemon, row, "rm -rf", src, dst, lambda: subprocess.run(["rm", "-rf", src + "/burst"], check=True))
        row["alive"] = daemon.alive()
        row["anonymous_mib"] = anonymous_kib(daemon.pid) / 1024
        row["differences"] = bench.differences(src, dst)
        say(f"  {follower.name}: differences at the end {row['differences']}, anonymous {row['anonymous_mib']:.0f} MiB")
    finally:
        daemon.stop()
    return row


def equal(bench, follower, src, dst, seconds):
    return bench.probe("equal-loose" if follower.loose else "equal", src, dst, seconds)


def watching(src, dst, seconds=30):
    """A change arrives: so it follows."""
    until = time.monotonic() + seconds
    number = 0
    while time.monotonic() < until:
        text = str(number)
        with open(src + "/canary", "w") as out:
            out.write(text)
        wait = time.monotonic() + 3
        while time.monotonic() < wait:
            try:
                if open(dst + "/canary").read() == text:
                    return True
            except OSError:
                pass
            time.sleep(0.002)
        number += 1
    return False


def burst(bench, follower, daemon, row, name, src, dst, do):
    cpu = daemon.cpu_s()
    peak = Peak(daemon.pid)
    start = time.time()
    do()
    end = time.time()
    # Only the burst's own directory: what went wrong elsewhere before must not count here.
    if os.path.exists(src + "/burst"):
        found = equal(bench, follower, src + "/burst", dst + "/burst", 60)
        after = max(0.0, found["newest"] - end) if found["equal"] else None
    else:
        found = bench.probe("gone", dst + "/burst", 60)
        after = max(0.0, found["now"] - end) if found["gone"] else None
    row["bursts"][name] = {
        "burst_s": end - start,
        "after_s": after,
        "different": found.get("different"),
        "cpu_s": daemon.cpu_s() - cpu,
        "anonymous_mib": peak.mib(),
    }
    say(f"  {follower.name}: {name} took {end - start:.2f} s, equal after "
        + (f"{after:.2f} s" if after is not None else f"NEVER ({found.get('different')})"))


def untar(tar, src):
    os.mkdir(src + "/burst")
    subprocess.run(["tar", "-C", src + "/burst", "--warning=no-timestamp", "-xf", tar], check=True)


def burst_tar(bench, files):
    bench.clear("burst-tree")
    bench.generate("burst-tree", files, "--plain")
    tar = bench.path("burst.tar")
    subprocess.run(["tar", "-C", bench.path("burst-tree"), "-cf", tar, "."], check=True)
    bench.clear("burst-tree")
    return tar


def latencies(told):
    by_kind = {}
    for kind, seconds in told["changes"]:
        by_kind.setdefault(kind, []).append(seconds)
    everything = [seconds for kind in by_kind.values() for seconds in kind]
    return {"all": quantiles(everything), "kinds": {kind: quantiles(values) for kind, values in by_kind.items()}}


def quantiles(values):
    arrived = [value for value in values if value is not None]
    lost = len(values) - len(arrived)
    return {"n": len(values), "lost": lost, "p50": percentile(arrived, 0.5), "p99": percentile(arrived, 0.99),
            "max": max(arrived, default=None)}


def told(q):
    ms = lambda value: "-" if value is None else f"{value * 1000:.2f}"
    return f"p50 {ms(q['p50'])} p99 {ms(q['p99'])} max {ms(q['max'])} ms of {q['n']}" + (f", {q['lost']} LOST" if q["lost"] else "")


def memory(bench, files):
    """Anonymous memory at very many files, and when a change is seen after a start that finds nothing changed."""
    src, dst = bench.path("many"), bench.path("dst")
    bench.clear("many", "dst")
    bench.probe("many", src, files)
    out = {"files": files}
    ours = tools.Ours(bench.programs["fs_mirror"])
    for name in ("first copy", "restart"):
        start = time.time()
        daemon = Daemon(ours.command(src, dst, bench.work), bench.log)
        peak = Peak(daemon.pid)
        row = out[name] = {}
        try:
            if name == "restart":
                row["following_s"] = watching(src, dst, 120) and time.time() - start
            found = equal(bench, ours, src, dst, 900)
            row["equal"], row["different"] = found["equal"], found["different"]
            if name == "first copy":
                row["equal_s"] = found["newest"] - start
            cpu = daemon.cpu_s()
            while (time.sleep(2) or daemon.cpu_s()) - cpu > 0.1:
                cpu = daemon.cpu_s()
            row["cpu_s"] = cpu
            row["at_rest_mib"] = anonymous_kib(daemon.pid) / 1024
            # A burst of changes all over, while it follows.
            bench.probe("rewrite", src, 2000)
            equal(bench, ours, src, dst, 120)
            row["following_mib"] = anonymous_kib(daemon.pid) / 1024
            row["alive"] = daemon.alive()
        finally:
            row["peak_mib"] = peak.mib()
            daemon.stop()
        say(f"  {name}: " + ", ".join(f"{k} {v:.1f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
    bench.clear("many", "dst")
    return out
