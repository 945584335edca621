//! The lab gives what it promises, and leaves nothing behind.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use testkit::lab::{ImageOptions, QueueLimit, in_private_namespace};
use testkit::proc::wait_until;
use testkit::{Fs, Lab, is_root, need};

fn mounts() -> String {
    fs::read_to_string("/proc/thread-self/mountinfo").unwrap()
}

/// Files behind all loop devices: those of our images say `(deleted)` or lie in a lab.
fn loops_of(base: &str) -> usize {
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let files = devices
        .filter_map(|device| fs::read_to_string(device.path().join("loop/backing_file")).ok());
    files.filter(|file| file.contains(base)).count()
}

#[test]
fn images_of_every_kind() {
    let lab = need!(Lab::enter());
    for fs in [Fs::Ext4, Fs::Xfs, Fs::Btrfs, Fs::Tmpfs] {
        let mut image = match lab.image(fs, 32) {
            Ok(image) => image,
            Err(reason) => {
                testkit::print_skip(&reason.to_string());
                continue;
            }
        };
        let (path, base) = (image.path(), image.path().parent().unwrap().to_owned());
        let line = mounts()
            .lines()
            .find(|line| line.contains(path.to_str().unwrap()))
            .unwrap()
            .to_owned();
        assert!(line.contains(&format!(" - {} ", fs.name())), "{line}");
        assert_eq!(
            fs::read_dir(&path).unwrap().count(),
            0,
            "a new file system is empty"
        );
        fs::write(path.join("file"), "kept").unwrap();
        image.unmount().unwrap();
        assert!(!path.join("file").exists());
        assert_eq!(image.check().unwrap(), None);
        image.mount().unwrap();
        if fs != Fs::Tmpfs {
            assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "kept");
        }
        image.remount(true).unwrap();
        assert!(fs::write(path.join("other"), "").is_err());
        drop(image);
        assert!(
            !base.exists() && !mounts().contains(base.to_str().unwrap()),
            "{}",
            mounts()
        );
        assert_eq!(loops_of(base.to_str().unwrap()), 0);
    }
}

#[test]
fn a_panic_leaves_nothing() {
    let lab = need!(Lab::enter());
    let mut base = PathBuf::new();
    let result = catch_unwind(AssertUnwindSafe(|| {
        let image = lab.ext4(16).unwrap_or_else(|reason| panic!("{reason}"));
        base = image.path().parent().unwrap().to_owned();
        assert_eq!(loops_of(base.to_str().unwrap()), 1);
        panic!("on purpose");
    }));
    assert!(result.is_err() && !base.exists());
    assert!(!mounts().contains("testkit-lab-"), "{}", mounts());
    assert_eq!(loops_of(base.to_str().unwrap()), 0);
}

#[test]
fn nobody_else_sees_the_mounts() {
    let lab = need!(Lab::enter());
    let image = need!(lab.tmpfs(1));
    fs::write(image.path().join("secret"), "").unwrap();
    let path = image.path().join("secret");
    let elsewhere = fs::read_to_string("/proc/1/mountinfo").unwrap_or_default();
    assert!(!elsewhere.contains("testkit-lab-"));
    // What this thread starts sees them.
    assert!(
        Command::new("test")
            .arg("-e")
            .arg(&path)
            .status()
            .unwrap()
            .success()
    );
    assert!(std::thread::spawn(move || path.exists()).join().unwrap());
}

#[test]
fn power_cut_loses_what_was_not_flushed() {
    let lab = need!(Lab::enter());
    for image in [lab.ext4(32), lab.xfs(300)] {
        let mut image = need!(image);
        let path = image.path();
        let flushed = fs::File::create(path.join("flushed")).unwrap();
        flushed.sync_all().unwrap();
        fs::File::open(&path).unwrap().sync_all().unwrap();
        fs::write(path.join("lost"), "x").unwrap();
        image.power_cut().unwrap();
        assert!(fs::write(path.join("more"), "x").is_err());
        drop(flushed);
        // A program that another test of this process starts holds our descriptors, until it is a program.
        let freed = wait_until("nothing is open there", Duration::from_secs(10), || {
            image.unmount().is_ok()
        });
        freed.unwrap();
        image.mount().unwrap();
        assert!(
            path.join("flushed").exists() && !path.join("lost").exists(),
            "{}",
            image.fs().name()
        );
    }
}

#[test]
fn a_medium_that_fails() {
    use std::io::Write;
    let lab = need!(Lab::enter());
    let options = ImageOptions {
        size_mb: 64,
        backing_mb: Some(20),
        ..ImageOptions::default()
    };
    let image = need!(lab.image_with(Fs::Ext4, &options));
    let mut file = fs::File::create(image.path().join("file")).unwrap();
    let written = (0..40).try_for_each(|_| file.write_all(&[1; 1 << 20]));
    assert!(written.is_err() || file.sync_all().is_err());
}

#[test]
fn the_queue_limit_comes_back() {
    const LIMIT: &str = "/proc/sys/fs/fanotify/max_queued_events";
    let guard = need!(QueueLimit::set(40));
    assert_eq!(fs::read_to_string(LIMIT).unwrap().trim(), "40");
    drop(guard);
    assert_ne!(fs::read_to_string(LIMIT).unwrap().trim(), "40");
}

#[test]
fn a_large_file_system_in_memory() {
    let lab = need!(Lab::enter());
    let image = need!(lab.ram(2));
    let space = rustix::fs::statvfs(image.path()).unwrap();
    assert!(space.f_files >= 1_500_000, "{}", space.f_files);
}

#[test]
fn a_process_of_its_own() {
    let mut inside = false;
    in_private_namespace("a_process_of_its_own", |lab| {
        inside = true;
        let image = need!(lab.tmpfs(1));
        // The whole process has the namespace, so the usual file shows it.
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(mounts.contains(image.path().to_str().unwrap()));
    });
    assert_eq!(inside, std::env::var_os("TESTKIT_IN_NAMESPACE").is_some());
}

#[test]
fn its_failure_is_ours() {
    if !is_root() {
        testkit::skip!("needs root (a mount namespace)");
    }
    let inside = std::env::var_os("TESTKIT_IN_NAMESPACE").is_some();
    let result =
        catch_unwind(|| in_private_namespace("its_failure_is_ours", |_| panic!("on purpose")));
    // In the inner process the panic must reach the harness.
    if inside {
        result.unwrap();
    } else {
        assert!(result.is_err());
    }
}

#[test]
fn hosts_reach_each_other_until_they_are_cut_off() {
    in_private_namespace("hosts_reach_each_other_until_they_are_cut_off", |lab| {
        let net = need!(lab.net());
        let (a, b) = (need!(net.host("lab-a")), need!(net.host("lab-b")));
        // One connection, made at b, to a program at a that says its name and ends.
        let reaches = || {
            let serve = "import socket,sys\ns=socket.create_server(('0.0.0.0',7001))\nprint('ready',flush=True)\n\
                         c,_=s.accept()\nc.sendall(socket.gethostname().encode())\nc.close()";
            let mut server =
                testkit::proc::Program::start(a.command("python3").args(["-c", serve])).unwrap();
            server
                .wait_stdout("ready", Duration::from_secs(20))
                .unwrap();
            let ask = format!(
                "import socket\ns=socket.create_connection(('{}',7001),timeout=1)\nprint(s.recv(99).decode())",
                a.address
            );
            let said = b.command("python3").args(["-c", &ask]).output().unwrap();
            said.status.success() && said.stdout == b"lab-a\n"
        };
        assert!(reaches());
        for part in [
            &(|| net.plugged(&a, false)) as &dyn Fn() -> _,
            &|| net.deaf(&a),
            &|| net.lossy(&a, 100),
            &|| net.refuses(&a),
        ] {
            part().unwrap();
            assert!(!reaches());
            net.healed(&a).unwrap();
            assert!(reaches());
        }
        net.rate(&a, Some("8mbit")).unwrap();
        assert!(reaches());
    });
}
