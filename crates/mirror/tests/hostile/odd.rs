//! Records that can be true, and do their worst.

use mirror_core::{Change, Content, Digest, Kind, Meta, ObjectId, Xattr};

use crate::ssh_support::made_up::*;
use crate::trial::*;

/// Records that can be true, and do their worst: all is done, or what can't be is listed (exit code 3).
type Odd = (&'static str, fn(&Trial, &mut Chain), &'static [i32]);
const ODD: &[Odd] = &[
    (
        "directories become symlinks and back, with what is in them",
        |trial, chain| {
            let target = trial.canary.path("dir");
            for n in 0..30 {
                let cut = |chain: &mut Chain| {
                    if n > 28 {
                        chain.cut();
                    }
                };
                cut(chain);
                let d = dir(chain, "d");
                let f = chain.create(d, b"inner", no_bytes(), mode(0o644));
                cut(chain);
                let moved = at_name(ObjectId::ROOT, b"was d");
                let at = at_name(ObjectId::ROOT, b"d");
                let link = ObjectId(chain.id().0 + 1);
                let state = mirror_core::State {
                    kind: link_to(&target),
                    meta: mode(0o777),
                };
                chain.group([
                    Change::Move {
                        object: d,
                        from: at.clone(),
                        to: moved.clone(),
                    },
                    Change::Create {
                        at: at.clone(),
                        object: link,
                        state,
                    },
                ]);
                cut(chain);
                let meta = Some(mode(0o600));
                let inner = at_name(d, b"inner");
                chain.group([Change::Update {
                    object: f,
                    at: Some(inner.clone()),
                    meta,
                    content: None,
                }]);
                cut(chain);
                chain.group([
                    Change::Unlink {
                        at: at.clone(),
                        object: link,
                    },
                    Change::Move {
                        object: d,
                        from: moved,
                        to: at.clone(),
                    },
                    Change::Unlink {
                        at: inner,
                        object: f,
                    },
                ]);
                chain.group([Change::Unlink { at, object: d }]);
            }
        },
        &[0],
    ),
    (
        "names that we use ourselves",
        |_, chain| {
            for name in [
                "dst.fs_mirror",
                ".fs_mirror",
                ".mirrord",
                "staging",
                "new",
                "sink",
                "limbo",
                "aside",
                "adopted",
                "applying",
                "made",
                "index",
                "log",
                "content",
                "lock",
                "config.toml",
                "arriving",
                "probe",
                "probe.d",
                "seed",
                "0000100000000002.0",
                "0000100000000002.1",
                "0000100000000002-0000100000000003",
                "1.2",
                "start",
            ] {
                create(chain, name, no_bytes(), mode(0o644));
            }
        },
        &[0],
    ),
    (
        "names with what a terminal obeys, of files that can't be had",
        |_, chain| {
            for name in [
                "\x1b[2J\x1b]0;owned\x07",
                "a\nfake: line",
                "\u{202e}gpj.exe",
                "\r\x08\x7f",
                "\u{9b}31m",
            ] {
                create(chain, name, file(b"never comes").kind, mode(0o644));
            }
        },
        &[3],
    ),
    (
        "owners, modes, times, flags at their ends",
        |_, chain| {
            let meta = |uid, gid, mode, seconds, flags, project| Meta {
                mode,
                uid,
                gid,
                mtime: mirror_core::Time {
                    seconds,
                    nanos: 999_999_999,
                },
                flags,
                project,
                xattrs: Vec::new(),
            };
            let most = u32::MAX;
            for (n, meta) in [
                meta(most, most, 0o7777, i64::MAX, 0, 0),
                meta(0, 0, 0, i64::MIN, 0, 0),
                meta(most - 1, most - 1, 0o7777, 0, most, 0),
                meta(0, 0, 0, -1, 0, most),
                meta(1, 1, 0o7000, 1 << 40, Meta::FLAGS_KEPT, 7),
            ]
            .into_iter()
            .enumerate()
            {
                create(chain, &format!("file {n}"), no_bytes(), meta.clone());
                create(chain, &format!("dir {n}"), Kind::Dir, meta.clone());
                create(
                    chain,
                    &format!("link {n}"),
                    Kind::Symlink(b"x".as_slice().into()),
                    meta.clone(),
                );
                create(chain, &format!("fifo {n}"), Kind::Fifo, meta);
            }
        },
        &[3],
    ),
    (
        "attributes of every kind",
        |_, chain| {
            for (n, (name, value)) in [
                (&b"user."[..], &b""[..]),
                (b"user.large", &[7; 65_536]),
                (b"evil", b"x"),
                (b"evil.x", b"x"),
                (b"system.posix_acl_access", b"rubbish"),
                (b"system.posix_acl_default", &[0xff; 44]),
                (b"security.capability", b"rubbish"),
                (b"security.evil", b"x"),
                (b"security.selinux", b"system_u:object_r:shadow_t:s0"),
                (b"security.ima", b"x"),
                (b"trusted.overlay.opaque", b"y"),
                (b"trusted.overlay.redirect", b"/etc"),
                (b"btrfs.compression", b"zstd"),
                (b"os2.x", b"x"),
                (b"user.\x1b[31m\n", b"x"),
            ]
            .into_iter()
            .enumerate()
            {
                create(
                    chain,
                    &format!("file {n}"),
                    no_bytes(),
                    with_xattr(name, value),
                );
                create(
                    chain,
                    &format!("dir {n}"),
                    Kind::Dir,
                    with_xattr(name, value),
                );
            }
            let xattrs = (0..60_000u32).map(|n| Xattr {
                name: format!("user.{n:08}").into_bytes().into(),
                value: b"x".as_slice().into(),
            });
            let meta = Meta {
                xattrs: xattrs.collect(),
                ..mode(0o644)
            };
            create(chain, "60,000", no_bytes(), meta);
        },
        &[3],
    ),
    (
        "holes of every size",
        |_, chain| {
            for (n, bytes) in [
                16 << 40,
                (16 << 40) - 4096,
                i64::MAX as u64,
                1 << 60,
                i64::MAX as u64,
            ]
            .into_iter()
            .enumerate()
            {
                create(chain, &format!("{n}"), hole(bytes), mode(0o644));
            }
        },
        &[3],
    ),
    (
        "bytes that are promised and never come",
        |_, chain| {
            for (n, bytes) in [1, 1 << 20, 16 << 40, 1 << 60, i64::MAX as u64]
                .into_iter()
                .enumerate()
            {
                let content = Content {
                    bytes,
                    digest: Digest([7; 32]),
                    data: Vec::new(),
                    proven: true,
                    fuzzy: false,
                };
                create(chain, &format!("{n}"), Kind::File(content), mode(0o644));
            }
        },
        &[3],
    ),
    (
        "a million ranges of nothing",
        |_, chain| {
            let data: Vec<(u64, u64)> = (0..1_000_000).map(|n| (n, 0)).collect();
            let digest = mirror::capture::read::hasher(1 << 20, &data).finalize();
            let digest = Digest(*digest.as_bytes());
            let content = Content {
                bytes: 1 << 20,
                digest,
                data,
                proven: true,
                fuzzy: false,
            };
            create(chain, "ranges", Kind::File(content), mode(0o644));
        },
        &[0, 3],
    ),
    (
        "a tree of 3,000 levels, that moves, and goes",
        |_, chain| {
            let top = dir(chain, "top");
            let mut at = top;
            for _ in 0..3000 {
                at = chain.create(at, b"directory", Kind::Dir, mode(0o755));
            }
            chain.create(at, b"file", no_bytes(), mode(0o644));
            chain.cut();
            let (from, to) = (
                at_name(ObjectId::ROOT, b"top"),
                at_name(ObjectId::ROOT, b"moved"),
            );
            chain.group([Change::Move {
                object: top,
                from,
                to: to.clone(),
            }]);
            chain.cut();
            chain.group([Change::Unlink {
                at: to,
                object: top,
            }]);
        },
        &[0],
    ),
    (
        "1,000 immutable files come, change, and go",
        |_, chain| {
            const IMMUTABLE: u32 = 0x10;
            const APPEND: u32 = 0x20;
            let meta = |mode, flags| Meta {
                mode,
                flags,
                ..Meta::default()
            };
            let d = create(chain, "d", Kind::Dir, meta(0o755, IMMUTABLE));
            let mut made = Vec::new();
            for n in 0..1000u32 {
                let name = format!("{n}").into_bytes();
                let flags = if n % 2 == 0 {
                    IMMUTABLE
                } else {
                    IMMUTABLE | APPEND
                };
                made.push((chain.create(d, &name, no_bytes(), meta(0o644, flags)), name));
            }
            chain.cut();
            for (object, name) in &made {
                let at = Some(at_name(d, name));
                chain.group([Change::Update {
                    object: *object,
                    at,
                    meta: Some(meta(0o600, APPEND)),
                    content: None,
                }]);
            }
            chain.cut();
            for (object, name) in &mut made {
                let at = at_name(d, name);
                let new = ObjectId(chain.id().0 + 1);
                let state = mirror_core::State {
                    kind: Kind::Dir,
                    meta: meta(0o700, IMMUTABLE),
                };
                let old = std::mem::replace(object, new);
                chain.group([
                    Change::Unlink {
                        at: at.clone(),
                        object: old,
                    },
                    Change::Create {
                        at,
                        object: new,
                        state,
                    },
                ]);
            }
            chain.cut();
            for (object, name) in made {
                let at = at_name(d, &name);
                chain.group([Change::Unlink { at, object }]);
            }
        },
        &[0],
    ),
    (
        "a group of as many records as there may be",
        |_, chain| {
            for n in 0..65_536u32 {
                let object = chain.id();
                let at = at_name(ObjectId::ROOT, format!("{n}").as_bytes());
                let state = mirror_core::State {
                    kind: Kind::Fifo,
                    meta: mode(0o600),
                };
                chain.record(Change::Create { at, object, state }, n == 65_535);
            }
        },
        &[0],
    ),
    (
        "times at their ends, and a kind that may be passed over",
        |_, chain| {
            chain.time_ns = u64::MAX;
            create(chain, "late", no_bytes(), mode(0o644));
            chain.raw(99, 1, b"whatever", b"");
            chain.raw(254, 1, &[0xff; 1000], b"");
        },
        &[0],
    ),
];

#[test]
fn odd_records_are_done_or_listed_and_a_good_worker_heals_it() {
    each(ODD, |(what, say, codes)| {
        let trial = Trial::new();
        let mut chain = Chain::new();
        say(&trial, &mut chain);
        let mut bad = false;
        worker_with(&trial.bed, &mut chain, || {
            let came = trial.run(&[]);
            let (code, said) = (came.code, &came.said);
            let last = said.lines().last().unwrap_or_default();
            println!(
                "{what}: {code} {:?} {} MiB: {last}",
                came.took, came.rss_mib
            );
            assert!(codes.contains(&code), "{what}: {code}\n{said}");
            bad |= code != 0;
        });
        let (_, status) = trial.bed.command(&["status", "-v"]);
        trial.is_well(&status);
        // What is odd lies about then.
        if bad {
            trial.heals();
        }
    });
}
