"""Hosts as a user makes them: `mirrord serve` with a tree, and mirrors of it over TLS, on this machine."""
import json, os, re, subprocess, time

from .meter import Daemon

WAIT_S = 60


class Host:
    """A directory for configuration and state of both programs, and the environment that says so."""

    def __init__(self, bench, name):
        self.bench, self.dir = bench, bench.path(name)
        os.makedirs(self.dir + "/etc/conf.d", exist_ok=True)
        os.makedirs(self.dir + "/state", exist_ok=True)
        # The process that listens is nobody; it gets in here by what it was given.
        self.env = {key: value for key, value in os.environ.items() if key not in ("NOTIFY_SOCKET", "JOURNAL_STREAM")}
        for key in ("MIRRORD_CONFIG_DIR", "FS_MIRROR_CONFIG_DIR"):
            self.env[key] = self.dir + "/etc"
        for key in ("MIRRORD_STATE", "FS_MIRROR_STATE"):
            self.env[key] = self.dir + "/state"

    def program(self, name, *words):
        return [self.bench.programs[name], *words]

    def run(self, name, *words):
        done = subprocess.run(self.program(name, *words), env=self.env, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{name} {' '.join(words)}: {done.stdout}{done.stderr}")
        return done.stdout

    def write(self, file, text):
        with open(f"{self.dir}/etc/{file}", "w") as out:
            out.write(text)

    def forget(self):
        """What it knows of trees; keys stay."""
        subprocess.run(["rm", "-rf", self.dir + "/state"], check=True)
        os.mkdir(self.dir + "/state")


class Service:
    """`mirrord serve` or `fs_mirror serve` of a host, until it is stopped."""

    def __init__(self, host, program):
        self.host, self.log = host, host.dir + "/serve.log"
        open(self.log, "w").close()
        self.daemon = Daemon(host.program(program, "serve"), self.log, host.env)

    def said(self):
        with open(self.log, errors="replace") as log:
            return log.read()

    def until(self, what, seconds=WAIT_S):
        end = time.monotonic() + seconds
        while not (found := re.search(what, self.said())):
            if time.monotonic() > end or not self.daemon.alive():
                raise RuntimeError(f"`{what}` was not said:\n{self.said()}")
            time.sleep(0.005)
        return found

    def address(self):
        return self.until(r"listening on (127\.0\.0\.1:\d+)").group(1)

    def stop(self):
        return self.daemon.stop()


class Pair:
    """A worker with the tree `www`, and a host whose key may follow it."""

    def __init__(self, bench, src):
        self.worker, self.backup = Host(bench, "worker"), Host(bench, "backup")
        self.src, self.at = src, None
        self.configure("127.0.0.1:0")
        service = self.start()
        try:
            self.at = service.address()
            self.know(self.at)
        finally:
            service.stop()
        # The same port from now on: the backup knows the key by it.
        self.configure(self.at)

    def configure(self, listen, more=""):
        self.worker.write("mirrord.toml", f'listen = "{listen}"\n[tree.www]\npath = "{self.src}"\n{more}')

    def start(self):
        return Service(self.worker, "mirrord")

    def mirror(self, dst, *more, at=None):
        return self.backup.program("fs_mirror", "mirror", f"mirror://{at or self.at}/www", dst, "-q", *more)

    def know(self, at):
        """The same worker behind another address (a proxy), while it runs."""
        made = json.loads(self.worker.run("mirrord", "pair", "--tree", "*", "--host", at, "--json"))
        self.backup.run("fs_mirror", "pair", at, made["token"])


def over_a_pipe(host):
    """Environment for a mirror whose ssh only starts `mirrord` here: the protocol without a network and without TLS."""
    script = host.dir + "/ssh"
    with open(script, "w") as out:
        out.write('#!/bin/sh\nfor last; do :; done\nexec sh -c "exec $last"\n')
    os.chmod(script, 0o755)
    return dict(host.env, FS_MIRROR_SSH=script)


def daemons_of(host):
    """What `mirrord stdio` left running for this host: the processes that hold its states."""
    found = []
    state = host.dir + "/state"
    for name in os.listdir(state):
        try:
            pid = int(open(f"{state}/{name}/lock").read().split()[0])
        except (OSError, ValueError, IndexError):
            continue
        if os.path.exists(f"/proc/{pid}"):
            found.append(pid)
    return found
