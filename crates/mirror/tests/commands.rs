//! The programs as a person meets them: exit codes, lines and files, with a mirror that only pretends to run.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use std::{env, fs};

use mirror::cli::config::Config;
use mirror::engine::control::*;
use mirror::engine::options::{Owners, SourceSpec};
use mirror::engine::status::*;
use mirror_core::Position;

/// A place with a source, and a mirror `dst` that was begun.
struct Place {
    held: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let place = Place {
            held: tempfile::tempdir().unwrap(),
        };
        for dir in ["src", "dst/sub", "dst.fs_mirror/log", "full/x"] {
            fs::create_dir_all(place.path(dir)).unwrap();
        }
        fs::write(place.path("dst.fs_mirror/log/1"), "x").unwrap();
        place.config().save(&place.state()).unwrap();
        place
    }
    fn path(&self, below: &str) -> PathBuf {
        fs::canonicalize(self.held.path()).unwrap().join(below)
    }
    fn state(&self) -> PathBuf {
        self.path("dst.fs_mirror")
    }
    fn config(&self) -> Config {
        let config = Config::new(SourceSpec::Local(self.path("src")), self.path("dst"));
        Config {
            ignore: vec!["*.log".into()],
            owners: Owners::Record,
            ..config
        }
    }
    /// `(exit code, stdout, stderr)` of `fs_mirror` run here; `@` stands for this place.
    fn run(&self, line: &str) -> (i32, String, String) {
        self.run_in(".", line)
    }
    fn run_in(&self, dir: &str, line: &str) -> (i32, String, String) {
        let top = self.path("").display().to_string();
        let top = top.trim_end_matches('/');
        let output = Command::new(env!("CARGO_BIN_EXE_fs_mirror"))
            .args(line.split(' ').map(|word| word.replace('@', top)))
            .current_dir(self.path(dir))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().replace(top, "@");
        (
            output.status.code().unwrap_or(-1),
            text(output.stdout),
            text(output.stderr),
        )
    }
}

/// Says what it is told to say.
#[derive(Default)]
struct Fake {
    failed: u64,
    hold: bool,
}

impl Fake {
    fn hold(&self) -> Option<Hold> {
        self.hold.then(|| Hold {
            reason: HoldReason::MassChange,
            since: Stamp { ms: 0 },
            what: "very much went".into(),
            gone: Some(2000),
            of: Some(3000),
            below: None,
        })
    }
}

impl Control for Fake {
    fn status(&self) -> Status {
        let mut status = Status::new(Role::Local, "/src".into(), Some(PathText::new(b"/dst")));
        status.state = self.hold().map_or(State::Following, State::Hold);
        status.failed_total = self.failed;
        status
    }
    fn wait_idle(&self, until: &Until<'_>) -> Result<WaitReport, ControlError> {
        while until.at.is_some() && !until.over() {
            std::thread::sleep(until.nap());
        }
        match until.at {
            Some(_) => Err(ControlError::Timeout("3 records to go".into())),
            None => Ok(WaitReport {
                failed_total: self.failed,
                ..WaitReport::default()
            }),
        }
    }
    fn wait_position(&self, _: Position, _: &Until<'_>) -> Result<WaitReport, ControlError> {
        let fuzzy = vec![PathText::new(b"a\x1bb")];
        Ok(WaitReport {
            fuzzy,
            fuzzy_total: 2,
            ..WaitReport::default()
        })
    }
    fn pause(&self) -> Result<(), ControlError> {
        Ok(())
    }
    fn resume(&self) -> Result<(), ControlError> {
        Err(ControlError::Refused("it is not paused".into()))
    }
    fn release(&self, yes: bool) -> Result<ReleaseReport, ControlError> {
        let hold = self.hold();
        Ok(ReleaseReport {
            released: yes && hold.is_some(),
            hold,
            gone: 2000,
            ..ReleaseReport::default()
        })
    }
    fn verify(
        &self,
        options: VerifyOptions,
        line: &mut dyn FnMut(VerifyLine) -> bool,
    ) -> Result<VerifyEnd, ControlError> {
        line(VerifyLine {
            path: PathText::new(b"a\nb"),
            what: "content".into(),
            repaired: options.repair,
        });
        let repaired = u64::from(options.repair);
        Ok(VerifyEnd {
            entries: 9,
            bytes: 10,
            different: 1,
            repaired,
            unknown: 0,
        })
    }
    fn stop(&self) {}
}

#[test]
fn orders_and_their_exit_codes() {
    let place = Place::new();
    let well = serve(&place.state(), Arc::new(Fake::default())).unwrap();
    let done = |code: i32, out: &str, err: &str| (code, out.to_owned(), err.to_owned());
    assert_eq!(place.run("pause -m dst"), done(0, "paused\n", ""));
    assert_eq!(place.run("pause -m dst -q"), done(0, "", ""));
    assert_eq!(
        place.run("resume -m @/dst/"),
        done(2, "", "fs_mirror: it is not paused\n")
    );
    // From inside the mirror, and from inside its state.
    assert_eq!(place.run_in("dst/sub", "wait --idle"), done(0, "", ""));
    let late = done(5, "", "fs_mirror: timed out: 3 records to go\n");
    assert_eq!(
        place.run_in("dst.fs_mirror/log", "wait --idle --timeout 50ms"),
        late
    );
    let fuzzy = done(3, "", "fuzzy: a\\x1bb\n... and 1 more fuzzy\n");
    assert_eq!(place.run("wait --position 1.7 -m dst"), fuzzy);
    let nothing = done(0, "nothing is held\n", "");
    assert_eq!(place.run("release -m dst"), nothing);
    let different = done(
        3,
        "a\\x0ab: content\n",
        "9 entries compared (10 B): 1 difference\n",
    );
    assert_eq!(place.run("verify -m dst"), different);
    let repaired = done(0, "a\\x0ab: content (repaired)\n", "");
    assert_eq!(
        place.run("verify -m dst --against index --repair -q"),
        repaired
    );
    let (code, out, _) = place.run("verify -m dst --json");
    assert_eq!((code, out.lines().count()), (3, 2));
    assert!(
        out.ends_with(
            "{\"end\":{\"bytes\":10,\"different\":1,\"entries\":9,\"repaired\":0,\"unknown\":0}}\n"
        ),
        "{out}"
    );

    let (code, out, err) = place.run("status -m dst --json");
    let value: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (
            code,
            err.as_str(),
            &value["running"],
            &value["status"]["state"]["is"]
        ),
        (0, "", &true.into(), &"following".into())
    );
    let (code, out, _) = place.run("check -m dst");
    assert!(
        code == 0 && out.starts_with("FS_MIRROR OK - following, lag 0.0 s | lag=0.000s;;300 "),
        "{out}"
    );
    drop(well);

    let _ill = serve(
        &place.state(),
        Arc::new(Fake {
            failed: 2,
            hold: true,
        }),
    )
    .unwrap();
    assert_eq!(place.run("wait --idle -m dst").0, 3);
    let (code, out, err) = place.run("release -m dst");
    assert_eq!(
        (code, err.as_str()),
        (4, "fs_mirror: still on hold: --yes lets it through\n")
    );
    assert!(
        out.starts_with("on hold: very much went\n2,000 entries would go\n"),
        "{out}"
    );
    assert_eq!(place.run("release -m dst --yes").0, 0);
    let (code, out, _) = place.run("check -m dst");
    assert!(
        code == 2
            && out.starts_with("FS_MIRROR CRITICAL - on hold: very much went; 2 paths failed | "),
        "{out}"
    );
    let (code, out, _) = place.run("status -m dst");
    assert!(
        code == 0 && out.contains("\n                `fs_mirror release` shows what would go"),
        "{out}"
    );
}

#[test]
fn nothing_runs() {
    let place = Place::new();
    let (code, out, _) = place.run("status -m dst");
    assert_eq!(
        (code, out.as_str()),
        (
            0,
            "@/dst.fs_mirror: not running, and nothing is known of it yet\n"
        )
    );
    assert_eq!(
        place.run("check -m dst").1,
        "FS_MIRROR CRITICAL - not running\n"
    );
    for order in ["wait --idle", "pause", "resume", "release --yes"] {
        let (code, _, err) = place.run(&format!("{order} -m dst"));
        assert!(
            code == 1 && err.starts_with("fs_mirror: the mirror is not running"),
            "{order}: {code} {err}"
        );
    }
    let (code, _, err) = place.run("status");
    assert_eq!(
        (code, err.as_str()),
        (
            2,
            "fs_mirror: @ is not inside a mirror: go into one, or name it with -m DST\n"
        )
    );
    let (code, out, _) = place.run("check -m nowhere");
    assert!(
        code == 3 && out.starts_with("FS_MIRROR UNKNOWN - there is no mirror at nowhere"),
        "{out}"
    );

    // What was held when the process ended is released for the next one.
    let held = Fake {
        hold: true,
        ..Fake::default()
    };
    persist_status(&place.state(), &held.status()).unwrap();
    let (code, _, err) = place.run("release -m dst");
    assert_eq!(
        (code, err.as_str()),
        (
            4,
            "fs_mirror: still on hold: very much went; --yes lets it through\n"
        )
    );
    assert_eq!(place.run("release -m dst --yes").0, 0);
    assert_eq!(take_release(&place.state()).unwrap(), held.hold());
}

#[test]
fn what_can_not_be_is_refused_with_one_line() {
    let place = Place::new();
    fs::write(place.path("file"), "").unwrap();
    fs::create_dir(place.path("src/in")).unwrap();
    fs::create_dir(place.path("other")).unwrap();
    let table = [
        ("mirror @/gone @/new", 2, "SRC @/gone does not exist"),
        ("mirror @/file @/new", 2, "SRC @/file is not a directory"),
        (
            "mirror @/src @/file",
            2,
            "DST @/file is a file, not a directory",
        ),
        ("mirror @/src @/src/in/x", 2, "is inside SRC @/src"),
        ("mirror @/src @/no/such", 2, "@/no does not exist"),
        (
            "mirror @/src @/full",
            2,
            "is not empty and was never this mirror's: with --adopt",
        ),
        (
            "mirror @/src @/new --ignore a[z-a]",
            2,
            "bad ignore pattern 1 (a[z-a])",
        ),
        (
            "mirror @/src @/new --cross ../x",
            2,
            "--cross ../x is not below SRC",
        ),
        (
            "mirror @/src @/new --cross nothing",
            2,
            "--cross nothing is not a directory below SRC",
        ),
        ("mirror mirror://h @/new", 2, "mirror:// names no tree"),
        ("mirror host: @/new", 2, "host: names no directory"),
        (
            "mirror @/other @/dst",
            2,
            "@/dst is a mirror of @/src, not of @/other",
        ),
        (
            "mirror @/src @/new --state @/dst.fs_mirror",
            2,
            "is the state of the mirror @/dst, not of @/new",
        ),
    ];
    for (line, code, part) in table {
        let (got, out, err) = place.run(line);
        assert!(
            got == code && err.contains(part),
            "{line}: {got} {err}\n   instead of {code} {part}"
        );
        assert_eq!(
            (out.as_str(), err.lines().count()),
            ("", 1),
            "{line}: {err}"
        );
    }
    assert!(!place.path("new.fs_mirror").exists());

    // Names are shown escaped, also by the parser of arguments.
    let run = |args: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_fs_mirror"))
            .args(args)
            .output()
            .unwrap()
    };
    for args in [
        &["mirror", "/a\x1b[31m\n", "/tmp"][..],
        &["mirror", "--\x1b[31m"],
        &["fl\x1by\n"],
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(
            !output.stderr.contains(&0x1b),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    assert_eq!(
        run(&["--version"]).stdout,
        format!("fs_mirror {}\n", env!("CARGO_PKG_VERSION")).as_bytes()
    );
}

/// What `import` prints is a configuration that `config check` takes, whatever else was in the file.
#[test]
fn another_tool_s_file_becomes_a_configuration() {
    let place = Place::new();
    let write = |name: &str, text: &str| fs::write(place.path(name), text).unwrap();
    write(
        "rsnapshot.conf",
        "snapshot_root\t/b/\nretain\tdaily\t7\nexclude\t*.o\nbackup\t/srv/\tlocalhost/\n",
    );
    write(
        "more.conf",
        "snapshot_root\t/b/\nbackup\tu@h:/srv/\th/\nbackup_exec\tx\nfrob\u{1b}\t1\n",
    );
    write(
        "lsyncd.lua",
        "settings{ insist = true }\nsync{ default.rsync, source = '/srv', target = '/b/srv' }\n",
    );
    write(
        "loop.conf",
        "sync{default.rsyncssh, source='/srv', host='b1', targetdir='/b'}\nfor i = 1, 2 do sync{} end\n",
    );
    write("prose", "There is nothing to copy.\n");
    // (arguments, exit code, trees, lines on stderr)
    for (line, code, trees, lines) in [
        ("import rsnapshot.conf", 0, 1, 0),
        ("import more.conf", 3, 1, 3),
        ("import more.conf -q", 3, 1, 0),
        ("import more.conf --from rsnapshot", 3, 1, 3),
        ("import lsyncd.lua", 0, 1, 0),
        ("import loop.conf", 3, 1, 2),
    ] {
        let (exit, toml, said) = place.run(line);
        assert_eq!(
            (exit, said.lines().count()),
            (code, lines),
            "{line}: {said}"
        );
        assert!(
            !said.contains('\u{1b}') && !toml.contains('\u{1b}'),
            "{line}"
        );
        write("printed.toml", &toml);
        let (exit, good, _) = place.run("config check -c printed.toml --json");
        assert_eq!(exit, 0, "{line}: {toml}");
        let good: serde_json::Value = serde_json::from_str(&good).unwrap();
        assert_eq!(good["trees"], trees, "{line}: {toml}");
    }
    let (exit, json, said) = place.run("import more.conf --json");
    assert_eq!((exit, said.as_str()), (3, ""));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["not_understood"][1]["line"], 4, "{json}");
    assert_eq!(json["trees"][0]["source"], "u@h:/srv", "{json}");
    for (line, code, words) in [
        ("import prose", 2, "neither rsnapshot's nor lsyncd's"),
        ("import lsyncd.lua --from rsnapshot", 2, "no rsnapshot.conf"),
        ("import more.conf --from lsyncd", 2, "no lsyncd.conf"),
        ("import gone.conf", 1, "cannot read gone.conf: No such file"),
        ("import src", 1, "src is a directory"),
        ("import", 2, "<FILE>"),
    ] {
        let (exit, out, said) = place.run(line);
        assert_eq!((exit, out.as_str()), (code, ""), "{line}: {said}");
        assert!(said.contains(words), "{line}: {said}");
    }
}

#[test]
fn a_mirror_in_use_is_refused() {
    let place = Place::new();
    let _lock = StateLock::take(&place.state()).unwrap();
    let (code, _, err) = place.run("mirror @/src @/dst");
    let me = format!(
        "fs_mirror: @/dst.fs_mirror is in use by process {}, since 2",
        std::process::id()
    );
    assert!(code == 5 && err.starts_with(&me), "{code} {err}");
    let (code, out, _) = place.run("check -m dst");
    assert!(code == 2 && out.contains("does not answer"), "{out}");
}

#[test]
fn a_damaged_configuration_is_never_replaced() {
    let place = Place::new();
    let file = Config::path(&place.state());
    let good = fs::read_to_string(&file).unwrap();
    let damage = [
        (
            good.replace("ignore = ", "ingore = "),
            "config.toml, line 6: unknown field `ingore`",
        ),
        (
            good.replace("format = 1", "format = 9"),
            "config.toml has format 9, made by a newer version",
        ),
        (good[..good.len() / 2].to_owned(), "config.toml, line "),
        (String::new(), "config.toml, line 1: format must be there"),
    ];
    for (text, part) in damage {
        fs::write(&file, &text).unwrap();
        for line in [
            "mirror @/src @/dst",
            "config check -m dst",
            "config show -m dst",
        ] {
            let (code, _, err) = place.run(line);
            assert!(
                code == 1 && err.contains(part) && err.lines().count() == 1,
                "{line}: {code} {err}"
            );
        }
        assert_eq!(fs::read_to_string(&file).unwrap(), text);
    }
    fs::remove_file(&file).unwrap();
    let (code, _, err) = place.run("mirror @/src @/dst");
    assert!(
        code == 1 && err.contains("config.toml is missing, but the mirror was begun"),
        "{err}"
    );
}

#[test]
fn a_source_that_is_gone_is_a_hold_for_its_mirror() {
    let place = Place::new();
    fs::remove_dir(place.path("src")).unwrap();
    let (code, _, err) = place.run("mirror @/src @/dst");
    assert!(
        code == 4 && err.contains("on hold: SRC @/src does not exist; the copy stays as it is"),
        "{code} {err}"
    );
    assert_eq!(place.run("mirror @/srx @/dst").0, 2);
}

#[test]
fn settings_and_who_decides() {
    let place = Place::new();
    assert_eq!(
        place.run("config check -m dst").1,
        "@/dst.fs_mirror/config.toml is good\n"
    );
    assert_eq!(
        place.run_in("dst/sub", "config check a.log").1,
        "sub/a.log: left out by ignore line 1, *.log\n"
    );
    assert_eq!(
        place.run("config check x -m dst").1,
        "x: mirrored, no ignore line matches\n"
    );
    assert_eq!(place.run("config check /etc -m dst").0, 2);
    assert!(
        place
            .run("config show -m dst")
            .1
            .contains("\nignore = [\"*.log\"]\n")
    );
    let value: serde_json::Value =
        serde_json::from_str(&place.run("config show -m dst --json").1).unwrap();
    assert_eq!(value["owners"], "record");
}

/// Settings are saved before the engine starts; an unreachable source ends it soon after.
#[test]
fn given_settings_are_saved_and_printed_once() {
    let place = Place::new();
    fs::create_dir(place.path("side")).unwrap();
    fs::set_permissions(place.path("side"), fs::Permissions::from_mode(0o755)).unwrap();
    // A host that is no host: whatever the engine makes of it, it ends.
    let line =
        "mirror host.invalid:/p @/new --state @/side --once --owners record --remote-command false";
    let (code, _, err) = place.run(&format!("{line} --ignore *.tmp --bwlimit 10M --timeout 5s"));
    assert_ne!(code, 0);
    for said in [
        "saved: ignore = [\"*.tmp\"]\n",
        "saved: bwlimit = \"10M\"\n",
        "saved: timeout = \"5s\"\n",
    ] {
        assert!(err.contains(said), "{err}");
    }
    let (_, _, err) = place.run(line);
    assert!(!err.contains("saved:"), "{err}");
    let config = Config::load(&place.path("side")).unwrap().unwrap();
    assert_eq!(
        (config.bwlimit, config.timeout),
        (Some(10 << 20), Some(Duration::from_secs(5)))
    );
    // The state elsewhere is ours alone, and is found from DST.
    let mode = fs::metadata(place.path("side"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o700);
    assert_eq!(
        fs::read_link(place.path("new.fs_mirror")).unwrap(),
        place.path("side")
    );
    assert_eq!(place.run("config check -m new").0, 0);
    // Nothing was copied yet, so a mistyped source can be corrected.
    let (code, _, err) = place.run(&line.replace("host.invalid:/p", "other.invalid:/p"));
    assert!(code != 2, "{err}");
}

#[test]
fn a_dst_behind_a_link_is_the_directory_itself() {
    let place = Place::new();
    symlink(place.path("dst"), place.path("link")).unwrap();
    let _lock = StateLock::take(&place.state()).unwrap();
    assert_eq!(place.run("mirror @/src @/link").0, 5);
    assert_eq!(place.run("config check -m link").0, 0);
}

#[test]
fn the_second_interrupt_kills() {
    const CHILD: &str = "FS_MIRROR_TEST_CHILD";
    if env::var_os(CHILD).is_some() {
        let stop = Stop::on_signals().unwrap();
        println!("\nready");
        assert!(stop.wait(Duration::from_secs(60)));
        println!("\nstopping");
        std::thread::sleep(Duration::from_secs(60));
        return;
    }
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::TERM] {
        // A background job of a script has SIGINT ignored, and hands that down.
        let mut child = Command::new("env")
            .arg("--default-signal=INT")
            .arg(env::current_exe().unwrap())
            .args(["--exact", "the_second_interrupt_kills", "--nocapture"])
            .env(CHILD, "1")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        let mut lines = BufReader::new(child.stdout.take().unwrap())
            .lines()
            .map_while(Result::ok);
        assert!(lines.any(|line| line == "ready"));
        rustix::process::kill_process(pid, signal).unwrap();
        assert!(
            lines.any(|line| line == "stopping"),
            "{signal:?} did not stop it"
        );
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        if signal == rustix::process::Signal::INT {
            assert_eq!(child.wait().unwrap().signal(), Some(2));
        } else {
            // After SIGTERM the first SIGINT is still a polite one.
            std::thread::sleep(Duration::from_millis(100));
            assert!(child.try_wait().unwrap().is_none());
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

#[test]
fn a_restart_with_nothing_changed_writes_no_record() {
    let place = Place {
        held: tempfile::tempdir().unwrap(),
    };
    fs::create_dir_all(place.path("src/sub")).unwrap();
    for n in 0..20 {
        fs::write(place.path(&format!("src/sub/{n}")), format!("{n}")).unwrap();
    }
    let run = || {
        // Files too young to trust their times are read again.
        std::thread::sleep(Duration::from_millis(50));
        let (code, _, stderr) = place.run("mirror @/src @/dst --once -q");
        assert_eq!(code, 0, "{stderr}");
        let mut log: Vec<_> = fs::read_dir(place.path("dst.fs_mirror/log"))
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name(), entry.metadata().unwrap().len()))
            .collect();
        log.sort();
        log
    };
    run();
    // What was learned when the copy was equal for the first time is known from then on.
    let rows = mirror::index::Index::open(
        &place.path("dst.fs_mirror/index"),
        mirror::index::Options::default(),
    );
    let (rows, _) = rows.unwrap();
    let seeded = rows.meta_get(mirror::engine::applying::SEEDED_KEY);
    assert!(seeded.unwrap().is_some());
    drop(rows);
    let settled = run();
    assert_eq!(run(), settled);
}
