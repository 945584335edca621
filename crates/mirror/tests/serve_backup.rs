//! `fs_mirror serve` from outside: many trees, one of them broken; reload, limits, alarms, hooks, monitors, the end.

mod ssh_support;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use ssh_support::{Bed, FS_MIRROR, LONG, MIRRORD, kill9, signal};
use testkit::compare::Options;
use testkit::proc::{Program, wait_equal, wait_until};

/// A backup host: its configuration, its service, and sources beside it.
struct Host {
    bed: Bed,
    service: Option<Program>,
}

impl Host {
    fn new() -> Host {
        let host = Host {
            bed: Bed::new(),
            service: None,
        };
        for dir in ["etc/conf.d", "state", "b"] {
            fs::create_dir_all(host.path(dir)).unwrap();
        }
        host
    }

    fn path(&self, below: &str) -> PathBuf {
        self.bed.path(below)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(FS_MIRROR);
        command
            .args(words)
            .current_dir("/")
            .env("FS_MIRROR_CONFIG_DIR", self.path("etc"))
            .env("FS_MIRROR_STATE", self.path("state"))
            .env_remove("JOURNAL_STREAM");
        self.bed.env(&mut command);
        command
    }

    /// Exit code, and all that it said.
    fn run(&self, words: &[&str]) -> (i32, String) {
        let output = self.command(words).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (
            output.status.code().unwrap_or(-1),
            String::from_utf8_lossy(&text).into_owned(),
        )
    }

    /// A source directory with a file.
    fn source(&self, name: &str) -> PathBuf {
        let dir = self.path(&format!("src-{name}"));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("first"), name).unwrap();
        dir
    }

    fn dst(&self, name: &str) -> PathBuf {
        self.path(&format!("b/{name}"))
    }

    /// The file of a tree, with more settings.
    fn tree(&self, name: &str, source: &str, more: &str) {
        let dst = self.dst(name);
        let text = format!(
            "[tree.{name}]\nsource = \"{source}\"\ndst = \"{}\"\n{more}\n",
            dst.display()
        );
        fs::write(self.path(&format!("etc/conf.d/{name}.toml")), text).unwrap();
    }

    /// A tree on this host.
    fn local(&self, name: &str, more: &str) -> PathBuf {
        let source = self.source(name);
        self.tree(name, &source.display().to_string(), more);
        source
    }

    fn serve(&mut self) {
        self.service = Some(Program::start(&mut self.command(&["serve"])).unwrap());
    }

    fn log(&self) -> String {
        self.service
            .as_ref()
            .map(Program::stderr)
            .unwrap_or_default()
    }

    fn reload(&mut self) {
        let before = self.log().matches("configuration read again").count();
        self.service.as_mut().unwrap().signal(Signal::HUP).unwrap();
        self.wait("it is read again", |host| {
            host.log().matches("configuration read again").count() > before
        });
    }

    #[track_caller]
    fn wait(&self, what: &str, mut is_so: impl FnMut(&Host) -> bool) {
        if wait_until(what, LONG, || is_so(self)).is_err() {
            let (_, status) = self.run(&["status"]);
            panic!("{what}: not within {LONG:?}\n{status}\n{}", self.log());
        }
    }

    #[track_caller]
    fn equal(&self, source: &Path, name: &str) {
        if wait_equal(source, &self.dst(name), &Options::default(), LONG).is_err() {
            let (_, status) = self.run(&["status"]);
            panic!("{name} is not equal\n{status}\n{}", self.log());
        }
    }

    /// The process of a tree that runs, as the service says.
    fn pid(&self, name: &str) -> Option<u32> {
        let text = fs::read(self.path("state/service.json")).ok()?;
        let service: Value = serde_json::from_slice(&text).ok()?;
        let trees = service["trees"].as_array()?;
        let tree = trees.iter().find(|tree| tree["name"] == name)?;
        u32::try_from(tree["pid"].as_u64()?).ok()
    }

    /// Likewise, once the service says so.
    #[track_caller]
    fn running(&self, name: &str) -> u32 {
        self.wait("it has a process", |host| host.pid(name).is_some());
        self.pid(name).unwrap()
    }

    fn state(&self, name: &str) -> Value {
        self.status(name)["state"].clone()
    }

    fn status(&self, name: &str) -> Value {
        let (_, text) = self.run(&["status", "--json"]);
        let lines = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut trees = lines.filter(|tree| tree["name"] == name);
        trees
            .next()
            .map_or(Value::Null, |tree| tree["status"].clone())
    }

    fn is_held(&self, name: &str, why: &str) -> bool {
        let state = self.state(name);
        state["is"] == "hold"
            && state["reason"] == "limit"
            && state["what"]
                .as_str()
                .is_some_and(|what| what.contains(why))
    }

    /// Ends it as systemd does. What it said.
    fn stop(&mut self) -> String {
        let mut service = self.service.take().unwrap();
        let status = service.stop(Duration::from_secs(30)).unwrap();
        let log = service.stderr();
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(!log.contains("did not end when told to"), "{log}");
        log
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(mut service) = self.service.take() {
            let _ = service.stop(Duration::from_secs(30));
        }
    }
}

#[test]
fn trees_are_followed_each_on_its_own() {
    let mut host = Host::new();
    let same = host.local("same", "");
    let live = host.local("live", "");
    let fixed = host.local("fixed", "");
    let gone = host.local("gone", "");
    let far = host.source("far");
    let remote = format!("remote_command = \"{MIRRORD}\"\n");
    host.tree("far", &format!("far:{}", far.display()), &remote);
    host.tree("broken", "/nowhere/at/all", "");
    host.serve();
    for (source, name) in [
        (&same, "same"),
        (&live, "live"),
        (&fixed, "fixed"),
        (&gone, "gone"),
        (&far, "far"),
    ] {
        host.equal(source, name);
    }
    host.wait("the broken one is told", |host| {
        host.log()
            .contains("broken: fs_mirror: SRC /nowhere/at/all does not exist")
    });
    let names = ["same", "live", "fixed", "gone", "far"];
    host.wait("all have processes", |host| {
        names.iter().all(|name| host.pid(name).is_some())
    });
    let before = names.map(|name| host.pid(name));

    // One is added, one removed, one changed, one changed in what it can take over, and a file is broken.
    let new = host.source("new");
    host.local("live", "ops_max = 5000\nbwlimit = \"50M\"");
    host.local("fixed", "verify_every = \"never\"");
    fs::remove_file(host.path("etc/conf.d/gone.toml")).unwrap();
    fs::write(host.path("etc/conf.d/far.toml"), "[tree.far\n").unwrap();
    let (code, said) = host.run(&[
        "add",
        "new",
        new.to_str().unwrap(),
        host.dst("new").to_str().unwrap(),
    ]);
    // Another file's mistake does not keep it out.
    assert_eq!(code, 0, "{said}");
    host.reload();
    host.equal(&new, "new");
    host.wait("the changed one is another process", |host| {
        host.pid("fixed").is_some_and(|pid| Some(pid) != before[2])
    });
    host.wait("limits are read again", |host| {
        host.log()
            .contains("live: limits, rates and hooks are read again")
    });
    host.wait("the removed one is gone", |host| host.pid("gone").is_none());
    host.wait("the rate is told", |host| {
        host.log().contains("live: bwlimit is now 50 MiB/s")
    });
    let after = names.map(|name| host.pid(name));
    assert_eq!(
        (before[0], before[1], before[4]),
        (after[0], after[1], after[4]),
        "{}",
        host.log()
    );
    assert!(
        host.log()
            .contains("far: goes on with its settings of before"),
        "{}",
        host.log()
    );
    assert!(host.dst("gone").join("first").exists());
    for (source, name) in [
        (&same, "same"),
        (&live, "live"),
        (&fixed, "fixed"),
        (&far, "far"),
    ] {
        fs::write(source.join("second"), name).unwrap();
        host.equal(source, name);
    }

    // A limit holds, is told, and is lifted over the connection there is, however much is owed.
    let mut bytes = vec![0; 2 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    // What a hook is told of is there, also where its content came later than all else.
    let heard = host.path("heard");
    let hook = format!(
        "[[tree.far.hook]]\non = \"applied\"\nquiet = \"10ms\"\ncommand = '''\ncd \"$FS_MIRROR_DST\"; xargs -0 -r stat -c '%n %s' >> {} 2>&1'''\n",
        heard.display()
    );
    let rate = |host: &Host, rate: &str| {
        let more = format!("{remote}bwlimit = \"{rate}\"\n{hook}");
        host.tree("far", &format!("far:{}", far.display()), &more);
    };
    let connected = |host: &Host| host.log().matches("far: connected to").count();
    let connections = connected(&host);
    rate(&host, "1K");
    host.reload();
    host.wait("the rate is told", |host| {
        host.log().contains("far: bwlimit is now 1.0 KiB/s")
    });
    for n in 0..4 {
        fs::write(far.join(format!("large{n}")), bytes.split_at(n).1).unwrap();
    }
    fs::write(far.join("small"), "x").unwrap();
    host.wait("the limit is what holds it back", |host| {
        host.status("far")["held_to"] == 1024
    });
    rate(&host, "none");
    host.reload();
    host.equal(&far, "far");
    let status = host.status("far");
    let text = || fs::read_to_string(&heard).unwrap_or_default();
    host.wait("all is told", |_| {
        let told = text();
        let mut all = (0..4).map(|n| format!("large{n} {}\n", bytes.len() - n));
        all.all(|line| told.contains(&line)) && told.contains("small 1\n")
    });
    assert!(!text().contains("cannot"), "{}", text());
    assert_eq!(connected(&host), connections, "{}", host.log());
    assert_eq!(status["link"]["compress"], "auto", "{status}");

    // A process that dies is started again, and the others do not notice.
    kill9(host.running("same"));
    fs::write(same.join("third"), "x").unwrap();
    host.equal(&same, "same");
    host.wait("it is another process", |host| {
        host.pid("same").is_some_and(|pid| Some(pid) != before[0])
    });
    assert_eq!(Some(host.running("live")), before[1]);
    let log = host.stop();
    let timeless = log.lines().find(|line| !line.starts_with("20"));
    assert_eq!(timeless, None);
    // What fails in the same way again and again is said once.
    assert_eq!(log.matches("broken: fs_mirror: SRC").count(), 1, "{log}");
    let (code, said) = host.run(&["check"]);
    assert_eq!(code, 2, "{said}");
    assert!(
        said.starts_with("FS_MIRROR CRITICAL - the service is not running"),
        "{said}"
    );
}

#[test]
fn a_tree_keeps_within_its_limits_and_the_others_go_on() {
    let mut host = Host::new();
    let free = host.local("free", "");
    let bytes = host.local("bytes", "bytes_max = \"100K\"");
    let inodes = host.local("inodes", "inodes_max = 5");
    let floor = host.local("floor", "min_free = \"900T\"");
    let far = host.source("far");
    let remote = format!("remote_command = \"{MIRRORD}\"\n");
    let source = format!("far:{}", far.display());
    host.tree(
        "far",
        &source,
        &format!("{remote}bytes_max = 1000\nops_max = 200"),
    );
    fs::write(far.join("large"), [1; 5000]).unwrap();
    host.serve();
    host.wait("the floor holds", |host| {
        host.is_held("floor", "and min_free is 900.0 TiB")
            || host.is_held("floor", "min_free is 900")
    });
    assert!(!host.dst("floor").join("first").exists());
    host.wait("the first copy is held", |host| {
        host.is_held("far", "and bytes_max is 1000 B")
    });
    for (source, name) in [(&free, "free"), (&bytes, "bytes"), (&inodes, "inodes")] {
        host.equal(source, name);
    }
    let large = vec![7u8; 200 << 10];
    fs::write(bytes.join("large"), &large).unwrap();
    for n in 0..6 {
        fs::write(inodes.join(format!("f{n}")), "x").unwrap();
    }
    host.wait("bytes are held", |host| {
        host.is_held("bytes", "and bytes_max is 100 KiB")
    });
    host.wait("inodes are held", |host| {
        host.is_held("inodes", "and inodes_max is 5")
    });
    assert!(!host.dst("bytes").join("large").exists());
    // Nobody's word makes room.
    let (code, said) = host.run(&[
        "release",
        "--yes",
        "-m",
        host.dst("bytes").to_str().unwrap(),
    ]);
    assert_eq!(code, 4, "{said}");
    fs::write(free.join("large"), &large).unwrap();
    host.equal(&free, "free");
    let (code, said) = host.run(&["check"]);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("OK free: following"), "{said}");
    let before = host.running("bytes");

    // Room is made at the source, or the limit raised.
    fs::remove_file(bytes.join("large")).unwrap();
    fs::write(bytes.join("small"), "x").unwrap();
    host.equal(&bytes, "bytes");
    host.local("inodes", "inodes_max = 100");
    host.local("floor", "min_free = 1");
    host.tree("far", &source, &remote);
    host.reload();
    for (source, name) in [
        (&inodes, "inodes"),
        (&floor, "floor"),
        (&far, "far"),
        (&bytes, "bytes"),
    ] {
        host.equal(source, name);
    }
    assert_eq!(host.running("bytes"), before);
    host.stop();
}

#[test]
fn alarms_hooks_and_monitors() {
    let mut host = Host::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 1000];
        let n = stream.read(&mut request).unwrap();
        stream
            .write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
            .unwrap();
        String::from_utf8_lossy(&request[..n]).into_owned()
    });
    let told = host.path("told");
    let general = format!(
        "deadman = \"http://127.0.0.1:{port}/alive\"\ntextfile = \"{}\"\n[on_alarm]\ncommand = '''\necho \"$FS_MIRROR_ALARM \
         $FS_MIRROR_WHEN $FS_MIRROR_TREE: $FS_MIRROR_TEXT\" >> {}'''\n",
        host.path("metrics.prom").display(),
        told.display()
    );
    fs::write(host.path("etc/fs_mirror.toml"), general).unwrap();
    let heard = host.path("heard");
    let hook = format!(
        "bytes_max = 1000\n[[tree.blog.hook]]\non = \"applied\"\nquiet = \"50ms\"\npatterns = [\"conf/\"]\ncommand = '''\n\
         {{ echo \"$FS_MIRROR_TREE $FS_MIRROR_ALL_CHANGED $FS_MIRROR_POSITION\"; tr '\\0' '\\n'; }} >> {0}.new; cp {0}.new {0}'''\n",
        heard.display()
    );
    let blog = host.local("blog", &hook);
    let shop = host.local("shop", "");
    host.serve();
    host.equal(&blog, "blog");
    host.equal(&shop, "shop");
    let request = asked.join().unwrap();
    assert!(request.starts_with("GET /alive HTTP/1.1\r\n"), "{request}");

    fs::create_dir(blog.join("conf")).unwrap();
    fs::write(blog.join("other"), "x").unwrap();
    fs::write(blog.join("conf/a b"), "x").unwrap();
    host.wait("the hook is run", |_| {
        let text = fs::read_to_string(&heard).unwrap_or_default();
        text.lines().any(|line| line == "conf/a b")
            && text.starts_with("blog 0 ")
            && !text.contains("other")
    });

    fs::write(blog.join("large"), [1; 2000]).unwrap();
    let lines = |host: &Host| fs::read_to_string(host.path("told")).unwrap_or_default();
    host.wait("the limit is told", |host| {
        lines(host).contains("limit begins blog: the copy would hold")
    });
    fs::remove_file(blog.join("large")).unwrap();
    host.wait("that it is over is told", |host| {
        lines(host).contains("limit over blog: ")
    });
    assert_eq!(lines(&host).lines().count(), 2, "{}", lines(&host));

    host.wait("metrics are written", |host| {
        let text = fs::read_to_string(host.path("metrics.prom")).unwrap_or_default();
        text.contains("fs_mirror_up{tree=\"shop\"} 1")
            && text.contains("fs_mirror_state{tree=\"shop\",state=\"following\"} 1")
    });
    let (code, said) = host.run(&["check", "--max-lag", "1h"]);
    assert_eq!(code, 0, "{said}");
    assert!(said.starts_with("FS_MIRROR OK - 2 trees: 2 ok"), "{said}");

    // One that hangs: it does not answer, and what it wrote last is old.
    let pid = host.running("shop");
    signal(pid, Signal::STOP);
    let file = host.path("b/shop.fs_mirror/status.json");
    let mut status: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    status["now"] = "2026-01-01T00:00:00.000Z".into();
    fs::write(&file, status.to_string()).unwrap();
    let (code, said) = host.run(&["check"]);
    host.wait("that it is silent is told", |host| {
        lines(host).contains("stale begins shop: ")
    });
    signal(pid, Signal::CONT);
    assert_eq!(code, 2, "{said}");
    assert!(
        said.contains("CRITICAL shop: the running process does not answer"),
        "{said}"
    );
    assert!(said.contains("OK blog: following"), "{said}");
    host.wait("it is well again", |host| {
        lines(host).contains("stale over shop: ")
    });
    let (code, said) = host.run(&["status"]);
    assert_eq!(code, 0, "{said}");
    assert!(
        said.lines()
            .any(|line| line.starts_with("shop: ") && line.contains(": following, lag ")),
        "{said}"
    );
    host.stop();
}

#[test]
fn what_is_wrong_is_one_line_each() {
    let mut host = Host::new();
    let config = host.path("etc/fs_mirror.toml");
    let source = host.source("a");
    let dst = |name: &str| host.dst(name).display().to_string();
    let src = source.display().to_string();
    let add = |name: &str, dst: &str, more: &[&str]| {
        let mut words = vec!["add", name, src.as_str(), dst];
        words.extend(more);
        host.run(&words)
    };
    fs::remove_dir(host.path("etc/conf.d")).unwrap();
    let (code, said) = host.run(&["serve"]);
    assert_eq!((code, said.lines().count()), (2, 1), "{said}");
    assert!(
        said.contains("`fs_mirror add NAME SRC DST` makes one"),
        "{said}"
    );

    assert_eq!(
        add("a", &dst("a"), &["--bytes-max", "10G", "--nice", "-5"]).0,
        0
    );
    for (name, to, want) in [
        ("a", dst("x"), "a.toml is there already"),
        ("b", dst("a"), "is also DST of tree a"),
        ("b", dst("a/below"), "is inside DST of tree a"),
        ("b", format!("{src}/below"), "is inside SRC"),
        ("b/c", dst("b"), "is no name of a tree"),
        ("b", dst("no/such/place"), "does not exist"),
    ] {
        let (code, said) = add(name, &to, &[]);
        assert_eq!((code, said.lines().count()), (2, 1), "{said}");
        assert!(said.contains(want), "{want}: {said}");
    }
    // What the unit asks for is there.
    assert!(fs::read_to_string(&config).unwrap().starts_with("# "));
    let (code, said) = host.run(&["list"]);
    assert_eq!((code, said), (0, format!("a: {} <- {src}\n", dst("a"))));
    // A service that has only just begun, after one that ended long ago.
    let state = host.path("state");
    fs::write(
        state.join("service.json"),
        r#"{"pid":1,"config":"","now":"2026-01-01T00:00:00.000Z","trees":[],"problems":[]}"#,
    )
    .unwrap();
    let lock = mirror::engine::control::StateLock::take(&state).unwrap();
    let (code, said) = host.run(&["status"]);
    assert_eq!(
        (code, said),
        (0, format!("a: {} <- {src}: starting\n", dst("a")))
    );
    drop(lock);
    // A worker that dials.
    let nat = dst("nat");
    let (code, said) = host.run(&["add", "nat", "mirror://w1/nat", &nat, "--accept"]);
    assert_eq!(code, 0, "{said}");
    let (code, said) = host.run(&["config", "show", "--all"]);
    assert!(code == 0 && said.contains("accept = true"), "{said}");
    assert_eq!(host.run(&["remove", "nat"]).0, 0);
    let (code, said) = host.run(&["config", "show", "--all"]);
    assert!(
        code == 0 && said.contains("bytes_max = 10737418240") && said.contains("nice = -5"),
        "{said}"
    );
    let (code, said) = host.run(&["config", "check"]);
    assert!(code == 0 && said.ends_with("is good: 1 tree\n"), "{said}");
    let (code, said) = host.run(&["config", "check", &format!("{}/x", dst("a"))]);
    assert!(
        code == 0 && said.contains("x: mirrored, no ignore line matches"),
        "{said}"
    );
    assert_eq!(host.run(&["remove", "b"]).0, 2);

    fs::write(
        &config,
        "lissen = []\nmax_lag = 'soon'\n[tree.b]\nsource = 'x'\n[tree.c]\nsource = '/c'\ndst = '/c.copy'\nnice = 99\n",
    )
    .unwrap();
    for words in [["serve", "-q"].as_slice(), ["config", "check"].as_slice()] {
        let (code, said) = host.run(words);
        assert_eq!(code, 2, "{said}");
        for want in [
            "fs_mirror.toml, line 1: no setting is called lissen",
            "fs_mirror.toml, line 2: max_lag: soon is not a duration",
            "fs_mirror.toml, line 3: dst is missing",
            "fs_mirror.toml, line 4: source: x does not begin with /",
            "fs_mirror.toml, line 8: nice is a number from -20 to 19",
        ] {
            assert!(said.contains(want), "{want}: {said}");
        }
        let summary = usize::from(words[0] == "serve");
        assert_eq!(said.lines().count(), 5 + summary, "{said}");
    }
    fs::remove_file(&config).unwrap();

    host.serve();
    host.equal(&source, "a");
    let (code, said) = host.run(&["serve"]);
    assert_eq!((code, said.lines().count()), (5, 1), "{said}");
    host.wait("it leaves word", |host| host.pid("a").is_some());
    let (code, said) = host.run(&["remove", "a"]);
    assert_eq!(code, 0, "{said}");
    assert!(
        said.contains("was told; the copy") && said.ends_with(" stay\n"),
        "{said}"
    );
    host.wait("it is followed no more", |host| {
        host.log().contains("a: followed no more")
    });
    assert!(host.dst("a").join("first").exists() && host.path("b/a.fs_mirror/index").exists());
    host.stop();
}

#[test]
fn all_trees_of_a_host_are_followed_from_another_service() {
    let mut host = Host::new();
    let remote = format!("remote_command = \"{MIRRORD}\"\n");
    let far = |host: &Host, name: &str| {
        let source = host.source(name);
        host.tree(name, &format!("far:{}", source.display()), &remote);
        source
    };
    let blog = far(&host, "blog");
    let shop = far(&host, "shop");
    // What is read on this host is not offered: its log is nobody else's.
    host.local("local", "");
    fs::write(
        host.path("etc/fs_mirror.toml"),
        "listen = [\"127.0.0.1:0\"]\n",
    )
    .unwrap();
    host.serve();
    host.equal(&blog, "blog");
    host.equal(&shop, "shop");
    host.wait("it listens", |host| {
        host.log().contains("listening on 127.0.0.1:")
    });
    let log = host.log();
    let at = log
        .split("listening on ")
        .nth(1)
        .and_then(|rest| rest.split(',').next());
    let at = at.unwrap().to_owned();
    let (code, said) = host.run(&["pair", "--tree", "*", "--host", &at, "--json"]);
    assert_eq!(code, 0, "{said}");
    let told: Value = serde_json::from_str(said.lines().next().unwrap()).unwrap();
    let token = told["token"].as_str().unwrap().to_owned();

    let mut other = Host::new();
    let (code, said) = other.run(&["pair", &at, &token]);
    assert_eq!(code, 0, "{said}");
    let (source, dst) = (format!("mirror://{at}/*"), other.dst("web/*"));
    let (code, said) = other.run(&[
        "add",
        "web",
        &source,
        dst.to_str().unwrap(),
        "--owners",
        "apply",
    ]);
    assert_eq!(code, 0, "{said}");
    other.serve();
    other.equal(&blog, "web/blog");
    other.equal(&shop, "web/shop");
    let new = far(&host, "new");
    host.reload();
    other.reload();
    other.equal(&new, "web/new");
    assert!(!other.dst("web/local").exists());

    // A tree that is offered no more is kept, and said to be alone.
    let before = other.running("web.blog");
    let (code, said) = host.run(&["remove", "shop"]);
    assert_eq!(code, 0, "{said}");
    host.wait("it is followed no more", |host| {
        host.log().contains("shop: followed no more")
    });
    other.reload();
    other.wait("it is told", |other| {
        other
            .log()
            .contains("web: shop is offered no more; its copy is kept")
    });
    other.wait("monitors are told", |other| {
        other
            .run(&["check"])
            .1
            .contains("web.shop: offered no more; its copy is kept")
    });
    assert!(other.dst("web/shop").join("first").exists());
    fs::write(blog.join("second"), "x").unwrap();
    other.equal(&blog, "web/blog");
    assert_eq!(other.running("web.blog"), before);
    other.stop();
    host.stop();
}

/// What `check` says of a tree.
fn line<'a>(said: &'a str, name: &str) -> &'a str {
    let has = |line: &&str| {
        line.split_once(' ')
            .is_some_and(|(_, rest)| rest.starts_with(&format!("{name}: ")))
    };
    said.lines().find(has).unwrap_or_default()
}

#[test]
fn what_hangs_or_is_wrong_is_told_and_the_rest_goes_on() {
    let mut host = Host::new();
    let mut names = vec!["a"];
    host.local("a", "");
    // Nor does a mistake that is there at the start keep others out.
    host.local("wrong", "nice = 'x'");
    host.serve();
    host.wait("it runs", |host| host.pid("a").is_some());
    assert!(
        host.log().contains("conf.d/wrong.toml, line "),
        "{}",
        host.log()
    );
    host.wait("it is told", |host| {
        let (code, said) = host.run(&["check"]);
        code == 1 && said.contains("1 mistake in the configuration")
    });
    fs::remove_file(host.path("etc/conf.d/wrong.toml")).unwrap();
    // Nobody will ever write into it.
    let fifo = host.path("etc/conf.d/fifo.toml");
    let made = Command::new("mkfifo").arg(&fifo).status().unwrap();
    assert!(made.success());
    fs::write(host.path("etc/conf.d/a.toml"), "[tree.a]\nsource = \"x\n").unwrap();
    let new = host.local("new", "");
    names.push("new");
    host.reload();
    host.equal(&new, "new");
    let log = host.log();
    assert!(log.contains("fifo.toml: it is not a plain file"), "{log}");
    assert!(
        log.contains("a: goes on with its settings of before"),
        "{log}"
    );
    host.wait("all is told", |host| {
        let said = host.run(&["check"]).1;
        names
            .iter()
            .all(|name| line(&said, name).starts_with("OK "))
    });
    let (code, said) = host.run(&["check"]);
    assert_eq!(code, 1, "{said}");
    assert!(
        said.starts_with("FS_MIRROR WARNING - 2 trees: 2 ok, 0 warning, 0 critical; 2 mistakes in the configuration: "),
        "{said}"
    );
    assert!(
        said.contains("conf.d/a.toml, line 2: ")
            && said.contains("fifo.toml: it is not a plain file"),
        "{said}"
    );
    assert_eq!(host.run(&["config", "check"]).0, 2);
    let (code, said) = host.run(&["pair", "--tree", "a", "-c", fifo.to_str().unwrap()]);
    assert!(code == 1 && said.contains("not a plain file"), "{said}");

    // Processes that hang are asked at the same time.
    fs::remove_file(&fifo).unwrap();
    for name in ["a", "b", "c"] {
        host.local(name, "");
    }
    host.reload();
    let stopped = ["a", "b", "c", "new"].map(|name| host.running(name));
    host.wait("all follow", |host| host.run(&["check"]).0 == 0);
    let began = std::time::Instant::now();
    for pid in stopped {
        signal(pid, Signal::STOP);
    }
    let (code, said) = host.run(&["check"]);
    let took = began.elapsed();
    for pid in stopped {
        signal(pid, Signal::CONT);
    }
    assert!(code > 0 && said.contains("does not answer"), "{said}");
    // One after the other it would be 16 s at least, and 10 s is what monitors wait.
    assert!(took < Duration::from_secs(14), "{took:?} {said}");
    host.wait("all follow", |host| host.run(&["check"]).0 == 0);

    // A copy whose state is gone is on hold, and said to be.
    fs::rename(host.path("b/new.fs_mirror"), host.path("b/elsewhere")).unwrap();
    host.wait("it is told", |host| {
        let said = host.run(&["check"]).1;
        line(&said, "new").contains("on hold until DST and its state are back")
    });
    fs::rename(host.path("b/elsewhere"), host.path("b/new.fs_mirror")).unwrap();
    host.wait("it is back", |host| host.run(&["check"]).0 == 0);
    host.stop();
}

/// How long each of these trees takes to show a change, in ms, sorted.
fn lags(host: &Host, sources: &[(PathBuf, &str)], of: &str) -> Vec<u64> {
    let mut all = Vec::new();
    for n in 0..60 {
        for (source, name) in sources {
            let file = format!("{of}{n}");
            let began = std::time::Instant::now();
            fs::write(source.join(&file), "x").unwrap();
            let there = host.dst(name).join(&file);
            wait_until("it is there", LONG, || there.exists()).unwrap();
            all.push(began.elapsed().as_millis() as u64);
        }
        std::thread::sleep(Duration::from_millis(30));
    }
    all.sort_unstable();
    all
}

/// Not a test: prints what others feel while one tree seeds, another's quota is full and a third's network trickles.
/// `cargo test --test serve_backup -- --ignored --nocapture others`
#[test]
#[ignore = "a measurement"]
fn what_the_others_feel() {
    let mut host = Host::new();
    let others: Vec<(PathBuf, &str)> = ["o1", "o2", "o3"]
        .into_iter()
        .map(|name| (host.local(name, ""), name))
        .collect();
    host.serve();
    for (source, name) in &others {
        host.equal(source, name);
    }
    let show = |what: &str, lags: &[u64]| {
        let at = |part: usize| lags.get(lags.len() * part / 100).copied().unwrap_or(0);
        println!(
            "{what}: p50 {} ms, p90 {} ms, p99 {} ms, {} changes",
            at(50),
            at(90),
            at(99),
            lags.len()
        );
    };
    show("alone", &lags(&host, &others, "alone"));

    let seeding = host.source("seeding");
    let params = testkit::generate::Params {
        files: 20_000,
        seed: 1,
        ..testkit::generate::Params::default()
    };
    testkit::generate::tree(&seeding.join("tree"), &params).unwrap();
    let full = host.local("full", "bytes_max = \"1M\"");
    fs::write(full.join("large"), vec![1; 8 << 20]).unwrap();
    let slow = host.source("slow");
    fs::write(slow.join("large"), vec![1; 8 << 20]).unwrap();
    let remote = format!("remote_command = \"{MIRRORD}\"\nbwlimit = \"10K\"\n");
    host.tree("slow", &format!("far:{}", slow.display()), &remote);
    host.tree("seeding", &seeding.display().to_string(), "nice = 10");
    host.reload();
    host.wait("the quota is full", |host| {
        host.is_held("full", "bytes_max")
    });
    show("beside them", &lags(&host, &others, "beside"));
    println!("seeding meanwhile: {}", host.state("seeding"));
    println!("slow meanwhile: {}", host.state("slow"));
    host.stop();
    let _ = testkit::generate::remove(&seeding);
    let _ = testkit::generate::remove(&host.dst("seeding"));
}
