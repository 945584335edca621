//! Many trees of one service on one file system, and one listener for them.

use std::fs::{self, File, FileTimes, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use testkit::lab::QueueLimit;
use testkit::proc::Program;

use crate::ssh_support::{kill9, signal, stop};
use crate::{Load, Place, barrier_holds, text};

const WHY: &str = "one listener for the file system";

/// A service of these trees, each with a follower, that has a listener. `None`: not here.
fn served(trees: &[&str]) -> Option<(Place, Program, Vec<Program>)> {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root (fanotify)");
        return None;
    }
    let place = Place::new();
    for tree in trees {
        fs::create_dir_all(place.bed.path("www").join(tree)).unwrap();
    }
    place.config("[tree.www]\npath = '@/www/*'\n");
    let service = place.serve(trees);
    let detector = place.status(trees[0]).unwrap()["detector"].clone();
    if detector["why"] != WHY {
        println!("skipped: {detector}");
        return None;
    }
    let follow = |tree: &&str| {
        let (src, dst) = (format!("www/{tree}"), format!("copy-{tree}"));
        place.follow_with(&src, &dst, &["--on-mass-change", "follow"])
    };
    let followers: Vec<Program> = trees.iter().map(follow).collect();
    equal(&place, trees);
    Some((place, service, followers))
}

fn why(place: &Place, tree: &str) -> String {
    let status = place.status(tree).unwrap();
    assert_eq!(status["detector"]["uses"], "fanotify", "{status}");
    status["detector"]["why"].as_str().unwrap().to_owned()
}

#[track_caller]
fn equal(place: &Place, trees: &[&str]) {
    for tree in trees {
        place.equal(&format!("www/{tree}"), &format!("copy-{tree}"));
    }
}

/// All that was done is in the copies when the barrier of each returns.
#[track_caller]
fn barriers(place: &Place, trees: &[&str]) {
    for tree in trees {
        let (code, said) = place.run(&format!("wait {tree} --for applied --timeout 60s"));
        assert!(code == 0 || code == 3, "{tree}: {code} {said}");
    }
    for tree in trees {
        let (src, dst) = (
            place.bed.path("www").join(tree),
            place.bed.path(&format!("copy-{tree}")),
        );
        let found = testkit::compare(&src, &dst, &testkit::compare::Options::default());
        assert!(found.is_empty(), "{tree}: {found:?}");
    }
}

fn listener(service: &Program) -> u32 {
    let of = |pid: &u32| {
        let status = text(Path::new(&format!("/proc/{pid}/status")));
        let cmdline = text(Path::new(&format!("/proc/{pid}/cmdline")));
        status.contains(&format!("PPid:\t{}\n", service.pid()))
            && cmdline.starts_with("mirrord: listener")
    };
    let pids = fs::read_dir("/proc").unwrap().flatten();
    let mut pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.find(of).unwrap()
}

/// How many fanotify groups a process has.
fn groups(pid: u32) -> usize {
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let links = fds.filter_map(|fd| fs::read_link(fd.path()).ok());
    links
        .filter(|link| link.to_string_lossy().contains("fanotify"))
        .count()
}

fn end(service: Program, followers: Vec<Program>) {
    for follower in followers {
        stop(follower);
    }
    stop(service);
}

/// Written without a trace but in its bytes: same size, same mtime.
fn write_secretly(path: &Path, byte: u8) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    let times = FileTimes::new().set_modified(file.metadata().unwrap().modified().unwrap());
    file.write_all_at(&[byte], 0).unwrap();
    file.set_times(times).unwrap();
}

#[test]
fn each_tree_is_told_of_all_that_is_its_own() {
    let trees = ["t0", "t1", "t2", "t3", "t4", "t5"];
    let Some((place, service, followers)) = served(&trees) else {
        return;
    };
    let heard = listener(&service);
    assert_eq!(groups(heard), 1);
    for tree in trees {
        assert_eq!(
            (groups(place.pid(tree)), why(&place, tree).as_str()),
            (0, WHY)
        );
    }
    let www = place.bed.path("www");
    let out = place.bed.path("out");
    fs::create_dir(&out).unwrap();
    let mut seed = 0x5eed_1157u64;
    let mut random = move |below: usize| {
        seed = seed
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (seed >> 33) as usize % below
    };
    {
        let _load = [Load::on(&www.join("t0")), Load::on(&www.join("t1"))];
        barrier_holds_in(&place, "t0");
        // Directories and files that go from tree to tree, and elsewhere, and are written on their way.
        for (n, tree) in trees.iter().enumerate() {
            let dir = www.join(tree).join(format!("wander{n}"));
            fs::create_dir_all(dir.join("deep/er")).unwrap();
            fs::write(dir.join("deep/er/f"), "0").unwrap();
            fs::write(www.join(tree).join(format!("file{n}")), "0").unwrap();
        }
        let mut at: Vec<_> = (0..6).map(|n| www.join(trees[n])).collect();
        let mut files = at.clone();
        for round in 0..300u32 {
            let n = random(6);
            let to = match random(8) {
                away @ 0..6 => www.join(trees[away]),
                _ => out.clone(),
            };
            fs::rename(
                at[n].join(format!("wander{n}")),
                to.join(format!("wander{n}")),
            )
            .unwrap();
            at[n] = to.clone();
            let inner = to.join(format!("wander{n}/deep"));
            write_secretly(&inner.join("er/f"), b'a' + (round % 26) as u8);
            fs::write(inner.join(format!("n{}", round % 5)), format!("{round}")).unwrap();
            let n = random(6);
            let to = at[random(6)].clone();
            fs::rename(
                files[n].join(format!("file{n}")),
                to.join(format!("file{n}")),
            )
            .unwrap();
            files[n] = to.clone();
            write_secretly(&to.join(format!("file{n}")), b'a' + (round % 26) as u8);
            if random(10) == 0 {
                std::thread::sleep(Duration::from_millis(random(30) as u64));
            }
        }
        for (n, at) in at.iter().enumerate() {
            if *at == out {
                let (from, to) = (out.join(format!("wander{n}")), www.join("t5"));
                fs::rename(from, to.join(format!("wander{n}"))).unwrap();
            }
        }
    }
    barriers(&place, &trees);
    // Another tree comes, and disturbs nobody.
    let pids: Vec<u32> = trees.iter().map(|tree| place.pid(tree)).collect();
    fs::create_dir(www.join("late")).unwrap();
    place.served("late", &service);
    assert_eq!(why(&place, "late"), WHY);
    fs::write(www.join("t3/after"), "x").unwrap();
    barriers(&place, &trees);
    assert!(trees.iter().map(|tree| place.pid(tree)).eq(pids));
    assert_eq!(listener(&service), heard);
    end(service, followers);
}

fn barrier_holds_in(place: &Place, tree: &str) {
    // The helper knows a tree by where it lies.
    let link = place.bed.path(tree);
    std::os::unix::fs::symlink(place.bed.path("www").join(tree), link).unwrap();
    barrier_holds(place, tree, &format!("copy-{tree}"), 6, "busy");
}

#[test]
fn what_goes_and_comes_back_and_what_has_two_names_is_found() {
    let trees = ["a", "b"];
    let Some((place, service, followers)) = served(&trees) else {
        return;
    };
    let (a, b) = (place.bed.path("www/a"), place.bed.path("www/b"));
    let out = place.bed.path("out");
    fs::create_dir(&out).unwrap();
    fs::create_dir_all(a.join("d/e")).unwrap();
    for path in ["d/e/f", "file", "one", "many"] {
        fs::write(a.join(path), "0").unwrap();
    }
    fs::hard_link(a.join("many"), out.join("many")).unwrap();
    fs::hard_link(a.join("many"), b.join("many")).unwrap();
    barriers(&place, &trees);
    for round in 0..20u8 {
        let byte = b'a' + round;
        // Away, written, and back: before anybody looks; or each by itself, for a tree that looks only after all of it.
        let asleep = round % 2 == 0;
        let pause = || {
            if asleep {
                std::thread::sleep(Duration::from_millis(10));
            }
        };
        let pid = place.pid("a");
        if asleep {
            signal(pid, Signal::STOP);
        }
        fs::rename(a.join("d"), out.join("d")).unwrap();
        pause();
        write_secretly(&out.join("d/e/f"), byte);
        pause();
        fs::rename(out.join("d"), a.join("d")).unwrap();
        fs::rename(a.join("file"), out.join("file")).unwrap();
        pause();
        write_secretly(&out.join("file"), byte);
        pause();
        fs::rename(out.join("file"), a.join("file")).unwrap();
        // By a name that nobody mirrors, which then goes.
        fs::hard_link(a.join("one"), out.join("one")).unwrap();
        write_secretly(&out.join("one"), byte);
        fs::remove_file(out.join("one")).unwrap();
        write_secretly(&out.join("many"), byte);
        signal(pid, Signal::CONT);
        barriers(&place, &trees);
        for path in ["d/e/f", "file", "one", "many"] {
            let copy = place.bed.path("copy-a").join(path);
            assert_eq!(fs::read(copy).unwrap(), [byte], "{path}, round {round}");
        }
    }
    end(service, followers);
}

#[test]
fn a_listener_that_ends_or_hangs_costs_a_scan_and_no_event() {
    let trees = ["a", "b", "c"];
    let Some((place, service, followers)) = served(&trees) else {
        return;
    };
    let a = place.bed.path("www/a");
    {
        let _load = Load::on(&a);
        for n in 0..2 {
            std::thread::sleep(Duration::from_millis(50));
            kill9(listener(&service));
            fs::write(place.bed.path(&format!("www/b/{n}")), "x").unwrap();
            place.bed.wait("another one", || {
                service.stderr().matches("the listener: started").count() == n + 2
            });
        }
    }
    barriers(&place, &trees);
    place.bed.wait("it is told", || {
        service.stderr().contains("everything is looked at")
    });
    // It says nothing any more.
    let hung = listener(&service);
    signal(hung, Signal::STOP);
    let mut file = File::create(a.join("unheard")).unwrap();
    file.write_all(b"x").unwrap();
    drop(file);
    barriers(&place, &["a"]);
    let why = why(&place, "a");
    assert!(
        why.starts_with("one mark for the whole file system; "),
        "{why}"
    );
    let line = "a: the service's listener is of no use (it does not answer): the tree has a mark of its own";
    place
        .bed
        .wait("it is told", || service.stderr().contains(line));
    kill9(hung);
    for tree in trees {
        fs::write(place.bed.path("www").join(tree).join("last"), "x").unwrap();
    }
    barriers(&place, &trees);
    end(service, followers);
}

#[test]
fn a_queue_that_overflows_loses_nothing() {
    let trees = ["a", "b"];
    let limit = QueueLimit::set(32);
    let limited = limit.is_ok();
    let found = served(&trees);
    drop(limit);
    let Some((place, service, followers)) = found else {
        return;
    };
    if !limited {
        println!("skipped: the queue can't be made short");
        return end(service, followers);
    }
    let heard = listener(&service);
    for round in 0..2 {
        signal(heard, Signal::STOP);
        for tree in trees {
            let dir = place
                .bed
                .path("www")
                .join(tree)
                .join(format!("flood{round}"));
            fs::create_dir(&dir).unwrap();
            for n in 0..200 {
                fs::write(dir.join(n.to_string()), "x").unwrap();
            }
        }
        signal(heard, Signal::CONT);
        barriers(&place, &trees);
    }
    let lost = place.status("b").unwrap()["counters"]["overflows"].as_u64();
    assert!(lost >= Some(1), "{lost:?}");
    end(service, followers);
}
