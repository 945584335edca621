//! `mirrord serve` with real processes: trees by configuration, reload, restart, its barrier, floor and limits. Followers come
//! in through `mirrord stdio`, which joins the tree's process.

mod one_listener;
mod ssh_support;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mirror::net::trust::Address;
use mirror::net::{KeyPair, Known};
use rustix::process::Signal;
use serde_json::Value;
use ssh_support::{Bed, LONG, MIRRORD, ended, kill9, signal, stop};
use testkit::compare::Options;
use testkit::lab::QueueLimit;
use testkit::proc::{Program, wait_equal, wait_until};

struct Place {
    bed: Bed,
}

impl Place {
    fn new() -> Place {
        let bed = Bed::new();
        fs::create_dir(bed.path("etc")).unwrap();
        Place { bed }
    }

    fn tree(&self, name: &str) -> PathBuf {
        let path = self.bed.path(name);
        fs::create_dir_all(&path).unwrap();
        fs::canonicalize(path).unwrap()
    }

    fn file(&self) -> PathBuf {
        self.bed.path("etc/mirrord.toml")
    }

    /// The configuration; `@` stands for this place.
    fn config(&self, text: &str) {
        let here = fs::canonicalize(self.bed.path("")).unwrap();
        let here = here.display().to_string();
        fs::write(self.file(), text.replace('@', here.trim_end_matches('/'))).unwrap();
    }

    fn mirrord(&self, line: &str) -> Command {
        let mut command = Command::new(MIRRORD);
        command.args(line.split_whitespace());
        self.bed.env(&mut command);
        command
            .env("MIRRORD_CONFIG_DIR", self.bed.path("etc"))
            .env_remove("NOTIFY_SOCKET")
            .env_remove("JOURNAL_STREAM");
        command
    }

    /// `mirrord serve`, with all of these trees being served.
    fn serve(&self, trees: &[&str]) -> Program {
        let program = Program::start(&mut self.mirrord("serve")).unwrap();
        for tree in trees {
            self.served(tree, &program);
        }
        program
    }

    #[track_caller]
    fn served(&self, tree: &str, program: &Program) {
        let follows = || {
            self.status(tree)
                .is_some_and(|s| s["state"]["is"] == "following")
        };
        if wait_until("it is served", LONG, follows).is_err() {
            panic!("{tree}: {:?}\n{}", self.status(tree), program.stderr());
        }
    }

    fn run(&self, line: &str) -> (i32, String) {
        self.run_args(&line.split_whitespace().collect::<Vec<_>>())
    }

    fn run_args(&self, args: &[&str]) -> (i32, String) {
        let (first, more) = args.split_first().unwrap();
        let output = self.mirrord(first).args(more).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        (output.status.code().unwrap_or(-1), text)
    }

    /// What the running process says of a tree.
    fn status(&self, tree: &str) -> Option<Value> {
        let (_, text) = self.run(&format!("status {tree} --json"));
        let found: Value = serde_json::from_str(text.lines().next()?).ok()?;
        (found["running"] == true).then(|| found["status"].clone())
    }

    fn pid(&self, tree: &str) -> u32 {
        self.status(tree).unwrap()["pid"].as_u64().unwrap() as u32
    }

    fn follow(&self, tree: &str, dst: &str) -> Program {
        self.follow_with(tree, dst, &[])
    }

    fn follow_with(&self, tree: &str, dst: &str, more: &[&str]) -> Program {
        let source = format!("{}:{}", self.bed.host, self.tree(tree).display());
        self.bed.mirror_from(&source, &self.bed.path(dst), more)
    }

    #[track_caller]
    fn equal(&self, tree: &str, dst: &str) {
        let found = wait_equal(
            &self.tree(tree),
            &self.bed.path(dst),
            &Options::default(),
            LONG,
        );
        assert!(found.is_ok(), "{found:?}");
    }
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[test]
fn trees_are_processes_that_a_reload_leaves_alone() {
    let place = Place::new();
    for name in ["a", "b", "c"] {
        fs::write(place.tree(name).join("file"), name).unwrap();
    }
    place.config("[tree.a]\npath = '@/a'\nnice = 7\n[tree.b]\npath = '@/b'\nignore = '*.log'\n");
    let mut service = place.serve(&["a", "b"]);
    let (a, b) = (place.pid("a"), place.pid("b"));
    assert_ne!(a, b);
    let stat = text(Path::new(&format!("/proc/{a}/stat")));
    let nice = stat.rsplit(')').next().unwrap().split_whitespace().nth(16);
    assert_eq!(nice, Some("7"));

    // A login's follower joins the tree's process.
    let follower = place.follow("a", "copy");
    place.equal("a", "copy");
    assert_eq!(place.bed.daemons().len(), 2);
    place.bed.wait("the follower is known", || {
        place.status("a").unwrap()["replicas"][0]["positions"]["applied"].is_string()
    });

    // What did not change is not touched, links included.
    place.config("[tree.a]\npath = '@/a'\nnice = 7\nbwlimit = '800M'\n[tree.c]\npath = '@/c'\n");
    service.signal(Signal::HUP).unwrap();
    place.served("c", &service);
    place
        .bed
        .wait("b ends", || !place.bed.daemons().contains(&b));
    place.bed.wait("the limit is taken up", || {
        place.status("a").unwrap()["bwlimit"] == 800u64 << 20
    });
    assert_eq!(place.pid("a"), a);
    let said = service.stderr();
    assert!(!said.contains("disconnected"), "{said}");
    assert!(
        said.contains("b: not served any more; its state stays in"),
        "{said}"
    );

    // What is wrong with a tree changes nothing of it.
    place.config("[tree.a]\npath = '@/a'\nnise = 7\n[tree.c]\npath = '@/c'\n");
    service.signal(Signal::HUP).unwrap();
    service.wait_stderr("it stays as it was", LONG).unwrap();
    assert!(
        service
            .stderr()
            .contains("line 3: no setting is called nise"),
        "{}",
        service.stderr()
    );
    assert_eq!(place.pid("a"), a);

    // One that dies is there again, and its followers come back.
    kill9(a);
    place.bed.wait("another process", || {
        place.status("a").is_some_and(|s| s["pid"] != u64::from(a))
    });
    assert!(
        service.stderr().contains("a: ended (signal 9); again in"),
        "{}",
        service.stderr()
    );
    fs::write(place.tree("a").join("after"), "x").unwrap();
    place.equal("a", "copy");

    place.served("a", &service);
    // Else it may start a process of its own once the service's is gone.
    stop(follower);
    let pids = [place.pid("a"), place.pid("c")];
    let began = Instant::now();
    let status = service.stop(LONG).unwrap();
    assert_eq!(status.code(), Some(0), "{}", service.stderr());
    // 5 s is what is promised; a busy machine is no reason to fail.
    assert!(
        began.elapsed() < Duration::from_secs(15),
        "{:?}",
        began.elapsed()
    );
    assert!(place.bed.daemons().iter().all(|pid| !pids.contains(pid)));
    let (code, said) = place.run("status a");
    assert!(
        code == 0 && said.contains("not running") && said.contains("away, last seen"),
        "{said}"
    );
}

#[test]
fn mistakes_are_told_before_anything_begins() {
    let place = Place::new();
    place.tree("a");
    place.config("lisen = 1\n[tree.a]\npath = '@/a'\n[tree.b]\npath = '@/none'\nnice = 'x'\n");
    let (code, said) = place.run("serve");
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!((code, lines.len()), (2, 3), "{said}");
    for (line, has) in lines.iter().zip([
        "line 1: no setting is called lisen",
        "line 6: ",
        "/none does not exist",
    ]) {
        assert!(
            line.starts_with("mirrord: /") && line.contains(has),
            "{said}"
        );
    }
    assert_eq!(place.run("config check").0, 2);
    let (code, said) = place.run("serve -c /nowhere/x.toml");
    assert!(
        code == 2 && said.contains("cannot read /nowhere/x.toml"),
        "{said}"
    );
    fs::remove_file(place.file()).unwrap();
    let (code, said) = place.run("serve");
    assert!(
        code == 2 && said.contains("no tree: write [tree.NAME]"),
        "{said}"
    );
    // A configuration that is no file is not waited for.
    let fifo = place.bed.path("etc/fifo.toml");
    assert!(
        Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .unwrap()
            .success()
    );
    let (code, said) = place.run(&format!("config check -c {}", fifo.display()));
    assert!(code == 2 && said.contains("not a plain file"), "{said}");
    place.config(
        "[tree.a]\npath = '@/a'\nbwlimit = [{ from = '00:00', to = '24:00', rate = '5M' }]\n",
    );
    let (code, said) = place.run("config show");
    assert!(code == 0 && said.contains("bwlimit     5M now"), "{said}");
    let (code, said) = place.run("status nobody");
    assert!(
        code == 2 && said.contains("no tree of the service is called so"),
        "{said}"
    );
}

#[test]
fn a_mistake_in_one_tree_keeps_no_other_out() {
    let place = Place::new();
    for name in ["a", "b", "c"] {
        place.tree(name);
    }
    let file = place.file().display().to_string();
    // At the start: what is right is served, what is wrong is told with its place.
    place.config("[tree.a]\npath = '@/a'\n[tree.b]\npath = '@/b'\nnice = 'x'\n");
    let mut service = place.serve(&["a"]);
    let line5 = format!("{file}, line 5: ");
    assert!(service.stderr().contains(&line5), "{}", service.stderr());
    assert_eq!(place.run("config check").0, 2);
    place.bed.wait("it is told", || place.run("check").0 == 1);
    let (code, said) = place.run("check");
    assert!(
        code == 1 && said.contains("1 mistake") && said.contains(&line5),
        "{said}"
    );
    // It begins when it is right.
    place.config("[tree.a]\npath = '@/a'\n[tree.b]\npath = '@/b'\n");
    service.signal(Signal::HUP).unwrap();
    place.served("b", &service);
    let pids = (place.pid("a"), place.pid("b"));
    // At a reload: one is new, one is wrong and goes on as it was.
    place.config(
        "[tree.a]\npath = '@/a'\n[tree.b]\npath = '@/b'\nignore = ['[z-a]']\n[tree.c]\npath = '@/c'\n",
    );
    service.signal(Signal::HUP).unwrap();
    place.served("c", &service);
    service.wait_stderr(&line5, LONG).unwrap();
    assert_eq!((place.pid("a"), place.pid("b")), pids);
    place.bed.wait("it is told", || place.run("check").0 == 1);
    // What is wrong for all changes nothing, and is said.
    place.config("lisen = 1\n[tree.a]\npath = '@/a'\n");
    service.signal(Signal::HUP).unwrap();
    service
        .wait_stderr(
            "the configuration is wrong: everything stays as it was",
            LONG,
        )
        .unwrap();
    assert_eq!((place.pid("a"), place.pid("b")), pids);
    place.served("c", &service);
    let (code, said) = place.run("check");
    assert!(
        code == 1 && said.contains("no setting is called lisen"),
        "{said}"
    );
    stop(service);
}

#[test]
fn directories_come_and_go_and_a_login_makes_room() {
    let place = Place::new();
    fs::create_dir_all(place.bed.path("www/one")).unwrap();
    // A login was first.
    let follower = place.follow("www/one", "copy");
    place.equal("www/one", "copy");
    place.config("[tree.www]\npath = '@/www/*'\n");
    let service = place.serve(&["one"]);
    fs::write(place.tree("www/one").join("new"), "1").unwrap();
    place.equal("www/one", "copy");
    assert_eq!(place.bed.daemons().len(), 1);
    fs::create_dir(place.bed.path("www/two")).unwrap();
    place.served("two", &service);
    fs::write(place.bed.path("www/two/x"), "x").unwrap();
    place.bed.wait("it is known", || {
        place.status("two").is_some_and(|s| s["files"] == 1)
    });
    fs::remove_dir_all(place.bed.path("www/two")).unwrap();
    place
        .bed
        .wait("it is told", || service.stderr().contains("two: "));
    place.bed.wait("it is told", || {
        service.stderr().contains("/two is gone; the tree is kept")
    });
    place.bed.wait("it is on hold", || {
        place
            .status("two")
            .is_some_and(|s| s["state"]["is"] == "hold")
    });
    let (code, said) = place.run("wait two --for durable --timeout 30s");
    assert!(code == 4 && said.contains("is gone"), "{code} {said}");
    let (code, said) = place.run("check two");
    assert!(code == 2 && said.contains("on hold"), "{said}");
    // Who asks for all hears of each by its name.
    let (code, said) = place.run("wait --timeout 60s");
    assert!(
        code == 4 && said.contains("mirrord: two: ") && !said.contains("one: "),
        "{code} {said}"
    );
    // Another directory in its place is told as that, and let through by one word.
    fs::create_dir(place.bed.path("www/two")).unwrap();
    place.bed.wait("it is told that it is another one", || {
        let status = place.status("two");
        status.is_some_and(|s| s["state"]["reason"] == "root_replaced")
    });
    let (code, said) = place.run("release two --yes");
    assert_eq!(code, 0, "{said}");
    place.bed.wait("it goes on", || {
        let status = place.status("two");
        status.is_some_and(|s| s["state"]["is"] == "following")
    });
    fs::remove_dir(place.bed.path("www/two")).unwrap();
    place.bed.wait("it is on hold", || {
        let status = place.status("two");
        status.is_some_and(|s| s["state"]["is"] == "hold")
    });
    // It can't be forgotten by starting again.
    stop(service);
    let service = place.serve(&["one"]);
    assert!(
        service.stderr().contains("/two is gone; the tree is kept"),
        "{}",
        service.stderr()
    );
    stop(follower);
    stop(service);
}

#[test]
fn a_missing_path_keeps_no_other_tree_out() {
    let place = Place::new();
    place.tree("a");
    place.config("[tree.a]\npath = '@/a'\n[tree.late]\npath = '@/late'\n");
    assert_eq!(place.run("config check").0, 2);
    let mut service = place.serve(&["a"]);
    let told = "line 3: path: ";
    assert!(service.stderr().contains(told), "{}", service.stderr());
    let (code, said) = place.run("check");
    assert_eq!(code, 2, "{said}");
    let lines: Vec<&str> = said.lines().collect();
    assert!(
        lines[0].starts_with(
            "FS_MIRROR CRITICAL - 2 trees: 1 ok, 0 warning, 1 critical (late); 1 mistake"
        ) && lines[0].contains("/etc/mirrord.toml, line 3: path: "),
        "{said}"
    );
    assert!(lines[1].starts_with("OK a: following"), "{said}");
    assert!(
        lines[2].starts_with("CRITICAL late: not running: path: ")
            && lines[2].ends_with("/late does not exist"),
        "{said}"
    );
    let (code, said) = place.run("status late");
    assert!(code == 0 && said.contains("/late does not exist"), "{said}");
    // The same when it is read again, and nothing is said twice.
    place.tree("b");
    place.config(
        "[tree.a]\npath = '@/a'\n[tree.late]\npath = '@/late'\n[tree.b]\npath = '@/b'\n[tree.never]\npath = '@/never'\n",
    );
    service.signal(Signal::HUP).unwrap();
    place.served("b", &service);
    let said = service.stderr();
    assert_eq!(said.matches(told).count(), 1, "{said}");
    assert!(said.contains("/never does not exist"), "{said}");
    // It begins when it is there.
    place.tree("late");
    place.served("late", &service);
    fs::remove_dir(place.bed.path("late")).unwrap();
    // A process whose state is taken away ends, and begins anew.
    let pid = place.pid("a");
    let (_, said) = place.run("status a --json");
    let said: Value = serde_json::from_str(said.lines().next().unwrap()).unwrap();
    let state = PathBuf::from(said["state_dir"].as_str().unwrap());
    place.bed.wait("it is removed", || {
        let _ = fs::remove_file(state.join("lock"));
        fs::remove_dir_all(&state).is_ok() || service.stderr().contains("is gone: it ends")
    });
    service.wait_stderr("is gone: it ends", LONG).unwrap();
    place.bed.wait("another one serves", || {
        place
            .status("a")
            .is_some_and(|s| s["pid"] != u64::from(pid) && s["state"]["is"] == "following")
    });
    place.bed.wait("it is on hold", || {
        place
            .run("check")
            .1
            .lines()
            .any(|line| line.starts_with("CRITICAL late: on hold"))
    });
    stop(service);
}

/// Writers that go on until dropped.
struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Load {
    fn on(dir: &Path) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..2).map(|n| {
            let (dir, stop) = (dir.join(format!("load{n}")), stop.clone());
            fs::create_dir_all(&dir).unwrap();
            std::thread::spawn(move || {
                let mut i = 0u64;
                while !stop.load(Ordering::Acquire) {
                    i += 1;
                    let path = dir.join(format!("f{}", i % 200));
                    let new = dir.join("new");
                    let _ = fs::write(&new, format!("{i}"));
                    let _ = fs::rename(&new, &path);
                    if i.is_multiple_of(7) {
                        let _ = fs::remove_file(dir.join(format!("f{}", (i * 3) % 200)));
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
            })
        });
        Load {
            threads: threads.collect(),
            stop: stop.clone(),
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// What was written before the call is in the copy when it returns.
#[track_caller]
fn barrier_holds(place: &Place, tree: &str, dst: &str, rounds: u32, tag: &str) {
    let (src, dst) = (place.tree(tree), place.bed.path(dst));
    let dir = format!("{tag}-dir");
    for n in 0..rounds {
        // Made, replaced, appended, moved as a directory, removed.
        fs::write(src.join(format!("{tag}{n}")), format!("{tag} {n}")).unwrap();
        fs::write(src.join(format!("{tag}-current")), format!("{n}")).unwrap();
        let mut log = OpenOptions::new()
            .append(true)
            .create(true)
            .open(src.join(format!("{tag}-log")))
            .unwrap();
        writeln!(log, "{n}").unwrap();
        drop(log);
        let _ = fs::rename(
            src.join(format!("{dir}{}", n.wrapping_sub(1))),
            src.join(format!("{dir}{n}")),
        );
        fs::create_dir_all(src.join(format!("{dir}{n}/sub"))).unwrap();
        fs::write(src.join(format!("{dir}{n}/sub/{n}")), "x").unwrap();
        if n > 0 {
            fs::remove_file(src.join(format!("{tag}{}", n - 1))).unwrap();
        }
        let (code, said) = place.run(&format!("wait {tree} --for applied --timeout 60s"));
        assert!(code == 0 || code == 3, "round {n}: {code} {said}");
        assert_eq!(
            text(&dst.join(format!("{tag}{n}"))),
            format!("{tag} {n}"),
            "round {n}"
        );
        assert_eq!(
            text(&dst.join(format!("{tag}-current"))),
            n.to_string(),
            "round {n}"
        );
        assert_eq!(
            text(&dst.join(format!("{tag}-log"))).lines().count() as u32,
            n + 1,
            "round {n}"
        );
        assert_eq!(
            text(&dst.join(format!("{dir}{n}/sub/{n}"))),
            "x",
            "round {n}"
        );
        assert!(
            n == 0 || !dst.join(format!("{tag}{}", n - 1)).exists(),
            "round {n}"
        );
    }
}

#[test]
fn a_barrier_covers_all_that_was_written_before() {
    let place = Place::new();
    let src = place.tree("a");
    place.config("[tree.a]\npath = '@/a'\n");
    // With a queue this short a flood overflows it.
    let limit = QueueLimit::set(64);
    let service = place.serve(&["a"]);
    let limited = limit.is_ok();
    drop(limit);
    let (code, said) = place.run("wait a --timeout 300ms");
    assert!(
        code == 5 && said.contains("no replica was ever connected"),
        "{code} {said}"
    );
    let follower = place.follow("a", "copy");
    place.equal("a", "copy");
    {
        let _load = Load::on(&src);
        barrier_holds(&place, "a", "copy", 6, "busy");
    }
    // Held open for writing, and not closed.
    let open = File::create(src.join("open")).unwrap();
    for n in 0..4u32 {
        open.write_at(format!("{n:04}").as_bytes(), u64::from(n) * 4)
            .unwrap();
        let (code, said) = place.run("wait a --timeout 60s");
        assert!(code == 0 || code == 3, "{code} {said}");
        let there = text(&place.bed.path("copy/open"));
        assert_eq!(there.len(), 4 * (n as usize + 1), "{there}");
    }
    drop(open);
    // Hints are lost: nobody hears while this is written.
    if limited {
        let pid = place.pid("a");
        for round in 0..2 {
            signal(pid, Signal::STOP);
            for n in 0..400 {
                fs::create_dir_all(src.join(format!("flood{round}/{}", n % 7))).unwrap();
                fs::write(src.join(format!("flood{round}/{}/{n}", n % 7)), "x").unwrap();
            }
            signal(pid, Signal::CONT);
            let (code, said) = place.run("wait a --timeout 60s");
            assert_eq!(code, 0, "{said}");
            let there = |n| place.bed.path(&format!("copy/flood{round}/{}/{n}", n % 7));
            assert_eq!((0..400).filter(|n| !there(*n).exists()).count(), 0);
        }
        let status = place.status("a").unwrap();
        assert!(
            status["counters"]["overflows"].as_u64() > Some(0),
            "{status}"
        );
    } else {
        println!("skipped: the kernel's queue can't be made short here");
    }
    place.equal("a", "copy");
    stop(follower);
    stop(service);
}

#[test]
fn a_barrier_in_scan_mode_and_with_replicas_away() {
    let place = Place::new();
    let src = place.tree("a");
    place.config("[tree.a]\npath = '@/a'\ndetector = 'scan'\n");
    let service = place.serve(&["a"]);
    let one = place.follow("a", "one");
    let two = place.follow("a", "two");
    // `detector` is the worker's business, but nobody asked for one here.
    place.equal("a", "one");
    place.equal("a", "two");
    barrier_holds(&place, "a", "two", 3, "scan");
    let (code, said) = place.run("wait a --for durable --replicas 2 --json --timeout 60s");
    let report: Value = serde_json::from_str(said.trim()).unwrap();
    assert_eq!(
        (code, report["report"]["replicas"].as_array().map(Vec::len)),
        (0, Some(2)),
        "{said}"
    );

    // One is away: it is known, named and waited for, unless others will do.
    stop(two);
    fs::write(src.join("late"), "x").unwrap();
    let (code, said) = place.run("wait a --timeout 3s");
    assert!(
        code == 5 && said.contains("timed out: not applied yet: ") && said.contains("/two"),
        "{code} {said}"
    );
    assert!(!said.contains("/one"), "{said}");
    let (code, said) = place.run("wait a --replicas 1 --timeout 60s");
    assert_eq!(code, 0, "{said}");
    assert_eq!(text(&place.bed.path("one/late")), "x");
    let status = place.status("a").unwrap();
    let away = status["replicas"]
        .as_array()
        .unwrap()
        .iter()
        .find(|r| r["connected"] == false);
    let away = away.unwrap();
    assert!(
        away["lag"]["records"].as_u64() > Some(0) && away["lag"]["seconds"].as_f64() > Some(0.0),
        "{status}"
    );
    let (code, said) = place.run("check a");
    assert!(code == 1 && said.contains("/two is away for"), "{said}");
    // Also after the worker's process is another one.
    kill9(place.pid("a"));
    place.served("a", &service);
    let (code, said) = place.run("wait a --timeout 3s");
    assert!(code == 5 && said.contains("/two"), "{code} {said}");

    // It is back, and idle: it says how far it is without being sent anything.
    let two = place.follow("a", "two");
    let (code, said) = place.run("wait a --timeout 60s");
    assert_eq!(code, 0, "{said}");
    assert_eq!(text(&place.bed.path("two/late")), "x");
    place.bed.wait("no lag when idle", || {
        place
            .status("a")
            .is_some_and(|s| s["lag"]["records"] == 0 && s["lag"]["seconds"] == 0.0)
    });

    // One that makes a copy once is not waited for, and one that does not come back can be forgotten.
    let (code, said) = ended(place.follow_with("a", "three", &["--once"]));
    assert_eq!(code, 0, "{said}");
    stop(two);
    fs::write(src.join("later"), "x").unwrap();
    let (code, said) = place.run("wait a --timeout 3s");
    assert!(
        code == 5 && said.contains("/two") && !said.contains("/three"),
        "{code} {said}"
    );
    let (code, said) = place.run("forget nobody a");
    assert!(code == 2 && said.contains("no replica"), "{code} {said}");
    let status = place.status("a").unwrap();
    let name = |r: &&Value| r["connected"] == false;
    let away = status["replicas"].as_array().unwrap().iter().find(name);
    let two = away.unwrap()["name"].as_str().unwrap();
    let (code, said) = place.run_args(&["forget", two, "a"]);
    assert!(code == 0 && said.contains("forgotten: "), "{code} {said}");
    let (code, said) = place.run("wait a --timeout 60s");
    assert_eq!(code, 0, "{said}");

    place.run("pause a");
    let (code, said) = place.run("wait a --timeout 20s");
    assert!(code == 5 && said.contains("paused"), "{code} {said}");
    place.run("resume a");
    let (code, said) = place.run("wait a --timeout 60s");
    assert_eq!(code, 0, "{said}");

    let (code, said) = place.run("log a -n 5");
    assert!(code == 0 && said.contains(" create late"), "{said}");
    for program in [one, service] {
        stop(program);
    }
}

#[test]
fn limits_are_taken_up_while_it_runs() {
    let place = Place::new();
    let src = place.tree("a");
    fs::write(src.join("small"), "x").unwrap();
    let slow = "[tree.a]\npath = '@/a'\nbwlimit = '2K'\n";
    place.config(slow);
    let mut service = place.serve(&["a"]);
    let follower = place.follow("a", "copy");
    place.equal("a", "copy");
    // At this rate an hour would not do.
    let mut noise = vec![0u8; 8 << 20];
    let mut seed = 1u64;
    for byte in &mut noise {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *byte = (seed >> 33) as u8;
    }
    fs::write(src.join("large"), &noise).unwrap();
    let (code, said) = place.run("wait a --timeout 2s");
    assert_eq!(code, 5, "{said}");
    place.config("[tree.a]\npath = '@/a'\n");
    service.signal(Signal::HUP).unwrap();
    let (code, said) = place.run("wait a --timeout 60s");
    assert_eq!(code, 0, "{said} {}", service.stderr());
    place.equal("a", "copy");

    // Too little room: capture stops, and says so; then it looks at everything.
    let pid = place.pid("a");
    place.config("[tree.a]\npath = '@/a'\nmin_free = '1000000G'\n");
    service.signal(Signal::HUP).unwrap();
    place.bed.wait("it stops", || {
        place
            .status("a")
            .is_some_and(|s| s["state"]["is"] == "failed")
    });
    let (code, said) = place.run("status a");
    assert!(
        code == 0 && said.contains("min_free is 1000000G: waiting for room"),
        "{said}"
    );
    fs::write(src.join("meanwhile"), "x").unwrap();
    let (code, said) = place.run("wait a --timeout 1s");
    assert!(code == 5 && said.contains("min_free"), "{code} {said}");
    place.config("[tree.a]\npath = '@/a'\nmin_free = '0'\n");
    service.signal(Signal::HUP).unwrap();
    service.wait_stderr("there is room again", LONG).unwrap();
    let (code, said) = place.run("wait a --timeout 60s");
    assert_eq!(code, 0, "{said}");
    assert_eq!(text(&place.bed.path("copy/meanwhile")), "x");
    assert_eq!(place.pid("a"), pid);

    // A follower may not say what the tree is.
    let source = format!("{}:{}", place.bed.host, src.display());
    let odd = place.bed.mirror_from(
        &source,
        &place.bed.path("odd"),
        &["--once", "--detector", "inotify"],
    );
    let (code, said) = ended(odd);
    assert!(
        code == 2 && said.contains("detector of the tree a is set on the worker"),
        "{code} {said}"
    );
    stop(follower);
    stop(service);
}

#[test]
fn other_hosts_come_in_by_the_door() {
    let place = Place::new();
    fs::write(place.tree("a").join("file"), "a").unwrap();
    place.tree("b");
    place.config("listen = '127.0.0.1:0'\n[tree.a]\npath = '@/a'\n[tree.b]\npath = '@/b'\n");
    let mut service = place.serve(&["a", "b"]);
    service
        .wait_stderr("listening on 127.0.0.1:", LONG)
        .unwrap();
    let said = service.stderr();
    let port = said.split("listening on 127.0.0.1:").nth(1).unwrap();
    let port: u16 = port.split(',').next().unwrap().parse().unwrap();
    // Each knows the other's key, and this one may follow one tree.
    let (here, there) = (place.bed.path("etc"), place.bed.path("backup-etc"));
    let door = KeyPair::load_or_make(&here).unwrap().fingerprint();
    let key = KeyPair::load_or_make(&there).unwrap().fingerprint();
    let address = Address::new("127.0.0.1", Some(port));
    Known::set(&there, &address, door).unwrap();
    let (code, said) = place.run(&format!("trust {key} --tree a"));
    assert_eq!(code, 0, "{said}");
    // A name that was mistyped is told where it was typed.
    let (code, said) = place.run("pair --tree aa --host here");
    assert!(
        code == 0 && said.contains("there is no tree aa here yet; there is a, b"),
        "{said}"
    );
    let (code, said) = place.run("pair --tree a --host here");
    assert!(code == 0 && !said.contains("there is no tree"), "{said}");
    let mirror = |tree: &str, more: &[&str]| {
        let mut command = Command::new(ssh_support::FS_MIRROR);
        command
            .arg("mirror")
            .arg(format!("mirror://127.0.0.1:{port}/{tree}"))
            .arg(place.bed.path(&format!("{tree}-copy")))
            .args(more)
            .env("FS_MIRROR_CONFIG_DIR", &there);
        Program::start(&mut command).unwrap()
    };
    let (code, said) = ended(mirror("b", &["--once"]));
    assert!(
        code == 6 && said.contains("may not follow b"),
        "{code} {said}"
    );
    let (code, said) = ended(mirror("a", &["--once", "--ignore", "*.log"]));
    assert!(
        code == 2 && said.contains("ignore of the tree a is set on the worker"),
        "{code} {said}"
    );
    let follower = mirror("a", &[]);
    place.equal("a", "a-copy");
    barrier_holds(&place, "a", "a-copy", 2, "tls");
    // A hold of the source is released at the source only: a key that may follow orders nothing.
    let (src, aside) = (place.bed.path("a"), place.bed.path("aside"));
    fs::rename(&src, &aside).unwrap();
    fs::create_dir(&src).unwrap();
    let hold = || {
        place
            .status("a")
            .is_some_and(|s| s["state"]["is"] == "hold")
    };
    place.bed.wait("the worker holds", hold);
    let at = place.bed.path("a-copy").display().to_string();
    let release = || {
        let mut command = Command::new(ssh_support::FS_MIRROR);
        command.args(["release", "--yes", "-m", &at]);
        ended(Program::start(&mut command).unwrap())
    };
    place.bed.wait("the copy knows", || {
        let (code, said) = release();
        code != 0 && said.contains("`mirrord release`")
    });
    assert!(hold());
    fs::remove_dir(&src).unwrap();
    fs::rename(&aside, &src).unwrap();
    let (code, said) = place.run("release a --yes");
    assert_eq!(code, 0, "{said}");
    place.equal("a", "a-copy");
    // The tree's process is another one; so is the connection.
    kill9(place.pid("a"));
    fs::write(place.tree("a").join("after"), "x").unwrap();
    let (code, said) = place.run("wait a --timeout 60s");
    assert_eq!(code, 0, "{said}");
    assert_eq!(text(&place.bed.path("a-copy/after")), "x");
    // Where it listens is changed, who listens is not taken over: nothing that is followed breaks.
    let replicas = |n: usize| {
        let told = place.status("a").map(|s| s["replicas"].clone());
        let told = told.and_then(|told| told.as_array().cloned());
        told.is_some_and(|all| all.iter().filter(|r| r["connected"] == true).count() == n)
    };
    place.bed.wait("it is followed", || replicas(1));
    let before = service.stderr().len();
    place.config(&format!(
        "listen = ['127.0.0.1:{port}', '127.0.0.2:0']\nuser = 'nobody'\n[tree.a]\npath = '@/a'\n[tree.b]\npath = '@/b'\n"
    ));
    signal(service.pid(), Signal::HUP);
    service.wait_stderr(", 127.0.0.2:", LONG).unwrap();
    fs::write(place.tree("a").join("reloaded"), "y").unwrap();
    place.equal("a", "a-copy");
    let said = service.stderr().split_off(before);
    assert!(
        said.contains("user is taken over when the service is started again")
            && !said.contains("disconnected"),
        "{said}"
    );
    // An address that is taken is told, and the trees are served all the same.
    place.config(&format!(
        "listen = '127.0.0.1:{port}'\n[tree.c]\npath = '@/b'\n"
    ));
    let mut other = Program::start(
        place
            .mirrord("serve")
            .env("MIRRORD_STATE", place.bed.path("w2")),
    )
    .unwrap();
    other
        .wait_stderr("is in use: another program listens there", LONG)
        .unwrap();
    other.wait_stderr("c: started", LONG).unwrap();
    stop(other);
    stop(follower);
    stop(service);
}
