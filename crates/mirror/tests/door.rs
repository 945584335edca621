//! The door: a process of its own between strangers and trees, here with a supervisor that is the test.

mod ssh_support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use mirror::link::message::{self as say, Cause, Message};
use mirror::link::{Incoming, LinkError, Outgoing};
use mirror::net::dial::{Dialed, dial, dial_key};
use mirror::net::door::{Door, DoorError, DoorSetup, Trees};
use mirror::net::pair::{Between, Side, Token};
use mirror::net::stream::Session;
use mirror::net::trust::{Address, Trees as Which};
use mirror::net::{Fingerprint, KeyPair, Known, NetFileError, Program, Trusted};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use ssh_support::{Bed, FS_MIRROR, LONG, MIRRORD, ended, kill9, signal, stop};
use testkit::proc::{wait_equal, wait_until};
use testkit::proxy::{Control, Proxy, Settings};

/// Gives the test the other end of each connection to a tree; of the tree `real` one to its daemon.
struct Test {
    names: Vec<String>,
    opened: Sender<UnixStream>,
    real: Option<PathBuf>,
}

impl Trees for Test {
    fn names(&self) -> Vec<String> {
        self.names.clone()
    }
    fn open(&self, tree: &str) -> Result<UnixStream, (Cause, String)> {
        if !self.names.iter().any(|name| name == tree) {
            return Err((Cause::Usage, format!("there is no tree {tree} here")));
        }
        if let Some(state) = &self.real {
            let path = state.join("serve.sock");
            return UnixStream::connect(path).map_err(|e| (Cause::Failed, e.to_string()));
        }
        let (near, far) = UnixStream::pair().unwrap();
        self.opened.send(far).unwrap();
        Ok(near)
    }
}

struct Room {
    held: tempfile::TempDir,
    door: Option<Door>,
    at: SocketAddr,
    opened: Receiver<UnixStream>,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Room {
    fn new(change: impl FnOnce(&mut DoorSetup)) -> Room {
        Room::of(None, change)
    }

    fn of(real: Option<PathBuf>, change: impl FnOnce(&mut DoorSetup)) -> Room {
        let held = tempfile::tempdir().unwrap();
        let (opened, receiver) = unbounded();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let listen = vec!["127.0.0.1:0".parse().unwrap()];
        let mut setup = DoorSetup::new(Program::Mirrord, listen, held.path().join("door"));
        setup.executable = MIRRORD.into();
        let log = lines.clone();
        setup.log = Arc::new(move |line| log.lock().unwrap().push(line.to_owned()));
        change(&mut setup);
        let trees = Test {
            names: vec!["blog".into(), "shop".into()],
            opened,
            real,
        };
        let door = Door::open(setup, Arc::new(trees)).unwrap();
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let at = door.addresses().first().copied().unwrap_or(nowhere);
        Room {
            held,
            door: Some(door),
            at,
            opened: receiver,
            lines,
        }
    }

    fn config(&self, who: &str) -> PathBuf {
        self.held.path().join(who)
    }

    /// `who` knows the door, which trusts it with these trees.
    fn introduce(&self, who: &str, trees: &[&str]) -> Fingerprint {
        let config = self.config(who);
        let key = KeyPair::load_or_make(&config).unwrap().fingerprint();
        let door = self.door.as_ref().unwrap().fingerprint();
        let address = Address::new("127.0.0.1", Some(self.at.port()));
        Known::set(&config, &address, door).unwrap();
        if !trees.is_empty() {
            self.trust(|t| t.add(key, Which::named(trees.iter().copied()), Some(who)));
        }
        key
    }

    /// Changes the file; the door looks before it answers.
    fn trust<T>(&self, change: impl FnOnce(&mut Trusted) -> Result<T, String>) {
        Trusted::edit(&self.config("door"), |trusted| {
            change(trusted).map_err(|why| NetFileError::Unsafe {
                path: "".into(),
                why,
            })
        })
        .unwrap();
    }

    fn dial(&self, who: &str) -> Dialed {
        dial("127.0.0.1", Some(self.at.port()), &self.config(who), LONG).unwrap()
    }

    /// Says the first message; what is answered.
    fn ask(&self, who: &str, message: impl Into<Message>) -> Result<Message, LinkError> {
        let dialed = self.dial(who);
        let outgoing = Outgoing::new(dialed.writer, dialed.closer);
        outgoing.send(message)?;
        Incoming::new(dialed.reader).next_message()
    }

    fn lines_with(&self, what: &str) -> usize {
        let lines = self.lines.lock().unwrap();
        lines.iter().filter(|line| line.contains(what)).count()
    }
}

#[track_caller]
fn until(what: &str, is_so: impl FnMut() -> bool) {
    wait_until(what, LONG, is_so).unwrap();
}

fn hello(tree: &str) -> say::Hello {
    say::Hello {
        protocol: 1,
        protocol_min: 1,
        features: 0,
        role: "follower".into(),
        program: "test".into(),
        tree: tree.into(),
        timeout_ms: 0,
        ignore: Vec::new(),
        detector: String::new(),
        name: "host:/dst".into(),
        cross: Vec::new(),
        replica: Vec::new(),
    }
}

/// What whoever serves a tree hears first.
fn heard(stream: &UnixStream) -> say::Hello {
    let mut stream = stream;
    match Message::read(&mut stream, &mut Vec::new()).unwrap() {
        Message::Hello(hello) => hello,
        other => panic!("{other:?}"),
    }
}

fn reason(answer: Result<Message, LinkError>) -> (Cause, String) {
    match answer {
        Ok(Message::Refused(no)) => (Cause::of(no.cause), no.reason),
        other => panic!("{other:?}"),
    }
}

#[test]
fn who_is_trusted_reaches_the_tree_and_nobody_else_does() {
    let room = Room::new(|_| ());
    room.introduce("ann", &["blog"]);
    let bob = room.introduce("bob", &[]);
    // A name that nobody can pose with.
    let mut dialed = room.dial("ann");
    let mut first = Vec::new();
    Message::from(hello("blog")).encode(&mut first).unwrap();
    dialed.writer.write_all(&first).unwrap();
    dialed.writer.write_all(b"and more").unwrap();
    let mut tree = room.opened.recv_timeout(LONG).unwrap();
    let said = heard(&tree);
    assert_eq!(
        (said.name.as_str(), said.tree),
        ("ann: host:/dst", b"blog".to_vec())
    );
    let mut more = [0; 8];
    tree.read_exact(&mut more).unwrap();
    assert_eq!(&more, b"and more");
    tree.write_all(b"an answer").unwrap();
    drop(tree);
    let mut answer = Vec::new();
    dialed.reader.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"an answer");
    // The same words for a tree that is there and one that is not.
    let (cause, there) = reason(room.ask("bob", hello("blog")));
    let (_, nowhere) = reason(room.ask("bob", hello("none")));
    assert_eq!(cause, Cause::Forbidden);
    assert_eq!(there.replace("blog", "none"), nowhere);
    assert!(
        there.contains(&format!("`mirrord trust {bob} --tree blog`")),
        "{there}"
    );
    assert_eq!(reason(room.ask("ann", hello("shop"))).0, Cause::Forbidden);
    match room.ask("ann", say::List { program: "".into() }).unwrap() {
        Message::Names(names) => assert_eq!(names.trees, ["blog"]),
        other => panic!("{other:?}"),
    }
    let list = room.ask("bob", say::List { program: "".into() });
    assert_eq!(reason(list).0, Cause::Forbidden);
    let first = room.ask("ann", say::Cancel { id: 1 });
    assert!(reason(first).1.contains("can't be the first"));
    // Trust that is given while it runs holds, and what is taken away ends what there is.
    room.trust(|t| t.add(bob, Which::named(["shop"]), None));
    let mut bob_dialed = room.dial("bob");
    let mut first = Vec::new();
    Message::from(hello("shop")).encode(&mut first).unwrap();
    bob_dialed.writer.write_all(&first).unwrap();
    let tree = room.opened.recv_timeout(LONG).unwrap();
    heard(&tree);
    room.trust(|t| t.remove(&bob.to_string(), None));
    let mut rest = Vec::new();
    let _ = bob_dialed.reader.read_to_end(&mut rest);
    assert!(rest.is_empty());
    assert_eq!((&tree).read(&mut [0]).unwrap(), 0);
    assert_eq!(reason(room.ask("bob", hello("shop"))).0, Cause::Forbidden);
    // A file that can't be read trusts whom it trusted.
    std::fs::write(Trusted::path(&room.config("door")), "[[key]]\n").unwrap();
    until("it is told", || room.lines_with("still is") == 1);
    let dialed = room.dial("ann");
    let outgoing = Outgoing::new(dialed.writer, dialed.closer);
    outgoing.send(hello("blog")).unwrap();
    heard(&room.opened.recv_timeout(LONG).unwrap());
}

#[test]
fn strangers_keep_nobody_away() {
    let room = Room::new(|_| ());
    room.introduce("ann", &["blog"]);
    // Each costs a handshake's beginning, ten times as much in a debug build: there `STALLED=10000` asks for all of them.
    let most = if cfg!(debug_assertions) { 1000 } else { 10_000 };
    let wanted = std::env::var("STALLED").ok().and_then(|n| n.parse().ok());
    let wanted: usize = wanted.unwrap_or(most);
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.map_or(wanted + 500, |most| most as usize);
    if most < wanted + 500 {
        testkit::print_skip(&format!("only {most} descriptors: fewer sockets stall"));
    }
    let raised = Rlimit {
        current: Some(most as u64),
        ..limit
    };
    setrlimit(Resource::Nofile, raised).unwrap();
    let mut stalled = Vec::new();
    for i in 0..wanted.min(most.saturating_sub(500)) {
        let Ok(mut socket) = TcpStream::connect(room.at) else {
            break;
        };
        if i % 3 == 0 {
            let _ = socket.write_all(b"GET / HTTP/1.1\r\n\r\n");
        }
        stalled.push(socket);
    }
    assert!(stalled.len() > 400, "{}", stalled.len());
    println!("{} sockets stall", stalled.len());
    let dialed = room.dial("ann");
    let outgoing = Outgoing::new(dialed.writer, dialed.closer);
    outgoing.send(hello("blog")).unwrap();
    heard(&room.opened.recv_timeout(LONG).unwrap());
    // All of that is a line or two.
    assert!(room.lines_with("is no follower") <= 2);
    drop(stalled);
    // Nor has anybody who is not trusted much to say: keys are made up as quickly as connections.
    let long = "Z".repeat(60_000);
    for n in 0..5 {
        let who = format!("stranger{n}");
        room.introduce(&who, &[]);
        let (cause, told) = reason(room.ask(&who, hello(&long)));
        assert_eq!(cause, Cause::Forbidden);
        assert!(told.len() < 600, "{}", told.len());
    }
    assert_eq!(room.lines_with("which it may not follow"), 1);
    let (_, told) = reason(room.ask("ann", hello(&long)));
    assert!(told.len() < 600, "{}", told.len());
    let lines = room.lines.lock().unwrap();
    let longest = lines.iter().map(String::len).max();
    assert!(longest < Some(600), "{longest:?}");
}

#[test]
fn there_is_an_end_to_everything() {
    let room = Room::new(|setup| {
        setup.limits.per_key = 2;
        setup.limits.handshake_ms = 700;
        setup.limits.first_frame_bytes = 2000;
    });
    room.introduce("ann", &["blog"]);
    let mut open = Vec::new();
    for _ in 0..2 {
        let dialed = room.dial("ann");
        let outgoing = Outgoing::new(dialed.writer, dialed.closer);
        outgoing.send(hello("blog")).unwrap();
        let tree = room.opened.recv_timeout(LONG).unwrap();
        heard(&tree);
        open.push((outgoing, tree, dialed.reader));
    }
    let (cause, why) = reason(room.ask("ann", hello("blog")));
    assert!(
        cause == Cause::Failed && why.contains("2 connections of ann"),
        "{why}"
    );
    // One that goes makes room.
    drop(open.pop());
    until("there is room", || {
        let dialed = room.dial("ann");
        let outgoing = Outgoing::new(dialed.writer, dialed.closer);
        outgoing.send(hello("blog")).unwrap();
        room.opened.recv_timeout(Duration::from_millis(500)).is_ok()
    });
    // Who says nothing in time, or too much at first.
    let began = Instant::now();
    let mut dialed = room.dial("ann");
    assert!(dialed.reader.read(&mut [0]).is_err());
    assert!(began.elapsed() < Duration::from_secs(20));
    let mut long = hello("blog");
    long.ignore = vec!["x".repeat(3000)];
    assert!(room.ask("ann", long).is_err());
    // What follows is under no such clock.
    std::thread::sleep(Duration::from_millis(800));
    let (outgoing, tree, _) = &open[0];
    outgoing.send(say::Cancel { id: 7 }).unwrap();
    let mut from = tree;
    let message = Message::read(&mut from, &mut Vec::new()).unwrap();
    assert_eq!(message, Message::Cancel(say::Cancel { id: 7 }));
}

#[test]
fn a_door_that_dies_is_opened_again_and_a_closed_one_is_gone() {
    let mut room = Room::new(|_| ());
    room.introduce("ann", &["blog"]);
    let pid = room.door.as_ref().unwrap().pid().unwrap();
    let follows = || {
        let dialed = room.dial("ann");
        let outgoing = Outgoing::new(dialed.writer, dialed.closer);
        outgoing.send(hello("blog")).unwrap();
        (
            room.opened.recv_timeout(LONG).unwrap(),
            dialed.reader,
            outgoing,
        )
    };
    let (tree, mut reader, _outgoing) = follows();
    heard(&tree);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    assert_eq!(field("CapEff"), "0000000000000000");
    assert_eq!(field("NoNewPrivs"), "1");
    if rustix::process::geteuid().is_root() {
        assert_eq!(field("Uid"), "65534");
        assert!(
            status.lines().any(|line| line.trim_end() == "Groups:"),
            "{status}"
        );
    }
    kill9(pid);
    assert!(reader.read(&mut [0]).is_err());
    // What it had was the door's alone; the next one takes who comes.
    until("another runs", || {
        let now = room.door.as_ref().unwrap().pid();
        now.is_some() && now != Some(pid)
    });
    assert_eq!(room.lines_with("starting it again"), 1);
    heard(&follows().0);
    let pid = room.door.as_ref().unwrap().pid().unwrap();
    drop(room.door.take());
    assert!(TcpStream::connect(room.at).is_err());
    assert!(!PathBuf::from(format!("/proc/{pid}")).exists());
}

#[test]
fn a_door_that_hangs_is_replaced() {
    let mut room = Room::new(|setup| setup.limits.silent_ms = 3000);
    room.introduce("ann", &["blog"]);
    let pid = || room.door.as_ref().unwrap().pid();
    let first = pid().unwrap();
    // One that has nothing to do is not one that hangs.
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(pid(), Some(first));
    signal(first, Signal::STOP);
    until("another runs", || pid().is_some_and(|now| now != first));
    assert_eq!(room.lines_with("it said nothing for 3.0 s"), 1);
    until("it takes connections", || {
        dial("127.0.0.1", Some(room.at.port()), &room.config("ann"), LONG).is_ok()
    });
    // One that hangs at the end is left no more than any other.
    let second = pid().unwrap();
    signal(second, Signal::STOP);
    drop(room.door.take());
    assert!(TcpStream::connect(room.at).is_err());
    for pid in [first, second] {
        assert!(!PathBuf::from(format!("/proc/{pid}")).exists());
    }
}

#[test]
fn it_listens_elsewhere_and_who_follows_goes_on() {
    let mut room = Room::new(|_| ());
    let ann = room.introduce("ann", &["blog"]);
    let first = room.at;
    let mut dialed = room.dial("ann");
    let mut hello_bytes = Vec::new();
    Message::from(hello("blog"))
        .encode(&mut hello_bytes)
        .unwrap();
    dialed.writer.write_all(&hello_bytes).unwrap();
    let mut tree = room.opened.recv_timeout(LONG).unwrap();
    heard(&tree);
    let mut goes_on = |tree: &mut UnixStream| {
        let mut four = [0; 4];
        dialed.writer.write_all(b"ping").unwrap();
        tree.read_exact(&mut four).unwrap();
        tree.write_all(b"pong").unwrap();
        dialed.reader.read_exact(&mut four).unwrap();
        assert_eq!(&four, b"pong");
    };
    let pid = room.door.as_ref().unwrap().pid();
    // Elsewhere, and an address that can't be had beside it.
    let anywhere: SocketAddr = "0.0.0.0:0".parse().unwrap();
    let nowhere: SocketAddr = "192.0.2.1:1".parse().unwrap();
    let door = room.door.as_mut().unwrap();
    let error = door.change(&[nowhere, anywhere], &[]).unwrap_err();
    assert!(matches!(error, DoorError::NoAddress(_)), "{error}");
    let at = door.addresses();
    assert_eq!(at.len(), 1);
    goes_on(&mut tree);
    until("nobody comes in by the old address", || {
        TcpStream::connect(first).is_err()
    });
    room.at.set_port(at[0].port());
    room.introduce("bob", &["shop"]);
    let mut bob = room.dial("bob");
    let mut shop = Vec::new();
    Message::from(hello("shop")).encode(&mut shop).unwrap();
    bob.writer.write_all(&shop).unwrap();
    heard(&room.opened.recv_timeout(LONG).unwrap());
    // The port is free at once for whoever wants it; here it is the same door.
    let door = room.door.as_mut().unwrap();
    door.change(&[anywhere, first], &[]).unwrap();
    assert_eq!(door.addresses(), [at[0], first]);
    goes_on(&mut tree);
    // A process that dies is followed by one that listens where it is to now.
    assert_eq!(door.pid(), pid);
    room.at = first;
    room.dial("ann");
    // Whose key is taken away is cut, wherever he came in.
    let door = room.door.as_mut().unwrap();
    door.change(&[anywhere], &[]).unwrap();
    goes_on(&mut tree);
    room.trust(|t| t.remove(&ann.to_string(), None));
    assert_eq!(tree.read(&mut [0]).unwrap(), 0);
    let door = room.door.as_ref().unwrap();
    kill9(door.pid().unwrap());
    until("another runs", || {
        door.pid().is_some_and(|now| Some(now) != pid)
    });
    assert_eq!(door.addresses(), [at[0]]);
    room.at.set_port(at[0].port());
    until("it takes connections", || {
        dial("127.0.0.1", Some(room.at.port()), &room.config("bob"), LONG).is_ok()
    });
}

#[test]
fn an_address_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let open = |at: SocketAddr| {
        let mut setup = DoorSetup::new(Program::Mirrord, vec![at], dir.path().join("c"));
        setup.executable = MIRRORD.into();
        let trees = Test {
            names: Vec::new(),
            opened: unbounded().0,
            real: None,
        };
        Door::open(setup, Arc::new(trees)).err().unwrap()
    };
    let error = open(at);
    assert!(
        matches!(error, DoorError::InUse(_))
            && error.to_string().starts_with(&format!("{at} is in use")),
        "{error}"
    );
    let error = open("192.0.2.1:1".parse().unwrap());
    assert!(matches!(error, DoorError::NoAddress(_)), "{error}");
}

#[test]
fn a_tree_is_mirrored_over_tls() {
    if !testkit::is_root() {
        return testkit::print_skip("needs root (files with set-id bits)");
    }
    let bed = Bed::new();
    bed.populate(200, 7);
    // A worker's daemon, started as ssh would.
    let (code, told) = bed.mirror_once(&[]);
    assert_eq!(code, 0, "{told}");
    let states = mirror::engine::worker::state_dirs(Some(&bed.states())).unwrap();
    let room = Room::of(Some(states[0].clone()), |_| ());
    room.introduce("ann", &["blog"]);
    let source = |tree: &str| format!("mirror://127.0.0.1:{}/{tree}", room.at.port());
    let mirror = |tree: &str, more: &[&str]| {
        let mut command = Command::new(FS_MIRROR);
        command
            .args(["mirror", &source(tree)])
            .arg(bed.path(tree))
            .args(more)
            .env("FS_MIRROR_CONFIG_DIR", room.config("ann"));
        testkit::proc::Program::start(&mut command).unwrap()
    };
    let (code, told) = ended(mirror("shop", &["--once"]));
    assert!(
        code == 6 && told.contains("may not follow shop"),
        "{code} {told}"
    );
    let (code, told) = ended(mirror("blog", &["--once", "--dry-run"]));
    assert_eq!(code, 0, "{told}");
    let running = mirror("blog", &[]);
    let dst = bed.path("blog");
    wait_equal(&bed.src(), &dst, &Default::default(), LONG).unwrap();
    std::fs::create_dir(bed.src().join("new")).unwrap();
    std::fs::write(bed.src().join("new/file"), vec![7; 3 << 20]).unwrap();
    wait_equal(&bed.src(), &dst, &Default::default(), LONG).unwrap();
    assert_eq!(
        room.lines_with("ann (127.0.0.1"),
        1 + room.lines_with("follows blog no more")
    );
    stop(running);
}

/// A command of either program with the configuration of `who`.
fn run(room: &Room, program: &str, who: &str, words: &[&str]) -> (i32, String) {
    let output = Command::new(program)
        .args(words)
        .env("MIRRORD_CONFIG_DIR", room.config(who))
        .env("FS_MIRROR_CONFIG_DIR", room.config(who))
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    let code = output.status.code().unwrap_or(-1);
    (code, String::from_utf8(said).unwrap())
}

fn token(room: &Room, more: &[&str]) -> String {
    let words = [&["pair", "--tree", "blog", "--json"], more].concat();
    let (code, said) = run(room, MIRRORD, "door", &words);
    assert_eq!(code, 0, "{said}");
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["trees"][0], "blog");
    said["token"].as_str().unwrap().to_owned()
}

#[test]
fn a_token_makes_two_hosts_know_each_other() {
    let room = Room::new(|_| ());
    let host = format!("127.0.0.1:{}", room.at.port());
    let join = |who: &str, token: &str| run(&room, FS_MIRROR, who, &["pair", &host, token]);
    let token_of_ann = token(&room, &["--name", "ann"]);
    let (code, said) = join("ann", &token_of_ann);
    assert_eq!(code, 0, "{said}");
    let next = format!("next: fs_mirror mirror mirror://{host}/blog DST");
    assert!(
        said.contains("calls this host ann") && said.contains(&next),
        "{said}"
    );
    assert_eq!(room.lines_with("ann is paired and may follow blog"), 1);
    let dialed = room.dial("ann");
    let outgoing = Outgoing::new(dialed.writer, dialed.closer);
    outgoing.send(hello("blog")).unwrap();
    assert_eq!(
        heard(&room.opened.recv_timeout(LONG).unwrap()).name,
        "ann: host:/dst"
    );
    // Once, by whoever; and not for another tree.
    for who in ["ann", "bob"] {
        let (code, said) = join(who, &token_of_ann);
        assert!(
            code == 6 && said.contains("used already, by mk1:"),
            "{said}"
        );
    }
    assert_eq!(reason(room.ask("ann", hello("shop"))).0, Cause::Forbidden);
    // Taken back.
    let withdrawn = token(&room, &[]);
    let list = || run(&room, MIRRORD, "door", &["pair", "--list"]).1;
    let open = list();
    let line = open.lines().last().unwrap();
    assert!(line.contains("  to follow blog, for "), "{open}");
    let id = line.split_whitespace().next().unwrap();
    let withdraw = || run(&room, MIRRORD, "door", &["pair", "--withdraw", id]);
    let (code, said) = withdraw();
    assert!(code == 0 && said.contains(id), "{said}");
    assert!(!list().contains(id));
    let (code, said) = withdraw();
    assert!(
        code == 2 && said.contains("`mirrord pair --list`"),
        "{said}"
    );
    let (code, said) = join("bob", &withdrawn);
    assert!(
        code == 6 && said.contains("this token was withdrawn at"),
        "{said}"
    );
    // Too late.
    let late = token(&room, &[]);
    let dir = room.config("door").join("pairing");
    for file in std::fs::read_dir(&dir).unwrap().flatten() {
        let path = file.path();
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        if text.contains("\"ended\":null") {
            let mut kept: serde_json::Value = serde_json::from_str(&text).unwrap();
            kept["until_ms"] = (kept["until_ms"].as_i64().unwrap() - 600_001).into();
            std::fs::write(&path, kept.to_string()).unwrap();
        }
    }
    let (code, said) = join("bob", &late);
    assert!(
        code == 6 && said.contains("expired at") && said.contains("pair --tree"),
        "{said}"
    );
    let (code, said) = join("bob", &late[..80]);
    assert!(code == 2 && said.contains("no whole token"), "{said}");
    // Of another service.
    let other = Room::new(|_| ());
    let (code, said) = join("bob", &token(&other, &[]));
    assert!(
        code == 6 && said.contains("is not who made this token"),
        "{said}"
    );
    assert!(
        !Known::path(&room.config("bob")).exists(),
        "nothing was written down"
    );
    // What the commands say of all this.
    let door = room.door.as_ref().unwrap().fingerprint().to_string();
    let (_, said) = run(&room, MIRRORD, "door", &["key", "show"]);
    assert_eq!(said.trim(), door);
    let (_, said) = run(&room, MIRRORD, "door", &["trust"]);
    assert!(
        said.starts_with("ann  mk1:") && said.trim().ends_with("blog"),
        "{said}"
    );
    let (code, said) = run(&room, MIRRORD, "door", &["trust", "--remove", "ann"]);
    assert!(
        code == 0 && said.contains("ann is not trusted any more"),
        "{said}"
    );
    assert_eq!(reason(room.ask("ann", hello("blog"))).0, Cause::Forbidden);
}

#[test]
fn a_proof_is_worth_nothing_elsewhere() {
    let room = Room::new(|_| ());
    room.introduce("eve", &[]);
    let token: Token = token(&room, &[]).parse().unwrap();
    let config = room.config("eve");
    let key = KeyPair::load_or_make(&config).unwrap();
    let address = Address::new("127.0.0.1", Some(room.at.port()));
    let connect = || {
        let until = Instant::now() + LONG;
        let session = dial_key(&address, &key, token.key, until, LONG).unwrap();
        let between = Between {
            exported: session.exported().unwrap(),
            dialing: key.fingerprint(),
            listening: session.peer,
        };
        (session, token.proof_key().prove(Side::Dialing, &between))
    };
    let say = |mut session: Session, proof| {
        let mut bytes = Vec::new();
        let pair = say::Pair {
            token: token.id(),
            proof,
            name: "eve".into(),
            program: "test".into(),
        };
        Message::from(pair).encode(&mut bytes).unwrap();
        session.writer.write_all(&bytes).unwrap();
        Message::read(&mut session.reader, &mut Vec::new()).unwrap()
    };
    // A right one of another connection, four times.
    for _ in 0..4 {
        let (_recorded, proof) = connect();
        let (session, _) = connect();
        let (cause, why) = reason(Ok(say(session, proof)));
        assert!(
            cause == Cause::Forbidden && why.contains("of 5 that end"),
            "{why}"
        );
    }
    // The right one still holds: four are not five.
    let (session, proof) = connect();
    assert!(matches!(say(session, proof), Message::Paired(_)));
    let (session, proof) = connect();
    assert!(reason(Ok(say(session, proof))).1.contains("used already"));
    assert_eq!(room.lines_with("eve is paired"), 1);
}

#[test]
fn a_worker_that_nobody_reaches_offers_connections() {
    let bed = Bed::new();
    bed.populate(50, 7);
    let (code, told) = bed.mirror_once(&[]);
    assert_eq!(code, 0, "{told}");
    let states = mirror::engine::worker::state_dirs(Some(&bed.states())).unwrap();
    let offers = bed.path("offers.sock");
    let backup = Room::new(|setup| {
        setup.program = Program::FsMirror;
        setup.offers = Some(offers.clone());
    });
    let host = format!("127.0.0.1:{}", backup.at.port());
    // Somebody who is not known offers nothing.
    backup.introduce("eve", &[]);
    let offer = say::Offer {
        program: "test".into(),
        host: "eve".into(),
    };
    let (cause, why) = reason(backup.ask("eve", offer));
    assert!(
        cause == Cause::Forbidden && why.contains("fs_mirror pair --accept"),
        "{why}"
    );
    let words = ["pair", "--accept", "--name", "w1", "--json"];
    let (code, said) = run(&backup, FS_MIRROR, "door", &words);
    assert_eq!(code, 0, "{said}");
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    let token = said["token"].as_str().unwrap();
    let words = ["pair", &host, token, "--tree", "blog"];
    let (code, said) = run(&backup, MIRRORD, "worker", &words);
    assert!(
        code == 0 && said.contains("mirror://w1/blog DST --accept"),
        "{said}"
    );
    let address = Address::new("127.0.0.1", Some(backup.at.port()));
    let config = backup.config("worker");
    let mirror = |tree: &str, more: &[&str]| {
        let mut command = Command::new(FS_MIRROR);
        command
            .args(["mirror", &format!("mirror://w1/{tree}")])
            .arg(bed.path(tree))
            .args(more)
            .env("FS_MIRROR_OFFERED_AT", &offers);
        testkit::proc::Program::start(&mut command).unwrap()
    };
    // A follower that waits already gets the first one.
    let first = mirror("shop", &["--once"]);
    std::thread::sleep(Duration::from_millis(500));
    let mut worker = Room::of(Some(states[0].clone()), |setup| {
        setup.listen.clear();
        setup.config_dir = config;
        setup.connect_to = vec![address];
    });
    let (code, said) = ended(first);
    assert!(
        code == 6 && said.contains("may not follow shop"),
        "{code} {said}"
    );
    let running = mirror("blog", &[]);
    let equal = || wait_equal(&bed.src(), &bed.path("blog"), &Default::default(), LONG).unwrap();
    equal();
    std::fs::write(bed.src().join("more"), vec![7; 3 << 20]).unwrap();
    equal();
    // It offers no more, and what was taken goes on.
    let address = Address::new("127.0.0.1", Some(backup.at.port()));
    worker.door.as_mut().unwrap().change(&[], &[]).unwrap();
    std::fs::write(bed.src().join("meanwhile"), b"it").unwrap();
    equal();
    assert_eq!(worker.lines_with("follows blog no more"), 0);
    worker
        .door
        .as_mut()
        .unwrap()
        .change(&[], &[address])
        .unwrap();
    // The door that dialed dies; the next one offers again.
    kill9(worker.door.as_ref().unwrap().pid().unwrap());
    std::fs::write(bed.src().join("after"), b"it").unwrap();
    equal();
    // Who is not known any more is not followed.
    backup.trust(|t| t.remove("w1", None));
    until("it is ended", || {
        backup.lines_with("may not follow blog any more") > 0
    });
    until("it is told", || {
        worker.lines_with("is not known: on that host") > 0
    });
    stop(running);
}

#[test]
fn a_dead_peer_of_an_idle_offered_connection_is_noticed() {
    let backup = Room::new(|setup| setup.program = Program::FsMirror);
    let link = Control::new(Settings::default());
    let proxy = Proxy::start(backup.at, link.clone()).unwrap();
    let address = Address::new("127.0.0.1", Some(proxy.address.port()));
    // Both know each other.
    let key = backup.door.as_ref().unwrap().fingerprint();
    let config = backup.config("worker");
    let worker_key = KeyPair::load_or_make(&config).unwrap().fingerprint();
    backup.trust(|t| t.add(worker_key, Which::named([""; 0]), Some("w1")));
    Known::set(&config, &address, key).unwrap();
    Trusted::edit(&config, |trusted| {
        trusted
            .add(key, Which::named(["blog"]), Some("backup"))
            .map_err(|why| NetFileError::Unsafe {
                path: "".into(),
                why,
            })
    })
    .unwrap();
    let threads = || {
        let pid = backup.door.as_ref().unwrap().pid().unwrap();
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        tasks.count()
    };
    until("the door has begun", || threads() >= 2);
    let idle = threads();
    let mut worker = Room::new(|setup| {
        setup.listen.clear();
        setup.config_dir = config;
        setup.connect_to = vec![address];
    });
    until("it is offered", || {
        backup.lines_with("offers a connection") == 1
    });
    assert!(threads() > idle);
    // Longer than a round of heartbeats, and it is still there.
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(worker.lines_with("trying again"), 0);
    let began = Instant::now();
    link.change(|link| link.stall = [true, true]);
    until("the worker notices", || {
        worker.lines_with("trying again") > 0
    });
    drop(worker.door.take());
    until("the backup notices", || threads() <= idle);
    // Both say something every 5 s, and are dead after 15.
    let took = began.elapsed();
    assert!(took < Duration::from_secs(35), "{took:?}");
}

/// Hello as version 0.1.0 said it before anything was added to it, for the tree `blog`.
const HELLO_1: &str = "46534d7701010100320000008063fe598b01010168666f6c6c6f7765726f66735f6d6972726f7220302e312e3044626c6f670080606b6261636b75703a2f64737480";

#[test]
fn other_versions_are_refused_in_words_or_understood() {
    let bed = Bed::new();
    bed.populate(3, 7);
    let (code, told) = bed.mirror_once(&[]);
    assert_eq!(code, 0, "{told}");
    let states = mirror::engine::worker::state_dirs(Some(&bed.states())).unwrap();
    let room = Room::of(Some(states[0].clone()), |_| ());
    room.introduce("ann", &["blog"]);
    let bytes: Vec<u8> = (0..HELLO_1.len() / 2)
        .map(|i| u8::from_str_radix(&HELLO_1[2 * i..2 * i + 2], 16).unwrap())
        .collect();
    let mut dialed = room.dial("ann");
    dialed.writer.write_all(&bytes).unwrap();
    let mut incoming = Incoming::new(dialed.reader);
    let welcome = loop {
        match incoming.next_message().unwrap() {
            Message::Welcome(welcome) => break welcome,
            Message::Heartbeat(_) | Message::Report(_) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(welcome.protocol, 1);
    // A follower of the far future.
    let mut future = hello("blog");
    (future.protocol, future.protocol_min) = (99, 99);
    let answer = loop {
        match room.ask("ann", future.clone()) {
            Ok(Message::Heartbeat(_) | Message::Report(_)) => {}
            answer => break answer,
        }
    };
    let (cause, why) = reason(answer);
    assert!(cause == Cause::Usage && why.contains("99"), "{why}");
    // And such a worker.
    let room = Room::new(|_| ());
    room.introduce("ann", &["blog"]);
    let opened = room.opened.clone();
    let answers = std::thread::spawn(move || {
        let mut stream = opened.recv_timeout(LONG).unwrap();
        heard(&stream);
        let mut bytes = Vec::new();
        let mut welcome = welcome;
        welcome.protocol = 99;
        Message::from(welcome).encode(&mut bytes).unwrap();
        stream.write_all(&bytes).unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let source = format!("mirror://127.0.0.1:{}/blog", room.at.port());
    let dst = bed.path("far");
    let words = ["mirror", &source, dst.to_str().unwrap(), "--once"];
    let (code, said) = run(&room, FS_MIRROR, "ann", &words);
    assert!(
        code == 1 && said.contains("speaks protocol 99"),
        "{code} {said}"
    );
    assert!(said.contains("install the same version"), "{said}");
    answers.join().unwrap();
}
