//! The order of what is done to the file system, and the sink.

use std::os::unix::fs::MetadataExt;

use mirror_core::{Change, Content, Kind};

use super::*;

/// Records what happens, rows flushed included.
fn traced(mut options: Options) -> (Pair, Arc<Mutex<Vec<Trace>>>) {
    let log: Arc<Mutex<Vec<Trace>>> = Arc::default();
    let told = log.clone();
    options.trace = Some(Arc::new(move |what| told.lock().unwrap().push(what)));
    options.checkpoint_batches_max = 1;
    (pair_with(options), log)
}

#[test]
fn staged_bytes_are_flushed_before_names_and_names_before_rows() {
    for files in [3, 100] {
        let (mut pair, log) = traced(Options::default());
        pair.mkdir("dir");
        for i in 0..files {
            pair.write(&format!("dir/{i}"), b"1");
        }
        pair.sync();
        for i in 0..files {
            pair.write(&format!("dir/{i}"), format!("new {i}").as_bytes());
        }
        pair.mkdir("other");
        pair.write("other/x", b"x");
        pair.write("gone", b"x");
        pair.sync();
        pair.rm("gone");
        pair.mv("other", "another");
        pair.sync();
        let mut stage = 0;
        for what in log.lock().unwrap().iter() {
            let now = match what {
                Trace::Staged => 0,
                Trace::FlushStaged => 1,
                Trace::Renamed => 2,
                Trace::Removed if stage <= 3 => 3,
                Trace::Removed => 4,
                Trace::FlushDirs => 4,
                Trace::Rows => 5,
                Trace::FlushRows => 6,
            };
            assert!(
                now >= stage || (stage == 6 && now <= 4),
                "{what:?} after stage {stage}: {:?}",
                log.lock().unwrap()
            );
            stage = now;
        }
        let log = log.lock().unwrap();
        for what in [
            Trace::Staged,
            Trace::FlushStaged,
            Trace::Renamed,
            Trace::FlushDirs,
            Trace::Rows,
            Trace::FlushRows,
        ] {
            assert!(log.contains(&what), "{what:?} in {log:?}");
        }
        // Each batch that staged something flushed it before its first rename.
        let staged = log.iter().filter(|w| **w == Trace::FlushStaged).count();
        assert_eq!(staged, 2, "{log:?}");
    }
}

/// The sink's side: what a scan does with a directory.
fn sink_dir(pair: &mut Pair, path: &str, token: u64) -> StagedDir {
    let staging = pair.applier().staging();
    let _ = path;
    staging.begin_dir(Token(token)).unwrap()
}

fn state_of(records: &[Record], name: &str) -> (ObjectId, Content, mirror_core::Meta) {
    let name = Name::new(name.as_bytes()).unwrap();
    records
        .iter()
        .find_map(|r| match &r.change {
            Change::Create { at, object, state } if at.name == name => match &state.kind {
                Kind::File(content) => Some((*object, content.clone(), state.meta.clone())),
                _ => None,
            },
            _ => None,
        })
        .unwrap()
}

fn id_of(records: &[Record], name: &str) -> ObjectId {
    let name = Name::new(name.as_bytes()).unwrap();
    let found = records.iter().find_map(|r| match &r.change {
        Change::Create { at, object, .. } if at.name == name => Some(*object),
        _ => None,
    });
    found.unwrap()
}

#[test]
fn what_was_staged_ahead_is_not_fetched() {
    let mut pair = pair();
    pair.mkdir("dir/sub");
    for i in 0..20 {
        pair.write(&format!("dir/{i}"), format!("content {i}").as_bytes());
    }
    pair.write("dir/sub/deep", b"deep");
    let big = vec![5; 1 << 20];
    pair.write("big", &big);
    pair.write("dir/sparse", b"");
    std::fs::File::options()
        .write(true)
        .open(pair.src("dir/sparse"))
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    pair.write("dir/stale", b"as it was read");
    let records = pair.source.look();
    pair.records.extend(records.iter().cloned());
    let mut dir = sink_dir(&mut pair, "dir", 1);
    for i in 0..10 {
        let (_, content, meta) = state_of(&records, &i.to_string());
        let name = Name::new(i.to_string().as_bytes()).unwrap();
        dir.put(&name, format!("content {i}").as_bytes(), &content, &meta)
            .unwrap();
    }
    let (_, content, meta) = state_of(&records, "sparse");
    dir.put(&Name::new(b"sparse").unwrap(), b"", &content, &meta)
        .unwrap();
    // The second half comes in another part, and one file in pieces.
    let mut more = sink_dir(&mut pair, "dir", 2);
    for i in 10..20 {
        let (_, content, mut meta) = state_of(&records, &i.to_string());
        let name = Name::new(i.to_string().as_bytes()).unwrap();
        // The mode changed between the look and the record.
        meta.mode = 0o600;
        let mut file = more.file(&name).unwrap();
        let bytes = format!("content {i}");
        file.write_at(bytes.as_bytes(), 0).unwrap();
        file.finish(&content, &meta).unwrap();
    }
    // What was read is not what was recorded.
    let (_, mut content, meta) = state_of(&records, "stale");
    content.digest = Digest(*blake3::hash(b"something else").as_bytes());
    content.bytes = 14;
    dir.put(
        &Name::new(b"stale").unwrap(),
        b"something else",
        &content,
        &meta,
    )
    .unwrap();
    // And something whose record has not come yet.
    dir.put(&Name::new(b"early").unwrap(), b"early", &content, &meta)
        .unwrap();
    dir.finish();
    more.finish();
    let staging = pair.applier().staging();
    let (object, content, meta) = state_of(&records, "big");
    let mut file = staging.file(Token(3)).unwrap();
    file.write_at(&big, 0).unwrap();
    file.finish(&content, &meta).unwrap();
    assert_eq!(staging.waiting().0, 24);
    staging.bind(Token(1), id_of(&records, "dir"));
    staging.bind(Token(2), id_of(&records, "dir"));
    staging.bind(Token(3), object);
    let outcome = pair.apply(&records);
    assert!(outcome.failed.is_empty(), "{:#?}", outcome.failed);
    assert!(!pair.in_dst("dir/early").exists());
    pair.check();
    let mut fetched = pair.source.contents.fetched.lock().unwrap().clone();
    fetched.sort();
    let mut expected = vec![id_of(&records, "stale"), id_of(&records, "deep")];
    expected.sort();
    assert_eq!(fetched, expected);
    assert_eq!(staging.waiting(), (1, 14));
    staging.forget(Token(1));
    assert_eq!(staging.waiting(), (0, 0));
    assert_eq!(
        std::fs::read_dir(pair.state.join("staging/sink"))
            .unwrap()
            .count(),
        0
    );
}

#[test]
fn files_staged_for_a_directory_that_is_there_already() {
    let mut pair = pair();
    pair.mkdir("dir");
    pair.sync();
    pair.write("dir/a", b"aa");
    pair.write("dir/b", b"bb");
    let records = pair.source.look();
    let mut dir = sink_dir(&mut pair, "dir", 9);
    for name in ["a", "b"] {
        let (_, content, meta) = state_of(&records, name);
        dir.put(
            &Name::new(name.as_bytes()).unwrap(),
            name.repeat(2).as_bytes(),
            &content,
            &meta,
        )
        .unwrap();
    }
    dir.finish();
    let id = pair.source.id("dir");
    pair.applier().staging().bind(Token(9), id);
    let outcome = pair.apply(&records);
    assert!(outcome.failed.is_empty(), "{:#?}", outcome.failed);
    pair.check();
    assert!(pair.source.contents.fetched.lock().unwrap().is_empty());
    assert_eq!(
        std::fs::read_dir(pair.state.join("staging/sink"))
            .unwrap()
            .count(),
        0
    );
}

#[test]
fn a_reader_never_misses_a_name_nor_sees_a_mix() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let mut pair = pair_with(Options {
        flush: Flush::Never,
        ..Options::default()
    });
    for name in ["one", "two", "dir/three"] {
        pair.mkdir("dir");
        pair.write(name, &[b'a'; 100_000]);
    }
    pair.mkdir("site");
    pair.write("site/index", b"0");
    pair.sync();
    let stop = Arc::new(AtomicBool::new(false));
    let (dst, stopped) = (pair.dst.clone(), stop.clone());
    let reader = std::thread::spawn(move || {
        let mut reads = 0;
        while !stopped.load(Ordering::Relaxed) {
            for name in ["one", "two", "dir/three"] {
                let bytes = std::fs::read(dst.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
                assert_eq!(bytes.len(), 100_000);
                assert!(bytes.iter().all(|b| *b == bytes[0]), "a mix");
            }
            assert!(dst.join("site").metadata().unwrap().is_dir());
            assert!(dst.join("site/index").exists(), "the site has no index");
            for entry in std::fs::read_dir(&dst).unwrap() {
                let name = entry.unwrap().file_name();
                assert!(
                    ["one", "two", "dir", "site", "next"]
                        .iter()
                        .any(|n| *n == name),
                    "{name:?}"
                );
            }
            reads += 1;
        }
        reads
    });
    for i in 0..60u32 {
        let byte = b'b' + (i % 20) as u8;
        match i % 3 {
            0 => {
                // Swapped by three renames.
                pair.mv("one", "x");
                pair.mv("two", "one");
                pair.mv("x", "two");
            }
            1 => ["one", "dir/three"]
                .iter()
                .for_each(|name| pair.write(name, &[byte; 100_000])),
            _ => {
                pair.mkdir("next");
                pair.write("next/index", &[byte]);
                std::fs::hard_link(pair.src("one"), pair.src("next/linked")).unwrap();
                pair.mv("site", "old");
                pair.mv("next", "site");
                pair.rm("old");
            }
        }
        let outcome = pair.step();
        assert!(outcome.failed.is_empty(), "{:#?}", outcome.failed);
    }
    stop.store(true, Ordering::Relaxed);
    assert!(reader.join().unwrap() > 0);
    pair.check();
    assert_eq!(
        pair.in_dst("one").metadata().unwrap().nlink(),
        pair.src("one").metadata().unwrap().nlink()
    );
}
