//! Workloads are replayable, do all they claim to do, and never get stuck racing each other.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use testkit::compare::{Class, Options, assert_equal, compare};
use testkit::workload::{Done, Params, run, start};
use testkit::{is_root, need};

struct Place {
    base: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let place = Place {
            base: tempfile::tempdir().unwrap(),
        };
        fs::create_dir(place.tree()).unwrap();
        fs::create_dir(place.outside()).unwrap();
        place
    }
    fn tree(&self) -> PathBuf {
        self.base.path().join("tree")
    }
    fn outside(&self) -> PathBuf {
        self.base.path().join("outside")
    }
    fn params(&self, seed: u64, ops: u64) -> Params {
        Params {
            seed,
            ops,
            outside: Some(self.outside()),
            ..Params::default()
        }
    }
    fn run(&self, seed: u64, ops: u64) -> Done {
        run(&self.tree(), &self.params(seed, ops)).unwrap()
    }
}

#[test]
fn the_same_seed_does_the_same() {
    let (one, two) = (Place::new(), Place::new());
    assert_eq!(one.run(5, 4000), two.run(5, 4000));
    // Only times of day differ.
    let options = Options::ignoring(&[Class::Mtime]);
    assert_equal(&one.tree(), &two.tree(), &options);
    assert_equal(&one.outside(), &two.outside(), &options);
    let other = Place::new();
    other.run(6, 4000);
    assert!(!compare(&one.tree(), &other.tree(), &options).is_empty());
}

#[test]
fn every_operation_succeeds_sometimes() {
    let place = Place::new();
    let done = place.run(1, 6000);
    println!("{done:#?}");
    assert_eq!(done.ops, 6000);
    let never: Vec<_> = done
        .by_op
        .iter()
        .filter(|(_, (_, succeeded))| *succeeded == 0)
        .collect();
    if is_root() {
        assert_eq!(never, []);
    }
    assert!(
        done.succeeded > done.ops / 2,
        "{} of {}",
        done.succeeded,
        done.ops
    );
    // Everything stayed where it belongs.
    let mut names: Vec<_> = fs::read_dir(place.base.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["outside", "tree"]);
}

#[test]
fn processes_race_and_end() {
    let place = Place::new();
    let mut churn = start(&place.tree(), &place.params(3, 3000), 2).unwrap();
    let start = Instant::now();
    while churn.is_running() {
        assert!(start.elapsed() < Duration::from_secs(30), "stuck");
        std::thread::sleep(Duration::from_millis(10));
    }
    churn.wait().unwrap();
}

#[test]
fn dropping_a_churn_ends_it() {
    let place = Place::new();
    let churn = start(
        &place.tree(),
        &Params {
            rate: Some(10.0),
            ..place.params(3, 1_000_000)
        },
        2,
    )
    .unwrap();
    let start = Instant::now();
    drop(churn);
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn works_on_what_is_there() {
    let place = Place::new();
    let made = testkit::generate::Params {
        files: 200,
        ..Default::default()
    };
    let copy = Place::new();
    for place in [&place, &copy] {
        testkit::generate::tree(&place.tree(), &made).unwrap();
    }
    let params = Params {
        existing: true,
        flags: true,
        ..place.params(9, 2000)
    };
    let done = run(&place.tree(), &params).unwrap();
    assert!(done.succeeded > 1000, "{done:?}");
    let found = compare(&copy.tree(), &place.tree(), &Options::default());
    let touched = found
        .iter()
        .filter(|difference| difference.path.starts_with("vhosts"))
        .count();
    assert!(touched >= 5, "{found:?}");
    testkit::generate::remove(&place.tree()).unwrap();
}

#[test]
fn on_other_file_systems() {
    let lab = need!(testkit::Lab::enter());
    for image in [lab.xfs(400), lab.btrfs(400), lab.tmpfs(400)] {
        let image = match image {
            Ok(image) => image,
            Err(reason) => {
                testkit::print_skip(&reason.to_string());
                continue;
            }
        };
        let (tree, outside) = (image.dir("tree").unwrap(), image.dir("outside").unwrap());
        let done = run(
            &tree,
            &Params {
                ops: 2000,
                outside: Some(outside),
                ..Params::default()
            },
        )
        .unwrap();
        assert!(done.succeeded > 900, "{}: {done:?}", image.fs().name());
    }
}

#[test]
fn the_program() {
    let place = Place::new();
    let churn = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_churn"));
        command
            .arg(place.tree())
            .arg("--outside")
            .arg(place.outside())
            .args(arguments);
        let output = command.output().unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap(),
        )
    };
    let (code, text) = churn(&["--seed", "4", "--ops", "500"]);
    assert!(
        code == Some(0) && text.starts_with("seed 4: 500 operations, "),
        "{text}"
    );
    let (code, text) = churn(&["--seed", "4", "--ops", "300", "--processes", "2"]);
    assert_eq!(
        (code, text.as_str()),
        (Some(0), "seed 4: 300 operations in each of 2 processes\n")
    );
    assert_eq!(churn(&["--sed"]).0, Some(2));
}
