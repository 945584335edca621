//! The generator makes the same tree from the same seed, with everything in it that a tree can hold.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use testkit::compare::{Class, Options, assert_equal, compare};
use testkit::generate::{Made, Params, remove, tree};
use testkit::{Lab, is_root, need};

fn made(dir: &Path, params: &Params) -> Made {
    tree(dir, params).unwrap()
}

/// Both trees hold the same, and are removed.
fn same_twice(base: &Path, params: &Params) -> Made {
    let (one, two) = (base.join("one"), base.join("two"));
    let first = made(&one, params);
    assert_eq!(first, made(&two, params));
    assert_equal(&one, &two, &Options::default());
    remove(&one).unwrap();
    remove(&two).unwrap();
    assert!(!one.exists());
    first
}

#[test]
fn same_seed_same_tree() {
    let base = tempfile::tempdir().unwrap();
    let made = same_twice(
        base.path(),
        &Params {
            files: 1200,
            seed: 7,
            ..Params::default()
        },
    );
    assert!(
        made.files > 1200 && made.dirs > 400 && made.symlinks > 12 && made.links > 8,
        "{made:?}"
    );
    if is_root() {
        assert_eq!(made.skipped, BTreeSet::new(), "{made:?}");
    }
}

#[test]
fn another_seed_another_tree() {
    let base = tempfile::tempdir().unwrap();
    let (one, two) = (base.path().join("one"), base.path().join("two"));
    made(
        &one,
        &Params {
            files: 100,
            seed: 1,
            ..Params::default()
        },
    );
    made(
        &two,
        &Params {
            files: 100,
            seed: 2,
            ..Params::default()
        },
    );
    assert!(compare(&one, &two, &Options::default()).len() > 100);
}

#[test]
fn a_plain_tree_is_plain() {
    let base = tempfile::tempdir().unwrap();
    let made = same_twice(
        base.path(),
        &Params {
            files: 600,
            plain: true,
            ..Params::default()
        },
    );
    assert_eq!(
        (
            made.files,
            made.symlinks,
            made.links,
            made.specials,
            made.xattrs
        ),
        (600, 0, 0, 0, 0)
    );
    assert_eq!(made.skipped, BTreeSet::new());
}

#[test]
fn a_small_tree_has_the_whole_zoo() {
    let base = tempfile::tempdir().unwrap();
    let dir = base.path().join("tree");
    let made = made(
        &dir,
        &Params {
            files: 10,
            ..Params::default()
        },
    );
    assert!(made.links >= 3 && made.specials >= 3, "{made:?}");
    for name in [
        "names",
        "contents",
        "links",
        "symlinks",
        "specials",
        "modes",
        "attributes",
        "times",
        "long",
        "deep",
    ] {
        assert!(dir.join("zoo").join(name).exists(), "{name}");
    }
    // Everything in it is seen by the comparison: against an emptied zoo each name is a difference.
    let other = base.path().join("other");
    fs::create_dir_all(other.join("zoo/names")).unwrap();
    let found = compare(
        &dir.join("zoo/names"),
        &other.join("zoo/names"),
        &Options::default(),
    );
    assert_eq!(
        found.iter().filter(|d| d.class == Class::Missing).count(),
        39
    );
}

#[test]
fn locked_specimens_can_be_removed() {
    if !is_root() {
        testkit::skip!("needs root (immutable files)");
    }
    let base = tempfile::tempdir().unwrap();
    let made = same_twice(
        base.path(),
        &Params {
            files: 10,
            locked: true,
            ..Params::default()
        },
    );
    assert_eq!(made.skipped, BTreeSet::new());
}

#[test]
fn on_other_file_systems() {
    let lab = need!(Lab::enter());
    for image in [lab.xfs(300), lab.btrfs(300), lab.tmpfs(300)] {
        let image = match image {
            Ok(image) => image,
            Err(reason) => {
                testkit::print_skip(&reason.to_string());
                continue;
            }
        };
        let made = same_twice(
            &image.path(),
            &Params {
                files: 300,
                ..Params::default()
            },
        );
        println!("{}: {:?}", image.fs().name(), made.skipped);
    }
}

#[test]
fn the_program() {
    let base = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_gentree"))
            .args(arguments)
            .output()
            .unwrap()
    };
    let dir = base.path().join("tree");
    let output = run(&[
        dir.to_str().unwrap(),
        "--files",
        "50",
        "--seed",
        "3",
        "--plain",
    ]);
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("seed 3: 50 files, "));
    assert_eq!(run(&["--files"]).status.code(), Some(2));
    assert_eq!(run(&["/proc/nowhere"]).status.code(), Some(1));
}
