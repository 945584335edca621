"""What the network costs: first copies over TLS beside those without a network, over a far link beside tar, many readers, and
what trees feel of others that are in trouble."""
import os, subprocess, time

from .measures import say, summed
from .meter import descendants, timed
from .services import Pair, daemons_of, over_a_pipe


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
