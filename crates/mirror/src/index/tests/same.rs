//! Any sequence of changes, spills, flushes and openings shows what the rows in memory show.

use mirror_core::*;
use proptest::prelude::*;

use super::world::{Model, Op, change, check, op};
use crate::index::{Index, Options};

fn options(overlay_bytes_max: usize) -> Options {
    Options {
        cache_bytes: 1 << 20,
        overlay_bytes_max,
        check: true,
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 128,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]
    #[test]
    fn is_the_rows_in_memory(
        ops in proptest::collection::vec(op(), 1..120),
        overlay_bytes_max in prop_oneof![Just(1 << 20), 0..4000usize],
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("index");
        let (mut index, opened) = Index::open(&path, options(overlay_bytes_max)).unwrap();
        prop_assert!(opened.created);
        let mut model = Model::default();
        let mut flushed = Model::default();
        for (n, op) in ops.iter().enumerate() {
            change(&mut index, &mut model, op).unwrap();
            match op {
                Op::Flush => flushed = model.clone(),
                Op::FlushAside(_) => flushed = *model.flushing.take().unwrap(),
                Op::Reopen | Op::Drop => {
                    if matches!(op, Op::Reopen) {
                        index.close().unwrap();
                        flushed = model.clone();
                    } else {
                        drop(index);
                        model = flushed.clone();
                    }
                    let (again, opened) = Index::open(&path, options(overlay_bytes_max)).unwrap();
                    prop_assert!(!opened.created);
                    prop_assert_eq!(opened.mark, model.mark);
                    index = again;
                }
                _ if n % 8 != 0 => continue,
                _ => {}
            }
            check(&index, &model);
        }
        check(&index, &model);
        index.close().unwrap();
        let (index, _) = Index::open(&path, options(overlay_bytes_max)).unwrap();
        check(&index, &model);
    }
}

#[test]
fn many_names_and_directories_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index");
    let (mut index, _) = Index::open(&path, options(100_000)).unwrap();
    let mut rows = MemRows::default();
    let mut sequence = 1;
    let mut add = |index: &mut Index, parent: ObjectId, name: String, kind: Kind| {
        sequence += 1;
        let id = ObjectId((1 << 44) | sequence);
        let name = Name::new(name.as_bytes()).unwrap();
        let meta = Meta::default();
        let object = Object {
            state: State { kind, meta },
            local: Local {
                ino: sequence,
                ..Local::default()
            },
            names: Names::one(At { parent, name }),
        };
        let Ok(()) = rows.put(id, object.clone());
        index.put_new(id, object).unwrap();
        id
    };
    let mut dirs = vec![ObjectId::ROOT];
    for n in 0..40 {
        let parent = dirs[n / 3];
        dirs.push(add(&mut index, parent, format!("dir {n}"), Kind::Dir));
    }
    for (n, &parent) in dirs.iter().enumerate() {
        for file in 0..n * 5 {
            // Not in order of names.
            add(
                &mut index,
                parent,
                format!("{}", file * 7919 % 1000),
                Kind::Fifo,
            );
        }
    }
    index.flush().unwrap();
    for &dir in &dirs {
        let Ok(expected) = rows.children(dir, None, usize::MAX);
        assert_eq!(index.children(dir, None, usize::MAX).unwrap(), expected);
        let scanned = index.scan(dir, None, usize::MAX).unwrap();
        let scanned: Vec<_> = scanned.into_iter().map(|c| (c.name, c.id)).collect();
        assert_eq!(scanned, expected);
    }
    let all = index.stats().entries;
    assert_eq!(all, 40 + (0..=40).map(|n| n * 5).sum::<u64>());
    assert_eq!(index.count_below(ObjectId::ROOT).unwrap(), all);
    // All of directory 0 is below the first directory, directories 3, 4 and 5 and so on too.
    let below: u64 = index
        .children(ObjectId::ROOT, None, usize::MAX)
        .unwrap()
        .iter()
        .map(|(_, id)| 1 + index.count_below(*id).unwrap())
        .sum();
    assert_eq!(below, all);
}
