//! Names that lead elsewhere, in every kind of record.

use std::fs;

use mirror_core::ObjectId;

use crate::ssh_support::made_up::*;
use crate::trial::*;

/// Names that are none, as bytes.
fn bad_names() -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = [
        "",
        ".",
        "..",
        "/",
        "//",
        "/etc/passwd",
        "/tmp/x",
        "a/b",
        "a/",
        "/a",
        "../x",
        "../../x",
        "./x",
        "a/..",
        "a/../b",
        "..\0",
        ".\0",
        "\0",
        "a\0",
        "\0a",
        "a\0/b",
        "..//..",
        ".../x",
        "x/.",
        "x/./y",
        "~/x/",
        "/proc/self/root",
        "/proc/self/fd/3",
        "/dev/null",
        "dst.fs_mirror/log",
        "../dst.fs_mirror",
        "../dst.fs_mirror/index",
        "../other/file",
        "../other.fs_mirror/log/1",
        "C:/x",
        "\u{2215}/",
        "a\n/b",
        "/\u{1b}[2J",
        "..\u{2f}",
        "%2e%2e/",
        "..;/",
        "a/b/c/d/e/f",
        "new/0000000000000001.0",
        "/.",
        "/..",
        "./",
        "../",
        "\0\0\0",
        "nul\0byte.txt",
        "trailing/\0",
    ]
    .iter()
    .map(|name| name.as_bytes().to_vec())
    .collect();
    names.push(vec![b'n'; 256]);
    names.push(vec![b'n'; 4096]);
    names.push(vec![b'/'; 255]);
    names.push(vec![0; 255]);
    names.push([&[b'n'; 200][..], b"/", &[b'n'; 20]].concat());
    names.push(b"\xff\xfe/".to_vec());
    names.push(b"\xc0\xaf/..".to_vec());
    names.push([&b"../"[..]; 80].concat());
    names.push(vec![b'n'; 65_536]);
    names.push([&[b'n'; 255][..], &[0]].concat());
    names
}

/// The body of each kind of record that names something, with any bytes for a name: as `fields.rs` has them.
fn naming(kind: usize, object: u64, name: &[u8]) -> (u8, Vec<u8>) {
    let mut body = Vec::new();
    let mut e = minicbor::Encoder::new(&mut body);
    let root = ObjectId::ROOT.0;
    e.null().unwrap();
    let good = b"good".as_slice();
    let (first, second) = if kind == 3 {
        (name, good)
    } else {
        (good, name)
    };
    let at = |e: &mut minicbor::Encoder<&mut Vec<u8>>, name: &[u8]| {
        e.array(2).unwrap().u64(root).unwrap().bytes(name).unwrap();
    };
    let kind = match kind {
        0 => {
            e.array(3).unwrap().u64(object).unwrap();
            at(&mut e, name);
            // A directory with nothing special.
            e.array(2).unwrap().u8(1).unwrap();
            e.array(8)
                .unwrap()
                .u16(0o755)
                .unwrap()
                .u32(0)
                .unwrap()
                .u32(0)
                .unwrap();
            e.i64(0)
                .unwrap()
                .u32(0)
                .unwrap()
                .u32(0)
                .unwrap()
                .u32(0)
                .unwrap()
                .array(0)
                .unwrap();
            2
        }
        kind @ (1 | 2) => {
            e.array(2).unwrap().u64(object).unwrap();
            at(&mut e, name);
            kind as u8 + 2
        }
        3 | 4 => {
            e.array(3).unwrap().u64(object).unwrap();
            at(&mut e, first);
            at(&mut e, second);
            5
        }
        _ => {
            e.array(2).unwrap().u64(object).unwrap();
            at(&mut e, name);
            6
        }
    };
    (kind, body)
}

#[test]
fn names_that_are_none_are_refused_in_every_record_before_anything_is_kept() {
    let mut tried = 0;
    for name in bad_names() {
        for kind in 0..6 {
            let mut chain = Chain::new();
            let object = chain.id().0;
            let (kind, body) = naming(kind, object, &name);
            let before = chain.bytes.len();
            chain.raw(kind, 3, &body, &[]);
            let (_, frame) = chain.bytes.split_at(before);
            let frame = mirror_core::codec::Frame::parse(frame).unwrap();
            let read = mirror_core::codec::record(&frame);
            let bad = mirror_core::codec::CodecError::BadValue("name");
            assert_eq!(read.err(), Some(bad), "{:?}", mirror_core::escape(&name));
            tried += 1;
        }
    }
    assert!(tried >= 360, "{tried}");
    // The bodies are right but for the name.
    for kind in 0..6 {
        let mut chain = Chain::new();
        let object = chain.id().0;
        let (kind, body) = naming(kind, object, b"plain");
        let before = chain.bytes.len();
        chain.raw(kind, 3, &body, &[]);
        let (_, frame) = chain.bytes.split_at(before);
        let frame = mirror_core::codec::Frame::parse(frame).unwrap();
        mirror_core::codec::record(&frame).unwrap();
    }
    // And so says the program, of one of each kind.
    for (kind, name) in [
        b"..".as_slice(),
        b"../dst.fs_mirror/log",
        b"/etc/x",
        b"",
        b"a\0b",
        &[b'n'; 256],
    ]
    .into_iter()
    .enumerate()
    {
        let trial = Trial::new();
        let mut chain = Chain::new();
        let object = chain.id().0;
        let (kind, body) = naming(kind, object, name);
        chain.raw(kind, 3, &body, &[]);
        let mut came = None;
        worker_with(&trial.bed, &mut chain, || came = Some(trial.run(&[])));
        let came = came.unwrap();
        let last = came.said.lines().last().unwrap_or_default();
        assert_eq!(came.code, 1, "{}", came.said);
        assert!(
            last.contains("far broke") && last.contains("name"),
            "{}",
            came.said
        );
        assert!(!trial.bed.dst().exists() || fs::read_dir(trial.bed.dst()).unwrap().count() == 0);
    }
}
