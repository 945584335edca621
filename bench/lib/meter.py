"""Runs commands with a stopwatch: wall time, CPU time with all descendants, memory."""
import ctypes, json, os, signal, statistics, subprocess, threading, time

libc = ctypes.CDLL(None, use_errno=True)
TICKS = os.sysconf("SC_CLK_TCK")


def die_with_parent():
    libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG


def descendants(pid):
    """(pid, CPU seconds with those it has waited for) of a process and all below it."""
    found, children = {}, {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = open(f"/proc/{name}/stat").read().rsplit(")", 1)[1].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(name))
        found[int(name)] = sum(map(int, fields[11:15])) / TICKS
    out, todo = [], [pid]
    while todo:
        one = todo.pop()
        if one in found:
            out.append((one, found[one]))
            todo.extend(children.get(one, []))
    return out


def anonymous_kib(pid):
    """Anonymous memory of a process and all below it: no file pages, no page cache."""
    total = 0
    for one, _ in descendants(pid):
        try:
            for line in open(f"/proc/{one}/smaps_rollup"):
                if line.startswith("Anonymous:"):
                    total += int(line.split()[1])
        except OSError:
            pass
    return total


class Peak(threading.Thread):
    """The most anonymous memory seen, ten times a second."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.pid, self.kib, self.on = pid, 0, True
        self.start()

    def run(self):
        while self.on:
            self.kib = max(self.kib, anonymous_kib(self.pid))
            time.sleep(0.1)

    def mib(self):
        self.on = False
        self.join()
        return self.kib / 1024


def timed(command, log, memory=False, after=None, env=None):
    """Runs a command to its end, then `after`; what it took with both."""
    start = time.monotonic()
    with open(log, "ab") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, preexec_fn=die_with_parent, env=env)
    peak = Peak(process.pid) if memory else None
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    tool_s = time.monotonic() - start
    if after:
        subprocess.run(after, check=True)
    return {
        "seconds": time.monotonic() - start,
        "tool_s": tool_s,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "user_s": usage.ru_utime,
        "code": process.returncode,
        **({"anonymous_mib": peak.mib()} if peak else {}),
    }


class Daemon:
    """A tool that keeps running."""

    def __init__(self, command, log, env=None, stdout=None):
        out = open(log, "ab")
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stdout or out, stderr=out, preexec_fn=die_with_parent, env=env)
        out.close()

    @property
    def pid(self):
        return self.process.pid

    def alive(self):
        return self.process.poll() is None

    def cpu_s(self):
        return sum(seconds for _, seconds in descendants(self.pid))

    def stop(self):
        below = [pid for pid, _ in descendants(self.pid)]
        if self.alive():
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                print("    (had to be killed)", flush=True)
        for pid in below:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
        self.process.wait()
        return self.process.returncode


class Probe:
    """The Rust stopwatch."""

    def __init__(self, program):
        self.program = program

    def __call__(self, *words):
        done = subprocess.run([self.program, *map(str, words)], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"probe {words[0]}: {done.stderr.strip()}")
        return json.loads(done.stdout)

    def start(self, *words):
        return Daemon([self.program, *map(str, words)], os.devnull)


def spread(values):
    """Median, least and most."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else None
