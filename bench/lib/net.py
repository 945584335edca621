"""What the network costs: first copies over TLS beside those without a network, over a far link beside tar, many readers, and
what trees feel of others that are in trouble."""
import json, os, re, signal, socket, subprocess, threading, time

from .measures import latencies, say, summed, told
from .meter import Daemon, anonymous_kib, descendants, percentile, spread, timed
from .services import Host, Pair, Service, daemons_of, over_a_pipe


def cpu_s(pids):
    return sum(seconds for pid in pids for _, seconds in descendants(pid))


def first_copies(bench, src, reps):
    """A first copy in turns: in one process; over a pipe (the protocol alone); over TLS, both ends beginning; and over TLS from a
    worker that knows its tree already. Durable at the end."""
    pair = Pair(bench, src)
    dst = bench.path("dst")

    def local():
        return timed(pair.backup.program("fs_mirror", "mirror", src, dst, "--once", "-q"), bench.log)

    def pipe():
        pair.worker.forget()
        env = over_a_pipe(pair.worker)
        command = pair.backup.program("fs_mirror", "mirror", f"far:{src}", dst, "--once", "-q", "--owners", "apply",
                                      "--remote-command", bench.programs["mirrord"])
        run = timed(command, bench.log, env=env)
        run["worker_cpu_s"] = cpu_s(daemons_of(pair.worker))
        for pid in daemons_of(pair.worker):
            os.kill(pid, 15)
        return run

    def tls(warm):
        pair.worker.forget()
        start = time.monotonic()
        service = pair.start()
        try:
            service.address()
            before, ready = 0.0, time.monotonic()
            if warm:
                timed(pair.mirror(bench.path("warm"), "--once", "--owners", "apply"), bench.log, env=pair.backup.env)
                bench.clear("warm")
                before, start = service.daemon.cpu_s(), time.monotonic()
            run = timed(pair.mirror(dst, "--once", "--owners", "apply"), bench.log, env=pair.backup.env)
            run["seconds"] = time.monotonic() - start
            run["listening_s"] = ready - start
            run["worker_cpu_s"] = service.daemon.cpu_s() - before
            return run
        finally:
            service.stop()

    ways = {"one process": local, "over a pipe": pipe, "over TLS": lambda: tls(False), "over TLS, worker knows its tree": lambda: tls(True)}
    rows = {name: {"runs": []} for name in ways}
    order = list(ways)
    for rep in range(reps):
        for name in order[rep % len(order):] + order[: rep % len(order)]:
            bench.clear("dst")
            run = ways[name]()
            run["load"] = os.getloadavg()[0]
            run["cpu_s"] += run.get("worker_cpu_s", 0)
            rows[name]["runs"].append(run)
            if rep == 0:
                rows[name]["differences"] = bench.differences(src, dst)
            say(f"  {name:32} {run['seconds']:7.2f} s  cpu {run['cpu_s']:6.2f} s (worker {run.get('worker_cpu_s', 0):.2f})  "
                f"code {run['code']}  load {run['load']:.1f}"
                + (f"  differences {rows[name]['differences']}" if rep == 0 else ""))
    bench.clear("dst")
    return {"tools": summed(rows)}


def tls(bench, args):
    say("first copies with and without a network")
    tree = bench.generate("src", args.files)
    out = {"tls small": {**first_copies(bench, bench.path("src"), args.reps), "tree": tree}}
    bench.clear("src")
    sizes = [256 << 20] * 4 if not args.quick else [32 << 20] * 4
    large(bench.path("src"), sizes)
    tree = f"{len(sizes)} files of {sizes[0] >> 20} MiB"
    out["tls large"] = {**first_copies(bench, bench.path("src"), args.reps), "tree": tree}
    bench.clear("src")
    return out


def large(dir, sizes):
    """Files that nothing can make smaller."""
    os.mkdir(dir)
    block = os.urandom(1 << 20)
    for number, size in enumerate(sizes):
        with open(f"{dir}/large {number}", "wb") as out:
            for at in range(0, size, len(block)):
                out.write(b"%08d%08d" % (number, at >> 20) + block[16:])


# ---- a far link ----

def link(bench, args):
    """Small files over a link of 100 ms there and back and 100 Mbit/s, beside tar over the same proxy, in turns."""
    say("small files over 100 ms and 100 Mbit/s")
    files = 2_000 if args.quick else 10_000
    tree = bench.generate("src", files, "--plain", "--median", "4096")
    src, dst = bench.path("src"), bench.path("dst")
    pair = Pair(bench, src)
    proxy = Daemon([bench.programs["linkproxy"], "latency=50ms", "rate=100mbit", "buffer=1m", "--listen", "127.0.0.1:0", "--to", pair.at],
                   bench.log, stdout=subprocess.PIPE)
    at = proxy.process.stdout.readline().decode().strip()
    rows = {name: {"runs": []} for name in ("fs_mirror", "fs_mirror --compress off", "tar")}

    def ours(*more):
        pair.worker.forget()
        service = pair.start()
        try:
            service.address()
            pair.know(at)
            return timed(pair.mirror(dst, "--once", "--owners", "apply", *more, at=at), bench.log, env=pair.backup.env)
        finally:
            service.stop()

    def tar():
        os.mkdir(dst)
        # On the port that the proxy leads to.
        host, port = pair.at.rsplit(":", 1)
        listener = socket.create_server((host, int(port)))

        def send():
            connection, _ = listener.accept()
            with connection:
                subprocess.run(["tar", "-C", src, "-cf", "-", "."], stdout=connection.fileno(), check=True)

        sender = threading.Thread(target=send)
        sender.start()
        start = time.monotonic()
        near = socket.create_connection(tuple(at.rsplit(":", 1)))
        subprocess.run(["tar", "-C", dst, "--warning=no-timestamp", "-xpf", "-"], stdin=near.fileno(), check=True)
        subprocess.run(["sync", "-f", bench.work], check=True)
        run = {"seconds": time.monotonic() - start, "cpu_s": 0, "user_s": 0, "code": 0}
        sender.join()
        near.close()
        listener.close()
        return run

    ways = {"fs_mirror": ours, "fs_mirror --compress off": lambda: ours("--compress", "off"), "tar": tar}
    try:
        for rep in range(args.reps):
            for name, way in ways.items():
                bench.clear("dst")
                run = way()
                run["load"] = os.getloadavg()[0]
                rows[name]["runs"].append(run)
                if rep == 0:
                    rows[name]["differences"] = bench.differences(src, dst)
                say(f"  {name:28} {run['seconds']:7.2f} s  code {run['code']}  load {run['load']:.1f}")
    finally:
        proxy.stop()
        bench.clear("src", "dst")
    return {"link": {"tools": summed(rows), "tree": tree}}


# ---- many readers ----

def readers(bench, args):
    """Real mirrors of one tree over TLS: what each costs the worker, how often it reads a changed file, and what one that is
    stopped does to the others."""
    say("many readers")
    src = bench.path("src")
    tree = bench.generate("src", 2_000, "--plain", "--median", "4096")
    # What is changed, one by one and in the background.
    bench.probe("latency", "prepare", src, 4 * args.rounds)
    pair = Pair(bench, src)
    out = {"tree": tree, "rows": []}
    service = pair.start()
    mirrors = []
    try:
        service.address()
        for count in (1, 5, 20):
            while len(mirrors) < count:
                dst = bench.path(f"copy {len(mirrors)}")
                mirrors.append((Daemon(pair.mirror(dst, "--owners", "apply", "--on-mass-change", "follow"), bench.log, env=pair.backup.env), dst))
            for _, dst in mirrors:
                if not bench.probe("equal", src, dst, 120)["equal"]:
                    raise RuntimeError(f"{dst} never became equal")
            time.sleep(1)
            row = {"readers": count, **cost(bench, args, pair, service, src)}
            row["reads"] = reads(bench, pair, src, 200)
            for _, dst in mirrors:
                bench.probe("equal", src, dst, 60)
            row["worker_mib"] = anonymous_kib(tree_process(pair)) / 1024
            row["all_mib"] = anonymous_kib(service.daemon.pid) / 1024
            out["rows"].append(row)
            say(f"  {count:3} readers: worker {row['us_per_record']:.0f} us a record, {row['reads']:.2f} reads a changed file, "
                f"{row['worker_mib']:.0f} MiB in the tree's process, {row['all_mib']:.0f} in all, load {row['load']:.1f}")
        first, last = out["rows"][0], out["rows"][-1]
        out["us_each"] = (last["us_per_record"] - first["us_per_record"]) / (last["readers"] - first["readers"])
        say(f"  each reader more: {out['us_each']:.1f} us a record")
        out["stopped"] = {"not": [], "one": []}
        for turn in range(2):
            for name in ("not", "one"):
                if name == "one":
                    os.kill(mirrors[5][0].pid, signal.SIGSTOP)
                try:
                    got = latencies(bench.probe("latency", "run", src, mirrors[0][1], args.rounds, turn * 2 * args.rounds + (name == "one") * args.rounds, 100))["all"]
                finally:
                    os.kill(mirrors[5][0].pid, signal.SIGCONT)
                    time.sleep(2)
                out["stopped"][name].append(got)
                say(f"  a change, {'one reader stopped' if name == 'one' else 'all awake'}: {told(got)}")
        return {"readers": out}
    finally:
        for daemon, _ in mirrors:
            daemon.stop()
        service.stop()
        bench.clear("src", *[os.path.basename(dst) for _, dst in mirrors])


def tree_process(pair):
    return int(json.loads(pair.worker.run("mirrord", "status", "www", "--json"))["status"]["pid"])


def records(pair):
    return int(json.loads(pair.worker.run("mirrord", "status", "www", "--json"))["status"]["counters"]["records"])


def cost(bench, args, pair, service, src):
    """CPU of all of the worker's processes for each record, at 200 changes a second."""
    load = bench.probe.start("load", src, 200)
    try:
        time.sleep(2)
        before, cpu = records(pair), service.daemon.cpu_s()
        time.sleep(5 if args.quick else 10)
        made, spent = records(pair) - before, service.daemon.cpu_s() - cpu
    finally:
        load.stop()
    return {"records": made, "us_per_record": spent / max(made, 1) * 1e6, "load": os.getloadavg()[0]}


def reads(bench, pair, src, files):
    """How often the worker begins to read each of so many files that are changed."""
    pid, trace = tree_process(pair), bench.path("trace")
    tracer = subprocess.Popen(["strace", "-f", "-qq", "-y", "-e", "trace=read,pread64,preadv,copy_file_range,sendfile", "-o", trace, "-p", str(pid)],
                              stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(1)
    os.makedirs(src + "/changed", exist_ok=True)
    for number in range(files):
        with open(f"{src}/changed/{number}", "w") as out:
            out.write(f"{number} {time.monotonic()} " * 200)
    time.sleep(3)
    tracer.send_signal(signal.SIGINT)
    tracer.wait()
    # From the beginning of a file, and something was there.
    began = re.compile(r"pread64\(\d+<[^>]*/changed/[^>]*>.*, 0\) += [1-9]|\bread\(\d+<[^>]*/changed/[^>]*>.*\) += [1-9]")
    count = sum(1 for line in open(trace, errors="replace") if began.search(line))
    os.remove(trace)
    return count / files


# ---- what the others feel ----

def others(bench, args):
    """Trees on one host while one of their neighbours is copied for the first time, one is over its quota, and the network of one
    trickles; in turns with the same trees alone."""
    say("what trees feel of others in trouble")
    host = Host(bench, "host")
    quiet = ["o1", "o2", "o3"]
    trees = {name: bench.path("src-" + name) for name in [*quiet, "full", "slow"]}
    for name, src in trees.items():
        os.makedirs(src)
        with open(src + "/first", "w") as out:
            out.write(name)
    bench.generate("src-seeding", 5_000 if args.quick else 30_000)

    def tree(name, source, more=""):
        host.write(f"conf.d/{name}.toml", f'[tree.{name}]\nsource = "{source}"\ndst = "{bench.path("b-" + name)}"\n{more}\n')

    def reload():
        before = service.said().count("configuration read again")
        os.kill(service.daemon.pid, signal.SIGHUP)
        until = time.monotonic() + 30
        while service.said().count("configuration read again") == before and time.monotonic() < until:
            time.sleep(0.01)

    # A network that trickles: what stands for ssh lets 10 KiB/s through.
    script = host.dir + "/ssh"
    with open(script, "w") as out:
        out.write(f'#!/bin/sh\nfor last; do :; done\nexec {bench.programs["linkproxy"]} rate=10kib -- sh -c "exec $last"\n')
    os.chmod(script, 0o755)
    host.env["FS_MIRROR_SSH"] = script
    for name in quiet:
        tree(name, trees[name])
    host.write("fs_mirror.toml", "")
    service = Service(host, "fs_mirror")
    out = {"alone": [], "beside": []}
    try:
        for name in quiet:
            arrives(trees[name], bench.path("b-" + name), "ready", 60)
        for turn in range(args.reps):
            out["alone"].append(lags(bench, trees, quiet, f"alone{turn}"))
            say(f"  alone:       {told(out['alone'][-1])}, load {os.getloadavg()[0]:.1f}")
            with open(trees["full"] + "/large", "wb") as big:
                big.write(b"1" * (8 << 20))
            with open(trees["slow"] + "/large", "wb") as big:
                big.write(os.urandom(8 << 20))
            tree("full", trees["full"], 'bytes_max = "1M"')
            tree("slow", f"far:{trees['slow']}", f'remote_command = "{bench.programs["mirrord"]}"')
            reload()
            time.sleep(1)
            tree("seeding", bench.path("src-seeding"))
            reload()
            got = lags(bench, trees, quiet, f"beside{turn}")
            out["beside"].append(got)
            say(f"  beside them: {told(got)}, load {os.getloadavg()[0]:.1f}; full: {state(host, 'full')}, slow: {state(host, 'slow')}, seeding: {state(host, 'seeding')}")
            for name in ("full", "slow", "seeding"):
                os.remove(f"{host.dir}/etc/conf.d/{name}.toml")
            reload()
            for pid in daemons_of(host):
                os.kill(pid, 15)
            time.sleep(1)
            bench.clear(*["b-" + name for name in ("full", "slow", "seeding")])
    finally:
        service.stop()
    for what in ("p50", "p99"):
        alone, beside = (spread([run[what] for run in out[name]])["median"] for name in ("alone", "beside"))
        out[what] = beside / alone
        say(f"  {what}: {alone * 1000:.2f} -> {beside * 1000:.2f} ms, {out[what]:.2f} times")
    return {"others": out}


def state(host, name):
    done = subprocess.run(host.program("fs_mirror", "status", "--json"), env=host.env, capture_output=True, text=True)
    for line in done.stdout.splitlines():
        try:
            tree = json.loads(line)
        except ValueError:
            continue
        if tree.get("name") == name:
            return ((tree.get("status") or {}).get("state") or {}).get("is")
    return None


def arrives(src, dst, name, seconds):
    """A new file, until it is in the copy: seconds, or None."""
    there = f"{dst}/{name}"
    with open(f"{src}/{name}", "w") as out:
        out.write("x")
    start = time.monotonic()
    while not os.path.lexists(there):
        if time.monotonic() - start > seconds:
            return None
        time.sleep(0.0002)
    return time.monotonic() - start


def lags(bench, trees, quiet, of):
    """Of 150 new files, 20 ms apart."""
    got = []
    for number in range(50):
        for name in quiet:
            got.append(arrives(trees[name], bench.path("b-" + name), f"{of}-{number}", 30))
            time.sleep(0.02)
    there = [value for value in got if value is not None]
    return {"n": len(got), "lost": len(got) - len(there), "p50": percentile(there, 0.5), "p99": percentile(there, 0.99), "max": max(there, default=None)}
