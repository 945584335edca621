//! Things that go wrong: bad content, hand-made changes, foreign links, full disks, crashes.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use super::*;

fn adopted(pair: &Pair) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![pair.state.join("adopted")];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let depth = entry
                .path()
                .strip_prefix(&pair.state)
                .unwrap()
                .components()
                .count();
            if depth == 4 {
                found.push(entry.path())
            } else {
                todo.push(entry.path())
            }
        }
    }
    found.sort();
    found
}

#[test]
fn content_that_can_not_be_had_keeps_the_old_file() {
    for (answer, void) in [("gone", true), ("wrong", false), ("later", false)] {
        let mut pair = pair();
        pair.write("file", b"old");
        pair.mkdir("dir");
        pair.sync();
        pair.write("file", b"new bytes");
        pair.write("fresh", b"fresh");
        pair.write("dir/fine", b"fine");
        pair.source
            .look()
            .iter()
            .for_each(|r| pair.records.push(r.clone()));
        for name in ["file", "fresh"] {
            let id = pair.source.id(name);
            pair.source
                .contents
                .instead
                .lock()
                .unwrap()
                .insert(id, answer);
        }
        let records: Vec<Record> = pair
            .records
            .iter()
            .skip_while(|r| r.change.object() == Some(ObjectId::ROOT) && !r.end)
            .cloned()
            .collect();
        let position = pair.applier().store().position();
        let records: Vec<Record> = records
            .into_iter()
            .filter(|r| position.is_none_or(|p| r.position > p))
            .collect();
        let outcome = pair.apply(&records);
        assert_eq!(outcome.failed.len(), 2, "{:#?}", outcome.failed);
        assert!(outcome.failed.iter().all(|f| f.void == void));
        assert_eq!(std::fs::read(pair.in_dst("file")).unwrap(), b"old");
        assert!(!pair.in_dst("fresh").exists());
        assert_eq!(std::fs::read(pair.in_dst("dir/fine")).unwrap(), b"fine");
        // Kept over a restart, and still failing.
        pair.applier().checkpoint().unwrap();
        pair.crash();
        assert_eq!(pair.applier().failed().len(), 2);
        assert_eq!(pair.retry().failed.len(), 2);
        if void {
            // A successor heals.
            pair.write("file", b"newer");
            pair.source.contents.instead.lock().unwrap().clear();
            assert_eq!(pair.step().healed.len(), 1);
        }
        // And so does asking again: what was not there for a moment may have come back without a change to record.
        pair.source.contents.instead.lock().unwrap().clear();
        assert_eq!(pair.retry().healed.len(), if void { 1 } else { 2 });
        pair.check();
    }
}

/// A name that came and went while the process was down, and shows an inode that gets another time in the same slice.
#[test]
fn a_replay_takes_its_own_times_for_nobodys_work() {
    let mut pair = pair();
    pair.write("file", b"content");
    pair.sync();
    pair.applier().checkpoint().unwrap();
    std::fs::hard_link(pair.src("file"), pair.src("link")).unwrap();
    pair.step();
    pair.rm("link");
    let file = std::fs::File::options()
        .write(true)
        .open(pair.src("file"))
        .unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH)
        .unwrap();
    let records = pair.source.look();
    pair.records.extend(records);
    pair.crash();
    let outcome = pair.catch_up();
    assert!(outcome.failed.is_empty(), "{:#?}", outcome.failed);
    assert!(outcome.moved_aside.is_empty(), "{:?}", outcome.moved_aside);
    pair.check();
}

/// What was made and is gone again before the next process looks is our own, not somebody's.
#[test]
fn what_came_and_went_in_one_replay_just_goes() {
    let mut pair = pair();
    pair.mkdir("kept");
    pair.write("kept/file", b"old");
    pair.sync();
    pair.applier().checkpoint().unwrap();
    pair.write("file", b"new");
    pair.write("kept/file", b"newer");
    pair.mkdir("dir/sub");
    pair.write("dir/file", b"new");
    pair.write("dir/sub/file", b"new");
    symlink("nowhere", pair.src("dir/symlink")).unwrap();
    std::fs::hard_link(pair.src("dir/file"), pair.src("kept/link")).unwrap();
    pair.step();
    pair.mv("dir", "kept/dir");
    pair.step();
    pair.rm("file");
    pair.rm("kept/dir");
    pair.rm("kept/link");
    pair.write("kept/file", b"newest");
    let records = pair.source.look();
    pair.records.extend(records);
    pair.crash();
    let outcome = pair.catch_up();
    assert!(outcome.failed.is_empty(), "{:#?}", outcome.failed);
    assert!(outcome.moved_aside.is_empty(), "{:?}", outcome.moved_aside);
    pair.check();
}

/// A directory that left one which was removed, both before a crash: the rows still have it in there.
#[test]
fn what_left_a_removed_directory_is_found_by_a_replay() {
    let mut pair = pair();
    pair.mkdir("gone/kept");
    pair.write("gone/kept/file", b"content");
    pair.write("gone/kept/not mentioned", b"content");
    pair.sync();
    pair.applier().checkpoint().unwrap();
    let inode = |pair: &Pair, name: &str| pair.in_dst(name).metadata().unwrap().ino();
    let before = inode(&pair, "gone/kept/not mentioned");
    pair.mv("gone/kept", "kept");
    pair.rm("gone");
    pair.step();
    pair.mkdir("kept/new/below");
    pair.write("kept/file", b"other");
    pair.write("kept/new/below/file", b"new");
    let records = pair.source.look();
    pair.records.extend(records);
    pair.crash();
    let outcome = pair.catch_up();
    assert!(outcome.failed.is_empty(), "{:#?}", outcome.failed);
    assert!(outcome.moved_aside.is_empty(), "{:?}", outcome.moved_aside);
    assert_eq!(inode(&pair, "kept/not mentioned"), before);
    pair.check();
}

/// What was found open before a directory was known to be lost is not written to.
#[test]
fn a_directory_made_anew_is_not_taken_for_the_old_one() {
    let mut pair = pair();
    pair.mkdir("a/b/c");
    pair.write("a/b/c/file", b"1");
    pair.mkdir("d");
    pair.sync();
    pair.applier().checkpoint().unwrap();
    // By hand: the directory is elsewhere, and what is in it can be reached by its rows no more.
    std::fs::rename(pair.in_dst("a/b"), pair.in_dst("d/b")).unwrap();
    pair.write("a/b/c/more", b"2");
    pair.mkdir("a/b/c/e");
    pair.write("a/b/c/e/file", b"3");
    pair.mv("d", "a/b/c/d");
    pair.crash();
    let outcome = pair.step();
    assert!(outcome.failed.is_empty(), "{:#?}", outcome.failed);
    // What was moved by hand into a directory that no record touched is left alone.
    let stranger = pair.in_dst("a/b/c/d/b");
    assert!(stranger.join("c/file").exists() && !stranger.join("c/e").exists());
    let below = pair.in_dst("a/b/c/e/file");
    assert_eq!(std::fs::read(below).unwrap(), b"3");
}

/// A replay finds an earlier version under a name that goes, while the new one can't be had yet: the next try must still
/// know of that name, and that what is there is ours.
#[test]
fn what_a_failed_replay_left_goes_with_the_next_try() {
    for again in [false, true] {
        let mut pair = pair();
        pair.mkdir("dir");
        pair.sync();
        pair.applier().checkpoint().unwrap();
        pair.write("dir/a", b"one");
        pair.step();
        pair.mv("dir/a", "b");
        pair.write("b", b"another");
        let records = pair.source.look();
        pair.records.extend(records);
        pair.crash();
        let id = pair.source.id("b");
        let instead = || pair.source.contents.instead.lock().unwrap();
        instead().insert(id, "gone");
        assert_eq!(pair.catch_up().failed.len(), 1);
        assert!(pair.in_dst("dir/a").exists());
        pair.applier().checkpoint().unwrap();
        if again {
            pair.crash();
        }
        pair.source.contents.instead.lock().unwrap().clear();
        let outcome = pair.retry();
        assert_eq!(outcome.healed, [id]);
        assert!(outcome.moved_aside.is_empty(), "{:?}", outcome.moved_aside);
        pair.check();
    }
}

/// What a replay finds under a name is of an object that is gone, and the one that is to have the name can't be made.
#[test]
fn what_holds_the_name_of_a_failed_object_goes_with_it() {
    for heals in [false, true] {
        let mut pair = pair();
        pair.mkdir("dir");
        pair.sync();
        pair.applier().checkpoint().unwrap();
        pair.write("dir/name", b"first");
        pair.step();
        pair.rm("dir/name");
        let records = pair.source.look();
        pair.records.extend(records);
        pair.write("dir/name", b"second");
        let records = pair.source.look();
        pair.records.extend(records);
        let id = pair.source.id("dir/name");
        let instead = |pair: &Pair, answer| {
            let mut instead = pair.source.contents.instead.lock().unwrap();
            instead.clear();
            instead.extend(answer);
        };
        instead(&pair, Some((id, "gone")));
        pair.crash();
        let outcome = pair.catch_up();
        assert!(outcome.failed.iter().any(|failure| failure.object == id));
        pair.applier().checkpoint().unwrap();
        instead(&pair, None);
        let outcome = if heals {
            pair.retry()
        } else {
            pair.rm("dir/name");
            pair.step()
        };
        assert!(outcome.moved_aside.is_empty(), "{:?}", outcome.moved_aside);
        pair.check();
        assert!(pair.applier().failed().is_empty());
    }
}

/// It failed, was done by a later try, and the rows do not know: then it goes, in a batch that is no replay any more.
#[test]
fn what_was_done_by_a_try_before_a_crash_goes_with_its_record() {
    let mut pair = pair();
    pair.mkdir("dir");
    pair.sync();
    pair.write("dir/file", b"content");
    let records = pair.source.look();
    pair.records.extend(records.iter().cloned());
    let id = pair.source.id("dir/file");
    let instead = |pair: &Pair, answer| {
        let mut instead = pair.source.contents.instead.lock().unwrap();
        instead.clear();
        instead.extend(answer);
    };
    instead(&pair, Some((id, "gone")));
    assert_eq!(pair.apply(&records).failed.len(), 1);
    pair.applier().checkpoint().unwrap();
    instead(&pair, None);
    assert_eq!(pair.retry().healed, [id]);
    pair.write("other", b"other");
    let records = pair.source.look();
    pair.records.extend(records);
    pair.crash();
    pair.catch_up();
    pair.applier().checkpoint().unwrap();
    pair.rm("dir/file");
    let outcome = pair.step();
    assert!(outcome.moved_aside.is_empty(), "{:?}", outcome.moved_aside);
    pair.check();
}

/// Far more than one slice was applied since the rows were durable, and all of it only added.
#[test]
fn a_replay_reaches_what_was_only_added() {
    let mut pair = pair();
    pair.write("a", b"a");
    pair.sync();
    pair.applier().checkpoint().unwrap();
    pair.write("b", b"b");
    let added = pair.step();
    pair.rm("b");
    let records = pair.source.look();
    pair.records.extend(records);
    pair.crash();
    assert!(pair.applier().replay_until() >= added.applied);
    pair.catch_up();
    pair.check();
}

#[test]
fn what_depends_on_a_failed_object_waits() {
    let mut pair = pair();
    pair.write("a", b"a");
    pair.write("b", b"b");
    pair.sync();
    // b is replaced by a, and a by something that can't be had.
    pair.mv("a", "b");
    pair.write("a", b"new a");
    let records = pair.source.look();
    let id = pair.source.id("a");
    pair.source
        .contents
        .instead
        .lock()
        .unwrap()
        .insert(id, "not now");
    let outcome = pair.apply(&records);
    assert!(outcome.failed.iter().any(|f| f.object == id));
    assert!(pair.in_dst("a").exists() && pair.in_dst("b").exists());
    // More changes on top of what is owed.
    pair.mv("a", "c");
    let outcome = pair.step();
    assert!(!outcome.failed.is_empty());
    pair.source.contents.instead.lock().unwrap().clear();
    pair.retry();
    pair.check();
    assert!(pair.applier().failed().is_empty());
}

#[test]
fn what_somebody_made_in_the_copy_moves_aside() {
    let mut pair = pair();
    pair.mkdir("dir/sub");
    pair.write("dir/file", b"old");
    pair.write("gone", b"old");
    pair.write("replaced", b"old");
    pair.write("kept", b"same");
    pair.sync();
    std::fs::write(pair.in_dst("dir/strange"), b"mine").unwrap();
    std::fs::write(pair.in_dst("gone"), b"mine too").unwrap();
    std::fs::write(pair.in_dst("new"), b"and this").unwrap();
    std::fs::remove_file(pair.in_dst("replaced")).unwrap();
    std::fs::create_dir_all(pair.in_dst("replaced/with/a/dir")).unwrap();
    std::fs::set_permissions(pair.in_dst("kept"), std::fs::Permissions::from_mode(0o600)).unwrap();
    pair.rm("dir");
    pair.rm("gone");
    pair.write("new", b"from the source");
    pair.write("replaced", b"newer");
    std::fs::set_permissions(pair.src("kept"), std::fs::Permissions::from_mode(0o640)).unwrap();
    let outcome = pair.step();
    assert!(outcome.failed.is_empty(), "{:#?}", outcome.failed);
    pair.check();
    assert_eq!(outcome.moved_aside.len(), 4, "{:?}", outcome.moved_aside);
    let found: Vec<String> = adopted(&pair)
        .iter()
        .map(|p| p.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    for name in ["strange", "gone", "new", "replaced"] {
        assert!(found.iter().any(|f| f == name), "{name} in {found:?}");
    }
}

#[test]
fn what_comes_in_a_later_batch_is_left_in_an_adopted_directory() {
    let mut pair = pair();
    pair.applier().set_adopting(true);
    std::fs::create_dir_all(pair.in_dst("dir/sub")).unwrap();
    std::fs::write(pair.in_dst("dir/sub/file"), b"equal").unwrap();
    std::fs::write(pair.in_dst("dir/extra"), b"mine").unwrap();
    pair.mkdir("dir");
    assert!(pair.step().moved_aside.is_empty());
    pair.mkdir("dir/sub");
    assert!(pair.step().moved_aside.is_empty());
    pair.write("dir/sub/file", b"equal");
    let number = std::fs::metadata(pair.in_dst("dir/sub/file"))
        .unwrap()
        .ino();
    let outcome = pair.step();
    assert!(outcome.moved_aside.is_empty(), "{:?}", outcome.moved_aside);
    assert_eq!(outcome.counts.adopted, 1);
    assert_eq!(
        std::fs::metadata(pair.in_dst("dir/sub/file"))
            .unwrap()
            .ino(),
        number
    );
    assert!(pair.in_dst("dir/extra").exists(), "nobody said yes");
    // Not adopting, a directory that stands where a new one comes is emptied of what is not in it.
    pair.applier().set_adopting(false);
    std::fs::create_dir(pair.in_dst("other")).unwrap();
    std::fs::write(pair.in_dst("other/extra"), b"mine").unwrap();
    pair.mkdir("other");
    assert_eq!(pair.step().moved_aside.len(), 1);
}

#[test]
fn a_symlink_in_the_way_is_never_followed() {
    let mut pair = pair();
    pair.mkdir("dir/sub");
    pair.write("dir/sub/file", b"1");
    pair.sync();
    let outside = tempfile::tempdir().unwrap();
    std::fs::create_dir(outside.path().join("sub")).unwrap();
    std::fs::rename(pair.in_dst("dir"), outside.path().join("was")).unwrap();
    symlink(outside.path(), pair.in_dst("dir")).unwrap();
    pair.write("dir/sub/file", b"22");
    pair.write("dir/sub/more", b"3");
    pair.step();
    pair.check();
    assert_eq!(
        std::fs::read_dir(outside.path().join("sub"))
            .unwrap()
            .count(),
        0
    );
    assert_eq!(
        std::fs::read(outside.path().join("was/sub/file")).unwrap(),
        b"1"
    );
}

#[test]
fn directories_removed_by_hand_come_back() {
    let mut pair = pair();
    pair.mkdir("a/b/c");
    pair.write("a/b/c/file", b"1");
    pair.write("a/b/other", b"2");
    pair.sync();
    std::fs::remove_dir_all(pair.in_dst("a/b")).unwrap();
    // Only something deep in it changes.
    pair.write("a/b/c/file", b"11");
    pair.sync();
}

#[test]
fn verify_finds_and_repair_puts_right() {
    let mut pair = pair();
    pair.mkdir("dir/sub");
    pair.write("dir/flipped", b"content");
    pair.write("dir/mode", b"content");
    pair.write("missing", b"content");
    pair.write("linked", b"content");
    std::fs::hard_link(pair.src("linked"), pair.src("dir/link")).unwrap();
    pair.write("dir/sub/deep", b"deep");
    symlink("right", pair.src("sym")).unwrap();
    pair.sync();
    let time = pair
        .in_dst("dir/flipped")
        .metadata()
        .unwrap()
        .modified()
        .unwrap();
    std::fs::write(pair.in_dst("dir/flipped"), b"coNtent").unwrap();
    std::fs::File::options()
        .write(true)
        .open(pair.in_dst("dir/flipped"))
        .unwrap()
        .set_modified(time)
        .unwrap();
    std::fs::set_permissions(
        pair.in_dst("dir/mode"),
        std::fs::Permissions::from_mode(0o777),
    )
    .unwrap();
    std::fs::remove_file(pair.in_dst("missing")).unwrap();
    std::fs::remove_dir_all(pair.in_dst("dir/sub")).unwrap();
    std::fs::write(pair.in_dst("extra"), b"?").unwrap();
    std::fs::remove_file(pair.in_dst("sym")).unwrap();
    symlink("wrong", pair.in_dst("sym")).unwrap();
    std::fs::remove_file(pair.in_dst("dir/link")).unwrap();
    std::fs::copy(pair.in_dst("linked"), pair.in_dst("dir/link")).unwrap();
    let mut found = Vec::new();
    pair.applier().verify(true, &mut |d| found.push(d)).unwrap();
    let kinds: std::collections::BTreeSet<DifferenceKind> = found.iter().map(|d| d.what).collect();
    for kind in [
        DifferenceKind::Content,
        DifferenceKind::Meta,
        DifferenceKind::Missing,
        DifferenceKind::Extra,
        DifferenceKind::Links,
    ] {
        assert!(kinds.contains(&kind), "{kind:?} in {found:#?}");
    }
    let Pair {
        applier, source, ..
    } = &mut pair;
    let outcome = applier
        .as_mut()
        .unwrap()
        .repair(&found, &source.contents)
        .unwrap();
    assert!(outcome.failed.is_empty(), "{:#?}", outcome.failed);
    pair.check();
    let names: Vec<PathBuf> = adopted(&pair);
    assert!(
        names.iter().any(|p| p.ends_with("extra")) && names.iter().any(|p| p.ends_with("flipped")),
        "{names:?}"
    );
}

#[test]
fn an_inode_with_foreign_links_is_never_changed() {
    let mut pair = pair();
    pair.mkdir("dir");
    pair.write("dir/file", b"content");
    pair.write("other", b"content");
    pair.sync();
    // As rsnapshot does: yesterday's tree is made of links.
    let yesterday = pair.state.join("yesterday");
    std::fs::create_dir(&yesterday).unwrap();
    std::fs::hard_link(pair.in_dst("dir/file"), yesterday.join("file")).unwrap();
    std::fs::hard_link(pair.in_dst("other"), yesterday.join("other")).unwrap();
    let before = yesterday.join("file").metadata().unwrap();
    std::fs::set_permissions(pair.src("dir/file"), std::fs::Permissions::from_mode(0o600)).unwrap();
    pair.write("other", b"other content");
    let fetched = pair.source.contents.fetched.lock().unwrap().len();
    pair.sync();
    let after = yesterday.join("file").metadata().unwrap();
    assert_eq!(
        (after.mode(), after.mtime_nsec(), after.nlink()),
        (before.mode(), before.mtime_nsec(), 1)
    );
    assert_eq!(std::fs::read(yesterday.join("other")).unwrap(), b"content");
    // Only metadata changed: the bytes were copied on this side.
    assert_eq!(
        pair.source.contents.fetched.lock().unwrap().len(),
        fetched + 1
    );
}

#[test]
fn a_copy_that_was_there_is_compared_not_copied() {
    let mut pair = pair();
    pair.mkdir("dir");
    pair.write("dir/same", b"same");
    pair.write("dir/differs", b"one");
    pair.write("linked", b"linked");
    std::fs::hard_link(pair.src("linked"), pair.src("dir/link")).unwrap();
    pair.write("mode", b"only the mode");
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .arg(pair.src("."))
        .arg(pair.in_dst(""))
        .status()
        .unwrap();
    assert!(copied.success());
    std::fs::write(pair.in_dst("dir/differs"), b"two").unwrap();
    std::fs::write(pair.in_dst("dir/extra"), b"extra").unwrap();
    std::fs::set_permissions(pair.in_dst("mode"), std::fs::Permissions::from_mode(0o600)).unwrap();
    let ino = pair.in_dst("dir/same").metadata().unwrap().ino();
    let outcome = pair.step();
    assert!(outcome.failed.is_empty(), "{:#?}", outcome.failed);
    pair.check();
    assert_eq!(pair.in_dst("dir/same").metadata().unwrap().ino(), ino);
    assert_eq!(pair.source.contents.fetched.lock().unwrap().len(), 1);
    assert_eq!(outcome.moved_aside.len(), 2, "{:?}", outcome.moved_aside);
}

#[test]
fn another_directory_at_dst_is_refused() {
    let mut pair = pair();
    pair.write("file", b"x");
    pair.sync();
    pair.applier().checkpoint().unwrap();
    std::fs::rename(&pair.dst, pair.state.join("elsewhere")).unwrap();
    pair.write("file", b"y");
    let records = pair.source.look();
    let Pair {
        applier, source, ..
    } = &mut pair;
    let applied = applier
        .as_mut()
        .unwrap()
        .apply(&records, Digest([0; 32]), &source.contents);
    assert!(matches!(applied, Err(ApplyError::Root { .. })));
    std::fs::create_dir(&pair.dst).unwrap();
    let opened = Applier::open(
        &pair.dst,
        &pair.state,
        pair.memory.crashed(),
        Options::default(),
    );
    assert!(matches!(opened, Err(ApplyError::Root { .. })));
    std::fs::remove_dir(&pair.dst).unwrap();
    let opened = Applier::open(
        &pair.dst,
        &pair.state,
        pair.memory.crashed(),
        Options::default(),
    );
    assert!(matches!(opened, Err(ApplyError::Root { .. })));
    assert!(!pair.dst.exists(), "a lost copy is not quietly begun anew");
}

#[test]
fn a_full_disk_heals_when_there_is_room() {
    testkit::lab::in_private_namespace(
        "apply::tests::faults::a_full_disk_heals_when_there_is_room",
        |lab| {
            let image = testkit::need!(lab.tmpfs(8));
            let mut pair = pair_in(&image.path(), Options::default());
            pair.write("small", b"small");
            pair.sync();
            pair.write("large", &vec![1; 3 << 20]);
            pair.write("fine", b"fine");
            let filler = image.path().join("filler");
            std::fs::write(&filler, vec![2; 3 << 20]).unwrap();
            let outcome = pair.step();
            assert_eq!(outcome.failed.len(), 1, "{:#?}", outcome.failed);
            assert!(pair.in_dst("fine").exists());
            std::fs::remove_file(filler).unwrap();
            assert_eq!(pair.retry().healed.len(), 1);
            pair.check();
        },
    );
}

/// Runs in a process of its own that dies at the n-th crash point; its parent takes up from there.
#[cfg(feature = "planted")]
mod killed {
    use super::*;

    const BASE: &str = "FS_MIRROR_TEST_BASE";

    /// The rows are kept in a real index, the tree changes by a fixed script.
    fn script(round: u64, src: &Path) {
        let mut random = super::super::same::Random(round + 77);
        for _ in 0..10 {
            random.change(src);
        }
    }

    #[test]
    fn child() {
        let Some(base) = std::env::var_os(BASE) else {
            return;
        };
        let base = PathBuf::from(base);
        run(&base);
    }

    fn run(base: &Path) {
        let mut source = Source::new(&base.join("src"));
        let path = base.join("index");
        let (index, _) = crate::index::Index::open(&path, Default::default()).unwrap();
        let options = Options {
            checkpoint_batches_max: 3,
            flush: Flush::Never,
            ..Options::default()
        };
        let mut applier =
            Applier::open(&base.join("dst"), &base.join("state"), index, options).unwrap();
        applier.log_ends(Some(Position {
            epoch: 1,
            sequence: 7 * 10_000 + 9_999,
        }));
        let until = applier.replay_until();
        let have = applier.store().mark().map(|mark| mark.position);
        // Times, and so the number of records, differ from run to run: a round has fixed positions all the same.
        let round_of = |position: Position| position.sequence / 10_000;
        let mut waiting: Vec<Record> = Vec::new();
        for round in 0..8 {
            script(round, &base.join("src"));
            source.begin_at(round * 10_000);
            let mut records = source.look();
            if let Some(last) = records.last_mut() {
                last.position.sequence = round * 10_000 + 9_999;
            }
            if have.is_none_or(|have| round > round_of(have)) {
                waiting.extend(records);
            }
            let Some(last) = waiting.last() else { continue };
            if until.is_some_and(|until| until > last.position) {
                continue;
            }
            let outcome = applier
                .apply(&waiting, Digest([0; 32]), &source.contents)
                .unwrap();
            assert!(outcome.failed.is_empty(), "{:#?}", outcome.failed);
            assert!(outcome.moved_aside.is_empty(), "{:?}", outcome.moved_aside);
            waiting.clear();
        }
        applier.checkpoint().unwrap();
        testkit::compare::assert_equal(
            &base.join("src"),
            &base.join("dst"),
            &testkit::compare::Options::ignoring(&[testkit::Class::Mtime]),
        );
    }

    #[test]
    fn at_every_point() {
        let exe = std::env::current_exe().unwrap();
        let step = std::env::var("APPLY_KILL_STEP")
            .ok()
            .and_then(|n| n.parse().ok())
            .unwrap_or(7u64);
        let mut n = 1;
        loop {
            let base = tempfile::tempdir().unwrap();
            let child = |crash: Option<u64>| {
                // The source begins anew each time, so that its changes are the same.
                let _ = std::fs::remove_dir_all(base.path().join("src"));
                let mut command = std::process::Command::new(&exe);
                command.args([
                    "apply::tests::faults::killed::child",
                    "--exact",
                    "--test-threads=1",
                ]);
                command.env(BASE, base.path()).env_remove("FS_MIRROR_CRASH");
                if let Some(n) = crash {
                    command.env("FS_MIRROR_CRASH", n.to_string());
                }
                command.output().unwrap()
            };
            let first = child(Some(n));
            if first.status.success() {
                println!("{n} crash points and more");
                return;
            }
            use std::os::unix::process::ExitStatusExt;
            assert_eq!(
                first.status.signal(),
                Some(6),
                "{}",
                String::from_utf8_lossy(&first.stdout)
            );
            // Once more while it recovers, then to the end.
            child(Some(n / 2 + 1));
            let last = child(None);
            assert!(
                last.status.success(),
                "point {n}: {}",
                String::from_utf8_lossy(&last.stdout)
            );
            n += step;
        }
    }
}
