//! Mirrors of mirrors: chains, loops, and another upstream for the same copy.

mod ssh_support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use ssh_support::*;
use testkit::proc::Program;
use testkit::rng::Rng;
use testkit::workload;

/// Hosts `a` (the source), `b`, `c` ... on this machine.
struct Chain {
    bed: Bed,
}

impl Chain {
    fn new() -> Chain {
        Chain { bed: Bed::new() }
    }

    /// The tree as this host has it.
    fn tree(&self, host: &str) -> PathBuf {
        match host {
            "a" => self.bed.src(),
            host => self.bed.path(host),
        }
    }

    fn follow(&self, from: &str, to: &str, more: &[&str]) -> Program {
        // Each has an ssh of its own, whose pid becomes the far end's.
        let ssh = self.bed.path(&format!("ssh.{to}"));
        let text = format!(
            "#!/bin/sh\necho $$ > {}.pid\nexec {} \"$@\"\n",
            ssh.display(),
            self.bed.ssh
        );
        fs::write(&ssh, text).unwrap();
        fs::set_permissions(&ssh, fs::Permissions::from_mode(0o755)).unwrap();
        let source = format!("{from}:{}", self.tree(from).display());
        let mut command = Command::new(FS_MIRROR);
        command.args(["mirror", &source]).arg(self.tree(to));
        command.args(more).args(["--remote-command", MIRRORD]);
        self.bed.env(&mut command);
        command.env("FS_MIRROR_SSH", ssh);
        Program::start(&mut command).unwrap()
    }

    /// Ends the link that this host follows by, if there is one.
    fn cut(&self, host: &str) {
        let pid = fs::read_to_string(self.bed.path(&format!("ssh.{host}.pid")));
        if let Some(pid) = pid.ok().and_then(|pid| pid.trim().parse().ok()) {
            kill9(pid);
        }
    }

    fn follow_once(&self, from: &str, to: &str, more: &[&str]) -> (i32, String) {
        let more: Vec<&str> = ["--once"].iter().chain(more).copied().collect();
        ended(self.follow(from, to, &more))
    }

    /// A command on a mirror.
    fn command(&self, host: &str, words: &[&str]) -> (i32, String) {
        let mut command = Command::new(FS_MIRROR);
        command.args(words).arg("-m").arg(self.tree(host));
        let output = command.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        (output.status.code().unwrap_or(-1), text)
    }

    fn status(&self, host: &str) -> serde_json::Value {
        let (_, said) = self.command(host, &["status", "--json"]);
        let said: serde_json::Value = serde_json::from_str(&said).unwrap_or_default();
        said["status"].clone()
    }

    #[track_caller]
    fn wait_idle(&self, host: &str) {
        self.bed.wait("it runs", || {
            let (code, said) = self.command(host, &["status"]);
            code == 0 && !said.contains("not running")
        });
        let (code, said) = self.command(host, &["wait", "--idle", "--timeout", "60s"]);
        assert_eq!(code, 0, "{host}: {said}");
    }

    #[track_caller]
    fn equal(&self, host: &str) {
        self.bed.equal_to(&self.tree(host));
    }
}

fn inode(path: &Path) -> u64 {
    fs::metadata(path).unwrap().ino()
}

#[test]
fn a_mirror_is_followed_as_its_source_is() {
    let chain = Chain::new();
    chain.bed.populate(300, 1);
    let src = chain.bed.src();
    fs::write(src.join("large"), vec![3u8; 3 << 20]).unwrap();
    let mut b = chain.follow("a", "b", &[]);
    b.wait_stderr("equal: ", LONG).unwrap();
    let mut c = chain.follow("b", "c", &[]);
    c.wait_stderr("equal: ", LONG).unwrap();
    chain.equal("c");
    // Live, of every size. The barrier is the primary's.
    fs::write(src.join("small"), "small").unwrap();
    fs::write(src.join("middle"), vec![1u8; 200 << 10]).unwrap();
    fs::write(src.join("large"), vec![2u8; 5 << 20]).unwrap();
    let sparse = fs::File::create(src.join("sparse")).unwrap();
    sparse.set_len(3 << 20).unwrap();
    std::os::unix::fs::FileExt::write_at(&sparse, b"data", 1 << 20).unwrap();
    drop(sparse);
    fs::rename(src.join("tree"), src.join("moved")).unwrap();
    chain.wait_idle("c");
    assert_eq!(fs::read(chain.tree("c").join("small")).unwrap(), b"small");
    chain.equal("c");
    chain.equal("b");
    // Nothing of it was captured at b: there is one daemon, the source's.
    assert_eq!(chain.bed.daemons().len(), 1);
    let status = chain.status("b");
    assert_eq!(status["replicas"].as_array().map(Vec::len), Some(1));
    let (code, said) = chain.command("c", &["verify", "--against", "source"]);
    assert!(code == 0 && said.contains("no difference"), "{said}");
    let (code, said) = chain.command("c", &["verify", "--against", "source", "--repair"]);
    assert!(code != 0 && said.contains("directly"), "{code} {said}");
    // What was changed by hand at b is not passed on.
    fs::write(chain.tree("b").join("large"), vec![9u8; 5 << 20]).unwrap();
    let d = chain.follow_once("c", "d", &[]);
    assert_eq!(d.0, 0, "{}", d.1);
    chain.equal("d");
    let e = chain.follow_once("b", "e", &[]);
    assert_eq!(e.0, 0, "{}", e.1);
    chain.equal("e");
    // Cut off from the source, b says so to those who follow it.
    signal(chain.bed.daemons()[0], rustix::process::Signal::STOP);
    let cut = chain.bed.daemons()[0];
    chain.bed.script("exit 255");
    kill9(cut);
    chain.bed.wait("c knows that nothing comes", || {
        chain.status("c")["state"]["is"] == "disconnected"
    });
    // For one that does not come back no log is kept, once that is said.
    stop(c);
    let away = || -> Vec<String> {
        let replicas = chain.status("b")["replicas"].clone();
        let replicas = replicas.as_array().cloned().unwrap_or_default();
        let away = replicas.iter().filter(|r| r["connected"] == false);
        away.map(|r| r["name"].as_str().unwrap().to_owned())
            .collect()
    };
    chain.bed.wait("c is away", || away().len() == 1);
    let name = away().remove(0);
    let (code, said) = chain.command("b", &["forget", &name]);
    assert!(code == 0 && said.contains(&name), "{said}");
    assert_eq!(away(), [""; 0]);
    let (code, said) = chain.command("b", &["forget", &name]);
    assert!(code == 2 && said.contains("`fs_mirror status`"), "{said}");
    stop(b);
}

#[test]
fn loops_are_refused() {
    let chain = Chain::new();
    fs::write(chain.bed.src().join("a"), "a").unwrap();
    let mut b = chain.follow("a", "b", &[]);
    b.wait_stderr("equal: ", LONG).unwrap();
    let mut c = chain.follow("b", "c", &[]);
    c.wait_stderr("equal: ", LONG).unwrap();
    // Itself.
    stop(b);
    let mut b = chain.follow("b", "b", &["--repoint"]);
    b.wait_stderr("can't follow itself", LONG).unwrap();
    stop(b);
    // The one that it is followed by, though nothing comes to that now.
    let (code, said) = chain.follow_once("c", "b", &["--repoint"]);
    assert!(
        code == 2 && said.contains("can't be a loop"),
        "{code} {said}"
    );
    // And through one more.
    let mut b = chain.follow("a", "b", &["--repoint"]);
    b.wait_stderr("saved: source", LONG).unwrap();
    let mut d = chain.follow("c", "d", &[]);
    d.wait_stderr("equal: ", LONG).unwrap();
    stop(b);
    let (code, said) = chain.follow_once("d", "b", &["--repoint"]);
    assert!(
        code == 2 && said.contains("can't be a loop") && said.contains("1 more"),
        "{code} {said}"
    );
    stop(d);
    stop(c);
}

#[test]
fn another_upstream_goes_on_from_the_position() {
    let chain = Chain::new();
    chain.bed.populate(100, 5);
    let src = chain.bed.src();
    let mut b = chain.follow("a", "b", &[]);
    b.wait_stderr("equal: ", LONG).unwrap();
    let (code, said) = chain.follow_once("b", "c", &[]);
    assert_eq!(code, 0, "{said}");
    let tree = inode(&chain.tree("c").join("tree"));
    // Another source by mistake is refused.
    let (code, said) = chain.follow_once("a", "c", &[]);
    assert!(code == 2 && said.contains("--repoint"), "{code} {said}");
    fs::write(src.join("at a"), "at a").unwrap();
    let (code, said) = chain.follow_once("a", "c", &["--repoint"]);
    assert!(code == 0 && !said.contains("compared again"), "{said}");
    chain.equal("c");
    // Back, and ahead of b, which is away: it waits for b rather than go back.
    stop(b);
    fs::write(src.join("newer"), vec![7u8; 100 << 10]).unwrap();
    let (code, said) = chain.follow_once("a", "c", &[]);
    assert_eq!(code, 0, "{said}");
    let mut b = chain.follow("a", "b", &["--bwlimit", "20K"]);
    b.wait_stderr("connected", LONG).unwrap();
    let mut c = chain.follow("b", "c", &["--repoint"]);
    c.wait_stderr("equal: ", LONG).unwrap();
    fs::write(src.join("newest"), "newest").unwrap();
    chain.equal("c");
    assert_eq!(inode(&chain.tree("c").join("tree")), tree);
    let said = stop(c);
    assert!(!said.contains("compared again"), "{said}");
    stop(b);
}

/// Hosts and whom they follow.
struct Running<'a> {
    chain: &'a Chain,
    hosts: [Host; 3],
}

struct Host {
    name: &'static str,
    upstream: &'static str,
    program: Option<Program>,
}

impl Running<'_> {
    fn start(&mut self, n: usize, more: &[&str]) {
        let host = &mut self.hosts[n];
        let more: Vec<&str> = ["--on-mass-change", "follow"]
            .iter()
            .chain(more)
            .copied()
            .collect();
        host.program = Some(self.chain.follow(host.upstream, host.name, &more));
    }

    fn kill(&mut self, n: usize) {
        if let Some(mut program) = self.hosts[n].program.take() {
            program.kill().unwrap();
        }
    }

    /// One thing that goes wrong, or is done by a person.
    fn happens(&mut self, rng: &mut Rng) -> String {
        let n = rng.below(3) as usize;
        let name = self.hosts[n].name;
        match rng.below(6) {
            0 => {
                self.chain.cut(name);
                format!("the link of {name} is cut")
            }
            1 => {
                self.kill(n);
                format!("{name} is killed")
            }
            2 => {
                self.kill(n);
                self.start(n, &[]);
                format!("{name} is killed and started")
            }
            3 => {
                for daemon in self.chain.bed.daemons() {
                    kill9(daemon);
                }
                "the capture is killed".into()
            }
            4 => {
                let all: [&[&str]; 3] = [&["a"], &["a", "b"], &["a", "b", "c"]];
                self.hosts[n].upstream = rng.pick::<&str>(all[n]);
                self.kill(n);
                self.start(n, &["--repoint"]);
                format!("{name} follows {}", self.hosts[n].upstream)
            }
            _ => {
                if self.hosts[n].program.is_none() {
                    self.start(n, &[]);
                }
                format!("{name} runs")
            }
        }
    }
}

fn campaign(seed: u64) {
    let chain = Chain::new();
    let mut rng = Rng::new(seed);
    let src = chain.bed.src();
    chain.bed.populate(40, seed);
    let host = |name, upstream| Host {
        name,
        upstream,
        program: None,
    };
    let mut running = Running {
        chain: &chain,
        hosts: [host("b", "a"), host("c", "b"), host("d", "c")],
    };
    for n in 0..3 {
        running.start(n, &[]);
        let program = running.hosts[n].program.as_mut().unwrap();
        program.wait_stderr("equal: ", LONG).unwrap();
    }
    let mut done = Vec::new();
    for step in 0..8 {
        let params = workload::Params {
            seed: seed * 1000 + step,
            ops: rng.range(5, 60),
            existing: true,
            mappings: false,
            ..workload::Params::default()
        };
        workload::run(&src, &params).unwrap();
        let size = rng.below(3 << 20) as usize;
        fs::write(src.join(format!("large {step}")), vec![step as u8; size]).unwrap();
        done.push(running.happens(&mut rng));
        std::thread::sleep(std::time::Duration::from_millis(rng.below(400)));
    }
    println!("seed {seed}: {}", done.join(", "));
    for n in 0..3 {
        if running.hosts[n].program.is_none() {
            running.start(n, &[]);
        }
    }
    for host in &mut running.hosts {
        let program = host.program.as_mut().unwrap();
        assert!(program.ended().unwrap().is_none(), "{}", program.stderr());
    }
    for name in ["b", "c", "d"] {
        chain.wait_idle(name);
        chain.equal(name);
    }
    for host in &mut running.hosts {
        let said = stop(host.program.take().unwrap());
        assert!(!said.contains("compared again"), "{said}");
    }
}

/// `CHAIN_SEEDS=FIRST..LAST` for more than the few.
#[test]
fn a_chain_of_four_converges_whatever_happens() {
    let seeds = std::env::var("CHAIN_SEEDS").unwrap_or_else(|_| "1..3".into());
    let (first, last) = seeds.split_once("..").unwrap();
    for seed in first.parse().unwrap()..last.parse().unwrap() {
        campaign(seed);
    }
}

/// Opens of directories and files, as the kernel tells them.
struct Opens {
    inotify: std::os::fd::OwnedFd,
}

impl Opens {
    fn of(dirs: &[PathBuf]) -> Opens {
        use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
        let inotify = init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).unwrap();
        for dir in dirs {
            // Equal events that follow each other are one: what closes lies between two that open.
            let flags = WatchFlags::OPEN | WatchFlags::CLOSE_NOWRITE;
            add_watch(&inotify, dir, flags).unwrap();
        }
        Opens { inotify }
    }

    /// By name, those since the last time; of a directory that is watched itself: none.
    fn taken(&self) -> Vec<String> {
        let mut buffer = [const { std::mem::MaybeUninit::uninit() }; 64 << 10];
        use rustix::fs::inotify::ReadFlags;
        let mut reader = rustix::fs::inotify::Reader::new(&self.inotify, &mut buffer);
        let mut names = Vec::new();
        while let Ok(event) = reader.next() {
            if !event.events().contains(ReadFlags::OPEN) {
                continue;
            }
            let name = event
                .file_name()
                .map(|name| name.to_string_lossy().into_owned());
            names.push(name.unwrap_or_default());
        }
        names
    }
}

/// A directory and all below it.
fn dirs_below(top: &Path) -> Vec<PathBuf> {
    let mut dirs = vec![top.to_path_buf()];
    let mut at = 0;
    while let Some(dir) = dirs.get(at).cloned() {
        at += 1;
        for entry in fs::read_dir(dir).unwrap().flatten() {
            if entry.file_type().unwrap().is_dir() {
                dirs.push(entry.path());
            }
        }
    }
    dirs
}

#[test]
fn a_break_costs_no_look_at_what_did_not_change() {
    let chain = Chain::new();
    let src = chain.bed.src();
    for n in 0..20 {
        fs::create_dir_all(src.join(format!("tree/{n}/below"))).unwrap();
        fs::write(src.join(format!("tree/{n}/below/file")), n.to_string()).unwrap();
    }
    fs::create_dir(src.join("live")).unwrap();
    let quiet = ["--verify-every", "0"];
    let mut b = chain.follow("a", "b", &quiet);
    b.wait_stderr("equal: ", LONG).unwrap();
    chain.wait_idle("b");
    stop(b);
    let mut watched = dirs_below(&src.join("tree"));
    watched.extend(dirs_below(&chain.tree("b").join("tree")));
    let opens = Opens::of(&watched);
    fs::write(src.join("live/while away"), "away").unwrap();
    // Stopped, killed, and its link cut.
    let b = chain.follow("a", "b", &quiet);
    chain.wait_idle("b");
    chain.cut("b");
    fs::write(src.join("live/while cut"), "cut").unwrap();
    chain.wait_idle("b");
    let mut b = b;
    b.kill().unwrap();
    fs::write(src.join("live/while dead"), "dead").unwrap();
    let b = chain.follow("a", "b", &quiet);
    chain.wait_idle("b");
    assert_eq!(
        fs::read(chain.tree("b").join("live/while dead")).unwrap(),
        b"dead"
    );
    assert_eq!(opens.taken(), Vec::<String>::new());
    stop(b);
    chain.equal("b");
}

#[test]
fn each_changed_file_is_read_as_often_as_for_one_follower() {
    let chain = Chain::new();
    let src = chain.bed.src();
    fs::write(src.join("before"), "before").unwrap();
    let sizes = [
        ("small", 1 << 10),
        ("middle", 100 << 10),
        ("large", 10 << 20),
    ];
    let mut followers = Vec::new();
    let mut counts = Vec::new();
    for name in ["b", "c", "d", "e"] {
        let mut follower = chain.follow("a", name, &[]);
        follower.wait_stderr("equal: ", LONG).unwrap();
        followers.push(follower);
        if name != "b" && name != "e" {
            continue;
        }
        let opens = Opens::of(std::slice::from_ref(&src));
        for (what, bytes) in sizes {
            let beside = chain.bed.path("new");
            fs::write(&beside, vec![counts.len() as u8 + 1; bytes]).unwrap();
            fs::rename(beside, src.join(format!("{what} {name}"))).unwrap();
        }
        for name in ["b", "c", "d", "e"].iter().take(followers.len()) {
            chain.wait_idle(name);
        }
        let taken = opens.taken();
        let count = |what: &str| taken.iter().filter(|name| name.starts_with(what)).count();
        counts.push(sizes.map(|(what, _)| count(what)));
    }
    println!("opens of small, middle, large; for one and for four: {counts:?}");
    assert!(
        counts[1]
            .iter()
            .zip(counts[0])
            .all(|(four, one)| *four <= one),
        "{counts:?}"
    );
    followers
        .into_iter()
        .for_each(|follower| drop(stop(follower)));
    chain.equal("e");
}

#[test]
fn an_older_state_at_the_source_is_told_as_a_fork() {
    let chain = Chain::new();
    let src = chain.bed.src();
    chain.bed.populate(50, 4);
    let (code, said) = chain.follow_once("a", "b", &[]);
    assert_eq!(code, 0, "{said}");
    let capture_ends = || chain.bed.daemons().into_iter().for_each(kill9);
    capture_ends();
    let (now, image) = (chain.bed.states(), chain.bed.path("image"));
    let copy = |from: &Path, to: &Path| {
        let done = Command::new("cp").arg("-a").args([from, to]).status();
        assert!(done.unwrap().success());
    };
    copy(&now, &image);
    fs::write(src.join("seen"), "seen").unwrap();
    let (code, said) = chain.follow_once("a", "b", &[]);
    assert_eq!(code, 0, "{said}");
    capture_ends();
    fs::remove_dir_all(&now).unwrap();
    copy(&image, &now);
    fs::write(src.join("other"), "other").unwrap();
    let tree = inode(&chain.tree("b").join("tree"));
    let (code, said) = chain.follow_once("a", "b", &[]);
    assert!(
        code == 0 && said.contains("unexplained fork"),
        "{code} {said}"
    );
    chain.equal("b");
    assert_eq!(inode(&chain.tree("b").join("tree")), tree, "equal stays");
    // Until what lies aside is removed.
    let (code, said) = chain.follow_once("a", "b", &[]);
    assert!(code == 0 && !said.contains("compared again"), "{said}");
    let (_, said) = chain.command("b", &["status"]);
    assert!(said.contains("unexplained fork"), "{said}");
    fs::remove_dir_all(chain.bed.path("b.fs_mirror/divergence")).unwrap();
    let (code, said) = chain.follow_once("a", "b", &[]);
    assert_eq!(code, 0, "{said}");
    let (_, said) = chain.command("b", &["status"]);
    assert!(!said.contains("unexplained fork"), "{said}");
}
