//! One specimen of everything a tree can hold.

use rustix::fs::{FileType, makedev};

use super::maker::{Finish, Maker};
use super::site::{ACL, CAPABILITY};
use super::{Made, Params};

pub fn zoo(mut maker: Maker<'_>, params: &Params) -> anyhow::Result<Made> {
    maker.dir(b"zoo")?;
    names(&mut maker)?;
    contents(&mut maker)?;
    links(&mut maker)?;
    symlinks(&mut maker)?;
    specials(&mut maker)?;
    modes(&mut maker)?;
    attributes(&mut maker)?;
    times(&mut maker)?;
    maker.deep(b"zoo/long", &[b'l'; 250], 20, b"beyond PATH_MAX")?;
    maker.deep(b"zoo/deep", b"d", 300, b"bottom")?;
    maker.dir(b"zoo/flags")?;
    for (name, _) in flags(params) {
        let finish = maker.finish_of(0o644);
        maker.plain_file(name, b"flagged\n", finish)?;
    }
    maker.dir(b"zoo/flags/nodump dir")?;
    maker.flags(b"zoo/flags/nodump dir", 0x40)?;
    for (name, flag) in flags(params) {
        maker.flags(name, flag)?;
    }
    maker.finish()
}

/// Nodump, noatime, sync, and those that lock.
fn flags(params: &Params) -> Vec<(&'static [u8], u32)> {
    let mut flags: Vec<(&[u8], u32)> = vec![
        (b"zoo/flags/nodump", 0x40),
        (b"zoo/flags/noatime", 0x80),
        (b"zoo/flags/sync", 0x8),
    ];
    if params.locked {
        flags.extend([
            (&b"zoo/flags/immutable"[..], 0x10),
            (b"zoo/flags/append", 0x20),
        ]);
    }
    flags
}

fn names(maker: &mut Maker<'_>) -> anyhow::Result<()> {
    maker.dir(b"zoo/names")?;
    let mut every_byte: Vec<u8> = (1..=255).filter(|&byte| byte != b'/').collect();
    every_byte.truncate(255);
    let mut names: Vec<Vec<u8>> = [
        &b" "[..],
        b"...",
        b"..x",
        b".hidden",
        b"-",
        b"--help",
        b"~",
        b"*",
        b"?",
        b"\\",
        b"\n",
        b"a\nb",
        b"\r",
        b"\t",
        b"\x1b]0;title\x07",
        b"trailing ",
        b"trailing.",
        b"#1",
        b"name (deleted)",
        b".nfs0001",
        b"%s%n",
        b"$(touch pwned)",
        b"caf\xe9",
        b"\xff\xfe",
        b"\xc3\x28",
        b"\xed\xa0\x80",
        "é composed".as_bytes(),
        "e\u{301} decomposed".as_bytes(),
        "\u{202e}gnp.exe".as_bytes(),
        "日本語".as_bytes(),
        "😀".as_bytes(),
        b"Case",
        b"case",
        b"con",
        b"a:b",
    ]
    .map(<[u8]>::to_vec)
    .to_vec();
    names.extend([vec![b'n'; 255], vec![0xff; 255], every_byte]);
    for name in names {
        let finish = maker.finish_of(0o644);
        maker.plain_file(&[b"zoo/names/", name.as_slice()].concat(), &name, finish)?;
    }
    maker.dir(b"zoo/names/dir\n\xff")?;
    Ok(())
}

fn contents(maker: &mut Maker<'_>) -> anyhow::Result<()> {
    maker.dir(b"zoo/contents")?;
    maker.dir(b"zoo/contents/empty dir")?;
    let mut bytes = vec![0; (1 << 20) + 1];
    maker.rng.fill(&mut bytes);
    for size in [0, 1, 4095, 4096, 4097, 65_536, bytes.len()] {
        let finish = maker.finish_of(0o644);
        maker.plain_file(
            format!("zoo/contents/{size}").as_bytes(),
            &bytes[..size],
            finish,
        )?;
    }
    let finish = maker.finish_of(0o644);
    maker.plain_file(b"zoo/contents/zeros", &[0; 65_536], finish)?;
    let piece = &bytes[..8192];
    let every_other: Vec<(u64, &[u8])> = (0..16).map(|n| (n * 131_072, piece)).collect();
    type Chunks<'a> = &'a [(u64, &'a [u8])];
    let files: [(&[u8], u64, Chunks<'_>); 6] = [
        (b"only a hole", 1 << 20, &[]),
        (b"hole first", 0, &[(1 << 20, piece)]),
        (b"hole last", 1 << 20, &[(0, piece)]),
        (b"hole in the middle", 0, &[(0, piece), (4 << 20, piece)]),
        (b"many holes", 2 << 20, &every_other),
        (b"large and nearly empty", 64 << 20, &[(33_333_333, b"x")]),
    ];
    for (name, size, chunks) in files {
        let finish = maker.finish_of(0o644);
        let file = maker.file(&[b"zoo/contents/", name].concat(), size, chunks)?;
        maker.finish_file(&file, finish)?;
    }
    Ok(())
}

fn links(maker: &mut Maker<'_>) -> anyhow::Result<()> {
    for dir in ["zoo/links", "zoo/links/one", "zoo/links/two"] {
        maker.dir(dir.as_bytes())?;
    }
    let finish = maker.finish_of(0o644);
    maker.plain_file(b"zoo/links/one/file", b"three names\n", finish)?;
    maker.link(b"zoo/links/one/file", b"zoo/links/one/again")?;
    maker.link(b"zoo/links/one/file", b"zoo/links/two/file")?;
    maker.plain_file(b"zoo/links/two/twin", b"three names\n", finish)?;
    maker.symlink(b"zoo/links/one/symlink", b"file", None)?;
    maker.link(b"zoo/links/one/symlink", b"zoo/links/two/symlink")?;
    if maker.node(b"zoo/links/one/fifo", FileType::Fifo, 0, finish)? {
        maker.link(b"zoo/links/one/fifo", b"zoo/links/two/fifo")?;
    }
    if maker.node(
        b"zoo/links/one/null",
        FileType::CharacterDevice,
        makedev(1, 3),
        finish,
    )? {
        maker.link(b"zoo/links/one/null", b"zoo/links/two/null")?;
    }
    Ok(())
}

fn symlinks(maker: &mut Maker<'_>) -> anyhow::Result<()> {
    maker.dir(b"zoo/symlinks")?;
    let targets: [(&str, &[u8]); 10] = [
        ("relative", b"../contents/1"),
        ("absolute", b"/etc/hostname"),
        ("dangling", b"nowhere"),
        ("itself", b"itself"),
        ("directory", b"../links"),
        ("dot", b"."),
        ("raw", b"caf\xe9\n\x1b"),
        ("slashes", b"..//./links///one/"),
        ("1000", &[b't'; 1000]),
        ("4000", &[b't'; 4000]),
    ];
    for (name, target) in targets {
        maker.symlink(format!("zoo/symlinks/{name}").as_bytes(), target, None)?;
    }
    maker.symlink(b"zoo/symlinks/owned", b"nowhere", Some((1234, 5678)))
}

fn specials(maker: &mut Maker<'_>) -> anyhow::Result<()> {
    maker.dir(b"zoo/specials")?;
    let nodes: [(&str, FileType, u64); 7] = [
        ("fifo", FileType::Fifo, 0),
        ("socket", FileType::Socket, 0),
        ("null", FileType::CharacterDevice, makedev(1, 3)),
        ("whiteout", FileType::CharacterDevice, 0),
        (
            "large numbers",
            FileType::CharacterDevice,
            makedev(4095, 1_048_575),
        ),
        ("block", FileType::BlockDevice, makedev(120, 250)),
        ("block large", FileType::BlockDevice, makedev(259, 70_000)),
    ];
    for (name, kind, device) in nodes {
        let finish = Finish {
            mode: 0o640,
            owner: Some((0, 6)),
            mtime: maker.mtime(),
        };
        maker.node(
            format!("zoo/specials/{name}").as_bytes(),
            kind,
            device,
            finish,
        )?;
    }
    Ok(())
}

fn modes(maker: &mut Maker<'_>) -> anyhow::Result<()> {
    maker.dir(b"zoo/modes")?;
    // Only root can read the first two back.
    let unreadable: &[u32] = if maker.privileged {
        &[0o000, 0o001]
    } else {
        &[]
    };
    for &mode in unreadable
        .iter()
        .chain(&[0o444, 0o4755, 0o2755, 0o6711, 0o1644, 0o7777])
    {
        let finish = maker.finish_of(mode);
        maker.plain_file(
            format!("zoo/modes/{mode:04o}").as_bytes(),
            b"#!/bin/sh\n",
            finish,
        )?;
    }
    for mode in [0o700, 0o1777, 0o2775, 0o3770] {
        let finish = maker.finish_of(mode);
        maker.dir_with(format!("zoo/modes/dir {mode:04o}").as_bytes(), finish)?;
    }
    for owner in [
        (0, 0),
        (1, 1),
        (65_534, 65_534),
        (70_000, 80_000),
        (4_294_967_294, 4_294_967_294),
    ] {
        let finish = Finish {
            mode: 0o6755,
            owner: Some(owner),
            mtime: maker.mtime(),
        };
        maker.plain_file(
            format!("zoo/modes/owner {}", owner.0).as_bytes(),
            b"owned\n",
            finish,
        )?;
        maker.dir_with(
            format!("zoo/modes/dir of {}", owner.0).as_bytes(),
            Finish {
                mode: 0o755,
                ..finish
            },
        )?;
    }
    Ok(())
}

fn attributes(maker: &mut Maker<'_>) -> anyhow::Result<()> {
    maker.dir(b"zoo/attributes")?;
    let mut long_name = b"user.".to_vec();
    long_name.resize(255, 0xe9);
    let many: Vec<Vec<u8>> = (0..20)
        .map(|n| format!("user.number-{n}").into_bytes())
        .collect();
    type Attribute<'a> = (&'a [u8], &'a [u8]);
    let specimens: [(&str, Vec<Attribute<'_>>); 8] = [
        ("empty value", vec![(b"user.empty", b"")]),
        ("raw value", vec![(b"user.raw", b"\0\xff\n\x1b\0")]),
        ("large value", vec![(b"user.large", &[7; 3000])]),
        ("long name", vec![(&long_name, b"x")]),
        (
            "many",
            many.iter()
                .map(|name| (name.as_slice(), &b"value"[..]))
                .collect(),
        ),
        (
            "trusted",
            vec![
                (b"trusted.testkit", b"t"),
                (b"security.testkit", b"s"),
                (b"user.testkit", b"u"),
            ],
        ),
        ("acl", vec![(b"system.posix_acl_access", ACL)]),
        ("capability", vec![(b"security.capability", CAPABILITY)]),
    ];
    for (name, attributes) in specimens {
        let path = format!("zoo/attributes/{name}").into_bytes();
        let finish = maker.finish_of(0o644);
        let file = maker.file(&path, 0, &[(0, b"with attributes\n")])?;
        maker.finish_file(&file, finish)?;
        for (name, value) in attributes {
            maker.xattr_of(&file, name, value)?;
        }
    }
    maker.dir(b"zoo/attributes/dir")?;
    for (name, value) in [
        (&b"user.dir"[..], &b"d"[..]),
        (b"trusted.dir", b"t"),
        (b"system.posix_acl_default", ACL),
    ] {
        maker.xattr(b"zoo/attributes/dir", name, value)?;
    }
    maker.symlink(b"zoo/attributes/symlink", b"nowhere", None)?;
    maker.xattr(b"zoo/attributes/symlink", b"trusted.symlink", b"s")?;
    let finish = maker.finish_of(0o600);
    if maker.node(b"zoo/attributes/fifo", FileType::Fifo, 0, finish)? {
        maker.xattr(b"zoo/attributes/fifo", b"trusted.fifo", b"f")?;
    }
    Ok(())
}

fn times(maker: &mut Maker<'_>) -> anyhow::Result<()> {
    maker.dir(b"zoo/times")?;
    // The last is the largest that ext4 keeps (the year 2446), the first is in 1901.
    let seconds = [
        -2_147_483_648,
        -1,
        0,
        1,
        2_147_483_647,
        2_147_483_648,
        4_294_967_296,
        15_032_385_535,
    ];
    for second in seconds {
        for nanos in [0, 1, 999_999_999] {
            let finish = Finish {
                mode: 0o644,
                owner: None,
                mtime: (second, nanos),
            };
            maker.plain_file(
                format!("zoo/times/{second}.{nanos}").as_bytes(),
                b"",
                finish,
            )?;
        }
    }
    maker.symlink(b"zoo/times/old symlink", b"nowhere", None)?;
    maker.set_mtime(b"zoo/times/old symlink", (-3600, 5))?;
    maker.dir_with(
        b"zoo/times/old dir",
        Finish {
            mode: 0o755,
            owner: None,
            mtime: (-7200, 7),
        },
    )?;
    maker.dir_with(
        b"zoo/times/new dir",
        Finish {
            mode: 0o755,
            owner: None,
            mtime: (5_000_000_000, 9),
        },
    )
}
