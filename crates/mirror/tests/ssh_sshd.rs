//! The mirror over a real sshd on the loopback, with keys of its own. Skipped, with the reason, where none is installed.

mod ssh_support;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use ssh_support::*;
use testkit::Skip;
use testkit::proc::Program;

/// A bed whose ssh is the system's, and the server it logs in to.
struct Far {
    bed: Bed,
    server: Program,
    port: u16,
}

fn which(name: &str) -> Result<PathBuf, Skip> {
    [
        "/usr/sbin",
        "/usr/bin",
        "/sbin",
        "/bin",
        "/usr/local/sbin",
        "/usr/local/bin",
    ]
    .iter()
    .map(|dir| Path::new(dir).join(name))
    .find(|path| path.exists())
    .ok_or_else(|| Skip(format!("{name} is not installed")))
}

fn key(path: &Path) -> Result<(), Skip> {
    let done = Command::new(which("ssh-keygen")?)
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(path)
        .stdin(Stdio::null())
        .status();
    match done {
        Ok(status) if status.success() => Ok(()),
        other => Err(Skip(format!("ssh-keygen: {other:?}"))),
    }
}

/// A server on a port of its own. A port that was free may be another's a moment later, so it says itself that it listens,
/// and other ports are tried.
fn serve(bed: &Bed, sshd: &Path) -> Result<(Program, u16), Skip> {
    let mut why = String::new();
    for _ in 0..5 {
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|socket| socket.local_addr())
            .map_err(|e| Skip(format!("no port: {e}")))?
            .port();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {host}\nAuthorizedKeysFile {authorized}\nStrictModes no\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\nPermitRootLogin yes\n\
             PidFile none\nLogLevel INFO\n",
            host = bed.path("host").display(),
            authorized = bed.path("authorized").display(),
        );
        fs::write(bed.path("sshd_config"), config).unwrap();
        let mut command = Command::new(sshd);
        command
            .args(["-D", "-e", "-f"])
            .arg(bed.path("sshd_config"));
        let mut server = Program::start(&mut command).map_err(|e| Skip(format!("sshd: {e}")))?;
        match server.wait_stderr("Server listening on", Duration::from_secs(20)) {
            Ok(_) => return Ok((server, port)),
            Err(e) => why = format!("{e} {}", server.stderr()),
        }
    }
    Err(Skip(format!("sshd does not start: {why}")))
}

impl Far {
    fn new() -> Result<Far, Skip> {
        let (sshd, _) = (which("sshd")?, which("ssh")?);
        let mut bed = Bed::empty();
        for name in ["host", "user", "forced", "stranger"] {
            key(&bed.path(name))?;
        }
        let public = |name: &str| fs::read_to_string(bed.path(&format!("{name}.pub"))).unwrap();
        let state = bed.states();
        let authorized = format!(
            "{}command=\"env MIRRORD_STATE={} {MIRRORD} stdio --tree {}\" {}",
            public("user"),
            state.display(),
            bed.src().display(),
            public("forced"),
        );
        fs::write(bed.path("authorized"), authorized).unwrap();
        // Without it sshd as root refuses to start; it belongs to the package and goes with a reboot.
        if testkit::is_root() {
            let _ = fs::create_dir_all("/run/sshd");
        }
        let (server, port) = serve(&bed, &sshd)?;
        let known = format!("[127.0.0.1]:{port} {}", public("host"));
        fs::write(bed.path("known"), known).unwrap();
        bed.host = format!("ssh://127.0.0.1:{port}");
        bed.remote = format!("env MIRRORD_STATE={} {MIRRORD}", state.display());
        let far = Far { bed, server, port };
        far.log_in_with("user", "known");
        Ok(far)
    }

    /// The client's own configuration, as a person would have it.
    fn log_in_with(&self, key: &str, known: &str) {
        let path = |name: &str| self.bed.path(name).display().to_string();
        let config = format!(
            "Host *\nIdentityFile {}\nIdentitiesOnly yes\nUserKnownHostsFile {}\nStrictHostKeyChecking yes\n\
             GlobalKnownHostsFile /dev/null\n",
            path(key),
            path(known)
        );
        let file = self.bed.path("ssh_config");
        fs::write(&file, config).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn mirror(&self, tree: &Path, dst: &Path, more: &[&str]) -> Program {
        let source = format!("{}{}", self.bed.host, tree.display());
        self.bed.mirror_from(&source, dst, more)
    }
}

fn far() -> Result<Far, Skip> {
    let mut far = Far::new()?;
    far.bed.ssh = format!("ssh -F {}", far.bed.path("ssh_config").display());
    // Once, to see that logging in works here at all.
    let done = Command::new("ssh")
        .arg("-F")
        .arg(far.bed.path("ssh_config"))
        .args([
            "-o",
            "BatchMode=yes",
            "-p",
            &far.port.to_string(),
            "127.0.0.1",
            "true",
        ])
        .stdin(Stdio::null())
        .output();
    match done {
        Ok(output) if output.status.success() => Ok(far),
        Ok(output) => Err(Skip(format!(
            "this account can't log in to its own sshd: {} {}",
            String::from_utf8_lossy(&output.stderr).trim(),
            far.server.stderr()
        ))),
        Err(e) => Err(Skip(format!("ssh: {e}"))),
    }
}

#[test]
fn a_tree_is_mirrored_over_sshd_and_survives_its_end() {
    let mut far = testkit::need!(far());
    far.bed.populate(500, 31);
    let (src, dst) = (far.bed.src(), far.bed.dst());
    let mut follower = far.mirror(&src, &dst, &[]);
    follower.wait_stderr("equal: ", LONG).unwrap();
    far.bed.equal();
    fs::write(src.join("live"), "x").unwrap();
    fs::write(src.join("large"), vec![5u8; 3 << 20]).unwrap();
    far.bed.equal();
    // The server goes, and with it, for a while, every way in. (A running login has a process of its own.)
    let sessions = children(far.server.pid());
    far.server.kill().unwrap();
    for pid in sessions {
        kill9(pid);
    }
    follower.wait_stderr("disconnected", LONG).unwrap();
    fs::write(src.join("meanwhile"), "y").unwrap();
    let mut command = Command::new(which("sshd").unwrap());
    command
        .args(["-D", "-e", "-f"])
        .arg(far.bed.path("sshd_config"));
    far.server = Program::start(&mut command).unwrap();
    far.bed.equal();
    stop(follower);
}

/// Processes started by this one, and by those.
fn children(of: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir("/proc") else {
        return found;
    };
    let all: Vec<(u32, u32)> = entries
        .flatten()
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            let parent = stat.rsplit(')').next()?.split_whitespace().nth(1)?;
            Some((pid, parent.parse().ok()?))
        })
        .collect();
    let mut queue = vec![of];
    while let Some(parent) = queue.pop() {
        for (pid, up) in &all {
            if *up == parent {
                found.push(*pid);
                queue.push(*pid);
            }
        }
    }
    found
}

#[test]
fn logins_that_do_not_work_are_told_in_one_line() {
    let far = testkit::need!(far());
    let (src, dst) = (far.bed.src(), far.bed.dst());
    let once = |more: &[&str]| ended(far.mirror(&src, &dst, more));
    far.log_in_with("stranger", "known");
    let (code, said) = once(&[]);
    assert!(
        code == 6 && said.contains("refuses the login"),
        "{code} {said}"
    );
    far.log_in_with("user", "nothing-known");
    let (code, said) = once(&[]);
    assert!(
        code == 6 && said.contains("is not known here"),
        "{code} {said}"
    );
    far.log_in_with("user", "known");
    let (code, said) = once(&["--remote-command", "mirrord-that-is-not-there"]);
    assert!(
        code == 6 && said.contains("mirrord is not installed on"),
        "{code} {said}"
    );
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let source = format!("ssh://127.0.0.1:{closed}{}", src.display());
    let (code, said) = ended(far.bed.mirror_from(&source, &dst, &[]));
    assert!(
        code == 6 && said.contains("cannot reach 127.0.0.1"),
        "{code} {said}"
    );
    assert!(said.contains("refused"), "{said}");
    assert!(!dst.join("a").exists());
}

#[test]
fn a_key_with_a_forced_command_reads_its_tree_only() {
    let far = testkit::need!(far());
    fs::write(far.bed.src().join("a"), "1").unwrap();
    let secret = far.bed.path("secret");
    fs::create_dir(&secret).unwrap();
    fs::write(secret.join("key"), "no").unwrap();
    far.log_in_with("forced", "known");
    let (code, said) = ended(far.mirror(&far.bed.src(), &far.bed.dst(), &["--once"]));
    assert_eq!(code, 0, "{said}");
    assert!(far.bed.dst().join("a").exists());
    let stolen = far.bed.path("stolen");
    let (code, said) = ended(far.mirror(&secret, &stolen, &["--once"]));
    assert!(
        code == 6 && said.contains("this login serves"),
        "{code} {said}"
    );
    assert!(!stolen.join("key").exists());
}

#[test]
fn sudo_runs_mirrord_there() {
    let far = testkit::need!(far());
    let works = Command::new("sudo")
        .args(["-n", "true"])
        .stdin(Stdio::null())
        .output()
        .is_ok_and(|output| output.status.success());
    if !works {
        testkit::skip!("sudo is not installed, or asks for a password");
    }
    fs::write(far.bed.src().join("a"), "1").unwrap();
    let remote = format!("sudo -n {}", far.bed.remote);
    let more = ["--once", "--remote-command", &remote];
    let (code, said) = ended(far.mirror(&far.bed.src(), &far.bed.dst(), &more));
    assert_eq!(code, 0, "{said}");
    far.bed.equal();
}
