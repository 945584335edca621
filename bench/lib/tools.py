"""The tools that are measured: ours and the peers, each with the options that make it keep as much as it can."""
import os, re, shutil, subprocess

RSYNC = ["rsync", "-aHAX", "--numeric-ids"]
TAR = """tar -C "$0" -H posix --numeric-owner --xattrs --acls -cf - . |
tar -C "$1" --numeric-owner --xattrs --xattrs-include='*' --acls -xpf -"""


class Copier:
    """Runs to its end. `durable`: what it made is on stable storage when it ends, so it needs no `sync -f` after."""

    def __init__(self, name, command, durable=False, needs=None):
        self.name, self.command, self.durable = name, command, durable
        self.needs = needs or name


def copiers(fs_mirror):
    return [
        Copier("fs_mirror", lambda s, d: [fs_mirror, "mirror", s, d, "--once", "-q"], durable=True, needs=fs_mirror),
        Copier("tar pipe", lambda s, d: ["bash", "-c", TAR, s, d], needs="tar"),
        Copier("rsync", lambda s, d: [*RSYNC, s + "/", d + "/"]),
        Copier("cp -a", lambda s, d: ["cp", "-a", s + "/.", d + "/"], needs="cp"),
    ]


def finder(src):
    """Walks a tree and reads what any comparison must read of every entry."""
    return ["find", src, "-printf", "%p %i %n %m %U %G %s %T@ %C@ %l\\n"]


class Follower:
    """Keeps following. `loose`: times of directories and symlinks are not kept, so they don't count when waiting for it."""

    loose = False

    def __init__(self, name, needs):
        self.name, self.needs = name, needs


class Ours(Follower):
    def __init__(self, fs_mirror):
        super().__init__("fs_mirror", fs_mirror)

    def command(self, src, dst, scratch):
        return [self.needs, "mirror", src, dst, "-q", "--on-mass-change", "follow"]


class Lsyncd(Follower):
    loose = True

    def __init__(self):
        super().__init__("lsyncd delay 0", "lsyncd")

    def command(self, src, dst, scratch):
        conf = scratch + "/lsyncd.conf"
        os.makedirs(dst, exist_ok=True)
        with open(conf, "w") as out:
            out.write(
                f"""settings {{ nodaemon = true, logfile = "{scratch}/lsyncd.log", insist = true }}
sync {{ default.rsync, source = "{src}", target = "{dst}", delay = 0,
  rsync = {{ archive = true, hard_links = true, acls = true, xattrs = true, _extra = {{ "--numeric-ids" }} }} }}
"""
            )
        return ["lsyncd", conf]


def there(tool):
    return shutil.which(tool.needs) is not None


def versions():
    out = {}
    for name, command in {"rsync": ["rsync", "--version"], "tar": ["tar", "--version"], "cp": ["cp", "--version"],
                          "find": ["find", "--version"], "lsyncd": ["lsyncd", "--version"]}.items():
        if shutil.which(name):
            text = subprocess.run(command, capture_output=True, text=True).stdout
            number = re.search(r"\d+\.\d+(\.\d+)?", text)
            out[name] = number.group(0) if number else "?"
    return out
