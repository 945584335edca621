//! Large files on their way over a link that does as it is told.

mod ssh_support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use ssh_support::*;
use testkit::proc::Program;

const MIB: usize = 1 << 20;
/// Pieces of contents and their end.
const HOLD: &str = "hold=9,10";

/// Not a test: the program that stands for ssh in the others.
#[test]
fn link() {
    testkit::proxy::become_link();
}

/// With a link that begins as these words say.
fn bed(words: &str) -> Bed {
    let bed = Bed::new();
    let control = bed.path("link");
    tell(&bed, words);
    bed.script(&testkit::proxy::script("link", &control).unwrap());
    bed
}

/// From now on the link is like this.
fn tell(bed: &Bed, words: &str) {
    let new = bed.path("link.new");
    fs::write(&new, words).unwrap();
    fs::rename(new, bed.path("link")).unwrap();
}

/// What comes packed can't be held by its kind, nor counted.
fn followed(bed: &Bed, compress: &str) -> Program {
    let mut follower = bed.mirror(&["--on-mass-change", "follow", "--compress", compress]);
    follower.wait_stderr("equal: ", LONG).unwrap();
    bed.equal();
    follower
}

fn bytes(seed: u8, length: usize) -> Vec<u8> {
    let mut hash = u64::from(seed) + 77;
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        hash = hash.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        bytes.extend((hash >> 24).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// What is there of contents on their way.
fn staged(bed: &Bed) -> Vec<(PathBuf, u64)> {
    let dir = bed.path("dst.fs_mirror/staging/travelling");
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let sized = entries.filter_map(|entry| Some((entry.path(), entry.metadata().ok()?.size())));
    sized.collect()
}

fn sees(bed: &Bed, name: &str, what: &str) {
    let path = bed.dst().join(name);
    bed.wait(name, || {
        fs::read_to_string(&path).is_ok_and(|text| text == what)
    });
}

#[track_caller]
fn not_idle(bed: &Bed) {
    let (code, said) = bed.command(&["wait", "--idle", "--timeout", "1s"]);
    assert_eq!(code, 5, "{said}");
}

#[track_caller]
fn idle_and_equal(bed: &Bed) {
    let (code, said) = bed.command(&["wait", "--idle", "--timeout", "60s"]);
    assert_eq!(code, 0, "{said}");
    bed.equal();
    let (_, said) = bed.command(&["status"]);
    assert!(!said.contains("on its way"), "{said}");
    assert!(staged(bed).is_empty(), "{:?}", staged(bed));
}

#[test]
fn small_changes_pass_a_large_file_that_does_not_come_and_a_kill() {
    let bed = bed("hold=");
    let src = bed.src();
    for dir in ["a", "b"] {
        fs::create_dir(src.join(dir)).unwrap();
    }
    fs::write(src.join("a/known"), "old").unwrap();
    let mut follower = followed(&bed, "off");
    tell(&bed, HOLD);
    fs::write(src.join("a/known"), bytes(1, 3 * MIB)).unwrap();
    fs::write(src.join("a/new"), bytes(2, 2 * MIB)).unwrap();
    fs::write(src.join("a/gone"), bytes(3, 2 * MIB)).unwrap();
    bed.wait("they travel", || staged(&bed).len() == 3);
    for n in 0..5 {
        fs::write(src.join("a/small"), format!("{n}")).unwrap();
        sees(&bed, "a/small", &format!("{n}"));
    }
    assert_eq!(
        fs::read_to_string(bed.dst().join("a/known")).unwrap(),
        "old"
    );
    assert!(!bed.dst().join("a/new").exists());
    not_idle(&bed);
    let (_, said) = bed.command(&["status"]);
    assert!(said.contains("on its way"), "{said}");
    // What travels is renamed, removed and rewritten, and so is its directory.
    fs::rename(src.join("a/new"), src.join("b/new")).unwrap();
    fs::remove_file(src.join("a/gone")).unwrap();
    fs::rename(src.join("a"), src.join("c")).unwrap();
    fs::write(src.join("mark"), "1").unwrap();
    sees(&bed, "mark", "1");
    assert_eq!(
        fs::read_to_string(bed.dst().join("c/known")).unwrap(),
        "old"
    );
    bed.wait("what is gone is not wanted", || staged(&bed).len() == 2);
    // Killed, and begun again.
    follower.kill().unwrap();
    let follower = bed.mirror(&["--on-mass-change", "follow"]);
    fs::write(src.join("mark"), "2").unwrap();
    sees(&bed, "mark", "2");
    assert!(!bed.dst().join("b/new").exists());
    not_idle(&bed);
    fs::write(src.join("c/known"), bytes(4, 2 * MIB)).unwrap();
    fs::write(src.join("mark"), "3").unwrap();
    sees(&bed, "mark", "3");
    tell(&bed, "hold=");
    idle_and_equal(&bed);
    stop(follower);
}

#[test]
fn what_came_before_a_kill_or_a_cut_is_not_sent_again() {
    let bed = bed("");
    let mut follower = followed(&bed, "off");
    tell(&bed, "rate=3mib");
    let length = 10 * MIB;
    fs::write(bed.src().join("large"), bytes(5, length)).unwrap();
    let so_far = |bytes: usize| {
        let is = staged(&bed)
            .first()
            .is_some_and(|(_, size)| *size >= bytes as u64);
        is.then_some(())
    };
    bed.wait("some of it is there", || so_far(3 * MIB).is_some());
    follower.kill().unwrap();
    let follower = bed.mirror(&[]);
    bed.wait("more of it is there", || so_far(5 * MIB).is_some());
    tell(&bed, "rate=3mib cut");
    bed.wait("the link is seen to be cut", || {
        bed.command(&["status"]).1.contains("the link to")
    });
    // Counted from nothing by the next link.
    fs::remove_file(bed.path("link.bytes")).unwrap();
    tell(&bed, "");
    idle_and_equal(&bed);
    let count = || {
        let text = fs::read_to_string(bed.path("link.bytes")).unwrap_or_default();
        let inwards = text.split_whitespace().nth(1).map(str::parse::<usize>);
        inwards.and_then(Result::ok)
    };
    bed.wait("it is counted", || count().is_some_and(|bytes| bytes > MIB));
    let came = count().unwrap();
    assert!(came <= length - 4 * MIB, "{came} bytes came again");
    stop(follower);
}

#[test]
fn a_changing_tree_with_large_files_arrives_over_a_link_that_breaks() {
    let bed = bed("latency=5ms rate=40mib");
    let mut follower = followed(&bed, "on");
    let dir = bed.src().join("tree");
    fs::create_dir(&dir).unwrap();
    for round in 0..4u8 {
        let params = testkit::workload::Params {
            seed: u64::from(round) + 1,
            ops: 60,
            existing: true,
            ..Default::default()
        };
        testkit::workload::run(&dir, &params).unwrap();
        for n in 0..3 {
            let name = bed.src().join(format!("large{n}"));
            fs::write(&name, bytes(round * 3 + n, MIB + usize::from(n) * 900_000)).unwrap();
            let _ = fs::rename(&name, dir.join(format!("l{}", (round + n) % 4)));
        }
        match round {
            0 => tell(&bed, "latency=5ms rate=40mib cut"),
            1 => {
                follower.kill().unwrap();
                follower = bed.mirror(&["--on-mass-change", "follow"]);
            }
            _ => {}
        }
        std::thread::sleep(Duration::from_millis(150));
        tell(&bed, "latency=5ms rate=40mib");
    }
    idle_and_equal(&bed);
    stop(follower);
}

/// Not a test either: how long small changes take to arrive with and without a large file on its way (`LINK`: the link's words,
/// `LARGE_MIB`).
#[test]
#[ignore = "a measurement"]
fn measure_small_changes_beside_a_large_one() {
    let var = |name: &str, otherwise: &str| std::env::var(name).unwrap_or(otherwise.into());
    let bed = bed(&var("LINK", "rate=100mbit"));
    let mib: usize = var("LARGE_MIB", "256").parse().unwrap();
    let follower = followed(&bed, "auto");
    let measure = |what: &str, most: usize, go_on: &dyn Fn() -> bool| {
        let mut took = Vec::new();
        while took.len() < most && go_on() {
            let name = format!("{what}{}", took.len());
            let began = std::time::Instant::now();
            fs::write(bed.src().join(&name), &name).unwrap();
            while !bed.dst().join(&name).exists() {
                std::thread::sleep(Duration::from_micros(200));
            }
            took.push(began.elapsed());
            std::thread::sleep(Duration::from_millis(20));
        }
        took.sort();
        let at = |part: usize| {
            took.get(took.len() * part / 100)
                .copied()
                .unwrap_or_default()
        };
        println!(
            "{what}: {} changes, p50 {:?}, p99 {:?}",
            took.len(),
            at(50),
            at(99)
        );
    };
    measure("alone", 300, &|| true);
    fs::write(bed.src().join("large"), bytes(9, mib * MIB)).unwrap();
    bed.wait("it travels", || !staged(&bed).is_empty());
    let began = std::time::Instant::now();
    measure("beside", 1000, &|| !staged(&bed).is_empty());
    bed.wait("it is there", || staged(&bed).is_empty());
    println!("the large one took {:?}", began.elapsed());
    stop(follower);
}
