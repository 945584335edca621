//! What one more follower costs whoever serves: `cargo bench -p mirror --bench readers [-- DIR]`; DIR for the log, else the
//! directory for temporary files.
//!
//! Followers are connections of another process that only reads, so that the CPU time of this one is the serving side's. A
//! log of records without content is written in groups, each flushed and sent before the next; the same without followers
//! is taken off.

use std::io::Read;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mirror::capture::state::Order;
use mirror::disk::RealDisk;
use mirror::engine::serving::Chain;
use mirror::link::cache::ContentCache;
use mirror::link::conn::Closer;
use mirror::link::message as say;
use mirror::link::report::Report;
use mirror::link::serve::{
    Compared, FollowerState, Found, Open, ReadBack, Ready, Served, now_ns, serve,
};
use mirror::link::{Incoming, Message, Outgoing};
use mirror::log::{Draft, Log, LogOptions, LogReader};
use mirror_core::*;

const SECONDS: f64 = 4.0;

struct Bare {
    reader: LogReader,
    chain: Chain,
    cache: Arc<ContentCache>,
}

impl Served for Bare {
    fn ready(&self) -> Ready {
        Ready::Open(Box::new(Open {
            program: "bench",
            tree: self.reader.tree(),
            path: b"/bench".to_vec(),
            detector: "none".into(),
            why: String::new(),
            reader: self.reader.clone(),
        }))
    }
    fn chain(&self) -> &Chain {
        &self.chain
    }
    fn cache(&self) -> &Arc<ContentCache> {
        &self.cache
    }
    fn report(&self) -> Report {
        Report::default()
    }
    fn order(&self, _: Order) {}
    fn release(&self) {}
    fn notice(&self, _: String) {}
    fn read_back(&self, _: ObjectId, _: Digest, _: &mut dyn FnMut(&[u8]) -> bool) -> ReadBack {
        ReadBack::Void
    }
    fn verify(&self, _: bool, _: &mut dyn FnMut(Found) -> bool) -> Result<Compared, String> {
        Ok(Compared::default())
    }
}

/// Update records of one object: about 300 bytes each as they travel.
fn drafts(records: usize, round: u64) -> Vec<Draft> {
    let meta = |n: usize| Meta {
        mode: 0o644,
        uid: 33,
        gid: 33,
        mtime: Time {
            seconds: round as i64,
            nanos: n as u32,
        },
        xattrs: vec![Xattr {
            name: b"user.bench".to_vec().into(),
            value: vec![7; 160].into(),
        }],
        ..Meta::default()
    };
    (0..records)
        .map(|n| Draft {
            change: Change::Update {
                object: ObjectId::ROOT,
                at: None,
                meta: Some(meta(n)),
                content: None,
            },
            who: None,
            local: None,
            content: None,
        })
        .collect()
}

/// CPU seconds of this process so far, to the clock tick.
fn cpu_s() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let ticks = fields.split_whitespace().skip(11).take(2);
    ticks
        .filter_map(|ticks| ticks.parse::<f64>().ok())
        .sum::<f64>()
        / 100.0
}

/// CPU seconds and records of some seconds of groups, with so many followers.
fn measure(dir: &Path, readers: usize, records: usize, every: Duration) -> (f64, u64) {
    let dir = tempfile::tempdir_in(dir).unwrap();
    let disk = Arc::new(RealDisk::open(dir.path()).unwrap());
    let mut log = Log::create(disk, LogOptions::default(), [1; 16], [2; 16], now_ns()).unwrap();
    log.flush().unwrap();
    let chain = Chain::open(dir.path()).unwrap();
    chain.heard(&[] as &[&[u8]]).unwrap();
    let served: Arc<dyn Served> = Arc::new(Bare {
        reader: log.reader(),
        chain,
        cache: Arc::new(ContentCache::in_dir(dir.path())),
    });
    let socket = dir.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut child = start_readers(&socket, readers);
    let mut serving = Vec::new();
    let states: Vec<Arc<Mutex<FollowerState>>> = (0..readers).map(|_| Arc::default()).collect();
    for state in &states {
        let (stream, _) = listener.accept().unwrap();
        let ender = stream.try_clone().unwrap();
        let closer: Closer = Arc::new(move || drop(ender.shutdown(Shutdown::Both)));
        let outgoing = Arc::new(Outgoing::new(stream.try_clone().unwrap(), closer));
        let (served, state) = (served.clone(), state.clone());
        serving.push(std::thread::spawn(move || {
            let _ = serve(&served, &outgoing, Incoming::new(stream), &state);
            outgoing.close();
        }));
    }
    // All follow, and have what there is.
    while states
        .iter()
        .any(|state| state.lock().unwrap().keep_after.is_none())
    {
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(300));
    let (before, began) = (cpu_s(), Instant::now());
    let (mut round, mut sent) = (0u64, 0u64);
    while began.elapsed().as_secs_f64() < SECONDS {
        round += 1;
        log.append(drafts(records, round), now_ns()).unwrap();
        log.flush().unwrap();
        sent += records as u64;
        let due = began + every * round as u32;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    let spent = cpu_s() - before;
    let _ = child.kill();
    let _ = child.wait();
    for thread in serving {
        let _ = thread.join();
    }
    (spent, sent)
}

fn start_readers(socket: &Path, readers: usize) -> Child {
    let this = std::env::current_exe().unwrap();
    Command::new(this)
        .arg("reader")
        .arg(socket)
        .arg(readers.to_string())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// The other process: connections that follow, and read what comes.
fn read_all(socket: &Path, readers: usize) {
    let threads: Vec<_> = (0..readers)
        .map(|n| {
            let mut stream = UnixStream::connect(socket).unwrap();
            std::thread::spawn(move || {
                let mut said = Vec::new();
                let hello = say::Hello {
                    protocol: say::PROTOCOL,
                    protocol_min: say::PROTOCOL_MIN,
                    features: 0,
                    role: "follower".into(),
                    program: "bench".into(),
                    tree: b"/bench".to_vec(),
                    timeout_ms: 3_600_000,
                    ignore: Vec::new(),
                    detector: String::new(),
                    name: n.to_string(),
                    cross: Vec::new(),
                    replica: Vec::new(),
                };
                Message::from(hello).encode(&mut said).unwrap();
                let follow = say::Follow {
                    after: None,
                    bwlimit: 0,
                    records_only: false,
                    listed: false,
                    once: false,
                };
                Message::from(follow).encode(&mut said).unwrap();
                std::io::Write::write_all(&mut stream, &said).unwrap();
                let mut buffer = vec![0; 256 << 10];
                while stream.read(&mut buffer).is_ok_and(|n| n > 0) {}
            })
        })
        .collect();
    for thread in threads {
        let _ = thread.join();
    }
}

fn main() {
    let args: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with("--"))
        .collect();
    if let [what, socket, readers] = &args[..]
        && what == "reader"
    {
        return read_all(Path::new(socket), readers.parse().unwrap());
    }
    let dir = args.first().map_or_else(std::env::temp_dir, PathBuf::from);
    println!("CPU of the serving side for each follower and record, us ({SECONDS} s each)\n");
    println!("| followers | 1 record a group, 500 groups/s | 200 records a group, 50 groups/s |");
    println!("|---|---|---|");
    let kinds = [
        (1, Duration::from_millis(2)),
        (200, Duration::from_millis(20)),
    ];
    let without = kinds.map(|(records, every)| {
        let (spent, sent) = measure(&dir, 0, records, every);
        spent / sent as f64
    });
    println!(
        "| none: the log alone, us for each record | {:.1} | {:.2} |",
        without[0] * 1e6,
        without[1] * 1e6
    );
    for readers in [1, 2, 5, 10, 20, 40, 60] {
        let mut cells = Vec::new();
        for ((records, every), without) in kinds.iter().zip(without) {
            let (spent, sent) = measure(&dir, readers, *records, *every);
            let each = (spent / sent as f64 - without) / readers as f64;
            cells.push(format!("{:.2}", each * 1e6));
        }
        println!("| {readers} | {} |", cells.join(" | "));
    }
}
