use super::*;
use crate::disk::{Fault, SimDisk};

fn open(disk: &SimDisk, segment_bytes_max: u32, cache_bytes_max: usize) -> ContentStore {
    ContentStore::open(Arc::new(disk.clone()), segment_bytes_max, cache_bytes_max).unwrap()
}

/// Text-like, or noise that does not pack.
fn bytes_of(n: usize, noise: bool) -> Vec<u8> {
    let mut state = n as u64 + 1;
    let mut next = move || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 33) as u8
    };
    (0..n * 37 % 9000)
        .map(|at| if noise { next() } else { (at / 7 + n) as u8 })
        .collect()
}

#[test]
fn what_is_put_is_got_before_and_after_a_flush_and_reopening() {
    for cache in [0, 1 << 20] {
        let disk = SimDisk::new();
        let store = open(&disk, 100_000, cache);
        let mut put = Vec::new();
        for n in 0..600 {
            let bytes = bytes_of(n, n % 5 == 0);
            let content = store.put(&bytes).unwrap();
            assert_eq!(store.get(content).unwrap(), bytes);
            put.push((content, bytes));
            if n % 50 == 0 {
                store.flush().unwrap();
            }
        }
        store.flush().unwrap();
        assert!(put.last().unwrap().0.segment > 3);
        disk.crash(1);
        let store = open(&disk, 100_000, cache);
        assert!(store.put(b"new").unwrap().segment > put.last().unwrap().0.segment);
        for (content, bytes) in &put {
            assert_eq!(store.get(*content).unwrap(), *bytes);
        }
    }
}

#[test]
fn text_is_packed_and_noise_is_not() {
    let size = |noise: bool| {
        let disk = SimDisk::new();
        let store = open(&disk, 64 << 20, 0);
        let mut raw = 0;
        for n in 0..200 {
            let bytes = bytes_of(n, noise);
            raw += bytes.len();
            store.put(&bytes).unwrap();
        }
        store.flush().unwrap();
        let stored = disk.open(&segment::name(1)).unwrap().len().unwrap() as usize;
        (raw, stored)
    };
    let (raw, stored) = size(false);
    assert!(stored < raw / 4, "{stored} of {raw}");
    let (raw, stored) = size(true);
    assert!(stored > raw && stored < raw + 1000, "{stored} of {raw}");
}

#[test]
fn limits_and_empty_contents() {
    let disk = SimDisk::new();
    let store = open(&disk, 1 << 20, 0);
    assert!(matches!(
        store.put(&[0; BLOCK_RAW_BYTES_MAX + 1]),
        Err(ContentError::TooLarge { .. })
    ));
    let empty = store.put(b"").unwrap();
    let full = store.put(&[1; BLOCK_RAW_BYTES_MAX]).unwrap();
    let none = store.put(b"").unwrap();
    store.flush().unwrap();
    assert_eq!(store.get(empty).unwrap(), b"");
    assert_eq!(store.get(full).unwrap(), [1; BLOCK_RAW_BYTES_MAX]);
    assert_eq!(store.get(none).unwrap(), b"");
    let outside = ContentRef {
        length: full.length + 1,
        ..full
    };
    assert!(matches!(
        store.get(outside),
        Err(ContentError::Damaged { .. })
    ));
    let nowhere = ContentRef {
        segment: 99,
        ..full
    };
    assert!(matches!(store.get(nowhere), Err(ContentError::Gone { .. })));
    let astray = ContentRef {
        block: full.block + 1,
        ..full
    };
    assert!(matches!(
        store.get(astray),
        Err(ContentError::Damaged { .. })
    ));
}

#[test]
fn every_flipped_bit_and_every_truncation_is_found() {
    let disk = SimDisk::new();
    let store = open(&disk, 1 << 20, 0);
    let bytes = bytes_of(30, false);
    let content = store.put(&bytes).unwrap();
    store.flush().unwrap();
    let name = segment::name(1);
    let len = disk.open(&name).unwrap().len().unwrap() as usize;
    for bit in 0..len * 8 {
        let copy = disk.copy();
        copy.edit(&name, |bytes| bytes[bit / 8] ^= 1 << (bit % 8))
            .unwrap();
        let result = open(&copy, 1 << 20, 0).get(content);
        // Unused bytes of a block's header are covered by its checksum as well.
        assert!(
            matches!(result, Err(ContentError::Damaged { .. })),
            "bit {bit}: {result:?}"
        );
    }
    for cut in 0..len {
        let copy = disk.copy();
        copy.edit(&name, |bytes| bytes.truncate(cut)).unwrap();
        let result = open(&copy, 1 << 20, 0).get(content);
        assert!(
            matches!(result, Err(ContentError::Damaged { .. })),
            "cut {cut}: {result:?}"
        );
    }
}

#[test]
fn a_failure_stops_the_writer_but_not_the_readers() {
    let disk = SimDisk::new();
    let store = open(&disk, 1 << 20, 0);
    let content = store.put(b"safe").unwrap();
    store.flush().unwrap();
    store.put(b"lost").unwrap();
    disk.fail_after(0, Fault::Full);
    assert!(matches!(store.flush(), Err(ContentError::Io { .. })));
    disk.heal();
    assert!(matches!(store.put(b"more"), Err(ContentError::Poisoned(_))));
    assert!(matches!(store.flush(), Err(ContentError::Poisoned(_))));
    assert_eq!(store.get(content).unwrap(), b"safe");
}
