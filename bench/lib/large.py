"""What small changes feel of a large file on its way: over links of several rates between two network namespaces."""
import os, subprocess, time

from .measures import quantiles, say, told
from .place import run
from .meter import Daemon
from .services import Host, Pair

# A link's name, its rate in tc's words, what its router lets through at once, and MiB of the large file.
LINKS = (("100 Mbit/s", "100mbit", "16kb", 256), ("1 Gbit/s", "1gbit", "64kb", 2048), ("no limit", None, None, 3072))
EVERY_MS = 20
AT = "10.77.0.1:8737"


class Far(Host):
    """A host with a network of its own."""

    def program(self, name, *words):
        return ["nsenter", f"--net=/run/netns/{os.path.basename(self.dir)}", *super().program(name, *words)]


class FarPair(Pair):
    """Worker and backup with a wire between them. Namespaces have names only in our private mounts, and are gone with them."""

    def __init__(self, bench, src):
        os.makedirs("/run/netns", exist_ok=True)
        run("mount", "-t", "tmpfs", "tmpfs", "/run/netns")
        self.worker, self.backup = Far(bench, "worker"), Far(bench, "backup")
        for name in ("worker", "backup"):
            run("ip", "netns", "add", name)
        run("ip", "-n", "worker", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", "backup")
        for name, address in (("worker", "10.77.0.1/24"), ("backup", "10.77.0.2/24")):
            run("ip", "-n", name, "addr", "add", address, "dev", "eth0")
            run("ip", "-n", name, "link", "set", "lo", "up")
            run("ip", "-n", name, "link", "set", "eth0", "up")
        self.src, self.at = src, AT
        self.configure(AT)

    def rate(self, rate, burst):
        for name in ("worker", "backup"):
            subprocess.run(["tc", "-n", name, "qdisc", "del", "dev", "eth0", "root"], stderr=subprocess.DEVNULL)
            if rate:
                run("tc", "-n", name, "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", rate, "burst", burst, "latency", "50ms")

    def close(self):
        for name in ("worker", "backup"):
            run("ip", "netns", "del", name)
        run("umount", "/run/netns")


def large(bench, args, links=LINKS):
    """New small files alone, then from when a large file is in the tree until it is in the copy."""
    say("small changes beside a large file")
    src, dst = bench.path("src"), bench.path("dst")
    os.mkdir(src)
    pair = FarPair(bench, src)
    out = {}
    service = pair.start()
    mirror = None
    try:
        service.until("listening on")
        pair.know(AT)
        mirror = Daemon(pair.mirror(dst, "--owners", "apply", "--on-mass-change", "follow"), bench.log, env=pair.backup.env)
        arrived(dst, src, "ready")
        for name, rate, burst, mib in links:
            mib = mib // 8 if args.quick else mib
            pair.rate(rate, burst)
            time.sleep(1)
            row = out[name] = {"mib": mib, "reps": []}
            for rep in range(1 if args.quick else min(args.reps, 2)):
                row["reps"].append(one(bench, args, src, dst, mib, f"{mib}-{rep}"))
                got = row["reps"][-1]
                say(f"  {name:11} alone:  {told(got['alone'])}")
                say(f"  {'':11} read:   {told(got['read'])}")
                say(f"  {'':11} beside: {told(got['travels'])}, {mib} MiB in {got['seconds']:.1f} s; "
                    + ", ".join(f"{what} {got['travels'][what] / got['alone'][what]:.2f} times" for what in ("p50", "p99")))
        return {"large": out}
    finally:
        if mirror:
            mirror.stop()
        service.stop()
        pair.close()
        bench.clear("src", "dst")


def arrived(dst, src, name, seconds=60):
    with open(f"{src}/{name}", "w") as out:
        out.write("x")
    until = time.monotonic() + seconds
    while not os.path.lexists(f"{dst}/{name}"):
        if time.monotonic() > until:
            raise RuntimeError(f"{name} never arrived")
        time.sleep(0.005)


def one(bench, args, src, dst, mib, of):
    small = lambda part, count: bench.probe("small", src, dst, f"{part}-{of}-", count, EVERY_MS)["took"]
    count = 100 if args.quick else 600
    small("warm", 50)
    alone = small("alone", count)
    beside = bench.path("large")
    block = os.urandom(1 << 20)
    with open(beside, "wb") as out:
        for at in range(mib):
            out.write(b"%016d" % at + block[16:])
        out.flush()
        os.fsync(out.fileno())
    staged = dst + ".fs_mirror/staging/travelling"
    start = time.monotonic()
    os.rename(beside, src + "/large")
    read, travels, n = [], [], 0
    while not os.path.lexists(dst + "/large"):
        on_its_way = os.path.isdir(staged) and os.listdir(staged) != []
        (travels if on_its_way else read).extend(small(f"beside{n}", 25))
        n += 1
        if time.monotonic() - start > 600:
            raise RuntimeError("the large file never arrived")
    seconds = time.monotonic() - start
    os.unlink(src + "/large")
    while os.path.lexists(dst + "/large"):
        time.sleep(0.01)
    return {"alone": quantiles(alone), "read": quantiles(read), "travels": quantiles(travels), "seconds": seconds}
