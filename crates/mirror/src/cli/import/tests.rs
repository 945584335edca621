//! Both tools' files as a whole: what is printed is read by the parsers of both services, as it is and switched on.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::emit::Import;
use super::{Names, lsyncd, rsnapshot};
use crate::engine::service::backup::load::{Loaded, load};
use crate::engine::service::worker;
use crate::fuzz;

const RULES: &[u8] = b"# rules\n\n+ keep.me\n/home/*.big\n";

fn no_file(_: &Path) -> Result<Arc<[u8]>, String> {
    Err("cannot read it".into())
}

fn snapshots(text: &str) -> Import {
    rsnapshot::read(text.as_bytes(), &mut |path: &Path| match path.to_str() {
        Some("/rules") => Ok(RULES.into()),
        Some("/more.conf") => Ok(b"backup\t/srv/\tmore/\nbackup_exec\t/bin/true\n"
            .as_slice()
            .into()),
        Some("/loop.conf") => Ok(b"include_conf\t/loop.conf\n".as_slice().into()),
        _ => no_file(path),
    })
}

fn lua(text: &str) -> Import {
    lsyncd::read(
        text.as_bytes(),
        "web1",
        &mut |path: &Path| match path.to_str() {
            Some("/rules") => Ok(RULES.into()),
            _ => no_file(path),
        },
    )
}

/// What the real parser makes of it.
fn loaded(text: &str) -> Loaded {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("fs_mirror.toml");
    fs::write(&file, text).unwrap();
    load(&file)
}

/// It is a good configuration, and so are the parts that are switched off.
fn is_good(import: &Import) -> Loaded {
    let file = Path::new("/etc/x\n\x1b.conf");
    let text = import.to_toml(file);
    assert!(!text.contains('\x1b'), "{text}");
    let good = loaded(&text);
    assert!(good.problems.is_empty(), "{:?}\n{text}", good.problems);
    for tree in &import.trees {
        let alone = loaded(&tree.tree.to_string());
        assert!(alone.problems.is_empty(), "{:?}\n{text}", alone.problems);
    }
    import.to_json(file);
    good
}

/// `line: text` of what is open.
fn open(import: &Import) -> Vec<String> {
    let notes = import.notes.open.iter();
    notes
        .map(|n| format!("{}: {}", n.at.line, n.text))
        .collect()
}

/// `name source dst owners [ignore]`, and what else is not as usual.
fn trees(import: &Import) -> Vec<String> {
    let trees = import.trees.iter().map(|planned| {
        let t = &planned.tree;
        let mut line = format!("{} {} {}", t.name, t.source.display(), t.dst.display());
        if t.owners == crate::engine::options::Owners::Apply {
            line.push_str(" apply");
        }
        if !t.ignore.is_empty() {
            line.push_str(&format!(" {:?}", t.ignore));
        }
        if let Some(rate) = t.bwlimit.fixed_rate() {
            line.push_str(&format!(" {rate}/s"));
        }
        if let Some(command) = &t.remote_command {
            line.push_str(&format!(" [{command}]"));
        }
        if let Some(host) = &planned.host {
            line.push_str(&format!(" on {host}"));
        }
        if planned.off.is_some() {
            line.push_str(" off");
        }
        line
    });
    trees.collect()
}

const SNAPSHOTS: &str = "config_version\t1.2
# a comment
snapshot_root\t/backup/snap/
cmd_rsync\t/usr/bin/rsync
cmd_ssh\t/usr/bin/ssh
cmd_preexec\t/usr/local/bin/lock
no_create_root\t1
retain\talpha\t6
retain\tbeta\t7
retain\tgamma\t4
lockfile\t/run/rsnapshot.pid
ssh_args\t-p 2222 -i /root/key
exclude\t*.tmp
exclude\t/home/*/.cache/
exclude\t/opt/none
exclude_file\t/rules
backup\t/home/\tlocalhost/
backup\troot@db.example.com:/etc/\tdb.example.com/
backup\tops@mail:~/box/\tmail/\t+rsync_long_args=--bwlimit=500 --rsync-path='sudo rsync',ssh_args=-q
backup\t/var/www/\tlocalhost/\texclude=*.log,one_fs=1,rsync_short_args=-rlt
backup\trsync://mirror.example/pub/\tpub/
backup\tlvm://vg0/home/\tlvm/
backup_script\t/usr/local/bin/dump.sh\tdumps/
backup_exec\tssh root@b date\trequired
logfile /var/log/rsnapshot.log
frobnicate\t1
include_conf\t/more.conf
include_conf\t/missing.conf
include_conf\t`generate`
include_conf\t/loop.conf
rsync_long_args\t--delete --numeric-ids --relative --copy-links
\t--update
";

#[test]
fn rsnapshot_as_a_whole() {
    let import = snapshots(SNAPSHOTS);
    assert_eq!(
        trees(&import),
        [
            "localhost-home /home /backup/snap/live/localhost-home apply [\"/*.big\", \"!keep.me\", \"/*/.cache/\", \"*.tmp\"]",
            "db.example.com-etc ssh://root@db.example.com:2222/etc /backup/snap/live/db.example.com-etc apply [\"!keep.me\", \"*.tmp\"]",
            "mail-box ops@mail:box /backup/snap/live/mail-box apply [\"!keep.me\", \"*.tmp\"] 512000/s [sudo -n mirrord]",
            "localhost-var-www /var/www /backup/snap/live/localhost-var-www [\"*.log\"]",
            "more-srv /srv /backup/snap/live/more-srv apply [\"!keep.me\", \"*.tmp\"]",
        ]
    );
    let open = open(&import);
    let want = [
        "6: cmd_preexec /usr/local/bin/lock",
        "23: backup_script /usr/local/bin/dump.sh dumps/",
        "24: backup_exec ssh root@b date required",
        "25: logfile /var/log/rsnapshot.log",
        "26: frobnicate 1",
        "2: backup_exec /bin/true",
        "28: include_conf /missing.conf",
        "29: include_conf `generate`",
        "1: include_conf /loop.conf",
        "31: --update",
        "31: --copy-links",
        "12: ssh -i /root/key",
        "21: backup rsync://mirror.example/pub/ pub/",
        "22: backup lvm://vg0/home/ lvm/",
    ];
    assert_eq!(open, want);
    let needless: Vec<&str> = import.notes.needless.iter().map(|n| &*n.text).collect();
    for text in [
        "config_version 1.2",
        "lockfile /run/rsnapshot.pid",
        "/opt/none",
    ] {
        assert!(needless.contains(&text), "{needless:?}");
    }
    assert_eq!(is_good(&import).trees.len(), 5);
    let text = import.to_toml(Path::new("/etc/rsnapshot.conf"));
    assert!(text.contains("line 8: retain alpha 6 -> hourly"), "{text}");
    assert!(
        text.contains("/more.conf line 2: backup_exec /bin/true: "),
        "{text}"
    );
}

#[test]
fn lines_of_rsnapshot() {
    // (a line, its tree or what is open)
    let table: &[(&str, &str)] = &[
        (
            "backup\t/\tlocalhost/",
            "localhost-root / /b/live/localhost-root apply",
        ),
        ("backup\t/a b/\tx", "x-a-b /a b /b/live/x-a-b apply"),
        ("backup\th:/\tx/", "x-root h:/ /b/live/x-root apply"),
        (
            "backup\t/a/\tx/\n\t+rsync_long_args=--no-owner",
            "x-a /a /b/live/x-a",
        ),
        (
            "backup\t/a/\tx/\trsync_long_args=--delete,exclude=/c/",
            "x-a /a /b/live/x-a apply [\"/c/\"]",
        ),
        (
            "backup\t[::1]:/a/\tx/\tssh_args=-p 9",
            "x-a ssh://[::1]:9/a /b/live/x-a apply",
        ),
        ("backup\t/a/\t../x/", "2: backup /a/ ../x/"),
        ("backup\t/a/", "2: backup /a/"),
        ("backup /a/ b/", "2: backup /a/ b/"),
        ("backup\tuser@h::mod/x\tx/", "2: backup user@h::mod/x x/"),
        ("backup\t~/x\tx/", "2: backup ~/x x/"),
        ("backup\th:~bob/x\tx/", "2: backup h:~bob/x x/"),
        (
            "backup\t-oProxyCommand=x:/a\tx/",
            "2: backup -oProxyCommand=x:/a x/",
        ),
        ("backup\t/a/\tx/\tfrob=1", "2: frob=1"),
        ("retain\tdaily\tmany", "2: retain daily many"),
        ("exclude\ta**b\nbackup\t/a/\tx/", "2: a**b"),
        ("exclude\t/a/\nbackup\t/a/\tx/", "2: /a/"),
        ("verbose", "2: verbose"),
    ];
    for (line, want) in table {
        let import = snapshots(&format!("snapshot_root\t/b\n{line}\n"));
        let said = [trees(&import), open(&import)].concat();
        assert!(said.iter().any(|said| said == want), "{line}: {said:?}");
        is_good(&import);
    }
    // Nothing at all is told, too.
    assert_eq!(open(&snapshots("")), ["0: snapshot_root", "0: backup"]);
}

const LUA: &str = r#"-- live copies
settings {
  logfile = "/var/log/lsyncd.log", -- here
  statusFile = "/run/lsyncd.status",
  colour = "red",
}
local base = "/srv"
local junk = { "*.tmp", "/cache/" }
--[[ a block
sync { default.rsync, source = "/not", target = "/this" } ]]
sync {
  default.rsyncssh, source = base .. "/www/", host = "b1.example", targetdir = "/backup/www/",
  exclude = junk, delay = 5,
  rsync = { archive = true, compress = true, bwlimit = 2000, _extra = { "--max-size=1G" } },
  ssh = { port = 2222 },
}
sync{default.rsync, source="/srv/www", target="root@b2:/backup/www", exclude=junk}
sync{default.direct, source='/srv/data', target='/mnt/data', delete=false}
sync{default.rsync, source="/srv/x", target="/backup/www/x", excludeFrom="/rules", filter={"+ a", "- b"}}
for _, host in ipairs({"a", "b"}) do
  sync{default.rsync, source="/srv/www", target=host..":/x"}
end
sync{bash, source="/a", target="/b"}
sync{default.rsync, source="rel", target="/b"}
sync{default.rsync, source="/a", target="h::module"}
sync{default.rsync, source=os.getenv("X"), target="/b", onCreate=function(e) spawn(e) end}
"#;

#[test]
fn lsyncd_as_a_whole() {
    let import = lua(LUA);
    assert_eq!(
        trees(&import),
        [
            "www mirror://web1/www /backup/www apply 2048000/s on b1.example",
            "www mirror://web1/www /backup/www on b2",
            "data /srv/data /mnt/data off",
            "x /srv/x /backup/www/x [\"b\", \"!a\", \"/home/*.big\", \"!keep.me\"]",
        ]
    );
    assert_eq!(
        open(&import),
        [
            "5: settings colour",
            "14: --max-size=1G",
            "18: delete = false",
            "20: a loop with sync{...} in it",
            "23: sync of bash",
            "24: source rel",
            "25: h::module",
            "26: source",
            "26: onCreate",
            "26: source",
        ]
    );
    // The first host's alone is in force; the others' parts are comments.
    let good = is_good(&import);
    assert_eq!(good.trees.keys().collect::<Vec<_>>(), ["www"]);
    let text = import.to_toml(Path::new("/etc/lsyncd.conf"));
    let offered: Vec<&str> = text
        .lines()
        .skip_while(|line| !line.contains("/etc/mirrord/mirrord.toml of web1"))
        .skip(1)
        .take_while(|line| line.starts_with('#'))
        .map(|line| &line[1..])
        .collect();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mirrord.toml");
    fs::write(&file, offered.join("\n")).unwrap();
    let read = worker::config::load(&worker::config::Asked {
        file: Some(file),
        named: true,
        ..Default::default()
    });
    assert!(read.problems.is_empty(), "{:?}\n{text}", read.problems);
    assert_eq!(read.config.trees.len(), 1, "{text}");
    assert_eq!(read.config.trees[0].settings.ignore, ["/cache/", "*.tmp"]);
}

#[test]
fn syncs_of_lsyncd() {
    // (the inside of a sync, its tree or what is open)
    let table: &[(&str, &str)] = &[
        ("default.rsync, source='/a', target='/b'", "a /a /b"),
        ("default.rsync, source='/a/', target='/b/'", "a /a /b"),
        ("default.rsync, source='/', target='/b'", "root / /b"),
        (
            "default.rsyncssh, source='/a', host='localhost', targetdir='/b'",
            "a /a /b",
        ),
        ("default.rsync, source='/a', target='[::1]:/b'", "a /a /b"),
        (
            "default.rsync, source='/a', host='u@h', targetdir='/b'",
            "a mirror://web1/a /b on h",
        ),
        (
            "default.rsync, source='/a', target='/b', rsync={acls=true, times=false}",
            "1: --no-times",
        ),
        (
            "default.rsync, source='/a', target='/b', rsync={owner=true, archive=false}",
            "a /a /b apply",
        ),
        (
            "default.rsync, source='/a', target='/b', rsyncOpts={'-ltus'}",
            "1: -u (--update)",
        ),
        (
            "default.rsync, source='/a', target='/b', delete='running'",
            "a /a /b off",
        ),
        (
            "default.rsync, source='/a', target='/b', delete=true",
            "a /a /b",
        ),
        ("default.rsync, source='/a', target='b'", "1: b"),
        ("default.rsync, source='/a', target='h:b'", "1: h:b"),
        (
            "default.rsync, source='/a', target='rsync://h/m'",
            "1: rsync://h/m",
        ),
        (
            "default.rsync, source='/a/../b', target='/b'",
            "1: source /a/../b",
        ),
        ("default.rsync, source=x, target='/b'", "1: source"),
        ("default.rsync, source='/a'", "1: sync target"),
        (
            "default.rsync, source='/a', target='/b', exclude=5",
            "1: exclude",
        ),
        (
            "default.rsync, source='/a', target='/b', excludeFrom='/none'",
            "1: /none",
        ),
        ("default.rsync, source='/a', target='/b', frob=1", "1: frob"),
        (
            "default.rsync, source='/a', target='/b', postcmd='x'",
            "1: postcmd",
        ),
        ("source='/a', target='/b'", "1: sync of a layer of its own"),
    ];
    for (inside, want) in table {
        let import = lua(&format!("sync{{{inside}}}"));
        let said = [trees(&import), open(&import)].concat();
        assert!(said.iter().any(|said| said == want), "{inside}: {said:?}");
        is_good(&import);
    }
    for (text, want) in [
        (
            "t = '/a'\nt = '/b'\nsync{default.rsync, source=t, target='/c'}",
            "3: source",
        ),
        (
            "if x then t = '/a' end\nt = '/b'\nsync{default.rsync, source=t, target='/c'}",
            "3: source",
        ),
        ("default.rsync.delay = 1", "1: default.rsync.delay"),
        ("require 'x'", "1: code from another file"),
        ("tunnel{}", "1: tunnel{...}"),
    ] {
        let open = open(&lua(text));
        assert!(open.iter().any(|said| said == want), "{text}: {open:?}");
    }
}

/// Values that stand for many values cost no more than there is room for.
#[test]
fn names_for_names_have_a_limit() {
    let mut text = "a0 = 'xxxxxxxxxxxxxxxx'\nt0 = {'x'}\n".to_owned();
    for n in 1..60 {
        let before = n - 1;
        text.push_str(&format!(
            "a{n} = a{before} .. a{before}\nt{n} = {{t{before}, t{before}}}\n"
        ));
    }
    text.push_str("sync{default.rsync, source=a59, target='/b', exclude=t59}\n");
    let import = lua(&text);
    let open = open(&import);
    assert_eq!(
        open.first().map(String::as_str),
        Some("121: sync"),
        "{open:?}"
    );
    assert!(import.trees.is_empty());
}

#[test]
fn which_kind_it_is() {
    let table: &[(&str, (bool, bool))] = &[
        (SNAPSHOTS, (true, false)),
        (LUA, (false, true)),
        ("snapshot_root /x\n", (true, false)),
        ("settings = { a = 1 }", (false, true)),
        ("-- sync{}", (false, false)),
        ("# backup\t/a\tb", (false, false)),
        ("", (false, false)),
        ("[tree.a]\npath = \"/a\"\n", (false, false)),
    ];
    for (text, want) in table {
        let bytes = text.as_bytes();
        let got = (rsnapshot::looks_like(bytes), lsyncd::looks_like(bytes));
        assert_eq!(got, *want, "{text}");
    }
}

#[test]
fn names_of_trees() {
    let mut names = Names::default();
    for (wanted, want) in [
        ("localhost/-home", "localhost-home"),
        ("localhost/-home", "localhost-home-2"),
        ("localhost/-home", "localhost-home-3"),
        ("../..", "tree"),
        ("", "tree-2"),
        ("b\u{fc}ro", "b-ro"),
        ("x.fs_mirror", "x-fs_mirror"),
        ("_.-a", "a"),
    ] {
        assert_eq!(names.given(wanted), want, "{wanted}");
    }
    assert!(names.given(&"long/".repeat(50)).len() < 64);
}

/// Whatever stands in such a file: no panic, and what is printed is a good configuration.
#[test]
fn made_up_files() {
    let samples = [SNAPSHOTS, LUA].map(|text| text.as_bytes().to_vec());
    fuzz::run("import", |random| {
        let text = random.changed(&samples);
        let snapshots = rsnapshot::read(&text, &mut no_file);
        let lua = lsyncd::read(&text, "web1", &mut no_file);
        for import in [snapshots, lua] {
            if random.below(20) == 0 {
                is_good(&import);
            } else {
                import.to_toml(Path::new("x"));
            }
        }
    });
}
