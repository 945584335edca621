use super::*;
use crate::engine::service::backup::load::{Loaded, load};
use crate::history::settings::PathRule;
use std::fs;

/// The files of a configuration, by name; `D` in them is the directory.
fn loaded(files: &[(&str, &str)]) -> (Loaded, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    let top = fs::canonicalize(dir.path()).unwrap();
    fs::create_dir(top.join("conf.d")).unwrap();
    let here = top.display().to_string();
    for (name, text) in files {
        fs::write(top.join(name), text.replace("$D", &here)).unwrap();
    }
    let loaded = load(&top.join("fs_mirror.toml"));
    let lines = loaded
        .problems
        .iter()
        .map(|p| p.to_string().replace(&format!("{here}/"), ""));
    let lines = lines.collect();
    (loaded, lines)
}

const FULL: &str = r#"
listen = ["0.0.0.0:8737", "[::]:8737"]
user = "root"
textfile = "/var/lib/node_exporter/fs_mirror.prom"
deadman = "http://hc.example/ping"
max_lag = "10m"

[on_alarm]
command = "mail -s \"$FS_MIRROR_ALARM\" root"
timeout = "30s"

[tree.blog]
source = "mirror://web1/blog"
dst = "/backup/blog"
ignore = ["cache/", "*.tmp"]
cross = ["mnt/media"]
owners = "apply"
on_mass_change = "follow"
detector = "scan"
bwlimit = [{ from = "08:00", to = "18:00", rate = "5M" }]
compress = "off"
timeout = "15s"
verify_every = "never"
history = false
remote_command = "sudo -n mirrord"
bytes_max = "10G"
inodes_max = 1000000
ops_max = 500
min_free = "1G"
nice = 10
io_nice = "idle"
memory_max = "512M"

[[tree.blog.hook]]
on = "applied"
command = "systemctl reload nginx"
patterns = ["conf/"]
quiet = "2s"
timeout = "10s"
user = "root"
"#;

#[test]
fn everything_can_be_said_and_is_written_as_it_was_read() {
    let (loaded, problems) = loaded(&[
        ("fs_mirror.toml", FULL),
        (
            "conf.d/shop.toml",
            "[tree.shop]\nsource = 'web2:/srv/shop'\ndst = '/backup/shop'\n",
        ),
        ("conf.d/.hidden.toml", "nonsense"),
        ("conf.d/readme.txt", "nonsense"),
    ]);
    assert_eq!(problems, Vec::<String>::new());
    assert_eq!(loaded.trees.len(), 2);
    assert_eq!(loaded.general.listen.len(), 2);
    let blog = &loaded.trees["blog"].tree;
    assert_eq!(blog.limits.bytes_max, Some(10 << 30));
    assert_eq!(blog.hooks[0].quiet, Duration::from_secs(2));
    assert_eq!(blog.polite.io_nice, Some(IoNice::Idle));
    assert_eq!(blog.bwlimit.at(600), Some(5 << 20));
    assert_eq!(blog.bwlimit.at(60), None);
    assert_eq!(blog.compress, Compress::Off);
    let shop = &loaded.trees["shop"].tree;
    assert_eq!(shop.owners, Owners::Record);
    for tree in [blog.clone(), shop.clone(), odd(), kept()] {
        let text = tree.to_string();
        let (again, problems) = self::loaded(&[("fs_mirror.toml", &text)]);
        assert_eq!(problems, Vec::<String>::new(), "{text}");
        assert_eq!(again.trees[&tree.name].tree, tree, "{text}");
    }
}

/// All that can be said of history.
fn kept() -> Tree {
    use mirror_core::history::interval::Keep;
    use mirror_core::history::retention::{Budget, Lock};
    let mut tree = Tree::new("kept", "/srv/k".into(), "/b/k".into());
    tree.history = false;
    let keeping = &mut tree.keeping;
    for (key, value) in [("every", "5d"), ("hourly", "none"), ("monthly", "7y")] {
        keeping.policy.set(key, value).unwrap();
    }
    keeping.lock = Lock::Governance;
    keeping.budget = Budget {
        bytes_max: Some(5 << 30),
        ..Budget::default()
    };
    keeping.reserve = Some(1 << 20);
    keeping.min_interval_ns = 0;
    let rule = |pattern: &str, keep| PathRule {
        patterns: vec![pattern.into(), "x\"'".into()],
        keep,
    };
    keeping.paths = vec![
        rule("cache/", Keep::None),
        rule("*", Keep::Interval(90_000_000_000)),
        rule("!a", Keep::All),
    ];
    tree
}

/// Names that are not plain text, and a name with a dot.
fn odd() -> Tree {
    use std::os::unix::ffi::OsStringExt;
    let bytes = |b: &[u8]| OsString::from_vec(b.to_vec());
    let mut tree = Tree::new("web.1", bytes(b"/srv/\xff\\\"x"), bytes(b"/b/\xfe'").into());
    tree.cross = vec![bytes(b"a\x01b").into()];
    tree.ignore = vec!["#\"'\\ ".into()];
    tree.bwlimit = Rates::fixed(Some(1500));
    tree
}

#[test]
fn each_mistake_is_one_line_with_file_and_line() {
    let tree = "[tree.a]\nsource = '/s'\ndst = '/b/a'\n";
    let table: &[(&str, &str)] = &[
        (
            "[tree.a]\nsource = '/s'",
            "fs_mirror.toml, line 1: dst is missing",
        ),
        (
            &format!("{tree}history = 3"),
            "fs_mirror.toml, line 4: history: true, false or a table is wanted here, and this is a number",
        ),
        (
            &format!("{tree}[tree.a.history]\nkeep = {{ hourly = '30 fortnights' }}"),
            "fs_mirror.toml, line 5: hourly: 30 fortnights is no length of time: write 72h, 7d, 13w, 24mo, 2y, or none",
        ),
        (
            &format!("{tree}[tree.a.history]\nevery = '3m'"),
            "fs_mirror.toml, line 5: every: 3m may be minutes or months: write 3min or 3mo",
        ),
        (
            &format!("{tree}[tree.a.history]\nkeep = {{ timezone = 'Mars/Olympus' }}"),
            "fs_mirror.toml, line 5: timezone: Mars/Olympus is no time zone that this host knows: write one such as \
             Europe/Berlin (`timedatectl list-timezones`), or UTC",
        ),
        (
            &format!("{tree}[tree.a.history]\nlock = 'on'"),
            "fs_mirror.toml, line 5: lock: on is no lock: off, governance or compliance",
        ),
        (
            &format!("{tree}[tree.a.history]\nbudget = '120%'"),
            "fs_mirror.toml, line 5: budget: a share of the file system is 1% to 100%",
        ),
        (
            &format!("{tree}[[tree.a.history.path]]\nmatch = 'a[z-a]'\nkeep = 'none'"),
            "fs_mirror.toml, line 5: match: a[z-a] is no pattern: invalid range; 'z' > 'a'",
        ),
        (
            &format!("{tree}[tree.a.history]\nkept = 1"),
            "fs_mirror.toml, line 5: no setting is called kept; there are on, every, keep, lock, budget, reserve, \
             min_interval, path",
        ),
        (
            "[tree.a]\nsource = 's'\ndst = '/b'",
            "fs_mirror.toml, line 2: source: s does not begin with /",
        ),
        (
            "[tree.a]\nsource = 'ftp://h/x'\ndst = '/b'",
            "fs_mirror.toml, line 2: source: ftp:// is not a kind of source",
        ),
        (
            "[tree.a]\nsource = '/s'\ndst = 'b'",
            "fs_mirror.toml, line 3: dst: b does not begin with /",
        ),
        (
            "[tree.\"a b\"]\nsource = '/s'\ndst = '/b'",
            "fs_mirror.toml, line 1: a b is no name of a tree",
        ),
        (
            "[tree.a]\nsorce = '/s'",
            "fs_mirror.toml, line 2: no setting is called sorce",
        ),
        (
            "lisen = []",
            "fs_mirror.toml, line 1: no setting is called lisen",
        ),
        (
            "listen = ['nowhere']",
            "fs_mirror.toml, line 1: listen: nowhere is no address to listen on",
        ),
        (
            "user = 'nobody-of-that-name'",
            "fs_mirror.toml, line 1: user: there is no user nobody-of-that-name here",
        ),
        (
            "textfile = '/x/y'",
            "fs_mirror.toml, line 1: textfile: node_exporter reads files whose names end in .prom",
        ),
        (
            "deadman = 'https://x/'",
            "fs_mirror.toml, line 1: deadman: https is not spoken here",
        ),
        (
            "on_alarm = 'x'",
            "fs_mirror.toml, line 1: a table is wanted here, and this is a text",
        ),
        (
            "[on_alarm]\ntimeout = '0s'",
            "fs_mirror.toml, line 2: timeout: a command needs some time",
        ),
        (
            "[on_alarm]\ntimeout = '1s'",
            "fs_mirror.toml, line 1: a command is wanted here",
        ),
    ];
    for (text, want) in table {
        let (loaded, lines) = loaded(&[("fs_mirror.toml", text)]);
        assert!(
            lines.iter().any(|line| line.starts_with(want)),
            "{text}\n{lines:#?}"
        );
        assert!(lines.iter().all(|line| !line.contains('\n')));
        assert!(loaded.trees.is_empty());
    }
    for (setting, want) in [
        ("owners = 'all'", "owners: apply or record"),
        (
            "on_mass_change = 'ask'",
            "on_mass_change: auto, hold or follow",
        ),
        (
            "detector = 'magic'",
            "detector: auto, fanotify, inotify or scan",
        ),
        ("bwlimit = 'fast'", "bwlimit: fast is not a size"),
        ("compress = 'lz4'", "compress: auto, on or off"),
        (
            "bwlimit = [{ from = '8', to = '9', rate = '1M' }]",
            "from: \"8\" is no time of day",
        ),
        ("timeout = 'long'", "timeout: long is not a duration"),
        ("bytes_max = 'big'", "bytes_max: big is not a size"),
        ("inodes_max = 0", "inodes_max: at least 1 is wanted"),
        (
            "memory_max = '1M'",
            "memory_max: at least 67108864 is wanted",
        ),
        ("nice = 20", "nice is a number from -20 to 19"),
        ("io_nice = 8", "io_nice: 0 (first) to 7 (last), or idle"),
        ("ignore = ['a[z-a]']", "ignore: bad ignore pattern 1"),
        ("cross = ['../x']", "cross: a path relative to the source"),
        ("[[tree.a.hook]]\ncommand = 'x'", "a hook says when"),
        (
            "[[tree.a.hook]]\non = 'removed'\ncommand = 'x'",
            "on: hooks are for \"applied\"",
        ),
        (
            "[[tree.a.hook]]\non = 'applied'",
            "a command is wanted here",
        ),
    ] {
        let text = format!("{tree}{setting}\n[tree.b]\nsource = '/s'\ndst = '/b/b'\n");
        let (loaded, lines) = loaded(&[("fs_mirror.toml", &text)]);
        assert!(
            lines.iter().any(|line| line.contains(want)),
            "{setting}\n{lines:#?}"
        );
        // The other tree is not touched by it.
        assert_eq!(loaded.trees.keys().collect::<Vec<_>>(), ["b"], "{setting}");
        assert!(loaded.bad_trees.contains("a"), "{setting}");
    }
}

#[test]
fn where_to_listen() {
    for (text, want) in [
        ("0.0.0.0", "0.0.0.0:8737"),
        ("192.0.2.1:99", "192.0.2.1:99"),
        (":99", "[::]:99"),
        ("::1", "[::1]:8737"),
        ("[::1]", "[::1]:8737"),
        ("[::1]:99", "[::1]:99"),
    ] {
        assert_eq!(address(text).map(|a| a.to_string()), Ok(want.into()));
    }
    for text in ["", ":", ":x", "host", "host:99", "0.0.0.0:70000"] {
        assert!(address(text).is_err(), "{text}");
    }
}

#[test]
fn a_broken_file_is_not_the_others_trouble() {
    let good = "[tree.b]\nsource = '/s'\ndst = '/b/b'\n";
    let (loaded, lines) = loaded(&[
        ("fs_mirror.toml", "max_lag = '1m'"),
        ("conf.d/a.toml", "[tree.a\n"),
        ("conf.d/b.toml", good),
    ]);
    assert!(lines[0].starts_with("conf.d/a.toml, line 1: "), "{lines:?}");
    assert_eq!(loaded.trees.len(), 1);
    assert_eq!(loaded.bad_files.len(), 1);
    assert!(!loaded.general_is_bad);
}

#[test]
fn what_is_there_twice_or_inside_another_is_refused() {
    let tree = |name: &str, more: &str| format!("[tree.{name}]\nsource = '/s'\n{more}\n");
    let table = [
        ("dst = '$D/a'", "DST $D/a is also DST of tree a, $D/a"),
        ("dst = '$D/a/x'", "DST $D/a/x is inside DST of tree a, $D/a"),
        (
            "dst = '$D/link/x'",
            "DST $D/a/x is inside DST of tree a, $D/a",
        ),
        (
            "dst = '$D'",
            "DST $D holds the state of the service, $D/service",
        ),
        (
            "dst = '$D/a.fs_mirror/x'",
            "DST $D/a.fs_mirror/x is inside the state directory of tree a, $D/a.fs_mirror",
        ),
        (
            "dst = '$D/b'\nstate = '$D/a.fs_mirror'",
            "the state directory $D/a.fs_mirror is also the state directory of tree a",
        ),
        (
            "dst = '$D/b'\nstate = '$D/b/s'",
            "DST $D/b holds its own state directory, $D/b/s",
        ),
    ];
    for (more, want) in table {
        let dir = tempfile::tempdir().unwrap();
        let top = fs::canonicalize(dir.path()).unwrap();
        fs::create_dir(top.join("a")).unwrap();
        std::os::unix::fs::symlink(top.join("a"), top.join("link")).unwrap();
        let here = top.display().to_string();
        let text = format!(
            "state = '$D/service'\n{}{}",
            tree("a", "dst = '$D/a'"),
            tree("b", more)
        );
        fs::write(top.join("c.toml"), text.replace("$D", &here)).unwrap();
        let loaded = load(&top.join("c.toml"));
        let lines: Vec<String> = loaded
            .problems
            .iter()
            .map(|p| p.to_string().replace(&here, "$D"))
            .collect();
        assert_eq!(lines.len(), 1, "{more}: {lines:?}");
        assert!(lines[0].contains(want), "{more}: {lines:?}");
        assert_eq!(loaded.trees.keys().collect::<Vec<_>>(), ["a"], "{more}");
    }
    let (loaded, lines) = loaded(&[
        ("fs_mirror.toml", "[tree.a]\nsource = '/s'\ndst = '/b/a'\n"),
        (
            "conf.d/a.toml",
            "max_lag = '1m'\n[tree.a]\nsource = '/s'\ndst = '/b/c'\n",
        ),
        ("conf.d/b.toml", "max_lag = '2m'\n"),
    ]);
    assert!(
        lines[0].starts_with("conf.d/a.toml, line 2: tree a is there already: ")
            && lines[0].ends_with("fs_mirror.toml, line 1"),
        "{lines:?}"
    );
    assert_eq!(
        lines[1],
        "conf.d/b.toml, line 1: max_lag is set in another file already"
    );
    assert_eq!(loaded.trees["a"].tree.dst, PathBuf::from("/b/a"));
}
