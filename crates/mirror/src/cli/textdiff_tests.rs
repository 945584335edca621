use super::*;
use crate::fuzz;

const OLD: Side = Side {
    path: Some(b"a"),
    at: "",
};
const NEW: Side = Side {
    path: Some(b"b"),
    at: "",
};

fn diff_for(old: &[u8], new: &[u8], reader: Reader) -> String {
    let mut out = Vec::new();
    let compared = compare(old, new, TIME_MAX);
    compared.write(&OLD, &NEW, reader, &mut out).unwrap();
    String::from_utf8_lossy(&out).into_owned()
}

/// Without the two lines of names.
fn diff(old: &str, new: &str) -> String {
    let text = diff_for(old.as_bytes(), new.as_bytes(), Reader::Program);
    let text = text.strip_prefix("--- a\n+++ b\n").unwrap_or(&text);
    text.to_owned()
}

#[test]
fn as_diff_u() {
    let ten: String = (1..=10).map(|n| format!("{n}\n")).collect();
    let more = ten.clone() + "11\n";
    let table: &[(&str, &str, &str)] = &[
        ("a\n", "a\n", ""),
        ("", "", ""),
        ("a\n", "b\n", "@@ -1 +1 @@\n-a\n+b\n"),
        ("", "a\nb\n", "@@ -0,0 +1,2 @@\n+a\n+b\n"),
        ("a\nb\n", "", "@@ -1,2 +0,0 @@\n-a\n-b\n"),
        ("a\nb\n", "a\nx\nb\n", "@@ -1,2 +1,3 @@\n a\n+x\n b\n"),
        (
            "a",
            "a\n",
            "@@ -1 +1 @@\n-a\n\\ No newline at end of file\n+a\n",
        ),
        (
            "a\nb",
            "x\nb",
            "@@ -1,2 +1,2 @@\n-a\n+x\n b\n\\ No newline at end of file\n",
        ),
        ("a\r\n", "a\n", "@@ -1 +1 @@\n-a\r\n+a\n"),
        (
            &ten,
            &ten.replace("2\n", "two\n").replace("9\n", "nine\n"),
            "@@ -1,10 +1,10 @@\n 1\n-2\n+two\n 3\n 4\n 5\n 6\n 7\n 8\n-9\n+nine\n 10\n",
        ),
        (
            &more,
            &more.replace("2\n", "two\n").replace("10\n", "ten\n"),
            "@@ -1,5 +1,5 @@\n 1\n-2\n+two\n 3\n 4\n 5\n@@ -7,5 +7,5 @@\n 7\n 8\n 9\n-10\n+ten\n 11\n",
        ),
        (
            &ten,
            &ten.replace("5\n", ""),
            "@@ -2,7 +2,6 @@\n 2\n 3\n 4\n-5\n 6\n 7\n 8\n",
        ),
    ];
    for (old, new, want) in table {
        assert_eq!(diff(old, new), *want, "{old:?} {new:?}");
    }
}

#[test]
fn what_is_not_text_is_one_line() {
    let old = vec![0u8; 12_345];
    let new = vec![0u8; 13_001];
    assert_eq!(
        diff_for(&old, &new, Reader::Program),
        "Binary files b differ: 12,345 -> 13,001 bytes\n"
    );
    let large = vec![b'a'; (1 << 20) + 1];
    assert_eq!(
        diff_for(b"a", &large, Reader::Program),
        "Large files b differ: 1 -> 1,048,577 bytes\n"
    );
    assert_eq!(diff_for(&large, &large, Reader::Program), "");
    assert!(by_size(1, TEXT_BYTES_MAX).is_none() && by_size(1, TEXT_BYTES_MAX + 1).is_some());
}

#[test]
fn bytes_stay_for_programs_and_are_harmless_on_terminals() {
    let (old, new) = (b"\xff\x1b[31m\r\n".as_slice(), b"a\\b\tc\r\n".as_slice());
    let mut out = Vec::new();
    let compared = compare(old, new, TIME_MAX);
    compared
        .write(&OLD, &NEW, Reader::Program, &mut out)
        .unwrap();
    let want = [b"--- a\n+++ b\n@@ -1 +1 @@\n-".as_slice(), old, b"+", new].concat();
    assert_eq!(out, want);
    let plain = Reader::Terminal { colour: false };
    assert_eq!(
        diff_for(old, new, plain),
        "--- a\n+++ b\n@@ -1 +1 @@\n-\\xff\\x1b[31m\\x0d\n+a\\b\tc\\x0d\n"
    );
    // What did not change is not littered with carriage returns.
    assert_eq!(
        diff_for(b"a\r\nb\r\n", b"a\r\nc\r\n", plain),
        "--- a\n+++ b\n@@ -1,2 +1,2 @@\n a\n-b\\x0d\n+c\\x0d\n"
    );
    let coloured = diff_for(b"a\n", b"b\n", Reader::Terminal { colour: true });
    assert!(
        coloured.contains("\x1b[31m-a\x1b[m\n\x1b[32m+b\x1b[m\n"),
        "{coloured:?}"
    );
    let long = diff_for(&vec![b'x'; 50_000], b"", plain);
    assert!(
        long.len() < 3000 && long.contains("(48,000 bytes more)"),
        "{long}"
    );
}

#[test]
fn names_stay_in_their_line() {
    let shown = |path: Option<&[u8]>, at, reader| {
        let mut out = Vec::new();
        head(b"--- ", &Side { path, at }, reader, &mut out).unwrap();
        String::from_utf8_lossy(&out).into_owned()
    };
    let screen = Reader::Terminal { colour: false };
    for (path, at, reader, want) in [
        (None, "", Reader::Program, "--- /dev/null\n"),
        (
            Some("a b"),
            "2026-11-22",
            Reader::Program,
            "--- a b\t2026-11-22\n",
        ),
        (
            Some("a\nb\"\\"),
            "",
            Reader::Program,
            "--- \"a\\012b\\\"\\\\\"\n",
        ),
        (Some("a\nb"), "", screen, "--- a\\x0ab\n"),
        (Some("\u{202e}x"), "", screen, "--- \\xe2\\x80\\xaex\n"),
    ] {
        assert_eq!(shown(path.map(str::as_bytes), at, reader), want);
    }
}

/// Takes a diff that is for programs and makes the new version of the old one.
fn patched(old: &[u8], diff: &[u8]) -> Vec<u8> {
    let old: Vec<&[u8]> = lines(old);
    let (mut at, mut out) = (0, Vec::new());
    let names = |line: &&[u8]| !line.starts_with(b"@");
    let mut diff = lines(diff).into_iter().skip_while(names).peekable();
    while let Some(line) = diff.next() {
        let (mark, body) = (line[0], &line[1..]);
        let cut = diff.peek().is_some_and(|next| next.starts_with(b"\\"));
        let body = if cut { &body[..body.len() - 1] } else { body };
        match mark {
            b'@' => {
                let text = String::from_utf8_lossy(line).into_owned();
                let from = text[4..].split([',', ' ']).next().unwrap();
                let count = text[4..].split(' ').next().unwrap();
                let empty = count.ends_with(",0");
                let from = from.parse::<usize>().unwrap() - usize::from(!empty);
                out.extend(old[at..from].concat());
                at = from;
            }
            b' ' => {
                assert_eq!(old[at], body);
                out.extend_from_slice(body);
                at += 1;
            }
            b'-' => {
                assert_eq!(old[at], body);
                at += 1;
            }
            b'+' => out.extend_from_slice(body),
            b'\\' => {}
            other => panic!("{other}"),
        }
    }
    out.extend(old[at..].concat());
    out
}

/// What is printed leads from one version to the other, whatever they hold, and however short the time is.
#[test]
fn a_diff_leads_to_the_new_version() {
    let sample = |n: u8| -> Vec<u8> {
        (0..60u8)
            .flat_map(|line| format!("{}\n", line % n).into_bytes())
            .collect()
    };
    let samples = [
        sample(3),
        sample(7),
        sample(60),
        b"a\r\n\xff\nno end".to_vec(),
    ];
    fuzz::run("textdiff", |random| {
        let old: Vec<u8> = random.changed(&samples);
        let new: Vec<u8> = random.changed(&samples);
        let text = |bytes: Vec<u8>| bytes.into_iter().filter(|b| *b != 0).collect::<Vec<u8>>();
        let (old, new) = (text(old), text(new));
        for time in [Duration::ZERO, TIME_MAX] {
            let compared = compare(&old, &new, time);
            let mut out = Vec::new();
            compared
                .write(&OLD, &NEW, Reader::Program, &mut out)
                .unwrap();
            assert_eq!(patched(&old, &out), new);
            let screen = Reader::Terminal { colour: false };
            let mut out = Vec::new();
            compared.write(&OLD, &NEW, screen, &mut out).unwrap();
            let shown = String::from_utf8(out).unwrap();
            let odd = |c: char| is_tricky(c) && !"\n\t".contains(c);
            assert!(!shown.contains(odd), "{shown:?}");
        }
    });
}

#[test]
fn time_has_a_limit() {
    let many = |step: usize| -> Vec<u8> {
        (0..100_000usize)
            .flat_map(|n| format!("{}\n", n.wrapping_mul(step) % 977).into_bytes())
            .collect()
    };
    let (old, new) = (many(7919), many(104_729));
    let Compared::Lines(lines) = compare(&old, &new, Duration::from_millis(20)) else {
        panic!("these are lines");
    };
    assert!(lines.rough);
    assert_eq!(
        lines.new.len() as u64 - lines.added,
        lines.old.len() as u64 - lines.removed
    );
}

#[test]
fn a_line_a_file() {
    let lines = |path: &'static str, added, removed| Stat {
        path: path.as_bytes(),
        change: Change::Lines { added, removed },
    };
    let stats = [
        lines("index.php", 3, 2),
        Stat {
            path: b"logo.png",
            change: Change::Bytes {
                old: 12_345,
                new: 0,
            },
        },
        lines("a\n", 0, 0),
    ];
    assert_eq!(
        stat_lines(&stats, 60, false),
        [
            " index.php |     5 +++--",
            " logo.png  | bytes 12,345 -> 0",
            " a\\x0a     |     0",
            " 3 files, 3 lines added(+), 2 removed(-)",
        ]
    );
    assert!(stat_lines(&stats, 60, true)[0].contains("\x1b[32m+++\x1b[31m--\x1b[m"));
    // Large ones keep to the width, and the end of a long path is what is seen.
    let long = "a/".repeat(100) + "index.php";
    let stats = [
        Stat {
            path: long.as_bytes(),
            change: Change::Lines {
                added: 1_000_000,
                removed: 1,
            },
        },
        lines("x", 500_000, 500_000),
    ];
    for columns in [0, 40, 61, 200] {
        let bars = &stat_lines(&stats, columns, false)[..2];
        assert!(
            bars[0].contains("/index.php |") && bars[0].contains("..."),
            "{}",
            bars[0]
        );
        assert!(bars[0].ends_with("+-"), "{}", bars[0]);
        assert!(
            bars.iter().all(|line| width(line) <= columns.max(60)),
            "{bars:?}"
        );
    }
    stat_lines(&[lines("x", u64::MAX, u64::MAX)], 40, false);
    for (added, removed) in [(0, 0), (1, 1), (100, 1), (1, 100), (50, 50), (7, 93)] {
        let (plus, minus) = marks(added, removed, 10, 100);
        assert!(plus + minus <= 10, "{added} {removed}");
        assert_eq!((plus > 0, minus > 0), (added > 0, removed > 0));
    }
}
