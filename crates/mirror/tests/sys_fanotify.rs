//! What fanotify, clones, mounts and inode flags do on file systems of our own, each test in its own mount namespace.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;

use mirror::sys::fanotify::{self, Fsid, Group, Options, Queue, mask};
use mirror::sys::{Errno, flags, handle, mounts, open, target, tree, who};
use mirror_core::types::Handle;
use rustix::event::Timespec;
use testkit::lab::{Fs, Image, ImageOptions, Lab, QueueLimit, in_private_namespace};
use testkit::need;

/// A record that outlives its buffer.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Seen {
    mask: u64,
    pid: Option<u32>,
    fsid: Option<Fsid>,
    dir: Option<Handle>,
    name: Option<Vec<u8>>,
    object: Option<Handle>,
    old: Option<(Handle, Vec<u8>)>,
    new: Option<(Handle, Vec<u8>)>,
    overflow: bool,
}

fn drain(group: &Group) -> Vec<Seen> {
    let mut buffer = vec![0; 64 * 1024];
    let mut all = Vec::new();
    while group.poll(Some(&Timespec::default())).unwrap() {
        for record in group.read(&mut buffer).unwrap() {
            let record = record.unwrap();
            let side = |side: Option<(fanotify::HandleRef<'_>, &[u8])>| {
                side.map(|(h, n)| (h.to_handle(), n.to_vec()))
            };
            all.push(Seen {
                mask: record.mask,
                pid: record.pid,
                fsid: record.fsid,
                dir: record.dir.map(|h| h.to_handle()),
                name: record.name.map(<[u8]>::to_vec),
                object: record.object.map(|h| h.to_handle()),
                old: side(record.old),
                new: side(record.new),
                overflow: record.overflow,
            });
        }
    }
    all
}

fn one(group: &Group) -> Seen {
    let all = drain(group);
    assert_eq!(all.len(), 1, "{all:?}");
    all[0].clone()
}

/// The handle that a path has now.
fn handle_of(path: &Path) -> Handle {
    let parent = File::open(path.parent().unwrap()).unwrap();
    handle::name_to_handle(parent, path.file_name().unwrap().as_encoded_bytes())
        .unwrap()
        .handle
}

fn marked(image: &Image, options: Options) -> Group {
    let group = Group::with(options).unwrap();
    group
        .mark_filesystem(File::open(image.path()).unwrap())
        .unwrap();
    group
}

const PLAIN: Options = Options {
    queue: Queue::Limited,
    pidfd: false,
    plain: true,
};
const FULL: Options = Options {
    queue: Queue::Limited,
    pidfd: false,
    plain: false,
};

/// Looks at what each operation tells, on one file system.
fn operations(image: &Image) {
    let at = |name: &str| image.path().join(name);
    let root = handle_of(&image.path());
    let group = marked(image, FULL);
    assert!(group.has_target);
    let name = |n: &str| Some(n.as_bytes().to_vec());
    let me = Some(std::process::id());

    fs::create_dir(at("d")).unwrap();
    let seen = one(&group);
    assert_eq!(
        (seen.mask, &seen.dir, seen.name),
        (mask::CREATE | mask::ONDIR, &Some(root.clone()), name("d"))
    );
    assert_eq!((seen.object, seen.pid), (Some(handle_of(&at("d"))), me));
    assert_eq!(
        seen.fsid,
        Some(fanotify::fsid(File::open(image.path()).unwrap()).unwrap())
    );

    let mut file = File::create(at("d/f")).unwrap();
    file.write_all(b"x").unwrap();
    drop(file);
    let d = handle_of(&at("d"));
    let f = handle_of(&at("d/f"));
    let seen = one(&group);
    assert_eq!(
        seen.mask,
        mask::CREATE | mask::MODIFY | mask::CLOSE_WRITE,
        "merged"
    );
    assert_eq!(
        (&seen.dir, &seen.object, seen.name),
        (&Some(d.clone()), &Some(f.clone()), name("f"))
    );

    // A rename tells both sides and the object.
    fs::create_dir(at("e")).unwrap();
    drain(&group);
    let e = handle_of(&at("e"));
    fs::rename(at("d/f"), at("e/g")).unwrap();
    let seen = one(&group);
    assert_eq!(seen.mask, mask::RENAME);
    assert_eq!(seen.old, Some((d.clone(), b"f".to_vec())));
    assert_eq!(seen.new, Some((e.clone(), b"g".to_vec())));
    assert_eq!((&seen.object, &seen.dir), (&Some(f.clone()), &None));
    fs::rename(at("d"), at("e/d2")).unwrap();
    let seen = one(&group);
    assert_eq!(seen.mask, mask::RENAME | mask::ONDIR);
    assert_eq!(
        (seen.old, seen.object),
        (Some((root.clone(), b"d".to_vec())), Some(d.clone()))
    );

    // A second name: the link count of the object by handle alone, and the new name.
    fs::hard_link(at("e/g"), at("h")).unwrap();
    let seen = drain(&group);
    let attrib = seen.iter().find(|s| s.mask == mask::ATTRIB).unwrap();
    assert_eq!(
        (&attrib.object, &attrib.dir, &attrib.name),
        (&Some(f.clone()), &None, &None)
    );
    let create = seen.iter().find(|s| s.mask == mask::CREATE).unwrap();
    assert_eq!(
        (&create.object, &create.dir, &create.name),
        (&Some(f.clone()), &Some(root.clone()), &name("h"))
    );
    // Written through one name: that name, and the handle that the index knows by the other.
    fs::write(at("h"), b"new").unwrap();
    let seen = one(&group);
    assert_eq!((seen.object, seen.name), (Some(f.clone()), name("h")));
    // Written through a name that is gone while another lives.
    let mut held = OpenOptions::new().append(true).open(at("h")).unwrap();
    fs::remove_file(at("h")).unwrap();
    drain(&group);
    held.write_all(b"more").unwrap();
    let seen = one(&group);
    assert_eq!((seen.object, seen.mask), (Some(f.clone()), mask::MODIFY));
    drop(held);
    drain(&group);

    // Of a directory itself: its own handle and the name ".".
    target::set_mode(open::dir_at_path(&at("e")).unwrap(), b"", 0o700).unwrap();
    let seen = one(&group);
    assert_eq!(
        (seen.mask, seen.dir, seen.name),
        (mask::ATTRIB | mask::ONDIR, Some(e.clone()), name("."))
    );

    // The victim of a rename is told by handle alone.
    fs::write(at("v"), b"victim").unwrap();
    let v = handle_of(&at("v"));
    drain(&group);
    fs::rename(at("e/g"), at("v")).unwrap();
    let seen = drain(&group);
    assert!(
        seen.iter()
            .any(|s| s.object.as_ref() == Some(&v) && s.mask & mask::ATTRIB != 0),
        "{seen:?}"
    );
    assert!(
        seen.iter()
            .any(|s| s.object.as_ref() == Some(&f) && s.mask & mask::RENAME != 0),
        "{seen:?}"
    );

    // Names of any bytes and of any length.
    let odd = [&b"#1 \xff\n (deleted)"[..], &[b'x'; 255]];
    for bytes in odd {
        target::create_symlink(open::dir_at_path(&image.path()).unwrap(), bytes, b"t").unwrap();
        assert_eq!(one(&group).name.as_deref(), Some(bytes));
    }

    group
        .unmark_filesystem(File::open(image.path()).unwrap())
        .unwrap();
    fs::write(at("after"), b"x").unwrap();
    assert_eq!(drain(&group), []);
}

#[test]
fn operations_on_ext4() {
    in_private_namespace("operations_on_ext4", |lab| operations(&need!(lab.ext4(16))));
}
#[test]
fn operations_on_tmpfs() {
    in_private_namespace("operations_on_tmpfs", |lab| {
        operations(&need!(lab.tmpfs(16)))
    });
}
#[test]
fn operations_on_xfs() {
    in_private_namespace("operations_on_xfs", |lab| operations(&need!(lab.xfs(300))));
}
#[test]
fn operations_on_btrfs() {
    in_private_namespace("operations_on_btrfs", |lab| {
        operations(&need!(lab.btrfs(128)))
    });
}

#[test]
fn without_object_handles_a_rename_is_two_records() {
    in_private_namespace("without_object_handles_a_rename_is_two_records", |lab| {
        let image = need!(lab.ext4(16));
        let group = marked(&image, PLAIN);
        assert!(!group.has_target);
        let (a, b) = (image.path().join("a"), image.path().join("b"));
        fs::create_dir(&a).unwrap();
        assert_eq!(one(&group).object, None);
        let object = handle_of(&a);
        fs::rename(&a, &b).unwrap();
        let seen = drain(&group);
        let names: Vec<_> = seen
            .iter()
            .map(|s| (s.mask & !mask::ONDIR, s.name.as_deref()))
            .collect();
        assert!(names.contains(&(mask::MOVED_FROM, Some(b"a"))), "{names:?}");
        assert!(names.contains(&(mask::MOVED_TO, Some(b"b"))), "{names:?}");
        assert_eq!(handle_of(&b), object);
    });
}

#[test]
fn an_overflow_is_told_and_the_queue_goes_on() {
    in_private_namespace("an_overflow_is_told_and_the_queue_goes_on", |lab| {
        let image = need!(lab.ext4(16));
        let limit = need!(QueueLimit::set(40));
        let group = marked(&image, FULL);
        let unlimited = marked(
            &image,
            Options {
                queue: Queue::Unlimited,
                ..FULL
            },
        );
        drop(limit);
        for i in 0..200 {
            fs::create_dir(image.path().join(i.to_string())).unwrap();
        }
        let seen = drain(&group);
        // The oldest 40 are all there, then one overflow.
        assert_eq!(seen.len(), 41);
        let (last, valid) = seen.split_last().unwrap();
        assert!(last.overflow && last.object.is_none() && last.dir.is_none());
        for (i, seen) in valid.iter().enumerate() {
            assert!(!seen.overflow);
            assert_eq!(seen.name, Some(i.to_string().into_bytes()));
        }
        fs::create_dir(image.path().join("next")).unwrap();
        assert_eq!(one(&group).name.as_deref(), Some(&b"next"[..]));
        assert_eq!(drain(&unlimited).len(), 201);
    });
}

#[test]
fn what_cannot_be_marked_says_why() {
    in_private_namespace("what_cannot_be_marked_says_why", |lab| {
        let group = Group::new(Queue::Limited).unwrap();
        let proc = group
            .mark_filesystem(File::open("/proc").unwrap())
            .unwrap_err();
        assert!(matches!(proc, Errno::OPNOTSUPP | Errno::NODEV), "{proc:?}");
        assert!(fanotify::explain(proc).starts_with("the file system"));

        let image = need!(lab.btrfs(128));
        let subvolume = |name: &str| {
            let made = std::process::Command::new("btrfs")
                .args(["subvolume", "create"])
                .arg(image.path().join(name))
                .output();
            made.is_ok_and(|o| o.status.success())
        };
        if !subvolume("sub") {
            testkit::skip!("btrfs-progs missing");
        }
        let mounted = mounts::read().unwrap();
        let whole = mounts::of_fd(&mounted, File::open(image.path()).unwrap())
            .unwrap()
            .unwrap();
        assert!(!whole.is_btrfs_subvolume());
        let at = tempfile::tempdir().unwrap();
        let source = std::str::from_utf8(&whole.source).unwrap();
        rustix::mount::mount(
            source,
            at.path(),
            "btrfs",
            rustix::mount::MountFlags::empty(),
            c"subvol=sub",
        )
        .unwrap();
        let mounted = mounts::read().unwrap();
        let part = mounts::of_fd(&mounted, File::open(at.path()).unwrap())
            .unwrap()
            .unwrap();
        assert!(part.is_btrfs_subvolume());
        assert_eq!(
            (part.root.as_slice(), part.fs_type.as_slice()),
            (&b"/sub"[..], &b"btrfs"[..])
        );
        assert_eq!(
            group.mark_filesystem(File::open(at.path()).unwrap()),
            Err(Errno::XDEV)
        );
        rustix::mount::unmount(at.path(), rustix::mount::UnmountFlags::empty()).unwrap();
    });
}

#[test]
fn a_process_is_told_by_descriptor_and_none_leaks() {
    in_private_namespace("a_process_is_told_by_descriptor_and_none_leaks", |lab| {
        let image = need!(lab.ext4(16));
        let group = marked(
            &image,
            Options {
                pidfd: true,
                ..FULL
            },
        );
        if !group.has_pidfd {
            testkit::skip!("this kernel tells no pidfd");
        }
        let open_now = || fs::read_dir("/proc/self/fd").unwrap().count();
        let before = open_now();
        let mut buffer = vec![0; 64 * 1024];
        for name in ["a", "b", "c"] {
            fs::create_dir(image.path().join(name)).unwrap();
        }
        // One is looked at, two are not.
        let mut records = group.read(&mut buffer).unwrap();
        assert_eq!(open_now(), before + 3);
        let record = records.next().unwrap().unwrap();
        let pid = record.pid.unwrap();
        let known = who::of(
            pid,
            record.pidfd.as_ref().map(|fd| std::os::fd::AsFd::as_fd(fd)),
        );
        assert_eq!((pid, known.uid), (std::process::id(), Some(0)));
        assert_eq!(
            known.exe.as_deref(),
            Some(
                std::env::current_exe()
                    .unwrap()
                    .as_os_str()
                    .as_encoded_bytes()
            )
        );
        drop(record);
        drop(records);
        assert_eq!(open_now(), before);

        // A writer that was reaped before we read is not confused with anybody.
        let made = std::process::Command::new("mkdir")
            .arg(image.path().join("d"))
            .status();
        assert!(made.unwrap().success());
        let record = group.read(&mut buffer).unwrap().next().unwrap().unwrap();
        assert!(record.pidfd.is_none());
        assert_eq!(who::of(record.pid.unwrap(), None).exe, None);
    });
}

#[test]
fn mounts_come_and_go_and_a_clone_does_not_see_them() {
    in_private_namespace(
        "mounts_come_and_go_and_a_clone_does_not_see_them",
        |lab: &Lab| {
            let mut image = need!(lab.ext4(16));
            let watch = mounts::Watch::new().unwrap();
            let now = Timespec::default();
            assert!(!watch.changed(Some(&now)).unwrap());
            let at = |name: &str| image.path().join(name);
            fs::create_dir_all(at("root/m m")).unwrap();
            fs::write(at("root/m m/hidden"), b"x").unwrap();
            let root = tree::private_clone(&at("root")).unwrap();
            let handle = handle_of(&at("root/m m"));
            rustix::mount::mount(
                "t",
                at("root/m m"),
                "tmpfs",
                rustix::mount::MountFlags::empty(),
                c"",
            )
            .unwrap();
            assert!(watch.changed(Some(&now)).unwrap());
            assert!(!watch.changed(Some(&now)).unwrap(), "asking resets it");

            let mounted = mounts::read().unwrap();
            let path = tree::readlink_fd(File::open(at("root")).unwrap()).unwrap();
            let below: Vec<_> = mounts::below(&mounted, &path).collect();
            assert_eq!(below.len(), 1);
            assert!(below[0].at.ends_with(b"root/m m") && below[0].fs_type == b"tmpfs");
            let on_top = open::dir_at_path(&at("root/m m")).unwrap();
            assert_eq!(mounts::of_fd(&mounted, &on_top).unwrap(), Some(below[0]));
            assert!(mirror::sys::stat::fstat(&on_top).unwrap().is_mount_root());
            assert_eq!(
                mounts::of_fd(&mounted, &root).unwrap(),
                None,
                "the clone is nobody's"
            );
            drop(on_top);

            // Through the clone the hidden directory stays in reach, by name and by handle.
            let by_name = open::dir(&root, b"m m").unwrap();
            target::unlink(&by_name, b"hidden").unwrap();
            let by_handle =
                handle::open_by_handle(&root, &handle, rustix::fs::OFlags::RDONLY).unwrap();
            assert_eq!(
                tree::locate(&root, &by_handle).unwrap(),
                tree::Place::Inside(b"m m".to_vec())
            );
            drop((by_name, by_handle));

            // A mark and a clone keep nobody from unmounting, and the mark is gone after it.
            let group = marked(&image, FULL);
            rustix::mount::unmount(at("root/m m"), rustix::mount::UnmountFlags::empty()).unwrap();
            drop(root);
            image.unmount().unwrap();
            assert!(watch.changed(Some(&now)).unwrap());
            image.mount().unwrap();
            fs::write(image.path().join("unseen"), b"x").unwrap();
            assert_eq!(drain(&group), []);
        },
    );
}

#[test]
fn in_a_clone_of_a_whole_file_system_nothing_is_outside() {
    in_private_namespace(
        "in_a_clone_of_a_whole_file_system_nothing_is_outside",
        |lab: &Lab| {
            for image in [
                need!(lab.ext4(16)),
                need!(lab.tmpfs(8)),
                need!(lab.xfs(300)),
                need!(lab.btrfs(128)),
            ] {
                fs::create_dir_all(image.path().join("a/b")).unwrap();
                let root = tree::private_clone_read_only(&image.path()).unwrap();
                assert!(
                    tree::can_locate(&root, open::dir_at_path(&image.path()).unwrap()).unwrap()
                );
                let by_handle = |path: &Path| {
                    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
                    let dir = handle::open_by_handle(&root, &handle_of(path), flags).unwrap();
                    tree::locate(&root, dir).unwrap()
                };
                assert_eq!(
                    by_handle(&image.path().join("a/b")),
                    tree::Place::Inside(b"a/b".to_vec())
                );
                let part = tree::private_clone_read_only(&image.path().join("a")).unwrap();
                assert!(
                    tree::can_locate(&part, open::dir_at_path(&image.path().join("a")).unwrap())
                        .unwrap()
                );
                // A mark can be set through a clone, too.
                Group::new(Queue::Limited)
                    .unwrap()
                    .mark_filesystem(&part)
                    .unwrap();
            }
        },
    );
}

#[test]
fn flags_and_projects_of_each_file_system() {
    in_private_namespace("flags_and_projects_of_each_file_system", |lab: &Lab| {
        let project = ImageOptions {
            size_mb: 16,
            mkfs: vec!["-O".into(), "project".into()],
            ..Default::default()
        };
        // A kernel without quotas does not mount it.
        let (ext4, ext4_has_projects) = match lab.image_with(Fs::Ext4, &project) {
            Ok(image) => (Ok(image), true),
            Err(_) => (lab.ext4(16), false),
        };
        let images = [
            need!(ext4),
            need!(lab.xfs(300)),
            need!(lab.btrfs(128)),
            need!(lab.tmpfs(8)),
        ];
        for image in images {
            let fs = image.fs();
            let root = open::dir_at_path(&image.path()).unwrap();
            let file = target::create_file(&root, b"f").unwrap();
            let want = flags::NODUMP | if fs == Fs::Btrfs { flags::NOCOW } else { 0 };
            assert_eq!(flags::set_flags(&file, want, want).unwrap(), 0, "{fs:?}");
            let has_projects = fs == Fs::Xfs || (fs == Fs::Ext4 && ext4_has_projects);
            let set = flags::set_project(&file, 77);
            assert_eq!(set.is_ok(), has_projects, "{fs:?} {set:?}");
            let project = if has_projects { 77 } else { 0 };
            let got = flags::get(&file).unwrap().unwrap();
            assert_eq!((got.flags & want, got.project), (want, project), "{fs:?}");
            if let Some(peeked) = flags::peek(&root, b"f").unwrap() {
                assert_eq!(
                    (peeked.flags, peeked.project),
                    (want & flags::PEEKED, project),
                    "{fs:?}"
                );
            }
            // What shares blocks, and a symlink, which has no flags to peek at.
            let other = target::create_file(&root, b"g").unwrap();
            rustix::io::write(&file, &[5; 8192]).unwrap();
            if fs == Fs::Xfs {
                assert!(target::clone_content(&file, &other).unwrap());
            }
            assert_eq!(
                target::space(&root).unwrap().inodes_free.is_none(),
                fs == Fs::Btrfs,
                "{fs:?}"
            );
            target::create_symlink(&root, b"l", b"f").unwrap();
            flags::peek(&root, b"l").unwrap();
        }
    });
}
