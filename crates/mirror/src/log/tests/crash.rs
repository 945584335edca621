use super::*;

/// What a run knows of its log.
#[derive(Default)]
struct Known {
    /// All groups ever appended to this branch of history, in order.
    appended: Vec<Record>,
    /// How many of them were acknowledged as durable.
    durable: usize,
}

impl Known {
    /// After reopening: what is there must be a beginning of what was appended, with all that was acknowledged.
    /// It is durable from now on.
    fn check(&mut self, log: &Log, what: &str) {
        let found = read_all(log).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(
            found.len() >= self.durable,
            "{what}: {} of {} acknowledged records",
            found.len(),
            self.durable
        );
        assert_eq!(found, self.appended[..found.len()], "{what}");
        check_contents(log, &found);
        self.appended.truncate(found.len());
        self.durable = found.len();
    }
}

/// Appends, flushes and seals at random until something fails or it has had enough.
fn live(log: &mut Log, random: &mut Random, known: &mut Known) -> Result<(), LogError> {
    for _ in 0..random.below(30) {
        match random.below(6) {
            0 => {
                log.flush()?;
                known.durable = known.appended.len();
            }
            1 => log.seal()?,
            2 => {
                // A content that no record ever names.
                log.content().put(&bytes_of(0))?;
            }
            _ => known.appended.extend(group(log, random)?),
        }
    }
    Ok(())
}

/// Several lives of one log: each ends in a crash, a failure, or both.
fn lives(seed: u64) {
    let mut random = Random(seed);
    let disk = SimDisk::new();
    let mut log = created(&disk);
    let mut known = Known {
        appended: read_all(&log).unwrap(),
        durable: 1,
    };
    for life in 0..6 {
        let what = format!("seed {seed}, life {life}");
        if random.below(2) == 0 {
            let fault = if random.below(2) == 0 {
                Fault::Full
            } else {
                Fault::Io
            };
            disk.fail_after(random.below(40) as u64, fault);
        }
        let stopped = live(&mut log, &mut random, &mut known).is_err();
        disk.heal();
        if stopped {
            // Once failed, it stays so until it is opened again.
            let again = log.flush();
            assert!(
                matches!(again, Err(LogError::Poisoned(_))),
                "{what}: {again:?}"
            );
        }
        drop(log);
        if random.below(4) > 0 {
            disk.crash(random.below(usize::MAX) as u64);
        }
        // Opening may fail half way, and be cut off half way, too.
        if random.below(3) == 0 {
            disk.fail_after(random.below(6) as u64, Fault::Io);
            drop(open(&disk));
            disk.heal();
            if random.below(2) == 0 {
                disk.crash(random.below(usize::MAX) as u64);
            }
        }
        log = open(&disk)
            .unwrap_or_else(|error| panic!("{what}: {error}"))
            .0;
        known.check(&log, &what);
        // What opening has shown is durable: an immediate crash takes none of it.
        if random.below(3) == 0 {
            drop(log);
            disk.crash(random.below(usize::MAX) as u64);
            log = open(&disk)
                .unwrap_or_else(|error| panic!("{what}: {error}"))
                .0;
            known.check(&log, &what);
        }
    }
}

#[test]
fn what_was_acknowledged_survives_every_crash() {
    // More of them by hand: LOG_SEEDS=100000 cargo test -p mirror --release log::tests::crash
    let seeds = std::env::var("LOG_SEEDS")
        .ok()
        .and_then(|seeds| seeds.parse().ok());
    for seed in 0..seeds.unwrap_or(1500) {
        lives(seed);
    }
}

/// The same script, stopped by a failure at each of its steps in turn.
#[test]
fn a_failure_at_every_step_loses_nothing_acknowledged() {
    for fault in [Fault::Full, Fault::Io] {
        for step in 0.. {
            let disk = SimDisk::new();
            let mut log = created(&disk);
            let mut known = Known {
                appended: read_all(&log).unwrap(),
                durable: 1,
            };
            let mut random = Random(11);
            disk.fail_after(step, fault);
            let mut failed = false;
            for n in 0..40 {
                let result =
                    group(&mut log, &mut random).map(|records| known.appended.extend(records));
                let result = if n % 3 == 2 {
                    result.and_then(|()| log.flush().map(|_| ()))
                } else {
                    result
                };
                if n % 3 == 2 && result.is_ok() {
                    known.durable = known.appended.len();
                }
                failed |= result.is_err();
                if failed {
                    break;
                }
            }
            drop(log);
            let before = disk.copy();
            disk.heal();
            known.check(
                &open(&disk).unwrap().0,
                &format!("{fault:?} at step {step}"),
            );
            before.crash(step);
            open(&before).unwrap();
            if !failed {
                assert!(step > 20);
                break;
            }
        }
    }
}

#[test]
fn creating_is_all_or_nothing() {
    for step in 0..12 {
        for seed in 0..20 {
            let disk = SimDisk::new();
            disk.fail_after(step, Fault::Io);
            let result = Log::create(Arc::new(disk.clone()), small(), TREE, CLAIM, 1).map(drop);
            disk.crash(seed);
            match open(&disk) {
                Ok((log, _)) => assert_eq!(read_all(&log).unwrap().len(), 1),
                Err(LogError::Absent) => {
                    assert!(result.is_err());
                    created(&disk);
                }
                Err(other) => panic!("{other}"),
            }
        }
    }
}

#[test]
fn a_failed_flush_is_not_believed_after_reopening() {
    let disk = SimDisk::new();
    let mut log = created(&disk);
    log.append(vec![note()], 1).unwrap();
    disk.fail_after(1, Fault::Io);
    assert!(log.flush().is_err(), "written, but not flushed");
    disk.heal();
    drop(log);
    let (log, recovered) = open(&disk).unwrap();
    let end = recovered.end.unwrap();
    drop(log);
    disk.crash(0);
    assert_eq!(
        open(&disk).unwrap().1.end,
        Some(end),
        "what was shown was made durable"
    );
}
