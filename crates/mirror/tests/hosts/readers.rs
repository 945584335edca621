//! Several hosts that follow one: of the same name, of different owners, slow beside fast, in chains that are turned round.

use std::fs;
use std::path::{Path, PathBuf};

use mirror::capture::read::hasher;
use mirror::link::message::{self as say, Cause, Message};
use mirror::link::{Incoming, Outgoing};
use mirror::net::dial::dial;
use rustix::process::Signal;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use testkit::compare::Options;
use testkit::lab::{Lab, Net, Skip, in_private_namespace};
use testkit::need;
use testkit::proc::{Program, wait_equal, wait_until};

use super::node::Node;
use super::{FS_MIRROR, LONG, MIRRORD};

/// A web host that serves some trees.
pub struct Lot {
    pub net: Net,
    _held: tempfile::TempDir,
    pub base: PathBuf,
    pub web: Node,
}

impl Lot {
    pub fn new(lab: &Lab, trees: &[&str]) -> Result<Lot, Skip> {
        let net = lab.net()?;
        let held = tempfile::Builder::new()
            .prefix("readers-")
            .tempdir()
            .unwrap();
        let base = fs::canonicalize(held.path()).unwrap();
        let web = Node::new(&net, "web", MIRRORD, &base)?;
        let mut text = "listen = '0.0.0.0:8737'\n".to_owned();
        for tree in trees {
            let src = base.join(tree);
            fs::create_dir(&src).unwrap();
            fs::write(src.join("first"), tree).unwrap();
            text += &format!("[tree.{tree}]\npath = '{}'\n", src.display());
        }
        web.configure(&text);
        Ok(Lot {
            net,
            _held: held,
            base,
            web,
        })
    }

    pub fn src(&self, tree: &str) -> PathBuf {
        self.base.join(tree)
    }

    pub fn backup(&self, name: &str) -> Result<Node, Skip> {
        let node = Node::new(&self.net, name, FS_MIRROR, &self.base)?;
        node.configure("listen = '0.0.0.0:8737'\n");
        Ok(node)
    }
}

fn reload(node: &mut Node) {
    let before = node.said().matches("configuration read again").count();
    node.service.as_mut().unwrap().signal(Signal::HUP).unwrap();
    node.wait("it is read again", || {
        node.said().matches("configuration read again").count() > before
    });
}

fn replicas(web: &Node, tree: &str) -> Vec<(String, bool)> {
    let status = web.status(tree);
    let list = status["replicas"].as_array().cloned().unwrap_or_default();
    list.iter()
        .map(|replica| {
            let name = replica["name"].as_str().unwrap_or_default().to_owned();
            (name, replica["connected"] == true)
        })
        .collect()
}

#[test]
fn two_copies_that_call_themselves_the_same() {
    in_private_namespace("readers::two_copies_that_call_themselves_the_same", |lab| {
        let mut lot = need!(Lot::new(lab, &["www"]));
        lot.web.serve();
        let one = need!(lot.backup("one"));
        lot.web.lets(&one);
        let two = need!(lot.backup("two"));
        // One key, one host name, one path: as of a machine that was cloned.
        for file in ["key", "known.toml"] {
            fs::copy(one.path("etc").join(file), two.path("etc").join(file)).unwrap();
        }
        let shown = lot.base.join("shown");
        fs::create_dir(&shown).unwrap();
        let start = |node: &Node| {
            fs::create_dir_all(node.path("there")).unwrap();
            let words = [
                "--mount",
                "--uts",
                "sh",
                "-c",
                "hostname twin && mount --bind \"$1\" \"$2\" && shift 2 && exec \"$@\"",
                "sh",
                &node.path("there").display().to_string(),
                &shown.display().to_string(),
                FS_MIRROR,
                "mirror",
                &format!("mirror://{}/www", lot.web.host.address),
                &shown.join("www").display().to_string(),
            ];
            Program::start(&mut node.command("unshare", &words)).unwrap()
        };
        let equal = |node: &Node| {
            let copy = node.path("there/www");
            let found = wait_equal(&lot.src("www"), &copy, &Options::default(), LONG);
            assert!(found.is_ok(), "{found:?}\n{}", lot.web.said());
        };
        let first = start(&one);
        equal(&one);
        let mut second = start(&two);
        equal(&two);
        lot.web.wait("both are known", || {
            let there = replicas(&lot.web, "www");
            there.len() == 2 && there.iter().all(|(_, connected)| *connected)
        });
        let there = replicas(&lot.web, "www");
        assert_ne!(there[0].0, there[1].0);
        let said = lot.web.said();
        assert!(said.contains("two copies call themselves"), "{said}");

        // What one has come to does not count for the other.
        second.signal(Signal::STOP).unwrap();
        fs::write(lot.src("www").join("second"), "x").unwrap();
        let wait = ["wait", "www", "--for", "applied", "--timeout", "3s"];
        let (code, said) = lot.web.try_run(MIRRORD, &wait);
        assert!(code == 5 && said.contains(&there[1].0), "{code} {said}");
        let one_of_two = ["wait", "www", "--replicas", "1", "--timeout", "60s"];
        let (code, said) = lot.web.try_run(MIRRORD, &one_of_two);
        assert_eq!(code, 0, "{said}");
        second.signal(Signal::CONT).unwrap();
        let two_of_two = ["wait", "www", "--replicas", "2", "--timeout", "60s"];
        let (code, said) = lot.web.try_run(MIRRORD, &two_of_two);
        assert_eq!(code, 0, "{said}");

        // Both come back to their places, whoever is first.
        drop((first, second));
        lot.web.wait("both are away", || {
            replicas(&lot.web, "www").iter().all(|(_, there)| !there)
        });
        fs::write(lot.src("www").join("third"), "x").unwrap();
        let _second = start(&two);
        equal(&two);
        let _first = start(&one);
        equal(&one);
        lot.web.wait("they are the same two", || {
            let again = replicas(&lot.web, "www");
            again.len() == 2 && again.iter().all(|(_, connected)| *connected)
        });
        assert_eq!(replicas(&lot.web, "www"), there);
    });
}

/// A connection of this host that says what it likes.
fn as_host<T: Send>(host: &str, body: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            let space = fs::File::open(format!("/run/netns/{host}")).unwrap();
            move_into_link_name_space(
                std::os::fd::AsFd::as_fd(&space),
                Some(LinkNameSpaceType::Network),
            )
            .unwrap();
            body()
        });
        inside.join().unwrap()
    })
}

fn hello(tree: &str) -> say::Hello {
    say::Hello {
        protocol: say::PROTOCOL,
        protocol_min: say::PROTOCOL_MIN,
        features: 0,
        role: "follower".into(),
        program: "test".into(),
        tree: tree.into(),
        timeout_ms: 0,
        ignore: Vec::new(),
        detector: String::new(),
        name: "test:/dst".into(),
        cross: Vec::new(),
        replica: Vec::new(),
    }
}

#[test]
fn tenants_get_nothing_of_each_other() {
    in_private_namespace("readers::tenants_get_nothing_of_each_other", |lab| {
        let mut lot = need!(Lot::new(lab, &["ann", "bob"]));
        for tree in ["ann", "bob"] {
            fs::write(lot.src(tree).join("secret"), format!("secret of {tree}")).unwrap();
        }
        lot.web.serve();
        let address = lot.web.host.address.clone();
        let mut hosts = Vec::new();
        for name in ["ann", "bob"] {
            let mut node = need!(lot.backup(name));
            let token = lot.web.token(name);
            node.wait("it is paired", || {
                node.try_run(FS_MIRROR, &["pair", &address, &token]).0 == 0
            });
            // All that it may follow.
            let to = node.path("of-web/*").display().to_string();
            node.run(
                FS_MIRROR,
                &["add", "of-web", &format!("mirror://{address}/*"), &to],
            );
            node.serve();
            hosts.push((node, token));
        }
        for (me, other) in [(0, 1), (1, 0)] {
            let ((node, _), (theirs, token)) = (&hosts[me], &hosts[other]);
            let (mine, not_mine) = (&node.host.name, theirs.host.name.as_str());
            node.wait("what is its own comes", || {
                node.path(&format!("of-web/{mine}/secret")).exists()
            });
            // By each command that names a tree of another host.
            let from = format!("mirror://{address}/{not_mine}");
            let dst = node.path("stolen").display().to_string();
            for words in [
                &["mirror", &from, &dst, "--once"][..],
                &["mirror", &from, &dst, "--once", "--dry-run"],
                &["mirror", &from, &dst, "--once", "--adopt", "--yes"],
                &[
                    "mirror",
                    &from,
                    &format!("{}/of-web/{mine}", node.dir.display()),
                    "--repoint",
                ],
                &["pair", &address, token],
            ] {
                let (code, said) = node.try_run(FS_MIRROR, words);
                assert_ne!(code, 0, "{words:?} {said}");
                let refused = [
                    "may not follow",
                    "used already",
                    "is running",
                    "a mirror of",
                    "in use",
                ];
                assert!(
                    refused.iter().any(|why| said.contains(why)),
                    "{words:?} {said}"
                );
            }
            assert!(!node.path(&format!("of-web/{not_mine}")).exists());
            assert!(!Path::new(&dst).join("secret").exists());
            // And by each message of the protocol, in words of its own.
            let config = node.path("etc");
            let address = address.clone();
            as_host(mine, move || {
                let say_first = |message: Message| {
                    let dialed = dial(&address, None, &config, LONG).unwrap();
                    let outgoing = Outgoing::new(dialed.writer, dialed.closer);
                    outgoing.send(message).unwrap();
                    (outgoing, Incoming::new(dialed.reader))
                };
                let (_out, mut incoming) = say_first(hello(not_mine).into());
                match incoming.next_message().unwrap() {
                    Message::Refused(no) => assert_eq!(Cause::of(no.cause), Cause::Forbidden),
                    other => panic!("{other:?}"),
                }
                let list = say::List { program: "".into() };
                let (_out, mut incoming) = say_first(list.into());
                match incoming.next_message().unwrap() {
                    Message::Names(names) => assert_eq!(names.trees, [mine.as_str()]),
                    other => panic!("{other:?}"),
                }
                // Over its own tree it asks for whatever the other one has.
                let (outgoing, mut incoming) = say_first(hello(mine).into());
                let secret = format!("secret of {not_mine}");
                let mut hash = hasher(secret.len() as u64, &[]);
                hash.update(secret.as_bytes());
                let digest = *hash.finalize().as_bytes();
                const OBJECTS: u64 = 40;
                let mut ended = 0;
                let mut asked = false;
                while ended < OBJECTS {
                    match incoming.next_message().unwrap() {
                        Message::Welcome(_) => {
                            asked = true;
                            for id in 1..=OBJECTS {
                                let request = say::Request {
                                    id,
                                    object: 1 << 44 | id,
                                    digest,
                                    from: None,
                                };
                                outgoing.send(request).unwrap();
                            }
                        }
                        Message::PieceEnd(end) => {
                            assert_ne!(end.end, 0, "{end:?}");
                            ended += 1;
                        }
                        Message::Piece(piece) => panic!("{piece:?}"),
                        Message::Heartbeat(_) | Message::Report(_) => {}
                        other => panic!("{other:?}"),
                    }
                }
                assert!(asked);
            });
        }
    });
}

#[test]
fn one_that_is_held_to_a_rate_holds_nobody_back() {
    in_private_namespace(
        "readers::one_that_is_held_to_a_rate_holds_nobody_back",
        |lab| {
            let mut lot = need!(Lot::new(lab, &["www"]));
            lot.web.serve();
            let mut fast = need!(lot.backup("fast"));
            let mut slow = need!(lot.backup("slow"));
            let mut third = need!(lot.backup("third"));
            const LIMITED: &str = "bwlimit = '40K'\n";
            for (from, node, more) in [(&lot.web, &mut fast, ""), (&lot.web, &mut slow, LIMITED)] {
                from.lets(node);
                node.follows(from, "www", more);
                node.serve();
                node.equal(&lot.src("www"), "www");
            }
            fast.lets(&third);
            third.follows(&fast, "www", LIMITED);
            third.serve();
            third.equal(&lot.src("www"), "www");
            for n in 0..100u8 {
                // Bytes that can not be packed: what is packed well passes the limit at once.
                let mut bytes = [0; 4000];
                blake3::Hasher::new()
                    .update(&[n])
                    .finalize_xof()
                    .fill(&mut bytes);
                fs::write(lot.src("www").join(format!("file {n}")), bytes).unwrap();
            }
            let began = std::time::Instant::now();
            fast.equal(&lot.src("www"), "www");
            // 400 KB take 10 s at that rate; a machine that took nearly so long for the other one tells nothing.
            if began.elapsed().as_secs() < 5 {
                // Both ends say how far behind it is; itself once the next heartbeat has come.
                let behind = |lag: &serde_json::Value| lag["records"].as_u64() > Some(0);
                for (from, limited) in [(&lot.web, &slow), (&fast, &third)] {
                    let there = fs::read_dir(limited.path("www")).unwrap().count();
                    assert!(there < 101, "{} has all {there}", limited.host.name);
                    let status = from.status("www");
                    let replicas = status["replicas"].as_array().unwrap();
                    let its_lag = replicas
                        .iter()
                        .find(|replica| {
                            let name = replica["name"].as_str().unwrap();
                            name.starts_with(&format!("{}:", limited.host.name))
                        })
                        .map(|replica| &replica["lag"]);
                    assert!(behind(its_lag.unwrap()), "{status}");
                    limited.wait("it knows that it is behind", || {
                        behind(&limited.status("www")["lag"])
                    });
                }
            }
            for limited in [&slow, &third] {
                limited.equal(&lot.src("www"), "www");
            }
        },
    );
}

/// A chain: web, b, c; each may follow those before it.
fn chain(lab: &Lab) -> Result<(Lot, Node, Node), Skip> {
    let mut lot = Lot::new(lab, &["www"])?;
    lot.web.serve();
    let (mut b, mut c) = (lot.backup("b")?, lot.backup("c")?);
    lot.web.lets(&b);
    lot.web.lets(&c);
    let hold = "on_mass_change = \"hold\"";
    b.follows(&lot.web, "www", hold);
    b.serve();
    b.equal(&lot.src("www"), "www");
    b.lets(&c);
    c.follows(&b, "www", hold);
    c.serve();
    c.equal(&lot.src("www"), "www");
    Ok((lot, b, c))
}

fn is_held(node: &Node) -> bool {
    node.status("www")["state"]["is"] == "hold"
}

#[test]
fn holds_and_lost_contents_go_through_a_chain() {
    in_private_namespace(
        "readers::holds_and_lost_contents_go_through_a_chain",
        |lab| {
            let (mut lot, mut b, c) = need!(chain(lab));
            let src = lot.src("www");
            // The source is gone: nothing goes in any copy, and everybody says so.
            fs::rename(&src, lot.base.join("away")).unwrap();
            for node in [&b, &c] {
                node.wait("it is held", || is_held(node));
                assert!(node.path("www/first").exists());
            }
            let at_c = c.path("www").display().to_string();
            let (code, said) = c.try_run(FS_MIRROR, &["release", "--yes", "-m", &at_c]);
            assert_ne!(code, 0, "{said}");
            fs::rename(lot.base.join("away"), &src).unwrap();
            fs::write(src.join("after the hold"), "x").unwrap();
            b.equal(&src, "www");
            c.equal(&src, "www");

            // Much is deleted: each copy waits for a word of its own.
            fs::create_dir(src.join("site")).unwrap();
            for n in 0..30 {
                fs::write(src.join(format!("site/{n}")), "x").unwrap();
            }
            b.equal(&src, "www");
            c.equal(&src, "www");
            fs::remove_dir_all(src.join("site")).unwrap();
            for node in [&b, &c] {
                node.wait("it is held", || is_held(node));
                // What went before the threshold was reached is gone.
                assert!(fs::read_dir(node.path("www/site")).unwrap().count() > 0);
            }
            for node in [&b, &c] {
                let at = node.path("www").display().to_string();
                let (code, said) = node.try_run(FS_MIRROR, &["release", "--yes", "-m", &at]);
                assert_eq!(code, 0, "{said}");
            }
            b.equal(&src, "www");
            c.equal(&src, "www");

            // Contents that nobody has any more when they are asked for: large ones, written again while b is away, and the
            // worker killed between.
            b.service = None;
            for round in 0..3u8 {
                for n in 0..5 {
                    fs::write(src.join(format!("large {n}")), vec![round; 600_000 + n]).unwrap();
                }
                let before = lot.web.status("www")["counters"]["records"].as_u64();
                fs::write(src.join("mark"), [round]).unwrap();
                lot.web.wait("it is in the log", || {
                    lot.web.status("www")["counters"]["records"].as_u64() > before
                });
                lot.web.service = None;
                lot.web.serve();
                lot.web
                    .wait("it serves", || !lot.web.status("www").is_null());
            }
            fs::remove_file(src.join("large 0")).unwrap();
            fs::rename(src.join("large 1"), src.join("large 2")).unwrap();
            b.serve();
            b.equal(&src, "www");
            c.equal(&src, "www");
            for node in [&b, &c] {
                let at = node.path("www").display().to_string();
                let (code, said) = node.try_run(
                    FS_MIRROR,
                    &["wait", "--idle", "-m", &at, "--timeout", "60s"],
                );
                assert_eq!(code, 0, "{said}");
            }
        },
    );
}

/// Nothing passes between these two hosts, or everything does again.
fn parted(at: &Node, other: &Node, parted: bool) {
    let nft = |line: &str| at.run("nft", &[line]);
    if !parted {
        nft("delete table ip parted");
        return;
    }
    nft("add table ip parted");
    for (hook, side) in [("input", "saddr"), ("output", "daddr")] {
        nft(&format!(
            "add chain ip parted {hook} {{ type filter hook {hook} priority 0; }}"
        ));
        nft(&format!(
            "add rule ip parted {hook} ip {side} {} drop",
            other.host.address
        ));
    }
}

#[test]
fn another_way_while_contents_differ_and_no_loop() {
    in_private_namespace(
        "readers::another_way_while_contents_differ_and_no_loop",
        |lab| {
            let (lot, mut b, mut c) = need!(chain(lab));
            let src = lot.src("www");
            let large = |byte: u8| vec![byte; 400_000];
            fs::write(src.join("large"), large(1)).unwrap();
            b.equal(&src, "www");
            c.equal(&src, "www");
            // b is cut off from the source, and c goes there by itself.
            parted(&lot.web, &b, true);
            fs::write(src.join("large"), large(2)).unwrap();
            fs::write(src.join("first"), "changed").unwrap();
            c.follows(&lot.web, "www", "");
            reload(&mut c);
            c.equal(&src, "www");
            assert_eq!(fs::read(b.path("www/first")).unwrap(), b"www");
            // Back to b, which has older contents: it does not go back to them.
            fs::remove_file(src.join("large")).unwrap();
            c.equal(&src, "www");
            c.follows(&b, "www", "");
            reload(&mut c);
            let passed = wait_until("c asked b", std::time::Duration::from_secs(3), || {
                c.path("www/large").exists() || fs::read(c.path("www/first")).unwrap() != b"changed"
            });
            assert!(passed.is_err(), "it went back");
            assert!(b.path("www/large").exists());
            parted(&lot.web, &b, false);
            fs::write(src.join("newest"), "x").unwrap();
            b.equal(&src, "www");
            c.equal(&src, "www");
            let said = c.said();
            assert!(!said.contains("compared again"), "{said}");

            // b is told to follow c, which follows b.
            c.lets(&b);
            b.follows(&c, "www", "");
            reload(&mut b);
            b.wait("it is refused", || b.said().contains("can't be a loop"));
            fs::write(src.join("after the loop"), "x").unwrap();
            b.follows(&lot.web, "www", "");
            reload(&mut b);
            b.equal(&src, "www");
            c.equal(&src, "www");
        },
    );
}
