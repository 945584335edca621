//! What the index costs: `cargo bench -p mirror --bench index [-- ENTRIES [CACHE_MIB]]` prints CPU and wall time per
//! operation, and memory. Times on a shared machine: look at the CPU.

use std::path::Path;
use std::time::Instant;

use mirror::index::{Index, Options};
use mirror_core::*;

const FILES_PER_DIR: u64 = 50;
const UPDATES: u64 = 100_000;

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| !arg.starts_with('-'));
    let entries: u64 = args
        .next()
        .and_then(|n| n.parse().ok())
        .unwrap_or(1_000_000);
    let cache_mib = args.next().and_then(|n| n.parse().ok());
    let cache_bytes = cache_mib.map_or(Options::default().cache_bytes, |mib: usize| mib << 20);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("index");
    println!(
        "{entries} entries, {FILES_PER_DIR} files a directory; CPU us, wall us per operation; memory"
    );
    run(&path, entries, cache_bytes);
}

fn run(path: &Path, entries: u64, cache_bytes: usize) {
    let options = Options {
        cache_bytes,
        ..Options::default()
    };
    let (mut index, _) = Index::open(path, options.clone()).expect("open");
    // A stand-in for the engine's once-a-second flush.
    let flush_every = entries / 8;

    let meter = Meter::start("insert new (put_new), flushing 8 times");
    for n in 0..entries {
        let (id, object) = file(n);
        index.put_new(id, object).expect("put_new");
        if n % flush_every == flush_every - 1 {
            index.set_position(
                Position {
                    epoch: 1,
                    sequence: n,
                },
                Digest([0; 32]),
            );
            index.flush().expect("flush");
        }
    }
    index.flush().expect("flush");
    meter.stop(entries);
    println!(
        "    file: {:.0} bytes an entry",
        file_bytes(path) as f64 / entries as f64
    );

    let mut random = 1u64;
    let mut pick = || {
        random = random
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (random >> 20) % entries
    };
    for (what, within) in [
        (
            "by_handle + object + put anywhere, flushing 4 times",
            entries,
        ),
        (
            "by_handle + object + put in a fiftieth of the tree",
            entries / 50,
        ),
    ] {
        let meter = Meter::start(what);
        for n in 0..UPDATES {
            let (_, before) = file(pick() % within);
            let handle = before.local.handle.as_ref().expect("a handle");
            let found = index.by_handle(handle).expect("by_handle");
            let id = found.expect("an object");
            let mut object = index.object(id).expect("object").expect("an object");
            object.state.meta.mtime.nanos = n as u32;
            index.put(id, object).expect("put");
            if n % (UPDATES / 4) == 0 {
                index.flush().expect("flush");
            }
        }
        index.flush().expect("flush");
        meter.stop(UPDATES);
    }

    let meter = Meter::start("random by_handle");
    for _ in 0..UPDATES {
        let (_, before) = file(pick());
        let handle = before.local.handle.as_ref().expect("a handle");
        index
            .by_handle(handle)
            .expect("by_handle")
            .expect("an object");
    }
    meter.stop(UPDATES);
    let meter = Meter::start("random name, absent");
    for _ in 0..UPDATES {
        let (_, before) = file(pick());
        let at = At {
            name: name("none"),
            parent: before.names.first().expect("a name").parent,
        };
        assert_eq!(index.name(&at).expect("name"), None);
    }
    meter.stop(UPDATES);

    let meter = Meter::start("scan of every directory");
    let dirs = entries / FILES_PER_DIR;
    let mut seen = 0;
    for dir in 0..dirs {
        seen += index.scan(dir_id(dir), None, 4096).expect("scan").len() as u64;
    }
    assert_eq!(seen, dirs * FILES_PER_DIR);
    meter.stop(seen);

    let meter = Meter::start("put of a new object, with looking");
    for n in entries..entries + UPDATES {
        let (id, object) = file(n);
        index.put(id, object).expect("put");
    }
    index.flush().expect("flush");
    meter.stop(UPDATES);

    let meter = Meter::start("remove in order");
    for n in entries..entries + UPDATES {
        index.remove(file(n).0).expect("remove");
    }
    index.flush().expect("flush");
    meter.stop(UPDATES);

    let meter = Meter::start("10 changes and a flush, 200 times");
    for _ in 0..200 {
        for _ in 0..10 {
            let (id, object) = file(pick());
            index.put(id, object).expect("put");
        }
        index.flush().expect("flush");
    }
    meter.stop(200);
    index.close().expect("close");
    println!(
        "    file: {:.0} bytes an entry",
        file_bytes(path) as f64 / entries as f64
    );

    for (what, check) in [("open, verifying it", true), ("open, trusting it", false)] {
        let options = Options {
            check,
            ..options.clone()
        };
        let meter = Meter::start(what);
        let (index, opened) = Index::open(path, options).expect("open");
        assert_eq!(opened.stats.entries, entries);
        meter.stop(1);
        index.close().expect("close");
    }
    let (mut index, _) = Index::open(path, options.clone()).expect("open");
    let (id, object) = file(pick());
    index.put(id, object).expect("put");
    index.spill().expect("spill");
    drop(index);
    let meter = Meter::start("open after a crash");
    let (index, _) = Index::open(path, options).expect("open");
    meter.stop(1);

    let meter = Meter::start("scan of every directory, cold cache");
    let mut seen = 0;
    for dir in 0..dirs {
        seen += index.scan(dir_id(dir), None, 4096).expect("scan").len() as u64;
    }
    meter.stop(seen);
}

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).expect("a name")
}

/// Directories take their ids before their files.
fn dir_id(dir: u64) -> ObjectId {
    ObjectId(ObjectId::ROOT.0 + dir * (FILES_PER_DIR + 1))
}

/// File `n` as a tree walk would give it.
fn file(n: u64) -> (ObjectId, Object) {
    let (dir, rank) = (n / FILES_PER_DIR, n % FILES_PER_DIR);
    let id = ObjectId(dir_id(dir).0 + 1 + rank);
    let mixed = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut digest = [0; 32];
    digest[..8].copy_from_slice(&mixed.to_le_bytes());
    // As ext4 numbers them: mostly in order.
    let ino = 1000 + n as u32;
    let mut handle = ino.to_le_bytes().to_vec();
    handle.extend_from_slice(&(mixed as u32).to_le_bytes());
    let time = |s: u64| Time {
        seconds: 1_780_000_000 + (s % 10_000_000) as i64,
        nanos: (mixed >> 34) as u32 % 1_000_000_000,
    };
    let object = Object {
        state: State {
            kind: Kind::File(Content {
                bytes: mixed % 9000,
                digest: Digest(digest),
                data: vec![],
                proven: true,
                fuzzy: false,
            }),
            meta: Meta {
                mode: 0o644,
                uid: 33,
                gid: 33,
                mtime: time(mixed),
                ..Meta::default()
            },
        },
        local: Local {
            handle: Some(Handle {
                kind: 1,
                bytes: handle.into(),
            }),
            ino: ino.into(),
            ctime: time(20_000),
            btime: time(19_999),
        },
        names: Names::one(At {
            parent: dir_id(dir),
            name: name(&format!("class-part-{rank:02}.php")),
        }),
    };
    (id, object)
}

fn file_bytes(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |m| m.len())
}

struct Meter {
    what: &'static str,
    wall: Instant,
    cpu: f64,
}

impl Meter {
    fn start(what: &'static str) -> Meter {
        Meter {
            what,
            wall: Instant::now(),
            cpu: cpu_seconds(),
        }
    }
    fn stop(self, count: u64) {
        let per = 1e6 / count.max(1) as f64;
        let cpu = (cpu_seconds() - self.cpu) * per;
        let wall = self.wall.elapsed().as_secs_f64() * per;
        println!(
            "{:>12.2} {:>12.2}  {}  [{}]",
            cpu,
            wall,
            self.what,
            memory()
        );
    }
}

fn cpu_seconds() -> f64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

/// Anonymous memory now, and the highest resident size so far.
fn memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mib = |key: &str| {
        let line = status.lines().find(|line| line.starts_with(key));
        let kib = line.and_then(|line| line.split_whitespace().nth(1));
        kib.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024
    };
    format!(
        "anonymous {} MiB, highest resident {} MiB",
        mib("RssAnon:"),
        mib("VmHWM:")
    )
}
