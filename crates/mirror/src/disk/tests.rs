//! The contract of a [`Disk`], kept by both.

use super::*;

fn contract(disk: &dyn Disk) {
    assert!(disk.list("").unwrap().is_empty());
    assert_eq!(disk.list("d").unwrap_err().kind(), io::ErrorKind::NotFound);
    assert_eq!(
        disk.open("a").err().unwrap().kind(),
        io::ErrorKind::NotFound
    );
    assert_eq!(
        disk.create("d/a").err().unwrap().kind(),
        io::ErrorKind::NotFound
    );
    disk.make_dir("d").unwrap();
    disk.make_dir("d").unwrap();

    let file = disk.create("d/b").unwrap();
    assert_eq!(
        disk.create("d/b").err().unwrap().kind(),
        io::ErrorKind::AlreadyExists
    );
    assert!(file.is_empty().unwrap());
    file.append(b"hello ").unwrap();
    file.append(b"world").unwrap();
    file.write_at(0, b"J").unwrap();
    file.flush().unwrap();
    disk.flush_dir("d").unwrap();
    assert_eq!(file.len().unwrap(), 11);
    let mut buffer = [0; 8];
    assert_eq!(file.read_at(6, &mut buffer).unwrap(), 5);
    assert_eq!(&buffer[..5], b"world");
    assert_eq!(file.read_at(11, &mut buffer).unwrap(), 0);
    assert_eq!(file.read_at(99, &mut buffer).unwrap(), 0);
    assert_eq!(read_file(disk, "d/b", 11).unwrap(), b"Jello world");
    assert_eq!(
        read_file(disk, "d/b", 10).unwrap_err().kind(),
        io::ErrorKind::FileTooLarge
    );
    file.truncate(5).unwrap();
    file.append(b"!").unwrap();
    assert_eq!(read_file(disk, "d/b", 99).unwrap(), b"Jello!");

    disk.create("d/a").unwrap();
    disk.create("top").unwrap();
    assert_eq!(disk.list("d").unwrap(), ["a", "b"]);
    assert_eq!(disk.list("").unwrap(), ["top"]);
    disk.rename("d/b", "d/a").unwrap();
    assert_eq!(disk.list("d").unwrap(), ["a"]);
    assert_eq!(
        disk.rename("d/b", "d/a").unwrap_err().kind(),
        io::ErrorKind::NotFound
    );
    assert_eq!(read_file(disk, "d/a", 99).unwrap(), b"Jello!");
    // A removed file can be read by who has it open.
    disk.remove("d/a").unwrap();
    assert_eq!(
        disk.remove("d/a").unwrap_err().kind(),
        io::ErrorKind::NotFound
    );
    assert_eq!(file.read_at(0, &mut buffer).unwrap(), 6);

    replace_file(disk, "d/c", b"one").unwrap();
    replace_file(disk, "d/c", b"two").unwrap();
    disk.create("d/c.new").unwrap();
    replace_file(disk, "d/c", b"three").unwrap();
    assert_eq!(read_file(disk, "d/c", 99).unwrap(), b"three");
    assert_eq!(disk.list("d").unwrap(), ["c"]);
}

#[test]
fn the_real_disk_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    contract(&RealDisk::open(dir.path()).unwrap());
}

#[test]
fn the_simulated_disk_keeps_the_contract() {
    contract(&SimDisk::new());
}

#[test]
fn the_real_disk_follows_no_link() {
    let dir = tempfile::tempdir().unwrap();
    let disk = RealDisk::open(dir.path()).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link")).unwrap();
    std::os::unix::fs::symlink("/etc", dir.path().join("dir")).unwrap();
    assert!(disk.open("link").is_err());
    assert!(disk.create("link").is_err());
    assert!(disk.list("dir").is_err());
    assert_eq!(disk.list("").unwrap(), Vec::<String>::new());
}

#[test]
fn a_crash_keeps_what_was_flushed_and_tears_the_rest() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..500 {
        let disk = SimDisk::new();
        let file = disk.create("a").unwrap();
        file.append(&[1; 1000]).unwrap();
        file.flush().unwrap();
        disk.flush_dir("").unwrap();
        file.append(&[2; 2000]).unwrap();
        disk.create("b").unwrap();
        disk.crash(seed);
        assert!(
            file.len().is_err(),
            "a file opened before the crash is dead"
        );
        let bytes = read_file(&disk, "a", 9999).unwrap();
        assert_eq!(bytes.get(..1000), Some(&[1; 1000][..]), "seed {seed}");
        seen.insert((bytes.len(), bytes.contains(&0), disk.open("b").is_ok()));
    }
    assert!(seen.len() > 50, "{} outcomes", seen.len());
}

#[test]
fn a_replaced_file_is_old_or_new_whatever_crashes() {
    for seed in 0..500u64 {
        let disk = SimDisk::new();
        replace_file(&disk, "f", b"old").unwrap();
        disk.fail_after(seed % 7, Fault::Io);
        let result = replace_file(&disk, "f", b"new and longer");
        disk.crash(seed);
        let bytes = read_file(&disk, "f", 99).unwrap();
        assert!(
            bytes == b"new and longer" || (bytes == b"old" && result.is_err()),
            "seed {seed}: {bytes:?}"
        );
    }
}

#[test]
fn a_failed_flush_loses_what_it_was_to_save() {
    let disk = SimDisk::new();
    let file = disk.create("a").unwrap();
    disk.flush_dir("").unwrap();
    file.append(b"lost").unwrap();
    disk.fail_after(0, Fault::Io);
    file.flush().unwrap_err();
    disk.heal();
    file.flush().unwrap();
    assert_eq!(
        read_file(&disk, "a", 9).unwrap(),
        b"lost",
        "readers still see it"
    );
    disk.crash(1);
    assert_eq!(read_file(&disk, "a", 9).unwrap(), b"");
}
