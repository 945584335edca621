//! Mirrors of mirrors: chains, loops, and another upstream for the same copy.

mod ssh_support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use ssh_support::*;
use testkit::proc::Program;

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
        let source = format!("{from}:{}", self.tree(from).display());
        self.bed.mirror_from(&source, &self.tree(to), more)
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
    stop(c);
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
