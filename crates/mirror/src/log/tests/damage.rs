use super::*;

/// A log of some segments; how many records were there before its last flush, and all of them.
fn sample(sealed: bool) -> (SimDisk, usize, Vec<Record>) {
    let disk = SimDisk::new();
    let options = LogOptions {
        segment_bytes_max: 1500,
        ..small()
    };
    let mut log = Log::create(Arc::new(disk.clone()), options, TREE, CLAIM, 1).unwrap();
    let mut random = Random(6);
    let mut before = 0;
    for n in 0..15 {
        group(&mut log, &mut random).unwrap();
        if n % 3 == 1 {
            log.flush().unwrap();
            before = read_all(&log).unwrap().len();
        }
    }
    log.flush().unwrap();
    let written = read_all(&log).unwrap();
    if sealed {
        log.finish().unwrap();
    }
    (disk, before, written)
}

/// Opens and reads a damaged copy: an error that names damage, or a beginning of what was written.
fn outcome(disk: &SimDisk, written: &[Record], what: &str) -> Option<usize> {
    let read = open(disk).and_then(|(log, _)| Ok((read_all(&log)?, log)));
    match read {
        Ok((records, _)) => {
            assert!(
                records.len() <= written.len(),
                "{what}: more than was written"
            );
            assert_eq!(
                records,
                written[..records.len()],
                "{what}: something was invented"
            );
            Some(records.len())
        }
        Err(LogError::Damaged { .. } | LogError::Newer { .. }) => None,
        Err(other) => panic!("{what}: {other}"),
    }
}

#[test]
fn every_flipped_bit_is_found_or_harmless() {
    for sealed in [true, false] {
        let (disk, before, written) = sample(sealed);
        let files = log_files(&disk);
        assert!(files.len() > 2);
        let (mut found, mut lost) = (0, 0);
        for name in &files {
            let len = disk.open(name).unwrap().len().unwrap() as usize;
            // One bit of each byte, each byte another.
            for bit in (0..len).map(|byte| byte * 8 + byte * 5 % 8) {
                let copy = disk.copy();
                copy.edit(name, |bytes| bytes[bit / 8] ^= 1 << (bit % 8))
                    .unwrap();
                match outcome(&copy, &written, &format!("{name} bit {bit}")) {
                    None => found += 1,
                    Some(all) if all == written.len() => {}
                    // Not told from a torn tail: only ever records of the last flush, never of a sealed log.
                    Some(some) => {
                        assert!(
                            !sealed && some >= before,
                            "{name} bit {bit}: {some} of {}",
                            written.len()
                        );
                        lost += 1;
                    }
                }
            }
        }
        assert!(found > 500, "{found} found, {lost} lost");
    }
}

#[test]
fn every_truncation_leaves_whole_groups_or_is_named() {
    let (disk, _, written) = sample(true);
    let files = log_files(&disk);
    for (n, name) in files.iter().enumerate() {
        let len = disk.open(name).unwrap().len().unwrap() as usize;
        for cut in 0..len {
            let copy = disk.copy();
            copy.edit(name, |bytes| bytes.truncate(cut)).unwrap();
            let left = outcome(&copy, &written, &format!("{name} cut to {cut}"));
            if n + 1 < files.len() {
                // At most the seal of an older segment can go unnoticed.
                assert!(
                    left.is_none() || left == Some(written.len()),
                    "{name} cut to {cut}"
                );
            }
        }
    }
}

#[test]
fn a_missing_segment_is_not_overlooked() {
    let (disk, _, written) = sample(true);
    let files = log_files(&disk);
    for name in &files[1..files.len() - 1] {
        let copy = disk.copy();
        copy.remove(name).unwrap();
        assert_eq!(outcome(&copy, &written, name), None);
    }
    let copy = disk.copy();
    copy.edit(&files[1], |bytes| bytes.clear()).unwrap();
    assert!(matches!(
        open(&copy),
        Err(LogError::Damaged { offset: 0, .. })
    ));
}

#[test]
fn zeros_or_junk_behind_the_end_are_cut() {
    for junk in [&[0; 1000][..], &[0xff; 1000], b"FSMr", b"FSMrFSMrFSMr"] {
        let (disk, _, written) = sample(true);
        let last = log_files(&disk).pop().unwrap();
        disk.edit(&last, |bytes| bytes.extend_from_slice(junk))
            .unwrap();
        let (mut log, recovered) = open(&disk).unwrap();
        assert_eq!(recovered.cut_bytes, junk.len() as u64);
        assert_eq!(read_all(&log).unwrap(), written);
        log.append(vec![note()], 1).unwrap();
        log.flush().unwrap();
        assert_eq!(read_all(&log).unwrap().len(), written.len() + 1);
    }
}

#[test]
fn damage_before_the_last_flush_is_never_taken_for_a_torn_tail() {
    let disk = SimDisk::new();
    let mut log = Log::create(
        Arc::new(disk.clone()),
        LogOptions::default(),
        TREE,
        CLAIM,
        1,
    )
    .unwrap();
    for _ in 0..3 {
        log.append(vec![note()], 1).unwrap();
        log.flush().unwrap();
    }
    drop(log);
    let name = log_files(&disk).pop().unwrap();
    let len = disk.open(&name).unwrap().len().unwrap() as usize;
    // A whole sector of zeros, over the second record from the end.
    let record = len - 2 * ((len - 128) / 4);
    disk.edit(&name, |bytes| bytes[record - 40..record + 40].fill(0))
        .unwrap();
    match open(&disk).map(drop) {
        Err(LogError::Damaged {
            segment, offset, ..
        }) => {
            assert_eq!(segment, name);
            assert!(offset > 128 && (offset as usize) < len);
        }
        other => panic!("{other:?}"),
    }
}

/// Makes the checksum of the frame at `at` right again.
fn mend(bytes: &mut [u8], at: usize) {
    let len = mirror_core::codec::Frame::length(&bytes[at..]).unwrap();
    let crc = crc32c::crc32c_append(
        crc32c::crc32c(&bytes[at..at + 20]),
        &bytes[at + 24..at + len],
    );
    bytes[at + 20..at + 24].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn newer_formats_are_named_not_cut() {
    let (disk, _, _) = sample(true);
    let last = log_files(&disk).pop().unwrap();
    let header = disk.copy();
    header
        .edit(&last, |bytes| {
            bytes[8] = 2;
            let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..128]);
            bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        })
        .unwrap();
    assert!(matches!(
        open(&header),
        Err(LogError::Newer { version: 2, .. })
    ));
    let record = disk.copy();
    record
        .edit(&last, |bytes| {
            bytes[128 + 4] = 9;
            mend(bytes, 128);
        })
        .unwrap();
    assert!(matches!(
        open(&record),
        Err(LogError::Newer { version: 9, .. })
    ));
}

#[test]
fn what_was_changed_together_with_its_checksum_breaks_the_chain() {
    let (disk, _, written) = sample(false);
    for name in log_files(&disk) {
        let copy = disk.copy();
        copy.edit(&name, |bytes| {
            // The time of the first record: nothing else depends on it.
            bytes[128 + 72] ^= 1;
            mend(bytes, 128);
        })
        .unwrap();
        assert_eq!(outcome(&copy, &written, &name), None, "{name} was forged");
    }
}
