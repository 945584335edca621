//! Snapshots of links beside the copy (rsnapshot's `hourly.1`, `cp -al`) stay as they are, whatever run changes the copy.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{DEADLINE, Mirror, fs_mirror, mirror_arguments, run_command};
use testkit::compare;
use testkit::compare::Options;
use testkit::proc::wait_until;

struct Place {
    base: tempfile::TempDir,
}

impl Place {
    /// A source, and rsnapshot's two newest copies of it.
    fn new() -> Place {
        let place = Place {
            base: tempfile::tempdir().unwrap(),
        };
        fs::create_dir_all(place.at("s/dir")).unwrap();
        for n in 1..=6 {
            fs::write(place.at(&format!("s/f{n}")), n.to_string()).unwrap();
            fs::write(place.at(&format!("s/dir/f{n}")), n.to_string()).unwrap();
        }
        fs::hard_link(place.at("s/f1"), place.at("s/dir/link")).unwrap();
        fs::create_dir(place.at("snap")).unwrap();
        place.cp("-a", "s", "snap/hourly.1");
        place.cp("-al", "snap/hourly.1", "snap/hourly.0");
        place.cp("-a", "s", "truth");
        place
    }
    fn at(&self, below: &str) -> PathBuf {
        self.base.path().join(below)
    }
    fn cp(&self, how: &str, from: &str, to: &str) {
        let mut cp = Command::new("cp");
        let copied = cp.arg(how).arg(self.at(from)).arg(self.at(to)).status();
        assert!(copied.unwrap().success());
    }
    fn chmod(&self, name: &str, mode: u32) {
        fs::set_permissions(self.at(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    #[track_caller]
    fn once(&self, more: &[&str]) {
        let mut all = vec!["--once"];
        all.extend(more);
        let arguments = mirror_arguments(&self.at("s"), &self.at("snap/hourly.0"), &all);
        let ran = run_command(&mut fs_mirror(arguments));
        assert_eq!(ran.code, 0, "{ran:?}");
        same(&self.at("s"), &self.at("snap/hourly.0"));
    }
    #[track_caller]
    fn untouched(&self, snapshot: &str, truth: &str) {
        same(&self.at(truth), &self.at(snapshot));
    }
}

#[track_caller]
fn same(a: &Path, b: &Path) {
    let found = compare(a, b, &Options::default());
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn a_second_run_on_an_adopted_copy() {
    let place = Place::new();
    place.once(&["--adopt"]);
    place.untouched("snap/hourly.1", "truth");
    place.chmod("s/f6", 0o611);
    place.chmod("s/dir/f5", 0o600);
    place.chmod("s/f1", 0o640);
    place.once(&[]);
    place.untouched("snap/hourly.1", "truth");
    // And one more after a snapshot of the copy itself.
    place.cp("-al", "snap/hourly.0", "snap/hourly.2");
    place.cp("-a", "s", "truth.2");
    place.chmod("s/f2", 0o600);
    fs::write(place.at("s/f3"), "another").unwrap();
    place.once(&[]);
    place.untouched("snap/hourly.2", "truth.2");
    place.untouched("snap/hourly.1", "truth");
}

#[test]
fn the_first_batch_after_a_kill() {
    let place = Place::new();
    place.once(&["--adopt"]);
    let (src, dst) = (place.at("s"), place.at("snap/hourly.0"));
    let mut mirror = Mirror::start(&src, &dst);
    mirror.equal_once();
    fs::hard_link(place.at("s/f2"), place.at("s/dir/second")).unwrap();
    fs::write(place.at("s/new"), "new").unwrap();
    place.chmod("s/f3", 0o640);
    wait_until("the copy has it", DEADLINE, || {
        let mode = fs::metadata(dst.join("f3")).unwrap().permissions().mode();
        dst.join("new").exists() && dst.join("dir/second").exists() && mode & 0o777 == 0o640
    })
    .unwrap();
    // Killed with SIGKILL.
    drop(mirror);
    place.cp("-al", "snap/hourly.0", "snap/hourly.2");
    place.cp("-a", "snap/hourly.0", "truth.2");
    for name in ["s/f1", "s/f2", "s/f3", "s/f4", "s/new", "s/dir/f6"] {
        place.chmod(name, 0o611);
    }
    place.once(&[]);
    place.untouched("snap/hourly.2", "truth.2");
    place.untouched("snap/hourly.1", "truth");
}
