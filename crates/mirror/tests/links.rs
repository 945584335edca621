//! Files of many names: what happens to one of them, or to all, takes about as long as there are names, and a stop is
//! heeded meanwhile.

mod common;

use std::fs::{self, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use testkit::proc::wait_until;

use common::{DEADLINE, Mirror, took};

const LINKS: u64 = 3000;

fn link_many(file: &Path, dir: &Path, names: std::ops::Range<u64>) {
    for n in names {
        fs::hard_link(file, dir.join(format!("{n}"))).unwrap();
    }
}

/// One file of many names, many files of some, and pairs.
fn populate(src: &Path) {
    let one = src.join("one");
    fs::create_dir_all(&one).unwrap();
    fs::write(one.join("0"), "one").unwrap();
    link_many(&one.join("0"), &one, 1..LINKS);
    for file in 0..20 {
        let dir = src.join(format!("some{file}"));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("0"), format!("{file}")).unwrap();
        link_many(&dir.join("0"), &dir, 1..100);
    }
    for dir in ["left", "right"] {
        fs::create_dir(src.join(dir)).unwrap();
    }
    for n in 0..500 {
        let left = src.join(format!("left/{n}"));
        fs::write(&left, format!("{n}")).unwrap();
        fs::hard_link(&left, src.join(format!("right/{n}"))).unwrap();
    }
}

/// What people do to such files; `then` after each.
fn change(src: &Path, then: &mut dyn FnMut(&str)) {
    let one = src.join("one");
    fs::hard_link(one.join("7"), one.join("new")).unwrap();
    then("one link more");
    fs::rename(one.join("new"), one.join("0new")).unwrap();
    then("a link is renamed");
    fs::remove_file(one.join("0")).unwrap();
    then("the first link goes");
    let mut file = OpenOptions::new()
        .append(true)
        .open(one.join("2321"))
        .unwrap();
    file.write_all(b" and more").unwrap();
    drop(file);
    then("its content changes");
    fs::set_permissions(one.join("99"), Permissions::from_mode(0o600)).unwrap();
    then("its mode changes");
    fs::write(one.join("other"), "another file").unwrap();
    fs::rename(one.join("other"), one.join("3")).unwrap();
    then("another file takes a name");
    fs::rename(&one, src.join("renamed")).unwrap();
    let one = src.join("renamed");
    then("the directory is renamed");
    fs::create_dir(src.join("beside")).unwrap();
    link_many(&one.join("5"), &src.join("beside"), 0..1000);
    then("many links more");
    for n in 1000..LINKS {
        fs::remove_file(one.join(format!("{n}"))).unwrap();
    }
    then("most links go");
    fs::remove_dir_all(&one).unwrap();
    then("one of its directories goes");
    fs::remove_dir_all(src.join("beside")).unwrap();
    fs::remove_dir_all(src.join("some7")).unwrap();
    fs::remove_dir_all(src.join("left")).unwrap();
    then("all links go");
}

#[test]
fn changes_are_followed() {
    let dir = tempfile::tempdir().unwrap();
    let (src, dst) = (dir.path().join("src"), dir.path().join("dst"));
    populate(&src);
    let mut mirror = Mirror::start(&src, &dst);
    let first = took("first copy");
    mirror.must_be_equal();
    drop(first);
    change(&src, &mut |what| {
        let _took = took(what);
        mirror.must_be_equal();
    });
    assert_eq!(mirror.stop(), 0);
}

#[test]
fn changes_are_found_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let (src, dst) = (dir.path().join("src"), dir.path().join("dst"));
    populate(&src);
    let mut once = |what: &str| {
        let _took = took(what);
        let mut mirror = Mirror::start(&src, &dst);
        mirror.must_become_equal();
        assert_eq!(mirror.stop(), 0);
    };
    once("first copy");
    once("nothing changed");
    change(&src, &mut once);
}

#[test]
fn a_stop_in_the_midst_of_it_is_heeded() {
    let dir = tempfile::tempdir().unwrap();
    let (src, dst) = (dir.path().join("src"), dir.path().join("dst"));
    fs::create_dir(&src).unwrap();
    fs::write(src.join("0"), "x").unwrap();
    link_many(&src.join("0"), &src, 1..8000);
    let mut mirror = Mirror::start(&src, &dst);
    wait_until("the copy has begun", DEADLINE, || {
        fs::metadata(dst.join("0")).is_ok_and(|file| file.nlink() > 1000)
    })
    .unwrap();
    let asked = Instant::now();
    assert_eq!(mirror.stop(), 0);
    let took = asked.elapsed();
    assert!(took < Duration::from_secs(20), "it stopped after {took:?}");
    let links = fs::metadata(dst.join("0")).unwrap().nlink();
    println!("stopped after {took:?} and {links} links");
    let mut mirror = Mirror::start(&src, &dst);
    mirror.must_be_equal();
    assert_eq!(mirror.stop(), 0);
}
