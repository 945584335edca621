//! Files that aren't what they should be: every one is refused by name, none is taken for an empty index.

use std::path::Path;

use mirror_core::*;
use redb::{Database, TableDefinition};

use crate::index::{Index, IndexError, Options, move_aside};

fn fill(path: &Path) -> Vec<(Name, ObjectId)> {
    let (mut index, _) = Index::open(path, Options::default()).unwrap();
    for n in 0..500u64 {
        let name = Name::new(format!("file {n}").as_bytes()).unwrap();
        let object = Object {
            state: State {
                kind: Kind::Fifo,
                meta: Meta::default(),
            },
            local: Local::default(),
            names: Names::one(At {
                parent: ObjectId::ROOT,
                name,
            }),
        };
        index.put_new(ObjectId((1 << 44) + n), object).unwrap();
    }
    let children = index.children(ObjectId::ROOT, None, usize::MAX).unwrap();
    index.close().unwrap();
    children
}

fn open(path: &Path) -> Result<Index, IndexError> {
    Index::open(path, Options::default()).map(|(index, _)| index)
}

#[test]
fn a_flipped_bit_is_found_or_harmless() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index");
    let children = fill(&path);
    let good = std::fs::read(&path).unwrap();
    let mut seed = 1u64;
    let mut found = 0;
    for _ in 0..300 {
        seed = seed
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        let bit = (seed >> 20) as usize % (good.len() * 8);
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&path, &bad).unwrap();
        match open(&path) {
            Err(IndexError::Damaged { .. }) => found += 1,
            Err(e) => panic!("bit {bit}: {e}"),
            Ok(index) => {
                let now = index.children(ObjectId::ROOT, None, usize::MAX);
                assert_eq!(now.unwrap(), children, "bit {bit}");
            }
        }
    }
    assert!(found > 0);
}

#[test]
fn a_cut_file_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index");
    fill(&path);
    let good = std::fs::read(&path).unwrap();
    for length in [0, 1, 100, 4096, 5000, good.len() / 2, good.len() - 1] {
        std::fs::write(&path, &good[..length]).unwrap();
        match open(&path) {
            Err(IndexError::Damaged { .. }) => {}
            Err(e) => panic!("{length} bytes: {e}"),
            Ok(_) => panic!("{length} bytes were taken for an index"),
        }
    }
}

#[test]
fn a_foreign_file_is_damaged_and_moves_aside() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index");
    std::fs::write(&path, b"this is no index".repeat(1000)).unwrap();
    let error = open(&path).err().unwrap();
    assert!(matches!(error, IndexError::Damaged { .. }), "{error}");
    assert!(error.is_rebuildable());
    let aside = move_aside(&path).unwrap();
    assert_eq!(aside, dir.path().join("index.damaged-1"));
    let (_, opened) = Index::open(&path, Options::default()).unwrap();
    assert!(opened.created);
}

#[test]
fn another_format_is_named() {
    const HEADER: TableDefinition<&str, &[u8]> = TableDefinition::new("header");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index");
    for format in [0u32, 2] {
        fill(&path);
        {
            let database = Database::open(&path).unwrap();
            let write = database.begin_write().unwrap();
            let bytes = format.to_le_bytes();
            write
                .open_table(HEADER)
                .unwrap()
                .insert("format", bytes.as_slice())
                .unwrap();
            write.commit().unwrap();
        }
        let error = open(&path).err().unwrap();
        match error {
            IndexError::Older {
                found: 0, known: 1, ..
            } => assert_eq!(format, 0),
            IndexError::Newer {
                found: 2, known: 1, ..
            } => assert_eq!(format, 2),
            error => panic!("{error}"),
        }
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn only_one_opens_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index");
    let (_index, _) = Index::open(&path, Options::default()).unwrap();
    assert!(matches!(open(&path), Err(IndexError::InUse { .. })));
}
