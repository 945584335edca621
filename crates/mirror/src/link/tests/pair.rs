//! A worker with a made-up capture, and a follower played by hand, over a pair of sockets.

use std::collections::HashMap;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mirror_core::{At, Change, Content, Digest, Kind, Meta, Name, ObjectId, State};

use crate::capture::state::{Barrier, Order};
use crate::disk::RealDisk;
use crate::engine::options::Compress;
use crate::engine::serving::Chain;
use crate::link::cache::ContentCache;
use crate::link::conn::{Closer, Incoming, LinkError, Outgoing};
use crate::link::message::{self as say, Cause, Message};
use crate::link::report::Report;
use crate::link::serve::{Compared, FollowerState, Found, Open, ReadBack, Ready, Served, serve};
use crate::log::{Draft, End, Log, LogOptions};

const TREE: [u8; 16] = [7; 16];

/// Capture made up: files are appended by the test, contents kept here.
pub(super) struct Fake {
    log: Mutex<Log>,
    cache: Arc<ContentCache>,
    files: Arc<Mutex<HashMap<ObjectId, Vec<u8>>>>,
    reads: Arc<Mutex<u64>>,
    chain: Chain,
    pub(super) compress: Mutex<Compress>,
    released: AtomicU64,
    notices: Mutex<Vec<String>>,
    rests: AtomicBool,
    dir: tempfile::TempDir,
}

impl Fake {
    pub(super) fn new() -> Arc<Fake> {
        let dir = tempfile::tempdir().unwrap();
        let disk = Arc::new(RealDisk::open(dir.path()).unwrap());
        let log = Log::create(disk, LogOptions::default(), TREE, [1; 16], 1).unwrap();
        let chain = Chain::open(dir.path()).unwrap();
        let fake = Fake {
            log: Mutex::new(log),
            chain,
            cache: Arc::new(ContentCache::in_dir(dir.path())),
            files: Arc::default(),
            reads: Arc::default(),
            compress: Mutex::default(),
            released: AtomicU64::new(0),
            notices: Mutex::default(),
            rests: AtomicBool::new(false),
            dir,
        };
        fake.log.lock().unwrap().flush().unwrap();
        Arc::new(fake)
    }

    /// A new file; its content goes beside the log, into the cache, or stays where it is.
    pub(super) fn file(
        &self,
        name: &str,
        bytes: &[u8],
        kept: bool,
        cached: bool,
    ) -> (ObjectId, Digest) {
        let digest = Digest(*blake3::hash(bytes).as_bytes());
        if cached {
            self.cache.put(digest, bytes);
        }
        let mut log = self.log.lock().unwrap();
        let object = ObjectId::at(log.next_position()).unwrap();
        self.files.lock().unwrap().insert(object, bytes.to_vec());
        let content = kept.then(|| log.content().put(bytes).unwrap());
        let state = State {
            kind: Kind::File(Content {
                bytes: bytes.len() as u64,
                digest,
                data: Vec::new(),
                proven: true,
                fuzzy: false,
            }),
            meta: Meta::default(),
        };
        let at = At {
            parent: ObjectId::ROOT,
            name: Name::new(name.as_bytes()).unwrap(),
        };
        let draft = Draft {
            change: Change::Create { at, object, state },
            who: None,
            local: None,
            content,
        };
        log.append(vec![draft], 5).unwrap();
        log.flush().unwrap();
        (object, digest)
    }

    pub(super) fn end(&self) -> End {
        self.log.lock().unwrap().end().unwrap()
    }
}

impl Served for Fake {
    fn ready(&self) -> Ready {
        if self.rests.load(Ordering::Relaxed) {
            return Ready::NotYet;
        }
        Ready::Open(Box::new(Open {
            program: "made up",
            tree: TREE,
            path: b"/made/up".to_vec(),
            detector: "scan".into(),
            why: "made up".into(),
            reader: self.log.lock().unwrap().reader(),
        }))
    }
    fn chain(&self) -> &Chain {
        &self.chain
    }
    fn cache(&self) -> &Arc<ContentCache> {
        &self.cache
    }
    fn compress(&self) -> Compress {
        *self.compress.lock().unwrap()
    }
    fn report(&self) -> Report {
        Report::default()
    }
    fn order(&self, order: Order) {
        if let Order::Barrier(answer) = order {
            let position = Some(self.end().position);
            let barrier = Barrier {
                position,
                ..Barrier::default()
            };
            let _ = answer.send(barrier);
        }
    }
    fn release(&self) {
        self.released.fetch_add(1, Ordering::Relaxed);
    }
    fn notice(&self, text: String) {
        self.notices.lock().unwrap().push(text);
    }
    fn read_back(
        &self,
        object: ObjectId,
        digest: Digest,
        each: &mut dyn FnMut(&[u8]) -> bool,
    ) -> ReadBack {
        let (files, reads) = (self.files.clone(), self.reads.clone());
        let read = move |each: &mut dyn FnMut(&[u8]) -> bool| {
            *reads.lock().unwrap() += 1;
            let bytes = files.lock().unwrap().get(&object).cloned();
            let Some(bytes) = bytes else {
                return ReadBack::Void;
            };
            for piece in bytes.chunks(1 << 16) {
                if !each(piece) {
                    return ReadBack::Stopped;
                }
            }
            if *blake3::hash(&bytes).as_bytes() == digest.0 {
                ReadBack::Complete
            } else {
                ReadBack::Void
            }
        };
        self.cache.read(digest, read, each)
    }
    fn verify(&self, _: bool, each: &mut dyn FnMut(Found) -> bool) -> Result<Compared, String> {
        each(Found {
            path: b"odd".to_vec(),
            what: "content".into(),
        });
        Ok(Compared {
            entries: 3,
            different: 1,
            ..Compared::default()
        })
    }
}

fn halves(stream: UnixStream) -> (Arc<Outgoing>, Incoming) {
    let ender = stream.try_clone().unwrap();
    let closer: Closer = Arc::new(move || {
        let _ = ender.shutdown(Shutdown::Both);
    });
    let outgoing = Arc::new(Outgoing::new(stream.try_clone().unwrap(), closer));
    (outgoing, Incoming::new(stream))
}

/// A follower played by hand.
pub(super) struct Hand {
    pub(super) out: Arc<Outgoing>,
    pub(super) incoming: Incoming,
    worker: Option<std::thread::JoinHandle<Result<(), LinkError>>>,
    state: Arc<Mutex<FollowerState>>,
}

impl Hand {
    pub(super) fn connect(fake: &Arc<Fake>) -> Hand {
        Hand::connect_to(fake.clone())
    }

    pub(super) fn connect_to(served: Arc<dyn Served>) -> Hand {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let state = Arc::new(Mutex::new(FollowerState::default()));
        let seen = state.clone();
        let worker = std::thread::spawn(move || {
            let (outgoing, incoming) = halves(theirs);
            let done = serve(&served, &outgoing, incoming, &seen);
            outgoing.close();
            done
        });
        let (out, incoming) = halves(ours);
        Hand {
            out,
            incoming,
            worker: Some(worker),
            state,
        }
    }

    fn hello(&mut self, timeout_ms: u64) -> say::Welcome {
        self.hello_with(timeout_ms, 0)
    }

    pub(super) fn hello_with(&mut self, timeout_ms: u64, features: u64) -> say::Welcome {
        self.out
            .send(say::Hello {
                protocol: 1,
                protocol_min: 1,
                features,
                role: "follower".into(),
                program: "hand".into(),
                tree: b"/made/up".to_vec(),
                timeout_ms,
                ignore: Vec::new(),
                detector: String::new(),
                name: "hand".into(),
                cross: Vec::new(),
                replica: Vec::new(),
            })
            .unwrap();
        match self.hear() {
            Message::Welcome(welcome) => welcome,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn follow(&mut self, after: Option<End>) {
        let after = after.map(say::At::from);
        self.out
            .send(say::Follow {
                after,
                bwlimit: 0,
                records_only: false,
                listed: false,
                once: false,
            })
            .unwrap();
    }

    /// The next message that is neither heartbeat nor report.
    pub(super) fn hear(&mut self) -> Message {
        loop {
            match self.incoming.next_message().unwrap() {
                Message::Heartbeat(_) | Message::Report(_) => {}
                other => return other,
            }
        }
    }

    /// Until the log of ours reaches this; what came with it, by digest: kept, bytes.
    pub(super) fn take(&mut self, log: &mut Log, until: End) -> HashMap<[u8; 32], (bool, Vec<u8>)> {
        let mut contents = HashMap::new();
        let mut records = Vec::new();
        while log.end() != Some(until) {
            match self.hear() {
                Message::Contents(more) => {
                    for block in more.blocks {
                        contents.insert(block.digest, (more.kept, block.bytes));
                    }
                }
                Message::Records(more) => {
                    records.extend_from_slice(&more.bytes);
                    if more.whole {
                        log.append_frames(&std::mem::take(&mut records), &mut |_| (None, None))
                            .unwrap();
                    }
                }
                other => panic!("{other:?}"),
            }
        }
        contents
    }

    pub(super) fn ended(mut self) -> Result<(), LinkError> {
        self.out.close();
        self.worker.take().unwrap().join().unwrap()
    }
}

pub(super) fn own_log() -> (tempfile::TempDir, Log) {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(RealDisk::open(dir.path()).unwrap());
    let log = Log::create_follower(disk, LogOptions::default(), TREE, None).unwrap();
    (dir, log)
}

/// Who is refused gives up; who is sent away comes again, and hears what there is to say.
#[test]
fn who_follows_as_capture_ends_is_sent_away_and_not_refused() {
    let fake = Fake::new();
    let mut hand = Hand::connect(&fake);
    hand.hello(0);
    fake.rests.store(true, Ordering::Relaxed);
    hand.follow(None);
    let said = loop {
        match hand.incoming.next_message() {
            Ok(Message::Heartbeat(_) | Message::Report(_)) => {}
            said => break said,
        }
    };
    assert!(matches!(said, Err(LinkError::Bye(_))), "{said:?}");
}

#[test]
fn records_come_with_their_contents_before_them() {
    let fake = Fake::new();
    let (_, kept) = fake.file("kept", b"beside the log", true, false);
    let (_, read) = fake.file("read", b"read again", false, false);
    let (large_id, large) = fake.file("large", &vec![3; 600 << 10], false, false);
    fake.file("empty", b"", false, false);
    let mut hand = Hand::connect(&fake);
    let welcome = hand.hello(0);
    assert_eq!(
        (welcome.tree, welcome.path.as_slice()),
        (TREE, &b"/made/up"[..])
    );
    assert_eq!(welcome.end.map(End::from), Some(fake.end()));
    hand.follow(None);
    let (_dir, mut log) = own_log();
    let contents = hand.take(&mut log, fake.end());
    assert_eq!(
        contents.len(),
        2,
        "the large one is asked for, the empty one is known"
    );
    assert_eq!(contents[&kept.0], (true, b"beside the log".to_vec()));
    assert_eq!(contents[&read.0], (false, b"read again".to_vec()));
    // Live: what capture has just read comes from memory.
    let reads = *fake.reads.lock().unwrap();
    let (_, cached) = fake.file("cached", b"just read", false, true);
    let contents = hand.take(&mut log, fake.end());
    assert_eq!(contents[&cached.0], (false, b"just read".to_vec()));
    assert_eq!(*fake.reads.lock().unwrap(), reads);
    // The large one, in pieces.
    hand.out
        .send(say::Request {
            id: 9,
            object: large_id.0,
            digest: large.0,
            from: None,
        })
        .unwrap();
    let mut bytes = Vec::new();
    loop {
        match hand.hear() {
            Message::Piece(piece) => bytes.extend_from_slice(&piece.bytes),
            Message::PieceEnd(end) => {
                assert_eq!((end.id, end.end), (9, 0));
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(bytes, vec![3; 600 << 10]);
    // One that is not what the log says any more.
    fake.files
        .lock()
        .unwrap()
        .insert(large_id, b"other".to_vec());
    hand.out
        .send(say::Request {
            id: 10,
            object: large_id.0,
            digest: large.0,
            from: None,
        })
        .unwrap();
    loop {
        match hand.hear() {
            Message::Piece(_) => {}
            Message::PieceEnd(end) => {
                assert_eq!((end.id, end.end), (10, 1));
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    // A barrier, and how far the follower says it is.
    let place = Some(say::Place::from(fake.end().position));
    hand.out
        .send(say::Ack {
            received: place,
            durable: place,
            applied: place,
            ..say::Ack::default()
        })
        .unwrap();
    hand.out.send(say::Barrier { id: 4 }).unwrap();
    match hand.hear() {
        Message::BarrierDone(done) => assert_eq!((done.id, done.position), (4, place)),
        other => panic!("{other:?}"),
    }
    assert_eq!(
        hand.state.lock().unwrap().positions.applied,
        Some(fake.end().position)
    );
    hand.out
        .send(say::Verify {
            id: 5,
            repair: false,
        })
        .unwrap();
    assert!(matches!(hand.hear(), Message::VerifyFound(found) if found.path == b"odd"));
    assert!(matches!(hand.hear(), Message::VerifyDone(done) if done.different == 1));
    let _ = hand.ended();
}

#[test]
fn a_follower_goes_on_where_it_was() {
    let fake = Fake::new();
    fake.file("one", b"1", true, false);
    let (_dir, mut log) = own_log();
    let mut hand = Hand::connect(&fake);
    hand.hello(0);
    hand.follow(None);
    hand.take(&mut log, fake.end());
    let _ = hand.ended();
    fake.file("two", b"2", true, false);
    let mut hand = Hand::connect(&fake);
    hand.hello(0);
    hand.follow(log.end());
    let contents = hand.take(&mut log, fake.end());
    assert_eq!(contents.len(), 1, "only what is new");
    let _ = hand.ended();
}

#[test]
fn a_place_in_another_history_is_refused_and_may_be_chosen_again() {
    let fake = Fake::new();
    fake.file("one", b"1", true, false);
    let mut hand = Hand::connect(&fake);
    hand.hello(0);
    let mut wrong = fake.end();
    wrong.head = Digest([9; 32]);
    hand.follow(Some(wrong));
    match hand.hear() {
        Message::Refused(no) => assert_eq!(Cause::of(no.cause), Cause::Forked),
        other => panic!("{other:?}"),
    }
    let mut ahead = fake.end();
    ahead.position.sequence += 100;
    hand.follow(Some(ahead));
    match hand.hear() {
        Message::Refused(no) => assert_eq!(Cause::of(no.cause), Cause::Forked),
        other => panic!("{other:?}"),
    }
    hand.follow(None);
    let (_dir, mut log) = own_log();
    hand.take(&mut log, fake.end());
    let _ = hand.ended();
}

#[test]
fn versions_and_roles_that_do_not_fit_are_refused_in_words() {
    let fake = Fake::new();
    for (protocol, protocol_min, role) in [(9, 5, "follower"), (0, 0, "follower"), (1, 1, "queen")]
    {
        let mut hand = Hand::connect(&fake);
        hand.out
            .send(say::Hello {
                protocol,
                protocol_min,
                features: u64::MAX,
                role: role.into(),
                program: "strange\x1b[2J 9.9".into(),
                tree: Vec::new(),
                timeout_ms: 0,
                ignore: Vec::new(),
                detector: String::new(),
                name: String::new(),
                cross: Vec::new(),
                replica: Vec::new(),
            })
            .unwrap();
        match hand.hear() {
            Message::Refused(no) => {
                assert!(
                    no.reason.contains("speaks protocol 1 to 1"),
                    "{}",
                    no.reason
                );
                assert!(!no.reason.contains('\x1b'));
            }
            other => panic!("{other:?}"),
        }
        let _ = hand.ended();
    }
}

#[test]
fn a_slow_follower_holds_nobody_back() {
    let fake = Fake::new();
    for n in 0..200 {
        let bytes: Vec<u8> = (0..100_000u32).map(|b| (b * (n + 1)) as u8).collect();
        fake.file(&format!("f{n}"), &bytes, false, false);
    }
    let mut slow = Hand::connect(&fake);
    slow.hello(0);
    slow.follow(None);
    // It reads nothing more. The other one is served all the same, and so is the log.
    let mut quick = Hand::connect(&fake);
    quick.hello(0);
    quick.follow(None);
    let (_dir, mut log) = own_log();
    quick.take(&mut log, fake.end());
    fake.file("later", b"x", true, false);
    quick.take(&mut log, fake.end());
    let _ = quick.ended();
    let (_dir, mut log) = own_log();
    slow.take(&mut log, fake.end());
    let _ = slow.ended();
}

#[test]
fn a_silent_peer_is_found_dead_and_a_talking_one_is_not() {
    let fake = Fake::new();
    let mut hand = Hand::connect(&fake);
    hand.hello(1000);
    hand.follow(None);
    let before = Instant::now();
    while before.elapsed() < Duration::from_millis(1600) {
        hand.out
            .send(say::Heartbeat {
                time_ns: 1,
                end: None,
            })
            .unwrap();
        std::thread::sleep(Duration::from_millis(200));
    }
    let quiet = Instant::now();
    let worker = hand.worker.take().unwrap();
    let ended = worker.join().unwrap();
    assert!(matches!(ended, Err(LinkError::Silent(_))), "{ended:?}");
    assert!(quiet.elapsed() < Duration::from_secs(3));
    // The worker itself said something all the time.
    let mut beats = 0;
    while let Ok(message) = hand.incoming.next_message() {
        beats += u64::from(matches!(message, Message::Heartbeat(_)));
    }
    assert!(beats >= 3, "{beats}");
}

#[test]
fn bandwidth_is_kept() {
    let fake = Fake::new();
    for n in 0..4u8 {
        fake.file(&format!("f{n}"), &[n; 100_000], false, false);
    }
    let mut hand = Hand::connect(&fake);
    hand.hello(0);
    let bwlimit = 400_000;
    hand.out
        .send(say::Follow {
            after: None,
            bwlimit,
            records_only: false,
            listed: false,
            once: false,
        })
        .unwrap();
    let before = Instant::now();
    let (_dir, mut log) = own_log();
    hand.take(&mut log, fake.end());
    // The last message's own time comes after it.
    assert!(
        before.elapsed() >= Duration::from_millis(600),
        "{:?}",
        before.elapsed()
    );
    let _ = hand.ended();
}

#[test]
fn nonsense_ends_the_connection_and_nothing_else() {
    use std::io::Write;
    let fake = Fake::new();
    let mut hand = Hand::connect(&fake);
    hand.hello(0);
    hand.out
        .send(say::Piece {
            id: 1,
            bytes: vec![1],
        })
        .unwrap();
    let ended = hand.worker.take().unwrap().join().unwrap();
    assert!(matches!(ended, Err(LinkError::Nonsense(_))), "{ended:?}");
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let served: Arc<dyn Served> = fake.clone();
    let worker = std::thread::spawn(move || {
        let (outgoing, incoming) = halves(theirs);
        serve(&served, &outgoing, incoming, &Mutex::default())
    });
    ours.write_all(&[0x46; 5000]).unwrap();
    assert!(worker.join().unwrap().is_err());
    assert!(fake.dir.path().exists());
    let mut hand = Hand::connect(&fake);
    hand.hello(0);
    let _ = hand.ended();
}

#[test]
fn twenty_are_sent_what_was_read_once_and_one_that_stops_holds_nobody_back() {
    const READERS: usize = 20;
    let fake = Fake::new();
    fake.file("before", b"before", true, false);
    // It says where it stands, and takes nothing more.
    let mut stopped = Hand::connect(&fake);
    stopped.hello(3_600_000);
    stopped.follow(None);
    let (live, over) = (
        std::sync::Barrier::new(READERS + 1),
        std::sync::Barrier::new(READERS + 1),
    );
    let wanted: Mutex<Option<(End, ObjectId, Digest)>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..READERS {
            scope.spawn(|| {
                let (_dir, mut log) = own_log();
                let mut hand = Hand::connect(&fake);
                hand.hello(0);
                hand.follow(None);
                hand.take(&mut log, fake.end());
                live.wait();
                over.wait();
                let (end, object, digest) = wanted.lock().unwrap().unwrap();
                let contents = hand.take(&mut log, end);
                assert_eq!(contents.len(), 101);
                let asked = say::Request {
                    id: 1,
                    object: object.0,
                    digest: digest.0,
                    from: None,
                };
                hand.out.send(asked).unwrap();
                let mut bytes = 0;
                loop {
                    match hand.hear() {
                        Message::Piece(piece) => bytes += piece.bytes.len(),
                        Message::PieceEnd(end) => break assert_eq!(end.end, 0),
                        other => panic!("{other:?}"),
                    }
                }
                assert_eq!(bytes, 10 << 20);
                let _ = hand.ended();
            });
        }
        live.wait();
        fake.file("middle", &vec![1; 100 << 10], false, false);
        let (object, digest) = fake.file("large", &vec![2; 10 << 20], false, false);
        // More than a socket holds.
        for n in 0..100u8 {
            fake.file(&format!("kept {n}"), &vec![n; 60 << 10], true, false);
        }
        *wanted.lock().unwrap() = Some((fake.end(), object, digest));
        over.wait();
    });
    assert_eq!(
        *fake.reads.lock().unwrap(),
        2,
        "the middle one and the large one"
    );
    let left = fake.cache.several();
    assert!(!left, "who is left is alone");
    let _ = stopped.ended();
}

#[test]
fn who_comes_through_the_door_orders_nothing() {
    let fake = Fake::new();
    for may in [false, true] {
        let mut hand = Hand::connect(&fake);
        hand.state.lock().unwrap().may_order = may;
        let features = hand.hello(0).features;
        assert_eq!(features & say::FEATURE_NO_ORDERS == 0, may);
        for what in [say::Order::RELEASE, say::Order::RESCAN, 200] {
            hand.out.send(say::Order { what }).unwrap();
        }
        // It was all taken in once this is answered.
        hand.follow(None);
        hand.out.send(say::Barrier { id: 1 }).unwrap();
        while !matches!(hand.hear(), Message::BarrierDone(_)) {}
        let (released, told) = (&fake.released, fake.notices.lock().unwrap().clone());
        assert_eq!(released.load(Ordering::Relaxed), u64::from(may));
        let last = told.last().unwrap();
        match may {
            true => assert!(last.contains("releases what is held"), "{told:?}"),
            // Once, however often.
            false => assert!(told.len() == 1 && last.contains("may not"), "{told:?}"),
        }
    }
}
