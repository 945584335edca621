//! A host of its own with one of the services on it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use testkit::compare::Options;
use testkit::lab::{Host, Net, Skip};
use testkit::proc::{Program, wait_equal, wait_until};

use super::{FS_MIRROR, LONG};

/// A host with a service on it, and its files.
pub struct Node {
    pub host: Host,
    pub program: &'static str,
    pub dir: PathBuf,
    pub service: Option<Program>,
    /// More for the environment of what runs here.
    pub env: Vec<(&'static str, String)>,
}

impl Node {
    pub fn new(net: &Net, name: &str, program: &'static str, base: &Path) -> Result<Node, Skip> {
        let dir = base.join(name);
        for below in ["etc/conf.d", "state", "run"] {
            fs::create_dir_all(dir.join(below)).unwrap();
        }
        Ok(Node {
            host: net.host(name)?,
            program,
            dir,
            service: None,
            env: Vec::new(),
        })
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.dir.join(below)
    }

    /// One of the two programs, on this host.
    pub fn command(&self, program: &str, words: &[&str]) -> Command {
        let mut command = self.host.command(program);
        command
            .args(words)
            .current_dir("/")
            .env("MIRRORD_CONFIG_DIR", self.path("etc"))
            .env("FS_MIRROR_CONFIG_DIR", self.path("etc"))
            .env("MIRRORD_STATE", self.path("state"))
            .env("FS_MIRROR_STATE", self.path("state"))
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .env_remove("NOTIFY_SOCKET")
            .env_remove("JOURNAL_STREAM");
        command
    }

    #[track_caller]
    pub fn run(&self, program: &str, words: &[&str]) -> String {
        let output = self.command(program, words).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}: {text}{said}");
        text
    }

    pub fn configure(&self, text: &str) {
        let name = Path::new(self.program).file_name().unwrap();
        let file = format!("etc/{}.toml", name.to_string_lossy());
        fs::write(self.path(&file), text).unwrap();
    }

    pub fn serve(&mut self) {
        let mut command = self.command(self.program, &["serve"]);
        self.service = Some(Program::start(&mut command).unwrap());
    }

    /// This host makes a token, the other one uses it.
    #[track_caller]
    pub fn lets(&self, other: &Node) {
        self.lets_have(other, "www");
    }

    #[track_caller]
    pub fn token(&self, tree: &str) -> String {
        wait_for(|| {
            let words = [
                "pair",
                "--tree",
                tree,
                "--host",
                &self.host.address,
                "--json",
            ];
            let text = self.run(self.program, &words);
            let made: Value = serde_json::from_str(&text).ok()?;
            made["token"].as_str().map(str::to_owned)
        })
    }

    #[track_caller]
    pub fn lets_have(&self, other: &Node, tree: &str) {
        let token = self.token(tree);
        // The service may be starting.
        let words = ["pair", &self.host.address, &token];
        let joined = wait_until("it is paired", LONG, || {
            let done = other.command(FS_MIRROR, &words).output().unwrap();
            done.status.success()
        });
        joined.unwrap();
    }

    /// Exit code, and all that it said.
    pub fn try_run(&self, program: &str, words: &[&str]) -> (i32, String) {
        let output = self.command(program, words).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        (output.status.code().unwrap_or(-1), text)
    }

    /// Configures a copy of a tree of another host, as `add` does, with everything kept and nothing asked.
    pub fn follows(&self, from: &Node, tree: &str, more: &str) -> PathBuf {
        let copy = self.path(tree);
        let text = format!(
            "[tree.{tree}]\nsource = \"mirror://{}/{tree}\"\ndst = \"{}\"\nowners = \"apply\"\n{more}\n",
            from.host.address,
            copy.display()
        );
        fs::write(self.path(&format!("etc/conf.d/{tree}.toml")), text).unwrap();
        copy
    }

    /// Ends the service as systemd does.
    #[track_caller]
    pub fn stop(&mut self) -> String {
        let mut service = self.service.take().unwrap();
        let status = service.stop(LONG).unwrap();
        let said = service.stderr();
        assert_eq!(status.code(), Some(0), "{said}");
        said
    }

    /// What the running process of a tree says: on a worker by name, of a copy by where it is.
    pub fn status(&self, tree: &str) -> Value {
        let words = match self.program == FS_MIRROR {
            true => [
                "status",
                "--json",
                "-m",
                &self.path(tree).display().to_string(),
            ]
            .map(str::to_owned)
            .to_vec(),
            false => ["status", tree, "--json"].map(str::to_owned).to_vec(),
        };
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let (_, text) = self.try_run(self.program, &words);
        let line = text.lines().next().unwrap_or_default();
        let found: Value = serde_json::from_str(line).unwrap_or_default();
        match found["running"] == true {
            true => found["status"].clone(),
            false => Value::Null,
        }
    }

    #[track_caller]
    pub fn wait(&self, what: &str, is_so: impl FnMut() -> bool) {
        if wait_until(what, LONG, is_so).is_err() {
            panic!("{what}: not within {LONG:?}\n{}", self.said());
        }
    }

    #[track_caller]
    pub fn equal(&self, src: &Path, tree: &str) {
        let found = wait_equal(src, &self.path(tree), &Options::default(), LONG);
        assert!(
            found.is_ok(),
            "{} {tree}: {found:?}\n{}\n{}",
            self.host.name,
            self.status(tree),
            self.said()
        );
    }

    pub fn said(&self) -> String {
        self.service
            .as_ref()
            .map_or_else(String::new, Program::stderr)
    }
}

pub fn wait_for<T>(mut get: impl FnMut() -> Option<T>) -> T {
    let mut got = None;
    wait_until("it is there", LONG, || {
        got = get();
        got.is_some()
    })
    .unwrap();
    got.unwrap()
}
