//! The threads that take a worker's word are behind walls that hold.

use std::fs;

use crate::ssh_support::*;
#[cfg(feature = "planted")]
use crate::trial::Canary;

#[test]
fn the_threads_that_take_its_word_are_behind_walls_and_a_person_can_see_which() {
    let bed = Bed::new();
    bed.populate(30, 1);
    let follower = bed.mirror(&[]);
    bed.equal();
    let (_, status) = bed.command(&["status", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let confinement = &status["status"]["confinement"];
    let named = |what: &str| {
        confinement["holds"]
            .as_array()
            .unwrap()
            .iter()
            .any(|wall| wall == what)
            || confinement["lacks"].get(what).is_some()
    };
    for wall in ["capabilities", "landlock", "no_new_privileges", "seccomp"] {
        assert!(named(wall), "{wall}: {confinement}");
    }
    // As the kernel has it, thread by thread.
    let tasks = format!("/proc/{}/task", follower.pid());
    let mut seen = Vec::new();
    for task in fs::read_dir(tasks).unwrap().flatten() {
        let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let field = |field: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(field));
            line.unwrap_or_default().trim().to_owned()
        };
        let effective = u64::from_str_radix(&field("CapEff:"), 16).unwrap_or(0);
        let walled = ["receive", "apply", "beat", "watchdog"].contains(&name.trim());
        if walled {
            assert_eq!(
                (field("NoNewPrivs:"), field("Seccomp:")),
                ("1".into(), "2".into()),
                "{name}"
            );
            // CHOWN .. FSETID, LINUX_IMMUTABLE, SYS_ADMIN, MKNOD, SETFCAP: nothing else.
            let most = 0b1_1111 | 1 << 9 | 1 << 21 | 1 << 27 | 1 << 31;
            assert_eq!(effective & !most, 0, "{name} {effective:x}");
            seen.push(name.trim().to_owned());
        } else if ["dial", "control"].contains(&name.trim()) {
            // They start programs and open what comes and goes.
            assert_eq!(field("Seccomp:"), "0", "{name}");
        }
    }
    for name in ["receive", "apply"] {
        assert!(seen.iter().any(|s| s == name), "{seen:?}");
    }
    stop(follower);
}

/// What is behind the walls tries all it can.
#[cfg(feature = "planted")]
#[test]
fn planted_attempts_to_escape_all_fail() {
    if !testkit::is_root() {
        return println!("skipped: not root");
    }
    let mut bed = Bed::new();
    bed.populate(30, 1);
    let canary = Canary::new();
    bed.more_env.push(("FS_MIRROR_ESCAPE", canary.path("")));
    let (code, said) = bed.mirror_once(&[]);
    assert_eq!(code, 0, "{said}");
    let tried: Vec<&str> = said
        .lines()
        .filter(|line| line.starts_with("escape: "))
        .collect();
    for who in ["Receive", "Apply"] {
        let of = tried
            .iter()
            .filter(|line| line.contains(&format!(" {who}: ")));
        assert!(of.count() >= 18, "{said}");
    }
    let done: Vec<_> = tried.iter().filter(|line| line.ends_with("DONE")).collect();
    assert!(done.is_empty(), "{done:?}");
    canary.is_untouched();
    bed.equal();
}
