//! Places that fit and places that do not, bind mounts included.

use super::*;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Makes directories, and files where the name ends in `.f`.
fn make(dir: &Path, names: &[&str]) {
    for name in names {
        let path = dir.join(name);
        if name.ends_with(".f") {
            fs::write(path, "x").unwrap()
        } else {
            fs::create_dir_all(path).unwrap()
        }
    }
}

fn says(dir: &Path, src: &str, dst: &str, state: Option<&str>, cross: &[&str]) -> String {
    let table = mounts::parse(&fs::read("/proc/thread-self/mountinfo").unwrap()).unwrap();
    let source = SourceSpec::Local(dir.join(src));
    let cross: Vec<PathBuf> = cross.iter().map(PathBuf::from).collect();
    let state = state.map(|s| dir.join(s));
    match check_in(&table, &source, &dir.join(dst), state.as_deref(), &cross) {
        Ok(places) => {
            let below = |p: &Path| p.strip_prefix(dir).unwrap().display().to_string();
            let link = places
                .state_link
                .map(|l| format!(" link {}", below(&l)))
                .unwrap_or_default();
            format!(
                "{} {:?} {}{link}",
                below(&places.dst),
                places.dst_holds,
                below(&places.state_dir)
            )
        }
        Err(e) => crate::cli::exit::chain(&e).replace(&show(dir), ""),
    }
}

#[test]
fn plain_directories() {
    let dir = tempfile::tempdir().unwrap();
    let dir = &fs::canonicalize(dir.path()).unwrap();
    make(
        dir,
        &[
            "src/in",
            "b/full/x",
            "b/empty",
            "file.f",
            "b/state",
            "old.fs_mirror",
        ],
    );
    std::os::unix::fs::symlink("src", dir.join("link")).unwrap();
    std::os::unix::fs::symlink("nowhere", dir.join("dangling")).unwrap();
    let long = "n".repeat(250);
    let table = [
        (("src", "b/new", None), "b/new Missing b/new.fs_mirror"),
        (("link/", "b/new/", None), "b/new Missing b/new.fs_mirror"),
        (
            ("src", "b/../b/empty", None),
            "b/empty Nothing b/empty.fs_mirror",
        ),
        (("src", "b/full", None), "b/full Something b/full.fs_mirror"),
        (
            ("src", "b/full", Some("b/state")),
            "b/full Something b/state link b/full.fs_mirror",
        ),
        (
            ("src", "b/full", Some("b/full.fs_mirror")),
            "b/full Something b/full.fs_mirror",
        ),
        (("gone", "b/new", None), "SRC /gone does not exist"),
        (("file.f", "b/new", None), "SRC /file.f is not a directory"),
        (
            ("file.f/x", "b/new", None),
            "SRC /file.f/x is not a directory",
        ),
        (
            ("src", "file.f", None),
            "DST /file.f is a file, not a directory",
        ),
        (("src", "file.f/x", None), "DST /file.f/x is below a file"),
        (
            ("src", "no/such", None),
            "DST /no/such can't be made: /no does not exist",
        ),
        (
            ("src", "dangling", None),
            "DST /dangling is a symbolic link that points nowhere",
        ),
        (
            ("src", "old.fs_mirror", None),
            "DST /old.fs_mirror is named like a state directory: leave out .fs_mirror",
        ),
        (
            ("src", "b/new", Some("file.f")),
            "the state directory /file.f is not a directory",
        ),
        (
            ("src", "src", None),
            "SRC and DST are the same directory, /src",
        ),
        (
            ("src", "link", None),
            "SRC and DST are the same directory, /src",
        ),
        (
            ("src", "b/new", Some("src")),
            "SRC and the state directory are the same directory, /src",
        ),
    ];
    for ((src, dst, state), want) in table {
        assert_eq!(says(dir, src, dst, state, &[]), want);
    }
    for (src, dst, state, part) in [
        ("src", "src/new", None, "DST /src/new is inside SRC /src"),
        (
            "src",
            "link/in/new",
            None,
            "DST /src/in/new is inside SRC /src",
        ),
        ("src/in", "src", None, "SRC /src/in is inside DST /src"),
        (
            "src",
            "b/new",
            Some("src/in"),
            "the state directory /src/in is inside SRC /src",
        ),
        ("b/state", "b/new", Some("b"), "can't be inside each other"),
        (
            "src",
            "b/full",
            Some("b/full/x"),
            "can't be inside each other",
        ),
        ("src", long.as_str(), None, "too long"),
    ] {
        let got = says(dir, src, dst, state, &[]);
        assert!(got.contains(part), "{got}\n   instead of {part}");
    }
}

#[test]
fn mounts_and_binds() {
    if !testkit::is_root() {
        testkit::skip!("mounting needs root");
    }
    // A thread with mounts of its own, which end with it.
    let run = std::thread::spawn(|| {
        // SAFETY: only this thread's own view of mounts and working directory is parted from the others'.
        if unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }.is_err() {
            return false;
        }
        mount_change(
            "/",
            MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
        )
        .unwrap();
        let held = tempfile::tempdir().unwrap();
        let dir = &fs::canonicalize(held.path()).unwrap();
        make(dir, &["src/sub/deep", "src/disk", "bind", "whole", "b"]);
        let tmpfs =
            |at: &str| mount("none", dir.join(at), "tmpfs", MountFlags::empty(), None).unwrap();
        tmpfs("src/disk");
        tmpfs("whole");
        make(dir, &["src/disk/x", "whole/live", "whole/side", "view"]);
        mount_bind(dir.join("src/sub"), dir.join("bind")).unwrap();
        mount_bind(dir.join("whole/live"), dir.join("view")).unwrap();
        for (src, dst, state, cross, part) in [
            // Another file system below SRC is not entered, unless it is crossed.
            (
                "src",
                "src/disk/new",
                None,
                &[][..],
                "src/disk/new Missing src/disk/new.fs_mirror",
            ),
            (
                "src",
                "src/disk/new",
                None,
                &["disk"][..],
                "DST /src/disk/new is inside SRC /src",
            ),
            // A bind mount shows a part of SRC under another name.
            (
                "src",
                "bind/new",
                None,
                &[],
                "DST /bind/new is inside SRC /src",
            ),
            ("src", "bind", None, &[], "DST /bind is a mount point"),
            ("bind", "src", None, &[], "SRC /bind is inside DST /src"),
            (
                "bind/deep",
                "src/sub",
                None,
                &[],
                "SRC /bind/deep is inside DST /src/sub",
            ),
            (
                "bind",
                "src/sub",
                None,
                &[],
                "SRC and DST are the same directory",
            ),
            (
                "src/disk",
                "src",
                None,
                &[],
                "SRC /src/disk is inside DST /src",
            ),
            ("bind", "b/new", None, &[], "b/new Missing b/new.fs_mirror"),
            // A mount point as DST, and the ways out.
            (
                "src",
                "whole",
                None,
                &[],
                "use a directory below it (/whole/NAME), or --state DIR",
            ),
            (
                "src",
                "whole",
                Some("whole/side"),
                &[],
                "can't be inside each other",
            ),
            (
                "src",
                "view",
                Some("whole/side"),
                &[],
                "whole/live Nothing whole/side link view.fs_mirror",
            ),
            (
                "src",
                "view",
                Some("b"),
                &[],
                "is not on the file system and mount of DST",
            ),
            (
                "src",
                "b/new",
                Some("whole/side"),
                &[],
                "is not on the file system and mount of DST",
            ),
        ] {
            let got = says(dir, src, dst, state, cross);
            assert!(got.contains(part), "{got}\n   instead of {part}");
        }
        for at in ["view", "bind", "whole", "src/disk"] {
            rustix::mount::unmount(dir.join(at), rustix::mount::UnmountFlags::DETACH).unwrap();
        }
        true
    });
    if !run.join().unwrap() {
        testkit::skip!("mounting is not allowed here");
    }
}

#[test]
fn nothing_inside_another_mirror() {
    let dir = tempfile::tempdir().unwrap();
    let dir = &fs::canonicalize(dir.path()).unwrap();
    make(dir, &["src", "d", "d.fs_mirror/adopted"]);
    for file in ["d.fs_mirror/config.toml", "d.fs_mirror/lock"] {
        fs::write(dir.join(file), "").unwrap();
    }
    let says = |dst, state| says(dir, "src", dst, state, &[]);
    let beside = "another mirror, /d: name a place beside it";
    let beside_state = "another mirror, /d.fs_mirror: name a place beside it";
    assert_eq!(
        says("d/in", None),
        format!("DST /d/in is inside the copy of {beside}")
    );
    assert_eq!(
        says("d.fs_mirror/adopted/x", None),
        format!("DST /d.fs_mirror/adopted/x is inside the state of {beside_state}")
    );
    assert_eq!(
        says("d2", Some("d/st")),
        format!("the state directory /d/st is inside the copy of {beside}")
    );
    assert_eq!(says("d", None), "d Nothing d.fs_mirror");
    assert_eq!(says("d2", None), "d2 Missing d2.fs_mirror");
}
