//! Statuses and reports as text, and what a monitor makes of them.

use super::*;

#[test]
fn who_is_asked_is_told_its_own_command() {
    let mut hold = Hold {
        reason: HoldReason::RootEmpty,
        since: Stamp::now(),
        what: "the source is empty, and had 3 entries".into(),
        gone: Some(3),
        of: Some(3),
        below: None,
    };
    let said = way_out(&hold, Role::Primary);
    assert!(
        said.contains("`mirrord release`") && said.starts_with("it goes on by itself when"),
        "{said}"
    );
    hold.reason = HoldReason::MassChange;
    let said = way_out(&hold, Role::Replica);
    assert!(said.starts_with("`fs_mirror release` shows"), "{said}");
}

use crate::engine::options::Detector;
use crate::engine::status::*;

fn sample() -> Status {
    let mut s = Status::new(
        Role::Local,
        "/srv/www".into(),
        Some(PathText::new(b"/backup/www")),
    );
    let at = |seconds: i64| Stamp {
        ms: 1_000_000_000_000 + seconds * 1000,
    };
    s.version = "0.1.0".into();
    s.pid = 77;
    (s.started, s.now, s.equal_at) = (at(0), at(60), Some(at(59)));
    s.state = State::Following;
    s.detector = Some(DetectorStatus {
        uses: Detector::Fanotify,
        why: "one mark on the file system".into(),
    });
    let p = |sequence| Some(Position { epoch: 1, sequence });
    s.positions = Positions {
        received: p(42),
        durable: p(42),
        applied: p(40),
    };
    s.lag = Lag {
        seconds: 0.25,
        records: 2,
        bytes: 12_288,
    };
    s.last_change = Some(LastChange {
        at: at(58),
        path: PathText::new(b"blog/a\nb"),
    });
    (s.entries, s.files, s.bytes) = (102_345, 100_000, 4 << 30);
    s.counters.overflows = 1;
    s.counters.proven = 99_999;
    s.failed_total = 12;
    let failed = |n: u32| Failed {
        path: PathText::new(format!("f{n}").as_bytes()),
        reason: "permission denied".into(),
        since: at(10),
        tries: 1,
    };
    s.failed = (0..11).map(failed).collect();
    s.not_mirrored = vec![PathText::new(b"mnt/x")];
    s.recorded.insert("owners".into(), 1200);
    s.space = Some(Space {
        bytes_free: 12 << 30,
        bytes_total: 100 << 30,
        inodes_free: 1_234_567,
        inodes_total: 9,
    });
    s
}

#[test]
fn a_status_to_read() {
    let mut s = sample();
    s.failed.truncate(1);
    s.failed_total = 2;
    let want = "\
/backup/www <- /srv/www
  state         following
  equal         last known to be at 2001-09-09 01:47:39
  lag           0.2 s, 2 records, 12 KiB
  last change   2001-09-09 01:47:38 blog/a\\x0ab
  tree          102,345 entries (100,000 files, 4.0 GiB)
  position      received 1.42 · durable 1.42 · applied 1.40
  detector      fanotify: one mark on the file system
  failed        2 paths
    f0: permission denied (since 2001-09-09 01:46:50, 1 try)
    ... and 1 more (-v shows them)
  not mirrored  1 mount (--cross PATH adds one)
    mnt/x
  recorded      owners 1,200 (kept in the index, not set in the copy)
  counted       overflows 1 · proven 99,999
  space         12 GiB of 100 GiB free, 1,234,567 inodes free
  process       77 since 2001-09-09 01:46:40, version 0.1.0
";
    assert_eq!(status(&s, true, false, s.now, &TimeZone::UTC), want);
    s.failed_total = 0;
    s.failed.clear();
    let text = status(&s, true, false, s.now, &TimeZone::UTC);
    assert!(
        text.contains("equal         known to be at 2001-09-09 01:47:39, followed since\n"),
        "{text}"
    );
}

#[test]
fn a_status_of_what_does_not_run() {
    let mut s = sample();
    s.state = State::Seeding {
        files: 5,
        files_total: Some(10),
        bytes: 1024,
        bytes_total: None,
        bytes_per_s: 512,
        eta_s: Some(90),
    };
    let text = status(
        &s,
        false,
        true,
        Stamp {
            ms: s.now.ms + 7_200_000,
        },
        &TimeZone::UTC,
    );
    assert!(text.contains(
        "  state         not running\n                2 h ago it was: seeding: 5 of 10 files, 1.0 KiB, 512 B/s, 1 min 30 s left\n"
    ), "{text}");
    assert!(
        text.contains("    f10: ") && text.contains("    ... and 1 more\n"),
        "{text}"
    );
    assert!(text.contains("  process       was 77, from "), "{text}");
}

#[test]
fn json_keeps_everything() {
    let mut s = sample();
    let now = s.now;
    for state in [
        State::Starting,
        State::Following,
        State::Paused { since: now },
        State::Disconnected {
            since: now,
            reason: "x".into(),
        },
        State::Failed { reason: "y".into() },
        State::Stopped,
        State::Seeding {
            files: 1,
            files_total: None,
            bytes: 2,
            bytes_total: Some(3),
            bytes_per_s: 4,
            eta_s: None,
        },
        State::Hold(Hold {
            reason: HoldReason::RootGone,
            since: now,
            what: "z".into(),
            gone: None,
            of: None,
            below: None,
        }),
    ] {
        s.state = state;
        let text = serde_json::to_string(&s).unwrap();
        assert_eq!(serde_json::from_str::<Status>(&text).unwrap(), s, "{text}");
    }
    let value = serde_json::to_value(&s).unwrap();
    assert_eq!(value["state"]["is"], "hold");
    assert_eq!(value["positions"]["applied"], "1.40");
    assert_eq!(value["last_change"]["at"], "2001-09-09T01:47:38.000Z");
}

#[test]
fn one_line_for_a_monitor() {
    let well = || Status {
        failed_total: 0,
        failed: vec![],
        ..sample()
    };
    let with = |state: State| Status { state, ..well() };
    let since = Stamp {
        ms: sample().now.ms - 30_000,
    };
    let hold = Hold {
        reason: HoldReason::RootGone,
        since,
        what: "the root | is gone".into(),
        gone: None,
        of: None,
        below: None,
    };
    let lag = Duration::from_secs(60);
    let cases = [
        (
            well(),
            Health::Ok,
            "following, lag 0.2 s | lag=0.250s;;60 records=2 failed=0 fuzzy=0 entries=102345",
        ),
        (
            sample(),
            Health::Warning,
            "12 paths failed (f0: permission denied) | lag=",
        ),
        (with(State::Starting), Health::Warning, "starting | "),
        (
            with(State::Paused { since }),
            Health::Warning,
            "paused for 30 s | ",
        ),
        (
            with(State::Hold(hold)),
            Health::Critical,
            "on hold: the root / is gone | ",
        ),
        (
            with(State::Disconnected {
                since,
                reason: "x".into(),
            }),
            Health::Warning,
            "disconnected for 30 s: x | ",
        ),
        (
            with(State::Failed { reason: "x".into() }),
            Health::Critical,
            "failed: x | ",
        ),
        (with(State::Stopped), Health::Critical, "stopped | "),
        (
            Status {
                lag: Lag {
                    seconds: 61.0,
                    ..Lag::default()
                },
                ..well()
            },
            Health::Critical,
            "lag 1 min 1 s is over 1 min | ",
        ),
    ];
    for (status, want, line) in cases {
        let (got, text) = health(&status, lag);
        assert!(got == want && text.starts_with(line), "{got:?} {text}");
        assert_eq!(text.matches('|').count(), 1);
    }
    let away = with(State::Disconnected {
        since,
        reason: "x".into(),
    });
    assert_eq!(health(&away, Duration::from_secs(10)).0, Health::Critical);
}

#[test]
fn reports() {
    let mut report = ReleaseReport::default();
    assert_eq!(release(&report), "nothing is held\n");
    report.hold = Some(Hold {
        reason: HoldReason::MassChange,
        since: Stamp { ms: 0 },
        what: "w".into(),
        gone: None,
        of: None,
        below: None,
    });
    (report.gone, report.changed, report.sample) = (3, 1, vec![PathText::new(b"a\t")]);
    assert_eq!(
        release(&report),
        "on hold: w\n3 entries would go, 0 new, 1 changed\n  a\\x09\n"
    );
    let end = VerifyEnd {
        entries: 1,
        bytes: 2048,
        different: 2,
        repaired: 2,
        unknown: 1,
    };
    assert_eq!(
        verified(&end),
        "1 entry compared (2.0 KiB): 2 differences, 2 repaired, 1 changed or unreadable meanwhile"
    );
}
