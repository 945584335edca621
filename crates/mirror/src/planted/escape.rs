//! What a thread whose program is not ours any more would try: with `FS_MIRROR_ESCAPE=DIR` each that goes behind the walls tries
//! to get at DIR, and says what came of it.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;

use rustix::mount::{MountFlags, mount};

use crate::sys::{handle, open};

pub fn escape(who: &str) {
    let Some(dir) = std::env::var_os("FS_MIRROR_ESCAPE") else {
        return;
    };
    let dir = Path::new(&dir);
    let at = |name: &str| dir.join(name);
    let secret = at("secret");
    let tries: &[(&str, &dyn Fn() -> std::io::Result<()>)] = &[
        ("read", &|| fs::read(&secret).map(drop)),
        ("write", &|| {
            OpenOptions::new().append(true).open(&secret).map(drop)
        }),
        ("truncate", &|| File::create(&secret).map(drop)),
        ("create", &|| File::create_new(at("new")).map(drop)),
        ("list", &|| fs::read_dir(dir).map(drop)),
        ("rename", &|| fs::rename(&secret, at("renamed"))),
        ("unlink", &|| fs::remove_file(&secret)),
        ("link", &|| fs::hard_link(&secret, at("linked"))),
        ("symlink", &|| symlink("/", at("symlink"))),
        ("mkdir", &|| fs::create_dir(at("dir"))),
        ("chmod", &|| {
            fs::set_permissions(&secret, PermissionsExt::from_mode(0o777))
        }),
        ("chown", &|| chown(&secret, Some(1), Some(1))),
        ("exec", &|| Command::new("/bin/true").status().map(drop)),
        ("mount", &|| {
            let none = MountFlags::empty();
            mount("none", dir, "tmpfs", none, None).map_err(Into::into)
        }),
        ("view", &|| {
            let flags = rustix::mount::OpenTreeFlags::OPEN_TREE_CLONE;
            let view = rustix::mount::open_tree(rustix::fs::CWD, dir, flags);
            view.map(drop).map_err(Into::into)
        }),
        ("by handle", &|| {
            let opened = rustix::fs::openat(
                rustix::fs::CWD,
                dir,
                rustix::fs::OFlags::PATH,
                rustix::fs::Mode::empty(),
            )?;
            let found = handle::name_to_handle(&opened, b"secret")?;
            let by = open::path(&opened, b"secret")?;
            handle::open_by_handle(by, &found.handle, rustix::fs::OFlags::RDONLY)?;
            Ok(())
        }),
        ("connect", &|| {
            std::net::TcpStream::connect("127.0.0.1:9").map(drop)
        }),
        ("memory", &|| {
            let path = format!("/proc/{}/mem", std::process::id());
            OpenOptions::new().write(true).open(path).map(drop)
        }),
    ];
    for (what, attempt) in tries {
        let came = match attempt() {
            Ok(()) => "DONE".into(),
            Err(e) => format!("{:?}", e.kind()),
        };
        eprintln!("escape: {who}: {what}: {came}");
    }
}
