//! Hosts of their own (network namespaces): `mirrord serve` on one, `fs_mirror serve` on the next, a reader of that one on
//! the third. Paired by tokens, then cut off, deaf, lossy, slow, refusing, killed; equal at the end.

mod node;
mod odd;
mod readers;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use node::Node;
use serde_json::Value;
use testkit::compare::Options;
use testkit::lab::{Lab, Net, in_private_namespace};
use testkit::proc::wait_equal;
use testkit::rng::Rng;
use testkit::{generate, need, workload};

const FS_MIRROR: &str = env!("CARGO_BIN_EXE_fs_mirror");
const MIRRORD: &str = env!("CARGO_BIN_EXE_mirrord");
const LONG: Duration = Duration::from_secs(120);

struct World {
    net: Net,
    _held: tempfile::TempDir,
    src: PathBuf,
    copies: [PathBuf; 2],
    nodes: [Node; 3],
}

impl World {
    /// Everything up to a tree that two hosts follow, one through the other.
    fn new(lab: &Lab, files: u64) -> Result<World, testkit::lab::Skip> {
        let net = lab.net()?;
        let held = tempfile::Builder::new().prefix("hosts-").tempdir().unwrap();
        // The process that listens is nobody, and gets in nowhere; a directory on the way may be open all the same.
        let base = fs::canonicalize(held.path()).unwrap();
        let mut web = Node::new(&net, "web", MIRRORD, &base)?;
        let mut backup = Node::new(&net, "backup", FS_MIRROR, &base)?;
        let mut reader = Node::new(&net, "reader", FS_MIRROR, &base)?;
        let src = base.join("www");
        fs::create_dir(&src).unwrap();
        let params = generate::Params {
            files,
            ..generate::Params::default()
        };
        generate::tree(&src.join("tree"), &params).unwrap();
        let copies = [backup.path("www"), reader.path("www")];

        web.configure(&format!(
            "listen = '0.0.0.0:8737'\n[tree.www]\npath = '{}'\n",
            src.display()
        ));
        web.serve();
        web.lets(&backup);
        backup.configure("listen = '0.0.0.0:8737'\n");
        let from = format!("mirror://{}/www", web.host.address);
        let to = copies[0].display().to_string();
        backup.run(FS_MIRROR, &["add", "www", &from, &to]);
        let file = fs::read_to_string(backup.path("etc/conf.d/www.toml")).unwrap();
        fs::write(
            backup.path("etc/conf.d/www.toml"),
            format!("{file}owners = \"apply\"\n"),
        )
        .unwrap();
        backup.serve();
        backup.lets(&reader);
        let from = format!("mirror://{}/www", backup.host.address);
        let to = copies[1].display().to_string();
        reader.configure("");
        reader.run(FS_MIRROR, &["add", "www", &from, &to]);
        let file = fs::read_to_string(reader.path("etc/conf.d/www.toml")).unwrap();
        fs::write(
            reader.path("etc/conf.d/www.toml"),
            format!("{file}owners = \"apply\"\n"),
        )
        .unwrap();
        reader.serve();
        Ok(World {
            net,
            _held: held,
            src,
            copies,
            nodes: [web, backup, reader],
        })
    }

    #[track_caller]
    fn equal(&self) {
        for copy in &self.copies {
            let found = wait_equal(&self.src, copy, &Options::default(), LONG);
            let said = || self.nodes.each_ref().map(Node::said).join("\n---\n");
            assert!(found.is_ok(), "{}: {found:?}\n{}", copy.display(), said());
        }
    }

    /// Something that happens to a host.
    fn happens(&mut self, rng: &mut Rng) -> String {
        let n = rng.below(3) as usize;
        let node = &mut self.nodes[n];
        let what = rng.below(7);
        let done = match what {
            0 => self.net.plugged(&node.host, false),
            1 => self.net.deaf(&node.host),
            2 => self.net.lossy(&node.host, 15),
            3 => self.net.rate(&node.host, Some("2mbit")),
            4 => self.net.refuses(&node.host),
            5 => self.net.healed(&node.host),
            _ => {
                // With all that it started: the kernel ends them with it.
                node.service = None;
                node.serve();
                Ok(())
            }
        };
        done.unwrap();
        let words = [
            "cut", "deaf", "lossy", "slow", "refuses", "healed", "killed",
        ];
        format!("{} {}", node.host.name, words[what as usize])
    }
}

#[test]
fn from_a_token_to_a_chain_that_is_equal() {
    in_private_namespace("from_a_token_to_a_chain_that_is_equal", |lab| {
        let world = need!(World::new(lab, 300));
        world.equal();
        fs::write(world.src.join("later"), "later").unwrap();
        fs::rename(world.src.join("tree"), world.src.join("moved")).unwrap();
        // What was written before is on the backup host, says the worker; on the reader's, says its own command.
        let [web, _, reader] = &world.nodes;
        web.run(
            MIRRORD,
            &["wait", "www", "--for", "applied", "--timeout", "60s"],
        );
        assert_eq!(fs::read(world.copies[0].join("later")).unwrap(), b"later");
        let copy = world.copies[1].display().to_string();
        reader.run(
            FS_MIRROR,
            &["wait", "--idle", "-m", &copy, "--timeout", "60s"],
        );
        assert_eq!(fs::read(world.copies[1].join("later")).unwrap(), b"later");
        world.equal();
    });
}

/// How long it took, without the time in which this machine did nothing for us.
#[track_caller]
fn noticed_after(mut is_so: impl FnMut() -> bool) -> Duration {
    const LOOK_MAX: Duration = Duration::from_millis(500);
    let (began, mut lost) = (Instant::now(), Duration::ZERO);
    loop {
        let looked = Instant::now();
        if is_so() {
            return began.elapsed().saturating_sub(lost);
        }
        std::thread::sleep(Duration::from_millis(100));
        lost += looked.elapsed().saturating_sub(LOOK_MAX);
        assert!(began.elapsed() < LONG, "it is not noticed at all");
    }
}

#[test]
fn a_dead_peer_is_noticed_in_time() {
    in_private_namespace("a_dead_peer_is_noticed_in_time", |lab| {
        // Fifteen seconds, and what looking takes.
        const LIMIT: Duration = Duration::from_secs(18);
        let world = need!(World::new(lab, 20));
        world.equal();
        let [web, backup, reader] = &world.nodes;
        let state = |node: &Node, copy: &Path| {
            let copy = copy.display().to_string();
            let text = node.run(FS_MIRROR, &["status", "--json", "-m", &copy]);
            let value: Value = serde_json::from_str(&text).unwrap_or_default();
            value["status"]["state"]["is"].as_str().map(str::to_owned)
        };
        let following =
            |node: &Node, copy: &Path| state(node, copy).as_deref() == Some("following");
        let has_replica = || {
            let text = web.run(MIRRORD, &["status", "www", "--json"]);
            let value: Value = serde_json::from_str(&text).unwrap_or_default();
            value["status"]["replicas"][0]["connected"] == true
        };
        assert!(following(backup, &world.copies[0]) && has_replica());
        assert!(following(reader, &world.copies[1]));
        // One host is cut off in both directions without a word; the other one only hears nothing any more.
        world.net.lossy(&web.host, 100).unwrap();
        world.net.deaf(&reader.host).unwrap();
        let (mut far, mut deaf, mut near) = (None, None, None);
        let began = Instant::now();
        let all = noticed_after(|| {
            let note = |after: &mut Option<Duration>, gone: bool| {
                if gone {
                    after.get_or_insert_with(|| began.elapsed());
                }
            };
            note(&mut far, !following(backup, &world.copies[0]));
            note(&mut deaf, !following(reader, &world.copies[1]));
            note(&mut near, !has_replica());
            far.is_some() && deaf.is_some() && near.is_some()
        });
        println!("noticed: by the follower {far:?}, a deaf one {deaf:?}, the worker {near:?}");
        assert!(all <= LIMIT, "{all:?}: {far:?}, {deaf:?}, {near:?}");
        for node in &world.nodes {
            world.net.healed(&node.host).unwrap();
        }
        fs::write(world.src.join("after"), "it").unwrap();
        world.equal();
    });
}

#[test]
fn whatever_happens_to_links_and_hosts() {
    in_private_namespace("whatever_happens_to_links_and_hosts", |lab| {
        let mut world = need!(World::new(lab, 100));
        world.equal();
        let seeds: u64 = std::env::var("SEEDS")
            .ok()
            .and_then(|n| n.parse().ok())
            .unwrap_or(1);
        for seed in 0..seeds {
            let mut rng = Rng::new(seed);
            let mut happened = Vec::new();
            for step in 0..6 {
                let params = workload::Params {
                    seed: seed * 1000 + step,
                    ops: rng.range(20, 100),
                    existing: true,
                    mappings: false,
                    ..workload::Params::default()
                };
                workload::run(&world.src, &params).unwrap();
                happened.push(world.happens(&mut rng));
                std::thread::sleep(Duration::from_millis(rng.below(1500)));
            }
            println!("seed {seed}: {}", happened.join(", "));
            for node in &world.nodes {
                world.net.healed(&node.host).unwrap();
            }
            world.equal();
        }
    });
}
