//! What is shown on a terminal, in a pipe, with `-q` and with `--json`.

use super::*;
use crate::engine::options::Detector;
use crate::engine::status::{HoldReason, PathText};

fn screen(output: Output) -> Screen {
    Screen::new(output, false, TimeZone::UTC)
}
fn show(screen: &mut Screen, event: Event, ms: u64) -> String {
    let at = Stamp {
        ms: 1_000_000_000_000 + ms as i64,
    };
    let out = screen.event(event, Duration::from_millis(ms), at, 80);
    let lines: Vec<String> = out
        .into_iter()
        .map(|o| match o {
            Out::Stdout(l) => format!("out: {l}"),
            Out::Stderr(l) => format!("err: {l}"),
            Out::Live(l) => format!("live: {l}"),
        })
        .collect();
    lines.join("\n")
}
fn progress(files: u64, bytes: u64) -> Event {
    let (files_total, bytes_total) = (Some(100_000), Some(4 << 30));
    Event::Progress(Progress {
        files,
        files_total,
        bytes,
        bytes_total,
        comparing: false,
    })
}
fn live(seconds: f64, records: u64, path: &str, failures: u64) -> Event {
    Event::Live {
        lag: Lag {
            seconds,
            records,
            bytes: records * 1000,
        },
        last_change: Some(LastChange {
            at: Stamp {
                ms: 1_000_000_000_000,
            },
            path: PathText::new(path.as_bytes()),
        }),
        failures,
        fuzzy: 0,
    }
}
fn hold() -> Hold {
    Hold {
        reason: HoldReason::MassChange,
        since: Stamp { ms: 0 },
        what: "entries went below blog".into(),
        gone: Some(4000),
        of: Some(5000),
        below: None,
    }
}
fn failed() -> Event {
    Event::Failed {
        path: PathText::new(b"a\nb"),
        reason: "permission denied".into(),
    }
}
fn equal() -> Event {
    Event::Equal {
        entries: 102_345,
        files: 100_000,
        bytes: 4 << 30,
        seconds: 41.7,
    }
}

#[test]
fn what_is_not_equal_says_what_is_missing() {
    use crate::engine::event::Incomplete;
    use crate::engine::status::Failed;
    let failed = Failed {
        path: PathText::new(b"a\nb"),
        reason: "cannot write: full".into(),
        since: Stamp { ms: 0 },
        tries: 1,
    };
    let event = Event::Incomplete(Box::new(Incomplete {
        entries: 9,
        files: 8,
        bytes: 7,
        seconds: 1.0,
        failed: vec![failed],
        failed_total: 3,
        fuzzy: 1,
        extras: 0,
    }));
    let s = &mut screen(Output {
        quiet: true,
        ..Output::default()
    });
    assert_eq!(
        show(s, event, 0),
        "err: incomplete: 3 paths failed, 1 file fuzzy; 9 entries (8 files, 7 B) in 1.0 s\n  \
         a\\x0ab: cannot write: full\n  ... and 2 more failed"
    );
}

#[test]
fn lines_about_single_paths_have_an_end() {
    let s = &mut screen(Output::default());
    let lines: Vec<String> = (0..60).map(|at| show(s, failed(), at)).collect();
    assert_eq!(
        lines.iter().filter(|line| line.contains("a\\x0ab")).count(),
        50
    );
    assert!(lines[50].contains("`fs_mirror status -v` lists them") && lines[51].is_empty());
}

#[test]
fn on_a_terminal() {
    let s = &mut screen(Output {
        terminal: true,
        ..Output::default()
    });
    let started = Event::Started {
        detector: Detector::Fanotify,
        why: "one mark on the file system".into(),
        not_mirrored: vec![PathText::new(b"mnt/x")],
    };
    assert_eq!(
        show(s, started, 0),
        "err: watching with fanotify: one mark on the file system\n\
         not mirrored: mnt/x is another mount (--cross mnt/x adds it)"
    );
    assert_eq!(
        show(s, progress(0, 0), 0),
        "live: copying 0 of 100,000 files · 0 B of 4.0 GiB"
    );
    assert_eq!(show(s, progress(500, 10 << 20), 100), "");
    assert_eq!(s.tick(Duration::from_millis(150), 80), []);
    assert_eq!(s.tick(Duration::from_millis(200), 80).len(), 1);
    assert_eq!(s.tick(Duration::from_millis(400), 80), []);
    assert_eq!(
        show(s, progress(10_000, 200 << 20), 2000),
        "live: copying 10,000 of 100,000 files · 200 MiB of 4.0 GiB · 100 MiB/s · 0:39 left"
    );
    assert_eq!(
        s.live_line(Duration::from_secs(3), 200),
        Some(Out::Live(
            "copying 10,000 of 100,000 files · 200 MiB of 4.0 GiB · 100 MiB/s · 5,000 files/s · 0:39 left".into()
        ))
    );
    assert_eq!(
        show(s, failed(), 2001),
        "err: failed: a\\x0ab: permission denied\n\
         live: copying 10,000 of 100,000 files · 200 MiB of 4.0 GiB · 100 MiB/s · 0:39 left"
    );
    assert_eq!(
        show(s, equal(), 2100),
        "err: equal: 102,345 entries (100,000 files, 4.0 GiB) in 42 s\nlive: "
    );
    assert_eq!(
        show(s, live(0.04, 0, "blog/wp-config.php", 0), 2101),
        "live: following · lag 0.0 s · last change 01:46:40 blog/wp-config.php"
    );
    assert_eq!(show(s, live(1.0, 1, "x", 0), 2200), "");
    assert_eq!(
        show(s, live(0.0, 0, &"deep/".repeat(40), 2), 2302),
        "live: following · lag 0.0 s · last change 01:46:40 …p/deep/deep/deep/deep/ · 2 failed"
    );
    let long = format!("{}/wp-config.php", "deep".repeat(40));
    assert_eq!(
        show(s, live(1.26, 3, &long, 2), 2520),
        "live: following · lag 1.3 s (3 records, 2.9 KiB) · 2 failed"
    );
    assert_eq!(
        show(s, Event::Held(hold()), 2521),
        "err: on hold: entries went below blog; the copy stays as it is: \
         `fs_mirror release` shows what would go, and lets it through\nlive: on hold: entries went below blog"
    );
    assert!(
        show(s, Event::Released, 2522)
            .starts_with("err: released: going on\nlive: following · lag 1.3 s")
    );
    assert_eq!(
        show(
            s,
            Event::Changed {
                what: "wrote",
                path: PathText::new(b"x")
            },
            2523
        ),
        ""
    );
    assert_eq!(s.end(), [Out::Live(String::new())]);
    assert_eq!(s.end(), []);
}

#[test]
fn in_a_pipe() {
    let s = &mut screen(Output {
        verbose: true,
        ..Output::default()
    });
    assert_eq!(show(s, progress(0, 0), 0), "");
    for ms in 1..100 {
        assert_eq!(show(s, progress(ms, ms), ms * 100), "");
    }
    assert_eq!(
        show(s, progress(20_000, 1 << 30), 10_000),
        "err: copying 20,000 of 100,000 files · 1.0 GiB of 4.0 GiB · 102 MiB/s · 2,000 files/s · 0:40 left"
    );
    assert_eq!(show(s, progress(20_001, 1 << 30), 10_100), "");
    assert_eq!(
        show(s, live(0.0, 0, "x", 0), 11_000),
        "err: following · lag 0.0 s"
    );
    assert_eq!(show(s, live(0.3, 4, "x", 0), 60_000), "");
    assert_eq!(
        show(s, live(0.3, 4, "x", 1), 60_001),
        "err: following · lag 0.3 s (4 records, 3.9 KiB) · 1 failed"
    );
    assert_eq!(
        show(
            s,
            Event::Changed {
                what: "wrote",
                path: PathText::new(b"x")
            },
            60_002
        ),
        "out: wrote x"
    );
    assert_eq!(s.tick(Duration::from_secs(100), 80), []);
    assert_eq!(s.end(), []);
}

#[test]
fn quiet_shows_what_is_wrong() {
    let s = &mut screen(Output {
        quiet: true,
        terminal: true,
        ..Output::default()
    });
    for event in [
        progress(1, 1),
        live(0.0, 0, "x", 1),
        equal(),
        Event::Notice("x".into()),
        Event::Paused,
    ] {
        assert_eq!(show(s, event, 0), "");
    }
    assert_eq!(
        show(s, failed(), 0),
        "err: failed: a\\x0ab: permission denied"
    );
    assert!(show(s, Event::Held(hold()), 0).starts_with("err: on hold"));
    let gone = Event::Disconnected {
        reason: "no route to host".into(),
        retry_s: 4,
    };
    assert_eq!(
        show(s, gone, 0),
        "err: disconnected: no route to host; trying again in 4 s"
    );
    assert_eq!(s.tick(Duration::from_secs(9), 80), []);
}

#[test]
fn every_event_is_one_json_object() {
    let s = &mut screen(Output {
        json: true,
        verbose: true,
        ..Output::default()
    });
    let path = || PathText::new(b"a\xff\n");
    let events = vec![
        Event::Started {
            detector: Detector::Scan,
            why: "asked for".into(),
            not_mirrored: vec![path()],
        },
        progress(1, 2),
        equal(),
        live(0.5, 1, "x", 0),
        Event::Changed {
            what: "wrote",
            path: path(),
        },
        Event::Would {
            what: "delete",
            path: path(),
        },
        Event::Notice("line".into()),
        Event::Held(hold()),
        Event::Released,
        Event::Paused,
        Event::Resumed,
        Event::Disconnected {
            reason: "x".into(),
            retry_s: 1,
        },
        Event::Connected { peer: "h".into() },
        failed(),
        Event::Healed { path: path() },
    ];
    for (n, event) in events.into_iter().enumerate() {
        let line = show(s, event, n as u64 * 2000);
        let value: Value = serde_json::from_str(line.strip_prefix("out: ").unwrap()).unwrap();
        assert!(
            value["event"].is_string() && value["at"].is_string() && !line.contains('\n'),
            "{line}"
        );
    }
    assert!(show(s, progress(5, 5), 50_000).contains("\"files\":5,"));
    assert_eq!(show(s, progress(5, 5), 50_100), "");
    assert_eq!(
        show(s, Event::Healed { path: path() }, 0),
        r#"out: {"at":"2001-09-09T01:46:40.000Z","event":"healed","path":"a\\xff\\x0a"}"#
    );
}

#[test]
fn colours_only_when_asked() {
    let output = Output {
        terminal: true,
        ..Output::default()
    };
    let s = &mut Screen::new(output, true, TimeZone::UTC);
    assert_eq!(
        show(s, failed(), 0),
        "err: \x1b[31mfailed: a\\x0ab: permission denied\x1b[0m"
    );
}
