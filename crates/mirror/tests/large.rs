//! Large files: what happens in the tree while one of them is being read. The sink is a gate: a read gets no further than
//! the test lets it.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use common::session::{barrier, differences, open_sinking};
use mirror::capture::run::CaptureOptions;
use mirror::capture::sink::{Sink, SinkDir, SinkFile};
use mirror::capture::state::Ended;
use mirror::engine::session::Session;
use mirror_core::{At, Change, Content, Meta, Name, ObjectId, Rows};
use testkit::lab;
use testkit::proc::wait_until;

const LONG: Duration = Duration::from_secs(30);
const LARGE: usize = 3 << 20;

/// Takes what is read, at most as fast as it is let.
#[derive(Default)]
struct Gate {
    shut: Mutex<bool>,
    opened: Condvar,
    /// For each piece.
    slow_ms: AtomicU64,
    begun: AtomicU64,
    over: AtomicU64,
    next: AtomicU64,
    /// Finished, and neither bound nor forgotten.
    held: Mutex<BTreeSet<u64>>,
}

impl Gate {
    fn set(&self, shut: bool) {
        *self.shut.lock().unwrap() = shut;
        self.opened.notify_all();
    }
    fn pass(&self) {
        std::thread::sleep(Duration::from_millis(self.slow_ms.load(Ordering::Relaxed)));
        let shut = self.shut.lock().unwrap();
        drop(self.opened.wait_while(shut, |shut| *shut).unwrap());
    }
}

struct GateSink(Arc<Gate>);
struct GateFile(Arc<Gate>, u64);

impl Sink for GateSink {
    fn dir(&self) -> Option<(u64, Box<dyn SinkDir>)> {
        None
    }
    fn file(&self) -> Option<(u64, Box<dyn SinkFile>)> {
        self.0.begun.fetch_add(1, Ordering::SeqCst);
        let token = self.0.next.fetch_add(1, Ordering::SeqCst);
        Some((token, Box::new(GateFile(self.0.clone(), token))))
    }
    fn bind(&self, token: u64, _: ObjectId) {
        assert!(self.0.held.lock().unwrap().remove(&token), "bound twice");
    }
    fn forget(&self, token: u64) {
        self.0.held.lock().unwrap().remove(&token);
    }
    fn room(&self) -> bool {
        true
    }
}

impl SinkFile for GateFile {
    fn write_at(&mut self, _: &[u8], _: u64) -> io::Result<()> {
        self.0.pass();
        Ok(())
    }
    fn finish(self: Box<Self>, _: &Content, _: &Meta) -> io::Result<()> {
        self.0.held.lock().unwrap().insert(self.1);
        self.0.over.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

struct Bed {
    tree: PathBuf,
    gate: Arc<Gate>,
    session: Session,
    _held: tempfile::TempDir,
}

impl Bed {
    /// A session over a tree that `prepare` makes, settled, with the gate shut.
    fn new(prepare: impl FnOnce(&Path)) -> Bed {
        let held = tempfile::tempdir().unwrap();
        let tree = held.path().join("tree");
        fs::create_dir(&tree).unwrap();
        prepare(&tree);
        let gate = Arc::new(Gate::default());
        let session = open_sinking(
            &tree,
            &held.path().join("state"),
            None,
            CaptureOptions::default(),
            Arc::new(GateSink(gate.clone())),
        )
        .unwrap();
        let bed = Bed {
            tree,
            gate,
            session,
            _held: held,
        };
        barrier(&bed.session);
        bed.same();
        bed.gate.set(true);
        bed
    }

    /// Does something by another process: our own changes are not events. `large FILE` makes a large file, at
    /// once: one that grows slowly is looked at while it is small.
    fn sh(&self, script: &str) {
        let large = format!(
            "large() {{ head -c {LARGE} /dev/zero | tr '\\0' x > ../new; mv ../new \"$1\"; }}"
        );
        let mut command = Command::new("sh");
        command.arg("-ec").arg(format!("{large}\n{script}"));
        let status = command.current_dir(&self.tree).status().unwrap();
        assert!(status.success(), "{script}");
    }

    /// Does something that makes a large file be read, until it is.
    fn while_read(&self, script: &str) {
        let before = self.gate.begun.load(Ordering::SeqCst);
        self.sh(script);
        self.wait("a read begins", || {
            self.gate.begun.load(Ordering::SeqCst) > before
        });
    }

    fn wait(&self, what: &str, is_so: impl FnMut() -> bool) {
        wait_until(what, LONG, is_so).unwrap();
    }

    fn known(&self, path: &str) -> Option<ObjectId> {
        let index = &self.session.index;
        let rows = index.read().unwrap_or_else(PoisonError::into_inner);
        let mut parent = ObjectId::ROOT;
        for name in path.split('/') {
            let name = Name::new(name.as_bytes()).unwrap();
            parent = rows.name(&At { parent, name }).unwrap()?;
        }
        Some(parent)
    }

    /// Small changes go on all the same: this one is in the index soon.
    fn others_go_on(&self, name: &str) {
        self.sh(&format!("echo > '{name}'"));
        self.wait("a small file is seen", || self.known(name).is_some());
        std::thread::sleep(Duration::from_millis(200));
    }

    #[track_caller]
    fn same(&self) {
        assert_eq!(differences(&self.session, &self.tree), Vec::<String>::new());
    }

    /// The records since `from`, by groups: what was done to which name.
    fn log(&self) -> Vec<Vec<String>> {
        let mut cursor = self.session.reader.cursor(None).unwrap();
        let mut groups = Vec::new();
        while let Some(group) = cursor.next_group().unwrap() {
            let lines = group.records.iter().filter_map(|record| {
                let bytes = record.change.content().map_or(0, |content| content.bytes);
                Some(match &record.change {
                    Change::Create { at, .. } => format!("new {} {bytes}", at.name),
                    Change::Link { at, .. } => format!("link {}", at.name),
                    Change::Unlink { at, .. } => format!("unlink {}", at.name),
                    Change::Move { from, to, .. } => format!("move {} {}", from.name, to.name),
                    Change::Update {
                        at: Some(at),
                        content: Some(_),
                        ..
                    } => format!("write {} {bytes}", at.name),
                    _ => return None,
                })
            });
            groups.push(lines.collect());
        }
        groups
    }

    /// The group that has this line.
    #[track_caller]
    fn group_of(&self, line: &str) -> usize {
        let log = self.log();
        log.iter()
            .position(|group| group.iter().any(|found| found == line))
            .unwrap_or_else(|| panic!("no {line:?} in {log:#?}"))
    }

    #[track_caller]
    fn open_and_settle(self) -> Bed {
        self.gate.set(false);
        barrier(&self.session);
        self.same();
        self
    }

    fn end(self) {
        self.gate.set(false);
        let ended = self.session.stop();
        assert!(matches!(ended, Ended::Stopped), "{ended:?}");
        assert_eq!(
            *self.gate.held.lock().unwrap(),
            BTreeSet::new(),
            "sunk for nothing"
        );
    }
}

fn alone(test: &str, body: impl FnOnce()) {
    lab::in_private_namespace(test, |_| body());
}

fn large(fill: u8) -> Vec<u8> {
    vec![fill; LARGE]
}

#[test]
fn all_else_goes_on_while_a_large_file_is_read() {
    alone("all_else_goes_on_while_a_large_file_is_read", || {
        let bed = Bed::new(|_| {});
        bed.while_read("large large");
        bed.others_go_on("small");
        assert_eq!(bed.known("large"), None, "a name without its content");
        let behind = || bed.session.shared.lock().behind_since_ns;
        assert!(behind().is_some(), "the lag is not told");
        let bed = bed.open_and_settle();
        assert!(bed.group_of("new small 1") < bed.group_of(&format!("new large {LARGE}")));
        bed.wait("nothing is behind", || {
            bed.session.shared.lock().behind_since_ns.is_none()
        });
        bed.end();
    });
}

#[test]
fn a_switch_waits_for_what_was_written_before_it() {
    alone("a_switch_waits_for_what_was_written_before_it", || {
        let bed = Bed::new(|tree| {
            fs::create_dir(tree.join("v1")).unwrap();
            fs::create_dir(tree.join("v2")).unwrap();
            fs::create_dir(tree.join("dir")).unwrap();
            symlink("v1", tree.join("current")).unwrap();
        });
        let current = bed.known("current");
        bed.while_read("large v2/data");
        bed.sh("ln -s v2 next; mv -T next current; mv dir moved");
        bed.others_go_on("small");
        assert_eq!(bed.known("current"), current, "switched too early");
        assert!(bed.known("dir").is_some() && bed.known("moved").is_none());
        // What lies in a directory that waits is found where it was.
        bed.sh("echo > moved/in");
        bed.others_go_on("small 2");
        let bed = bed.open_and_settle();
        assert_ne!(bed.known("current"), current);
        let data = bed.group_of(&format!("new data {LARGE}"));
        assert!(data <= bed.group_of("move dir moved"));
        assert!(data <= bed.group_of("unlink current"));
        bed.end();
    });
}

#[test]
fn a_log_that_is_rotated_while_it_is_read_stays_the_same_file() {
    alone(
        "a_log_that_is_rotated_while_it_is_read_stays_the_same_file",
        || {
            let bed = Bed::new(|tree| {
                fs::write(tree.join("log"), large(1)).unwrap();
                fs::write(tree.join("old"), "old").unwrap();
            });
            let (log, old) = (bed.known("log"), bed.known("old"));
            bed.while_read("printf more >> log");
            bed.sh("mv log log.1; mv old log");
            bed.others_go_on("small");
            assert_eq!((bed.known("log"), bed.known("log.1")), (log, None));
            bed.sh("echo > old");
            bed.others_go_on("small 2");
            let bed = bed.open_and_settle();
            assert_eq!((bed.known("log.1"), bed.known("log")), (log, old));
            let written = bed.group_of(&format!("write log.1 {}", LARGE + 4));
            assert_eq!(written, bed.group_of("move log log.1"));
            bed.end();
        },
    );
}

#[test]
fn what_is_linked_waits_and_what_is_removed_does_not() {
    alone("what_is_linked_waits_and_what_is_removed_does_not", || {
        let bed = Bed::new(|tree| {
            fs::write(tree.join("a"), large(1)).unwrap();
            fs::write(tree.join("b"), large(2)).unwrap();
            fs::hard_link(tree.join("b"), tree.join("b too")).unwrap();
        });
        bed.while_read("printf more >> a");
        bed.while_read("printf more >> b");
        bed.sh("ln a 'a too'; rm 'b too'");
        bed.wait("one name is gone", || bed.known("b too").is_none());
        bed.sh("rm b");
        bed.wait("the other one, too", || bed.known("b").is_none());
        assert!(bed.known("a too").is_none());
        let bed = bed.open_and_settle();
        let written = bed.group_of(&format!("write a {}", LARGE + 4));
        assert_eq!(written, bed.group_of("link a too"));
        assert!(!format!("{:?}", bed.log()).contains("write b"));
        bed.end();
    });
}

#[test]
fn a_new_file_is_read_once_whatever_happens_to_its_name() {
    alone(
        "a_new_file_is_read_once_whatever_happens_to_its_name",
        || {
            let bed = Bed::new(|tree| fs::write(tree.join("there"), "old").unwrap());
            bed.while_read("large tmp");
            bed.while_read("large gone");
            bed.sh("mv tmp there; rm gone");
            bed.others_go_on("small");
            assert!(
                bed.known("there").is_some(),
                "a name that is there is missing"
            );
            bed.sh("mkdir dir; mv there dir/last");
            let bed = bed.open_and_settle();
            let log = format!("{:?}", bed.log());
            assert!(
                !log.contains("new tmp") && !log.contains("new gone"),
                "{log}"
            );
            bed.end();
        },
    );
}

#[test]
fn attributes_that_change_while_it_is_read_are_kept() {
    alone("attributes_that_change_while_it_is_read_are_kept", || {
        let bed = Bed::new(|_| {});
        bed.while_read("large large");
        bed.sh("chmod 600 large");
        let bed = bed.open_and_settle();
        bed.sh("chmod 640 large");
        barrier(&bed.session);
        bed.same();
        bed.end();
    });
}

#[test]
fn a_barrier_waits_for_a_read_that_covers_it() {
    alone("a_barrier_waits_for_a_read_that_covers_it", || {
        let bed = Bed::new(|tree| fs::write(tree.join("db"), large(1)).unwrap());
        bed.while_read("printf 1 >> db");
        // In place, and the time as it was.
        bed.sh(
            "touch -r db ../t; printf 2 | dd of=db bs=1 seek=5 conv=notrunc 2>/dev/null; touch -r ../t db",
        );
        let answer = bed.session.barrier();
        bed.others_go_on("small");
        assert!(answer.is_empty(), "it did not wait");
        bed.gate.set(false);
        answer.recv_timeout(LONG).unwrap();
        bed.same();
        bed.end();
    });
}

#[test]
fn a_session_ends_in_the_middle_of_a_read() {
    alone("a_session_ends_in_the_middle_of_a_read", || {
        let bed = Bed::new(|_| {});
        bed.gate.slow_ms.store(50, Ordering::Relaxed);
        bed.gate.set(false);
        // Ten seconds.
        bed.while_read("head -c 200M /dev/zero | tr '\\0' x > large");
        let began = Instant::now();
        bed.end();
        assert!(
            began.elapsed() < Duration::from_secs(3),
            "{:?}",
            began.elapsed()
        );
    });
}

#[test]
fn a_file_that_is_written_all_the_time_is_not_read_all_the_time() {
    alone(
        "a_file_that_is_written_all_the_time_is_not_read_all_the_time",
        || {
            let bed = Bed::new(|tree| fs::write(tree.join("log"), large(1)).unwrap());
            bed.gate.set(false);
            // A read takes 300 ms.
            bed.gate.slow_ms.store(100, Ordering::Relaxed);
            let begun = bed.gate.begun.load(Ordering::SeqCst);
            // Held open, some hundred lines.
            bed.sh("exec 3>>log; for i in $(seq 60); do for j in 1 2 3 4 5; do echo $i >&3; sleep 0.02; done; done");
            let reads = bed.gate.begun.load(Ordering::SeqCst) - begun;
            // One after the other it would be twenty; five times apart it is four.
            assert!((2..=6).contains(&reads), "{reads} reads");
            // It rests now, and nobody asks for it.
            let equal = || differences(&bed.session, &bed.tree).is_empty();
            let began = Instant::now();
            bed.wait("the last line is seen", equal);
            assert!(
                began.elapsed() < Duration::from_secs(2),
                "{:?}",
                began.elapsed()
            );
            bed.end();
        },
    );
}
