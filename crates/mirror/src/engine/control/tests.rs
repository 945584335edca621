//! The lock, the last status and the socket, with a mirror that only pretends.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use mirror_core::Position;

use super::*;
use crate::engine::status::{Role, Stamp, State};

/// Remembers what it was told.
#[derive(Default)]
struct Fake {
    told: Mutex<Vec<String>>,
}

impl Fake {
    fn tell(&self, what: impl Into<String>) {
        self.told.lock().unwrap().push(what.into());
    }
    fn told(&self) -> Vec<String> {
        self.told.lock().unwrap().clone()
    }
}

impl Control for Fake {
    fn status(&self) -> Status {
        let mut status = Status::new(
            Role::Local,
            "/src".into(),
            Some(PathText::new(b"/dst/\xff")),
        );
        status.state = State::Following;
        status.positions.applied = Some(Position {
            epoch: 1,
            sequence: 7,
        });
        status
    }
    fn wait_idle(&self, until: &Until<'_>) -> Result<WaitReport, ControlError> {
        while !until.over() {
            std::thread::sleep(until.nap());
        }
        self.tell("wait over");
        Err(ControlError::Timeout("3 records to go".into()))
    }
    fn wait_position(&self, position: Position, _: &Until<'_>) -> Result<WaitReport, ControlError> {
        let positions = Positions {
            applied: Some(position),
            ..Positions::default()
        };
        Ok(WaitReport {
            positions,
            fuzzy: vec![PathText::new(b"a\nb")],
            fuzzy_total: 1,
            ..WaitReport::default()
        })
    }
    fn pause(&self) -> Result<(), ControlError> {
        self.tell("pause");
        Ok(())
    }
    fn resume(&self) -> Result<(), ControlError> {
        Err(ControlError::Refused("it is not paused".into()))
    }
    fn release(&self, yes: bool) -> Result<ReleaseReport, ControlError> {
        Ok(ReleaseReport {
            released: yes,
            gone: 12,
            sample: vec![PathText::new(b"x")],
            ..ReleaseReport::default()
        })
    }
    fn verify(
        &self,
        options: VerifyOptions,
        line: &mut dyn FnMut(VerifyLine) -> bool,
    ) -> Result<VerifyEnd, ControlError> {
        let mut different = 0;
        for n in 0..100_000 {
            let path = PathText::new(format!("f{n}").as_bytes());
            different += 1;
            if !line(VerifyLine {
                path,
                what: "content".into(),
                repaired: options.repair,
            }) {
                self.tell("nobody listens");
                break;
            }
            if different == 3 && options.against == Against::Index {
                break;
            }
        }
        Ok(VerifyEnd {
            entries: 5,
            different,
            ..VerifyEnd::default()
        })
    }
    fn stop(&self) {
        self.tell("stop");
    }
}

fn eventually(what: &str, check: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !check() {
        assert!(Instant::now() < until, "{what} never came true");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn every_order_and_its_answer() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Arc::new(Fake::default());
    let handle = serve(dir.path(), fake.clone()).unwrap();
    let mode = std::fs::metadata(dir.path().join("control.sock"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);

    let mut client = Client::connect(dir.path()).unwrap();
    let status = client.status().unwrap();
    assert_eq!(
        status.positions.applied,
        Some(Position {
            epoch: 1,
            sequence: 7
        })
    );
    assert_eq!(
        status.dst.as_ref().map(PathText::as_str),
        Some("/dst/\\xff")
    );

    let report = client
        .wait_position(
            Position {
                epoch: 2,
                sequence: 9,
            },
            None,
        )
        .unwrap();
    assert_eq!(
        report.positions.applied,
        Some(Position {
            epoch: 2,
            sequence: 9
        })
    );
    assert_eq!(report.fuzzy[0].as_str(), "a\\x0ab");
    let timeout = client.wait_idle(Some(Duration::from_millis(20)));
    assert!(matches!(
        timeout,
        Err(ClientError::Told(ControlError::Timeout(_)))
    ));

    client.pause().unwrap();
    assert!(matches!(
        client.resume(),
        Err(ClientError::Told(ControlError::Refused(_)))
    ));
    assert!(!client.release(false).unwrap().released);
    assert!(client.release(true).unwrap().released);
    let mut lines = Vec::new();
    let options = VerifyOptions {
        against: Against::Index,
        repair: true,
    };
    let end = client
        .verify(options, &mut |line| lines.push(line))
        .unwrap();
    assert_eq!(
        (
            end.different,
            lines.len(),
            lines[2].path.as_str(),
            lines[2].repaired
        ),
        (3, 3, "f2", true)
    );
    client.stop().unwrap();
    assert_eq!(fake.told(), ["wait over", "pause", "stop"]);

    drop(handle);
    assert!(!dir.path().join("control.sock").exists());
    assert!(matches!(
        Client::connect(dir.path()),
        Err(ClientError::NotRunning)
    ));
    assert!(matches!(
        client.status(),
        Err(ClientError::Silent(_) | ClientError::Io(_))
    ));
}

#[test]
fn state_paths_longer_than_a_socket_may_have() {
    let dir = tempfile::tempdir().unwrap();
    let mut deep = dir.path().to_path_buf();
    for _ in 0..20 {
        deep.push("x".repeat(200));
    }
    let mut at = dir.path().to_path_buf();
    // Made step by step; the whole path has 4,000 bytes.
    for part in deep.strip_prefix(dir.path()).unwrap() {
        at.push(part);
        std::fs::create_dir(&at).unwrap();
    }
    let _handle = serve(&deep, Arc::new(Fake::default())).unwrap();
    assert_eq!(
        Client::connect(&deep).unwrap().status().unwrap().state,
        State::Following
    );
}

#[test]
fn a_dead_processes_socket_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    drop(std::os::unix::net::UnixListener::bind(dir.path().join("control.sock")).unwrap());
    assert!(matches!(
        Client::connect(dir.path()),
        Err(ClientError::NotRunning)
    ));
    let _handle = serve(dir.path(), Arc::new(Fake::default())).unwrap();
    assert!(Client::connect(dir.path()).unwrap().status().is_ok());
}

#[test]
fn bad_clients_harm_only_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Arc::new(Fake::default());
    let _handle = serve(dir.path(), fake.clone()).unwrap();
    let raw = || UnixStream::connect(dir.path().join("control.sock")).unwrap();

    // Nonsense is answered, and the connection goes on.
    let mut nonsense = raw();
    for bytes in [
        &b"what?\n"[..],
        b"{\"do\":\"fly\"}\n",
        b"\xff\xfe\n",
        b"{\"do\":\"wait_position\",\"position\":\"x\"}\n",
    ] {
        nonsense.write_all(bytes).unwrap();
        let mut answer = [0u8; 4096];
        let n = nonsense.read(&mut answer).unwrap();
        assert!(
            answer[..n].starts_with(b"{\"error\":{\"error\":\"refused\""),
            "{:?}",
            String::from_utf8_lossy(&answer[..n])
        );
    }
    // A request without an end is cut off.
    let mut flood = raw();
    let _ = flood.write_all(&vec![b'x'; wire::REQUEST_BYTES_MAX + 4097]);
    let mut answer = String::new();
    let _ = flood.read_to_string(&mut answer);
    assert!(answer.is_empty() || answer.contains("too long"), "{answer}");

    // Many silent ones take the seats; more are told so; when they go, all is well.
    let silent: Vec<_> = (0..80).map(|_| raw()).collect();
    let ask = || Client::connect(dir.path()).and_then(|mut c| c.status());
    eventually("busy", || {
        matches!(ask(), Err(ClientError::Told(ControlError::Busy(_))))
    });
    drop(silent);
    eventually("free again", || ask().is_ok());

    // Who waits and dies ends the wait; who stops listening ends the comparison.
    let mut waits = raw();
    waits
        .write_all(b"{\"do\":\"wait_idle\",\"timeout_ms\":null}\n")
        .unwrap();
    drop(waits);
    eventually("the end of the wait", || {
        fake.told().contains(&"wait over".to_string())
    });
    let mut verifies = raw();
    let order = Request::Verify {
        options: VerifyOptions {
            against: Against::Source,
            repair: false,
        },
    };
    verifies
        .write_all(&serde_json::to_vec(&order).unwrap())
        .unwrap();
    verifies.write_all(b"\n").unwrap();
    drop(verifies);
    eventually("the end of the comparison", || {
        fake.told().contains(&"nobody listens".to_string())
    });
}

#[test]
fn one_process_a_state_directory() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(StateLock::holder(dir.path()).unwrap(), None);
    let lock = StateLock::take(dir.path()).unwrap();
    let clone = lock.clone();
    drop(lock);
    let second = StateLock::take(dir.path()).unwrap_err();
    let LockError::Busy { holder, .. } = &second else {
        panic!("{second:?}")
    };
    assert_eq!(holder.pid, Some(std::process::id()));
    assert!(holder.since.unwrap() <= Stamp::now());
    assert!(
        second.to_string().contains(&format!(
            "in use by process {}, since 2",
            std::process::id()
        )),
        "{second}"
    );
    assert_eq!(
        StateLock::holder(dir.path()).unwrap().as_ref(),
        Some(holder)
    );
    drop(clone);
    assert_eq!(StateLock::holder(dir.path()).unwrap(), None);
    drop(StateLock::take(dir.path()).unwrap());
    assert!(matches!(
        StateLock::take(&dir.path().join("none")),
        Err(LockError::Io { .. })
    ));
}

#[test]
fn the_last_status() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(read_status(dir.path()).unwrap(), None);
    let mut status = Fake::default().status();
    persist_status(dir.path(), &status).unwrap();
    status.state = State::Hold(Hold {
        reason: crate::engine::status::HoldReason::MassChange,
        since: status.now,
        what: "12 of 20 entries are gone".into(),
        gone: Some(12),
        of: Some(20),
        below: None,
    });
    persist_status(dir.path(), &status).unwrap();
    assert_eq!(read_status(dir.path()).unwrap().as_ref(), Some(&status));
    let State::Hold(hold) = &status.state else {
        unreachable!()
    };
    assert_eq!(take_release(dir.path()).unwrap(), None);
    leave_release(dir.path(), hold).unwrap();
    assert_eq!(take_release(dir.path()).unwrap().as_ref(), Some(hold));
    assert_eq!(take_release(dir.path()).unwrap(), None);
    for damage in [&b""[..], b"{", b"null", b"{\"version\":3}", b"\xff"] {
        std::fs::write(dir.path().join("status.json"), damage).unwrap();
        assert!(matches!(
            read_status(dir.path()),
            Err(PersistError::Damaged { .. })
        ));
    }
}
