//! What happens to contents: cases 23 to 34 of the list that every version must pass, against the real kernel.

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FallocateFlags, Timespec, Timestamps};
use testkit::Fs;
use testkit::lab;
use testkit::rng::Rng;

use common::cases::{Case, Ctx, run_cases};
use common::raw::{self, Map};

const CASES: &[Case] = &[
    case!(case_23_large_write_while_copying),
    case!(case_24_append_every_ms),
    case!(case_25_mmap_store_then_unmap),
    case!(case_26_mmap_held),
    case!(case_27_libaio),
    case!(case_28_io_uring),
    case!(case_29_truncate_and_fallocate),
    case!(case_30_clone_dedupe_copy_range),
    case!(case_31_same_size_and_old_mtime),
    case!(case_32_writes_close_to_the_look),
    case!(case_33_loop_file),
    case!(case_34_nobody_is_disturbed),
];

#[test]
fn contents_on_ext4() {
    lab::in_private_namespace("contents_on_ext4", |lab| {
        run_cases(lab, Fs::Ext4, 800, CASES)
    });
}
#[test]
fn contents_on_xfs() {
    lab::in_private_namespace("contents_on_xfs", |lab| run_cases(lab, Fs::Xfs, 800, CASES));
}
#[test]
fn contents_on_btrfs() {
    lab::in_private_namespace("contents_on_btrfs", |lab| {
        run_cases(lab, Fs::Btrfs, 1200, CASES)
    });
}

fn open(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap()
}

/// Bytes that compress badly, so that every layer has to carry them.
fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    Rng::new(seed).fill(&mut bytes);
    bytes
}

fn old_time(path: &Path) {
    let time = Timespec {
        tv_sec: 1_111_111_111,
        tv_nsec: 222_222_222,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::empty()).unwrap();
}

fn case_23_large_write_while_copying(ctx: &mut Ctx<'_>) {
    const SIZE: usize = 64 << 20;
    let path = ctx.path("large");
    fs::write(&path, bytes(1, SIZE)).unwrap();
    let file = open(&path);
    // The first write is being copied while the second one, in one call, changes every byte.
    let second = bytes(2, SIZE);
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(file.write_at(&second, 0).unwrap(), SIZE);
    drop(file);
    ctx.settle();
    // And one that is still open when all must be equal.
    let file = open(&path);
    file.write_all_at(&bytes(3, 8 << 20), 5 << 20).unwrap();
    ctx.settle();
    drop(file);
    fs::remove_file(&path).unwrap();
}

fn case_24_append_every_ms(ctx: &mut Ctx<'_>) {
    let path = ctx.path("log");
    let copy = ctx.copy.join("log");
    let mut file = OpenOptions::new()
        .append(true)
        .create(true)
        .open(&path)
        .unwrap();
    let size = |path: &Path| fs::metadata(path).map_or(0, |meta| meta.len());
    let start = Instant::now();
    // When the copy last got as far as this.
    let mut history: Vec<(Instant, u64)> = Vec::new();
    let mut worst = Duration::ZERO;
    let mut first = true;
    while start.elapsed() < Duration::from_secs(4) {
        file.write_all(b"a line of a log that never pauses\n")
            .unwrap();
        history.push((Instant::now(), size(&path)));
        let have = size(&copy);
        first &= have == 0;
        while let Some((when, wrote)) = history.first().copied()
            && wrote <= have
        {
            worst = worst.max(when.elapsed());
            history.remove(0);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let oldest = history
        .first()
        .map_or(Duration::ZERO, |(when, _)| when.elapsed());
    println!("longest lag {worst:?}, at the end {oldest:?}");
    assert!(!first, "nothing of it came while it was being written");
    // A second and a look are promised; the machine may be busy.
    assert!(
        worst.max(oldest) < Duration::from_millis(3500),
        "lag {worst:?}, {oldest:?}"
    );
    ctx.settle();
    drop(file);
}

fn case_25_mmap_store_then_unmap(ctx: &mut Ctx<'_>) {
    for round in 0..8u8 {
        let name = format!("f{round}");
        ctx.write(&name, vec![b'a'; 20_000]);
        ctx.settle();
        let file = open(&ctx.path(&name));
        let map = Map::new(&file, 20_000).unwrap();
        map.store(0, b"first store dirties the page");
        if round % 2 == 0 {
            // Looked at now or not: the page is dirty already, so the next store shows nowhere.
            ctx.mirror.wait_idle();
        }
        let before = fs::metadata(ctx.path(&name)).unwrap();
        map.store(5000, &[b'b', round]);
        map.store(100, b"a store that moves no time");
        if round % 4 >= 2 {
            drop(file);
            drop(map);
        } else {
            drop(map);
            drop(file);
        }
        let after = fs::metadata(ctx.path(&name)).unwrap();
        println!("ctime moved: {}", before.ctime_nsec() != after.ctime_nsec());
        ctx.settle();
    }
}

fn case_26_mmap_held(ctx: &mut Ctx<'_>) {
    ctx.write("held", vec![b'a'; 50_000]);
    ctx.write("also held", vec![b'a'; 50_000]);
    ctx.settle();
    let map = Map::new(&open(&ctx.path("held")), 50_000).unwrap();
    let other = Map::new(&open(&ctx.path("also held")), 50_000).unwrap();
    map.store(10, b"one");
    other.store(10, b"one");
    // Nobody tells of the first store through a mapping of a file that nobody watched: its ctime does, when looked at.
    for name in ["held", "also held"] {
        fs::set_permissions(
            ctx.path(name),
            std::os::unix::fs::PermissionsExt::from_mode(0o600),
        )
        .unwrap();
    }
    for round in 0..10u32 {
        map.store(1000 * round as usize, &round.to_le_bytes());
        ctx.settle();
        std::thread::sleep(Duration::from_millis(u64::from(round) * 40));
        map.store(1000 * round as usize + 7, &round.to_le_bytes());
    }
    // Without being asked it finds out by itself, at growing intervals.
    other.store(30_000, b"found by itself");
    let deadline = Instant::now() + common::DEADLINE;
    while fs::read(ctx.path("also held")).unwrap() != fs::read(ctx.copy.join("also held")).unwrap()
    {
        assert!(
            Instant::now() < deadline,
            "a store through a held mapping was never found"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    drop((map, other));
}

fn direct(path: &Path) -> std::io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
}

fn case_27_libaio(ctx: &mut Ctx<'_>) {
    let page = Box::new(raw::Page([b'd'; 4096]));
    for (name, wants_direct) in [("buffered", false), ("direct", true)] {
        ctx.write(name, vec![b'a'; 16_384]);
        ctx.settle();
        let file = if wants_direct {
            direct(&ctx.path(name))
        } else {
            Ok(open(&ctx.path(name)))
        };
        let file = match file {
            Ok(file) => file,
            Err(e) => return ctx.skip(&format!("no O_DIRECT: {e}")),
        };
        if let Err(e) = raw::aio_write(&file, &page.0, 4096) {
            return ctx.skip(&format!("no libaio: {e}"));
        }
        drop(file);
        ctx.settle();
        // Born with its writer: looked at while open, so what no event tells is found.
        let born = ctx.path(&format!("born {name}"));
        let mut create = OpenOptions::new();
        create.read(true).write(true).create(true);
        if wants_direct {
            create.custom_flags(libc::O_DIRECT);
        }
        let file = create.open(&born).unwrap();
        for round in 0..3u64 {
            raw::aio_write(&file, &page.0, 4096 * round).unwrap();
            ctx.settle();
        }
        drop(file);
    }
}

fn case_28_io_uring(ctx: &mut Ctx<'_>) {
    ctx.write("ring", vec![b'a'; 16_384]);
    ctx.settle();
    let page = Box::new(raw::Page([b'u'; 4096]));
    let file = open(&ctx.path("ring"));
    if let Err(e) = raw::uring_write(&file, &page.0, 4096) {
        return ctx.skip(&format!("no io_uring: {e}"));
    }
    ctx.settle();
    let direct = direct(&ctx.path("ring")).unwrap();
    raw::uring_write(&direct, &page.0, 8192).unwrap();
    ctx.settle();
    drop((file, direct));
}

fn case_29_truncate_and_fallocate(ctx: &mut Ctx<'_>) {
    let path = ctx.path("f");
    fs::write(&path, bytes(29, 200_000)).unwrap();
    ctx.settle();
    let truncate = |size: u64| {
        // By path: nothing is ever closed.
        let path = raw::cstring(&path);
        assert_eq!(
            // SAFETY: a C string.
            unsafe { libc::truncate(path.as_ptr(), size as libc::off_t) },
            0
        );
    };
    for size in [150_000, 300_000, 300_000, 0, 70_000] {
        truncate(size);
        ctx.settle();
    }
    fs::write(&path, bytes(30, 200_000)).unwrap();
    let file = open(&path);
    let steps = [
        (
            FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE,
            8192,
            40_960,
        ),
        (FallocateFlags::COLLAPSE_RANGE, 4096, 8192),
        (FallocateFlags::INSERT_RANGE, 16_384, 12_288),
        (FallocateFlags::ZERO_RANGE, 65_536, 10_000),
        (FallocateFlags::KEEP_SIZE, 400_000, 50_000),
        (FallocateFlags::empty(), 250_000, 100_000),
    ];
    // Blocks that hold nothing and lie beyond the end are no part of a file.
    for (flags, offset, length) in steps {
        match rustix::fs::fallocate(&file, flags, offset, length) {
            Ok(()) => ctx.settle(),
            Err(e) => println!("{flags:?}: {e}"),
        }
    }
    drop(file);
    // A file of holes: only its data is copied.
    let sparse = File::create(ctx.path("sparse")).unwrap();
    sparse.set_len(1 << 40).unwrap();
    sparse.write_all_at(b"an island", 5 << 30).unwrap();
    drop(sparse);
}

fn case_30_clone_dedupe_copy_range(ctx: &mut Ctx<'_>) {
    ctx.write("from", bytes(31, 100_000));
    ctx.write("to", bytes(32, 50_000));
    ctx.write("same", bytes(31, 100_000));
    ctx.settle();
    let (from, to, same) = (
        open(&ctx.path("from")),
        open(&ctx.path("to")),
        open(&ctx.path("same")),
    );
    rustix::fs::copy_file_range(&from, Some(&mut 1000), &to, Some(&mut 20_000), 60_000).unwrap();
    ctx.settle();
    match rustix::fs::ioctl_ficlone(&to, &from) {
        Ok(()) => ctx.settle(),
        Err(e) => ctx.skip(&format!("no clones: {e}")),
    }
    match raw::dedupe(&from, &same, 65_536) {
        Ok(()) => ctx.settle(),
        Err(e) => ctx.skip(&format!("no dedupe: {e}")),
    }
}

fn case_31_same_size_and_old_mtime(ctx: &mut Ctx<'_>) {
    ctx.write("f", "content 00");
    old_time(&ctx.path("f"));
    ctx.settle();
    for round in 1..20 {
        let file = open(&ctx.path("f"));
        file.write_all_at(format!("content {round:02}").as_bytes(), 0)
            .unwrap();
        drop(file);
        old_time(&ctx.path("f"));
        if round % 3 == 0 {
            ctx.settle();
        }
    }
}

fn case_32_writes_close_to_the_look(ctx: &mut Ctx<'_>) {
    let mut rng = Rng::new(32);
    let file = File::create(ctx.path("f")).unwrap();
    for round in 0..400u32 {
        file.write_all_at(&round.to_le_bytes(), 0).unwrap();
        ctx.write("closed each time", round.to_le_bytes());
        std::thread::sleep(Duration::from_micros(rng.below(6000)));
    }
    ctx.settle();
    for round in 0..20u32 {
        ctx.write("closed each time", round.to_le_bytes());
        ctx.settle();
    }
    drop(file);
}

fn case_33_loop_file(ctx: &mut Ctx<'_>) {
    let path = ctx.path("image");
    File::create(&path).unwrap().set_len(4 << 20).unwrap();
    ctx.settle();
    let attached = Command::new("losetup")
        .args(["--find", "--show"])
        .arg(&path)
        .output();
    let device = match attached {
        Ok(output) if output.status.success() => String::from_utf8(output.stdout).unwrap(),
        Ok(output) => {
            return ctx.skip(&format!(
                "losetup: {}",
                String::from_utf8_lossy(&output.stderr)
            ));
        }
        Err(e) => return ctx.skip(&format!("losetup: {e}")),
    };
    let device = device.trim().to_owned();
    struct Detach(String);
    impl Drop for Detach {
        fn drop(&mut self) {
            let _ = Command::new("losetup").args(["--detach", &self.0]).output();
        }
    }
    let detach = Detach(device.clone());
    let block = match OpenOptions::new().write(true).open(&device) {
        Ok(block) => block,
        Err(e) => return ctx.skip(&format!("{device}: {e}")),
    };
    block.write_all_at(&bytes(33, 100_000), 1 << 20).unwrap();
    block.sync_all().unwrap();
    drop((block, detach));
    // Udev-like programs may still hold the device for a moment: only then is the file closed.
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let list = Command::new("losetup")
            .arg("--associated")
            .arg(&path)
            .output()
            .unwrap();
        if list.stdout.is_empty() || Instant::now() > deadline {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn case_34_nobody_is_disturbed(ctx: &mut Ctx<'_>) {
    // Times of access of long ago: one read without care would set them, with relatime too.
    ctx.mkdir("d");
    for number in 0..20 {
        ctx.write(&format!("d/f{number}"), bytes(number, 20_000));
        old_time(&ctx.path(&format!("d/f{number}")));
    }
    std::os::unix::fs::symlink("target", ctx.path("d/link")).unwrap();
    old_time(&ctx.path("d"));
    let atimes = |ctx: &Ctx<'_>| -> Vec<(i64, i64)> {
        let mut names: Vec<String> = (0..20).map(|number| format!("d/f{number}")).collect();
        names.extend(["d".into(), "d/link".into()]);
        names
            .iter()
            .map(|name| fs::symlink_metadata(ctx.path(name)).unwrap())
            .map(|meta| (meta.atime(), meta.atime_nsec()))
            .collect()
    };
    let before = atimes(ctx);
    let ran = ctx.mirror.wait_idle();
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(before, atimes(ctx), "times of access changed");

    // Writers that would rather fail than wait, while the mirror reads what they write.
    let path = ctx.path("contended");
    fs::write(&path, bytes(1, 300_000)).unwrap();
    let stop = AtomicBool::new(false);
    let (opens, refused, slowest) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let (mut opens, mut refused, mut slowest) = (0u32, 0u32, Duration::ZERO);
            while !stop.load(Ordering::Relaxed) {
                let start = Instant::now();
                match OpenOptions::new()
                    .write(true)
                    .custom_flags(libc::O_NONBLOCK)
                    .open(&path)
                {
                    Ok(file) => {
                        file.write_all_at(&opens.to_le_bytes(), u64::from(opens % 70_000))
                            .unwrap();
                    }
                    Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => refused += 1,
                    Err(e) => panic!("{e}"),
                }
                slowest = slowest.max(start.elapsed());
                opens += 1;
                if opens % 64 == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            (opens, refused, slowest)
        });
        std::thread::sleep(Duration::from_secs(2));
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap()
    });
    println!("{opens} opens, {refused} refused, the slowest took {slowest:?}");
    // The lease probe is set and cleared at once. Only when the prober loses its processor in between, on a machine
    // that is busier than it has processors, an opener meets it.
    assert!(
        refused <= opens / 50 + 2,
        "{refused} of {opens} opens were refused"
    );
    assert!(
        slowest < Duration::from_secs(1),
        "an open or write took {slowest:?}"
    );
}
