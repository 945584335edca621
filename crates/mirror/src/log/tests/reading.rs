use super::*;

#[test]
fn what_is_appended_is_read_back_after_a_flush_and_after_reopening() {
    let disk = SimDisk::new();
    let mut log = created(&disk);
    let mut random = Random(1);
    let mut written = read_all(&log).unwrap();
    assert_eq!(written.len(), 1, "the Open record is there, durable");
    let mut cursor = log.reader().cursor(Some(written[0].position)).unwrap();
    for _ in 0..100 {
        let before = log.next_position();
        let records = group(&mut log, &mut random).unwrap();
        assert_eq!(records[0].position, before);
        assert_eq!(
            cursor.next_group().unwrap(),
            None,
            "nothing is seen before it is durable"
        );
        let end = log.flush().unwrap();
        let read = cursor.next_group().unwrap().unwrap();
        assert_eq!(read.records, records);
        assert_eq!(Some(read.end), end);
        assert_eq!(cursor.next_group().unwrap(), None);
        written.extend(records);
    }
    assert!(log_files(&disk).len() > 5);
    assert_eq!(read_all(&log).unwrap(), written);
    check_contents(&log, &written);
    let end = log.end();
    log.finish().unwrap();
    let (mut log, recovered) = open(&disk).unwrap();
    assert_eq!(
        recovered,
        Recovered {
            tree: TREE,
            end,
            cut_bytes: 0
        }
    );
    assert_eq!(read_all(&log).unwrap(), written);
    check_contents(&log, &written);
    // And on it goes, behind the seal.
    written.extend(group(&mut log, &mut random).unwrap());
    log.flush().unwrap();
    assert_eq!(read_all(&log).unwrap(), written);
}

#[test]
fn the_real_disk_does_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(RealDisk::open(dir.path()).unwrap());
    assert!(matches!(
        Log::open(disk.clone(), small()),
        Err(LogError::Absent)
    ));
    let mut log = Log::create(disk.clone(), small(), TREE, CLAIM, 1).unwrap();
    let mut random = Random(1);
    for n in 0..100 {
        group(&mut log, &mut random).unwrap();
        if n % 10 == 0 {
            log.flush().unwrap();
        }
    }
    log.flush().unwrap();
    let written = read_all(&log).unwrap();
    drop(log);
    assert!(matches!(
        Log::create(disk.clone(), small(), TREE, CLAIM, 1),
        Err(LogError::Exists)
    ));
    let (log, _) = Log::open(disk, small()).unwrap();
    assert_eq!(read_all(&log).unwrap(), written);
    check_contents(&log, &written);
}

#[test]
fn a_cursor_begins_anywhere_between_groups() {
    let disk = SimDisk::new();
    let mut log = created(&disk);
    let mut random = Random(2);
    for _ in 0..50 {
        group(&mut log, &mut random).unwrap();
    }
    log.flush().unwrap();
    let written = read_all(&log).unwrap();
    let reader = log.reader();
    let mut head = None;
    for (n, record) in written.iter().enumerate() {
        let known = reader.head_at(record.position).unwrap();
        assert!(known.is_some() && known != head);
        head = known;
        match reader.cursor(Some(record.position)) {
            Ok(mut cursor) => {
                assert!(record.end);
                assert_eq!(cursor.position(), Some(record.position));
                let next = cursor.next_group().unwrap();
                assert_eq!(
                    next.as_ref().map(|group| &group.records[0]),
                    written.get(n + 1)
                );
            }
            Err(LogError::Beyond { .. }) => assert!(!record.end),
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(head, log.end().map(|end| end.head));
    let last = log.next_position();
    let other_epoch = Position {
        epoch: 2,
        sequence: 1,
    };
    for position in [
        last,
        other_epoch,
        Position {
            epoch: 0,
            sequence: 0,
        },
    ] {
        assert_eq!(reader.head_at(position).unwrap(), None);
        assert!(reader.cursor(Some(position)).is_err());
    }
    assert_eq!(
        reader
            .cursor(None)
            .unwrap()
            .next_group()
            .unwrap()
            .unwrap()
            .records[0],
        written[0]
    );
}

#[test]
fn a_follower_has_the_same_records_and_heads() {
    let (here, there) = (SimDisk::new(), SimDisk::new());
    let mut log = created(&here);
    let mut follower = Log::create_follower(Arc::new(there.clone()), small(), TREE, None).unwrap();
    let mut random = Random(3);
    for _ in 0..60 {
        group(&mut log, &mut random).unwrap();
    }
    log.append_open(5, [9; 16], None, 1).unwrap();
    group(&mut log, &mut random).unwrap();
    log.flush().unwrap();
    let mut cursor = log.reader().cursor(None).unwrap();
    let mut wire = Vec::new();
    let mut strip = Vec::new();
    while let Some(group) = cursor.next_group().unwrap() {
        group.to_wire(&mut wire);
        strip.extend(group.records.into_iter().map(|record| Record {
            local: None,
            content: None,
            ..record
        }));
        if random.below(3) == 0 {
            follower
                .append_frames(&std::mem::take(&mut wire), &mut |_| (None, None))
                .unwrap();
        }
    }
    follower
        .append_frames(&wire, &mut |_| (None, None))
        .unwrap();
    assert_eq!(follower.flush().unwrap(), log.end());
    assert_eq!(read_all(&follower).unwrap(), strip);
    assert_eq!(follower.end().unwrap().position.epoch, 5);
    // The same again, as records, after a base, reopened in between.
    let base = End {
        position: strip[0].position,
        head: log.reader().head_at(strip[0].position).unwrap().unwrap(),
    };
    let disk = SimDisk::new();
    let follower = Log::create_follower(Arc::new(disk.clone()), small(), TREE, Some(base)).unwrap();
    assert_eq!(follower.end(), Some(base));
    assert_eq!(
        follower.reader().head_at(base.position).unwrap(),
        Some(base.head)
    );
    assert!(matches!(
        follower.reader().cursor(None),
        Err(LogError::Pruned { .. })
    ));
    assert_eq!(
        follower
            .reader()
            .cursor(Some(base.position))
            .unwrap()
            .next_group()
            .unwrap(),
        None
    );
    drop(follower);
    let (mut follower, recovered) = open(&disk).unwrap();
    assert_eq!(recovered.end, Some(base));
    follower.append_records(&strip[1..]).unwrap();
    assert_eq!(follower.flush().unwrap(), log.end());
    assert_eq!(read_all(&follower).unwrap(), strip[1..]);
}

#[test]
fn what_does_not_continue_the_log_is_refused() {
    let disk = SimDisk::new();
    let mut log = created(&disk);
    let mut random = Random(4);
    group(&mut log, &mut random).unwrap();
    group(&mut log, &mut random).unwrap();
    log.flush().unwrap();
    let mut cursor = log.reader().cursor(None).unwrap();
    let mut wires = Vec::new();
    let mut records = Vec::new();
    while let Some(group) = cursor.next_group().unwrap() {
        let mut wire = Vec::new();
        group.to_wire(&mut wire);
        wires.push(wire);
        records.push(group.records);
    }
    let other = SimDisk::new();
    let mut follower = Log::create_follower(Arc::new(other), small(), TREE, None).unwrap();
    let refuse = |follower: &mut Log, wire: &[u8]| {
        let end = follower.end();
        let result = follower.append_frames(wire, &mut |_| (None, None));
        assert!(matches!(result, Err(LogError::Refused { .. })));
        assert_eq!(follower.end(), end);
    };
    refuse(&mut follower, &wires[1]);
    refuse(&mut follower, &wires[0][..wires[0].len() - 1]);
    refuse(&mut follower, b"nonsense");
    follower
        .append_frames(&wires[0], &mut |_| (None, None))
        .unwrap();
    refuse(&mut follower, &wires[0]);
    refuse(&mut follower, &wires[2]);
    assert!(matches!(
        follower.append_records(&records[2]),
        Err(LogError::Refused { .. })
    ));
    // Of another history: same position, other head.
    let mut fork = created(&SimDisk::new());
    fork.append(vec![note()], 77).unwrap();
    fork.flush().unwrap();
    let mut cursor = fork.reader().cursor(fork.reader().first().into()).unwrap();
    let mut wire = Vec::new();
    cursor.next_group().unwrap().unwrap().to_wire(&mut wire);
    follower
        .append_frames(&wire, &mut |_| (None, None))
        .unwrap();
    refuse(&mut follower, &wires[2]);
    // A group without its end.
    let mut part = records[1].clone();
    part.last_mut().unwrap().end = false;
    let mut follower = Log::create_follower(Arc::new(SimDisk::new()), small(), TREE, None).unwrap();
    follower.append_records(&records[0]).unwrap();
    assert!(matches!(
        follower.append_records(&part),
        Err(LogError::Refused { .. })
    ));
    follower.append_records(&records[1]).unwrap();
}

#[test]
fn waiting_ends_with_a_flush_a_deadline_a_call_or_the_writer() {
    let disk = SimDisk::new();
    let mut log = created(&disk);
    let tail = log.tail();
    let end = log.end().unwrap();
    let soon = || Instant::now() + Duration::from_millis(5);
    let late = || Instant::now() + Duration::from_secs(600);
    assert_eq!(tail.wait_past(None, soon()), Waited::Durable(end));
    assert_eq!(tail.wait_past(Some(end.position), soon()), Waited::Deadline);
    log.append(vec![note()], 2).unwrap();
    assert_eq!(tail.appended(), log.end());
    assert_eq!(tail.durable(), Some(end));
    let waiting =
        |tail: Tail| std::thread::spawn(move || tail.wait_past(Some(end.position), late()));
    let thread = waiting(tail.clone());
    std::thread::sleep(Duration::from_millis(5));
    tail.wake();
    // Woken at once, or found awake already when it began: then the flush ends it.
    let new = log.flush().unwrap().unwrap();
    assert!(matches!(
        thread.join().unwrap(),
        Waited::Deadline | Waited::Durable(_)
    ));
    assert_eq!(waiting(tail.clone()).join().unwrap(), Waited::Durable(new));
    drop(log);
    assert_eq!(
        tail.wait_past(Some(new.position), late()),
        Waited::Stopped(None)
    );
}

#[test]
fn times_never_go_back() {
    let disk = SimDisk::new();
    let mut log = created(&disk);
    assert_eq!(log.append(vec![note()], 50).unwrap()[0].time_ns, 50);
    assert_eq!(log.append(vec![note()], 40).unwrap()[0].time_ns, 50);
    log.flush().unwrap();
    drop(log);
    let (mut log, _) = open(&disk).unwrap();
    assert_eq!(log.append(vec![note()], 40).unwrap()[0].time_ns, 50);
}

#[test]
fn pruning_keeps_what_is_needed_and_its_content() {
    let disk = SimDisk::new();
    let mut log = created(&disk);
    let mut random = Random(5);
    for _ in 0..300 {
        group(&mut log, &mut random).unwrap();
        if random.below(4) == 0 {
            log.flush().unwrap();
        }
    }
    log.flush().unwrap();
    let written = read_all(&log).unwrap();
    let early = log.reader().cursor(None).unwrap();
    let limits = PruneLimits {
        log_bytes_max: Some(0),
        ..PruneLimits::default()
    };
    assert_eq!(
        log.prune(written[0].position, &limits).unwrap(),
        PruneStats::default()
    );
    let none = PruneLimits::default();
    assert_eq!(
        log.prune(log.next_position(), &none).unwrap(),
        PruneStats::default()
    );
    let keep = written.len() / 2;
    let stats = log.prune(written[keep].position, &limits).unwrap();
    assert!(
        stats.log_segments > 3 && stats.content_segments > 3,
        "{stats:?}"
    );
    let left = read_all(&log).unwrap();
    assert!(left.len() < written.len() && left.len() >= written.len() - keep);
    assert_eq!(left, written[written.len() - left.len()..]);
    check_contents(&log, &left);
    assert!(matches!(
        log.reader().cursor(None),
        Err(LogError::Pruned { .. })
    ));
    assert!(matches!(
        log.reader().cursor(Some(written[1].position)),
        Err(LogError::Pruned { .. })
    ));
    // Who was reading reads on to the end of its segment, then hears of it.
    let mut early = early;
    let told = loop {
        match early.next_group() {
            Ok(Some(_)) => {}
            other => break other,
        }
    };
    assert!(matches!(told, Err(LogError::Pruned { .. })));
    // By age: everything up to the last segment.
    let oldest_time_ns = Some(left[left.len() - 1].time_ns);
    log.prune(
        log.next_position(),
        &PruneLimits {
            oldest_time_ns,
            ..none
        },
    )
    .unwrap();
    assert!(log_files(&disk).len() <= 2);
    let contents = PruneLimits {
        content_bytes_max: Some(0),
        ..none
    };
    log.prune(log.next_position(), &contents).unwrap();
    let left = read_all(&log).unwrap();
    check_contents(&log, &left);
    drop(log);
    let (log, _) = open(&disk).unwrap();
    assert_eq!(read_all(&log).unwrap(), left);
}

#[test]
fn a_group_is_never_too_large_to_read() {
    let disk = SimDisk::new();
    let mut log = created(&disk);
    let many = vec![note(); mirror_core::model::GROUP_RECORDS_MAX + 1];
    assert!(matches!(log.append(many, 1), Err(LogError::TooLarge(_))));
    let most = vec![note(); mirror_core::model::GROUP_RECORDS_MAX];
    log.append(most, 1).unwrap();
    log.flush().unwrap();
    assert_eq!(
        read_all(&log).unwrap().len(),
        1 + mirror_core::model::GROUP_RECORDS_MAX
    );
    // A record that can't be encoded leaves nothing behind.
    let end = log.end();
    let mut bad = file(log.next_position(), 3, None);
    if let Change::Create { state, .. } = &mut bad.change {
        state.meta.mode = 0o170000;
    }
    assert!(matches!(
        log.append(vec![note(), bad], 1),
        Err(LogError::Refused { .. })
    ));
    assert_eq!(log.end(), end);
    log.append(vec![note()], 1).unwrap();
    log.flush().unwrap();
    read_all(&log).unwrap();
}
