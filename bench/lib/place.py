"""Where is measured: an ext4 in RAM in a mount namespace of our own, so that it is gone with us whatever happens."""
import ctypes, os, platform, re, shutil, signal, subprocess, sys, tempfile

INSIDE = "FS_MIRROR_BENCH_INSIDE"
libc = ctypes.CDLL(None, use_errno=True)


def enter():
    """Starts this program again in a private mount namespace; returns only there."""
    if os.geteuid() != 0:
        sys.exit("bench: needs root, to mount a file system in RAM and to watch it")
    if INSIDE in os.environ:
        libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
        return
    top = tempfile.mkdtemp(prefix="fs_mirror-bench-")
    command = ["unshare", "--mount", "--propagation", "private", sys.executable, *sys.argv]
    child = subprocess.Popen(command, env=dict(os.environ, **{INSIDE: top}))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: child.send_signal(number))
    try:
        code = child.wait()
    finally:
        # The mounts went with the namespace: what is here is an empty directory.
        shutil.rmtree(top, ignore_errors=True)
    sys.exit(code if code >= 0 else 128 - code)


def prioritize(nice):
    """For us and all we start. Where the kernel groups processes by session, the group's priority is what counts."""
    os.setpriority(os.PRIO_PROCESS, 0, nice)
    try:
        os.setsid()
    except OSError:
        pass  # leads its session already
    try:
        with open("/proc/self/autogroup", "w") as out:
            out.write(str(nice))
    except OSError:
        pass  # no such grouping here


class Ram:
    """An ext4 over a file in tmpfs. `block` 1024: very many tiny files in little memory."""

    def __init__(self, name, gib, block=4096, inodes=1_500_000, prefault=True):
        top = os.environ[INSIDE]
        self.store, self.path = f"{top}/{name}.store", f"{top}/{name}"
        image = self.store + "/image"
        os.mkdir(self.store)
        os.mkdir(self.path)
        run("mount", "-t", "tmpfs", "-o", f"size={gib * 1024 + 64}m", "tmpfs", self.store)
        # The first touch of a page costs many times the next ones: all of it now.
        how = ["fallocate", "-l", f"{gib}G"] if prefault else ["truncate", "-s", f"{gib}G"]
        run(*how, image)
        lazy = "lazy_itable_init=0,lazy_journal_init=0,nodiscard"
        run("mkfs.ext4", "-q", "-F", "-b", str(block), "-N", str(inodes), "-E", lazy, image)
        run("mount", "-o", "loop,relatime", image, self.path)
        os.rmdir(self.path + "/lost+found")

    def close(self):
        for path in (self.path, self.store):
            # Somebody we started may still be ending.
            subprocess.run(["umount", path], stderr=subprocess.DEVNULL).returncode == 0 or run("umount", "-l", path)
            os.rmdir(path)


def run(*command):
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    except FileNotFoundError:
        sys.exit(f"bench: {command[0]} is not installed")
    if done.returncode != 0:
        sys.exit(f"bench: {' '.join(command)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def machine():
    """What a reader must know of the machine; no host name, no path."""
    memory = re.search(r"MemTotal: *(\d+)", open("/proc/meminfo").read())
    model = re.search(r"model name\s*: (.*)", open("/proc/cpuinfo").read())
    return {
        "cores": os.cpu_count(),
        "cpu": model.group(1) if model else platform.machine(),
        "ram_gib": round(int(memory.group(1)) / 2**20, 1),
        "kernel": re.match(r"\d+\.\d+", platform.release()).group(0),
        "load": os.getloadavg()[0],
    }
