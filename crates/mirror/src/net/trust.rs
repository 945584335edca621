//! Who may follow which trees here (`trusted.toml`), and which key a host must show (`known.toml`).
//!
//! Both are for people to read and to edit, and are written by `trust` and `pair`. What can't be read is an error with its
//! line, never nobody; a file that is not there is nobody.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use mirror_core::escape;
use serde::Deserialize;
use toml::Spanned;

use super::files::{self, Held, NetFileError, Secrecy};
use super::keys::Fingerprint;

const TRUSTED: &str = "trusted.toml";
const KNOWN: &str = "known.toml";
const BYTES_MAX: u64 = 1 << 20;
const FORMAT: i64 = 1;
const NAME_BYTES_MAX: usize = 64;
const TREE_BYTES_MAX: usize = 255;

/// Which trees a key may follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trees {
    All,
    Named(BTreeSet<String>),
}

impl Trees {
    pub fn named<I: IntoIterator<Item = S>, S: Into<String>>(names: I) -> Trees {
        Trees::Named(names.into_iter().map(Into::into).collect())
    }

    pub fn has(&self, tree: &str) -> bool {
        match self {
            Trees::All => true,
            Trees::Named(names) => names.contains(tree),
        }
    }

    fn to_toml(&self) -> String {
        match self {
            Trees::All => "\"*\"".into(),
            Trees::Named(names) => {
                let names: Vec<String> = names.iter().map(|name| quoted(name)).collect();
                format!("[{}]", names.join(", "))
            }
        }
    }
}

/// A key that is trusted, by the name it has here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    pub name: String,
    pub key: Fingerprint,
    pub trees: Trees,
}

/// `trusted.toml`. No two have one name, or one key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trusted {
    peers: Vec<Peer>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTrusted {
    #[serde(default)]
    format: Option<Spanned<i64>>,
    #[serde(default, rename = "key")]
    keys: Vec<RawPeer>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPeer {
    name: Spanned<String>,
    key: Spanned<String>,
    trees: Spanned<toml::Value>,
}

impl Trusted {
    pub fn path(config_dir: &Path) -> PathBuf {
        config_dir.join(TRUSTED)
    }

    pub fn load(config_dir: &Path) -> Result<Trusted, NetFileError> {
        let path = Trusted::path(config_dir);
        match files::read(&path, Secrecy::Public, BYTES_MAX)? {
            Some(bytes) => Trusted::parse(&path, &bytes),
            None => Ok(Trusted::default()),
        }
    }

    fn parse(path: &Path, bytes: &[u8]) -> Result<Trusted, NetFileError> {
        let file = Text { path, bytes };
        let raw: RawTrusted = file.parse()?;
        file.check_format(raw.format)?;
        let mut trusted = Trusted::default();
        for raw in raw.keys {
            let name_at = raw.name.span().start;
            let name = raw.name.into_inner();
            check_name(&name).map_err(|why| file.bad(name_at, why))?;
            let key_at = raw.key.span().start;
            let key = raw.key.get_ref().parse();
            let key: Fingerprint = key.map_err(|e| file.bad(key_at, format!("{e}")))?;
            if trusted.peers.iter().any(|peer| peer.name == name) {
                return Err(file.bad(name_at, format!("two keys are named {name}")));
            }
            if let Some(same) = trusted.peers.iter().find(|peer| peer.key == key) {
                let why = format!(
                    "this is the key of {}, too: name its trees there",
                    same.name
                );
                return Err(file.bad(key_at, why));
            }
            let trees_at = raw.trees.span().start;
            let trees = trees_of(raw.trees.into_inner()).map_err(|why| file.bad(trees_at, why))?;
            trusted.peers.push(Peer { name, key, trees });
        }
        Ok(trusted)
    }

    /// The name of whom this key is, if it may follow this tree.
    pub fn may(&self, key: &Fingerprint, tree: &str) -> Option<&str> {
        let peer = self.peer(key)?;
        peer.trees.has(tree).then_some(peer.name.as_str())
    }

    pub fn peer(&self, key: &Fingerprint) -> Option<&Peer> {
        self.peers.iter().find(|peer| peer.key == *key)
    }

    pub fn named(&self, name: &str) -> Option<&Peer> {
        self.peers.iter().find(|peer| peer.name == name)
    }

    pub fn peers(&self) -> &[Peer] {
        &self.peers
    }

    /// Lets a key follow these trees beside what it may already. Without a name it keeps the one it has, or gets one. The
    /// name it has now.
    pub fn add(
        &mut self,
        key: Fingerprint,
        trees: Trees,
        name: Option<&str>,
    ) -> Result<String, String> {
        if let Some(name) = name {
            check_name(name)?;
            if let Some(other) = self.named(name).filter(|peer| peer.key != key) {
                return Err(format!("{name} is the name of {} already", other.key));
            }
        }
        if let Trees::Named(names) = &trees {
            names.iter().try_for_each(|name| check_tree(name))?;
        }
        if let Some(peer) = self.peers.iter_mut().find(|peer| peer.key == key) {
            peer.trees = match (&peer.trees, trees) {
                (Trees::Named(had), Trees::Named(more)) => Trees::Named(had | &more),
                _ => Trees::All,
            };
            if let Some(name) = name {
                peer.name = name.into();
            }
            return Ok(peer.name.clone());
        }
        let name = match name {
            Some(name) => name.to_owned(),
            None => key.to_string().get(4..14).unwrap_or_default().to_owned(),
        };
        self.peers.push(Peer {
            name: name.clone(),
            key,
            trees,
        });
        Ok(name)
    }

    /// A name like this one that no other key has.
    pub fn free_name(&self, key: &Fingerprint, wanted: &str) -> String {
        let plain: String = wanted
            .chars()
            .filter(|c| is_name_char(*c))
            .take(NAME_BYTES_MAX - 8)
            .collect();
        let plain = if check_name(&plain).is_ok() {
            plain
        } else {
            "peer".into()
        };
        let mut name = plain.clone();
        let mut number = 2;
        while self.named(&name).is_some_and(|peer| peer.key != *key) {
            name = format!("{plain}-{number}");
            number += 1;
        }
        name
    }

    /// Trusts a key no more, or no more with these trees. `which`: its name or the key. The one it was.
    pub fn remove(
        &mut self,
        which: &str,
        trees: Option<&BTreeSet<String>>,
    ) -> Result<Peer, String> {
        let key = which.parse::<Fingerprint>().ok();
        let found = self
            .peers
            .iter()
            .position(|peer| peer.name == which || Some(peer.key) == key);
        let Some((at, peer)) = found.and_then(|at| Some((at, self.peers.get_mut(at)?))) else {
            return Err(format!("{} is not trusted", escape(which.as_bytes())));
        };
        let was = peer.clone();
        match (trees, &mut peer.trees) {
            (None, _) => drop(self.peers.remove(at)),
            (Some(_), Trees::All) => {
                return Err(format!(
                    "{} may follow all trees: remove it, then trust it with --tree for those it may follow",
                    was.name
                ));
            }
            (Some(gone), Trees::Named(names)) => {
                if let Some(none) = gone.iter().find(|name| !names.contains(*name)) {
                    let tree = escape(none.as_bytes());
                    return Err(format!("{} was never trusted with {tree}", was.name));
                }
                names.retain(|name| !gone.contains(name));
                if names.is_empty() {
                    self.peers.remove(at);
                }
            }
        }
        Ok(was)
    }

    /// Changes the file as `change` says, while nobody else does. What `change` returns.
    pub fn edit<T, E: From<NetFileError>>(
        config_dir: &Path,
        change: impl FnOnce(&mut Trusted) -> Result<T, E>,
    ) -> Result<T, E> {
        let held = Held::take(config_dir)?;
        let mut trusted = Trusted::load(config_dir)?;
        let before = trusted.clone();
        let done = change(&mut trusted)?;
        if trusted != before {
            held.replace(TRUSTED, trusted.to_toml().as_bytes())?;
        }
        Ok(done)
    }

    fn to_toml(&self) -> String {
        let mut out = format!(
            "# Who may follow which trees here. Written by `trust` and `pair`, which keep no comments; trees = \"*\" is all.\n\
             format = {FORMAT}\n"
        );
        for Peer { name, key, trees } in &self.peers {
            let (name, trees) = (quoted(name), trees.to_toml());
            out.push_str(&format!(
                "\n[[key]]\nname = {name}\nkey = \"{key}\"\ntrees = {trees}\n"
            ));
        }
        out
    }
}

fn trees_of(value: toml::Value) -> Result<Trees, String> {
    let wrong = || "trees is a list of names, or \"*\" for all".to_owned();
    match value {
        toml::Value::String(all) if all == "*" => Ok(Trees::All),
        toml::Value::Array(names) => {
            let mut trees = BTreeSet::new();
            for name in names {
                let toml::Value::String(name) = name else {
                    return Err(wrong());
                };
                check_tree(&name)?;
                trees.insert(name);
            }
            Ok(Trees::Named(trees))
        }
        _ => Err(wrong()),
    }
}

fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || ".-_".contains(c)
}

/// What a peer may be called.
pub fn check_name(name: &str) -> Result<(), String> {
    let good = name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.len() <= NAME_BYTES_MAX
        && name.chars().all(is_name_char);
    if good {
        return Ok(());
    }
    Err(format!(
        "{} can't be a name: letters, digits, . - and _, at most {NAME_BYTES_MAX}, a letter or digit first",
        escape(name.as_bytes())
    ))
}

/// What a tree may be called in a request or a file.
pub fn check_tree(name: &str) -> Result<(), String> {
    let good = !name.is_empty()
        && name.len() <= TREE_BYTES_MAX
        && name != "*"
        && !name.contains(|c: char| c == '/' || c.is_control());
    if good {
        return Ok(());
    }
    Err(format!(
        "{} can't be the name of a tree: 1 to {TREE_BYTES_MAX} bytes without a slash",
        escape(name.as_bytes())
    ))
}

/// A service by name and port, as it is written in `known.toml`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// Small letters; an IPv6 address without brackets.
    pub host: String,
    pub port: u16,
}

impl Address {
    pub fn new(host: &str, port: Option<u16>) -> Address {
        Address {
            host: host.to_ascii_lowercase(),
            port: port.unwrap_or(super::PORT),
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let host = escape(self.host.as_bytes());
        if host.contains(':') {
            write!(f, "[{host}]:{}", self.port)
        } else {
            write!(f, "{host}:{}", self.port)
        }
    }
}

/// `known.toml`: which key a host must show.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    hosts: Vec<(Address, Fingerprint)>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawKnown {
    #[serde(default)]
    format: Option<Spanned<i64>>,
    #[serde(default, rename = "host")]
    hosts: Vec<RawHost>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHost {
    host: Spanned<String>,
    port: u16,
    key: Spanned<String>,
}

impl Known {
    pub fn path(config_dir: &Path) -> PathBuf {
        config_dir.join(KNOWN)
    }

    pub fn load(config_dir: &Path) -> Result<Known, NetFileError> {
        let path = Known::path(config_dir);
        match files::read(&path, Secrecy::Public, BYTES_MAX)? {
            Some(bytes) => Known::parse(&path, &bytes),
            None => Ok(Known::default()),
        }
    }

    fn parse(path: &Path, bytes: &[u8]) -> Result<Known, NetFileError> {
        let file = Text { path, bytes };
        let raw: RawKnown = file.parse()?;
        file.check_format(raw.format)?;
        let mut known = Known::default();
        for raw in raw.hosts {
            let at = raw.host.span().start;
            let address = Address::new(raw.host.get_ref(), Some(raw.port));
            if address.host.is_empty() || address.port == 0 {
                return Err(file.bad(at, "a host needs a name and a port".into()));
            }
            if known.key(&address).is_some() {
                return Err(file.bad(at, format!("{address} is there twice")));
            }
            let key_at = raw.key.span().start;
            let key = raw.key.get_ref().parse();
            let key: Fingerprint = key.map_err(|e| file.bad(key_at, format!("{e}")))?;
            known.hosts.push((address, key));
        }
        Ok(known)
    }

    pub fn key(&self, address: &Address) -> Option<Fingerprint> {
        let found = self.hosts.iter().find(|(host, _)| host == address);
        found.map(|(_, key)| *key)
    }

    /// Writes down which key a host must show from now on. The one it had to show before.
    pub fn set(
        config_dir: &Path,
        address: &Address,
        key: Fingerprint,
    ) -> Result<Option<Fingerprint>, NetFileError> {
        let held = Held::take(config_dir)?;
        let mut known = Known::load(config_dir)?;
        let before = known.key(address);
        if before != Some(key) {
            known.hosts.retain(|(host, _)| host != address);
            known.hosts.push((address.clone(), key));
            known.hosts.sort();
            held.replace(KNOWN, known.to_toml().as_bytes())?;
        }
        Ok(before)
    }

    fn to_toml(&self) -> String {
        let mut out = format!(
            "# Which key a host must show. Written by `fs_mirror pair`, which keeps no comments.\nformat = {FORMAT}\n"
        );
        for (Address { host, port }, key) in &self.hosts {
            let host = quoted(host);
            out.push_str(&format!(
                "\n[[host]]\nhost = {host}\nport = {port}\nkey = \"{key}\"\n"
            ));
        }
        out
    }
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// A file that is being read, to say where it is wrong.
struct Text<'a> {
    path: &'a Path,
    bytes: &'a [u8],
}

impl Text<'_> {
    fn bad(&self, at: usize, why: String) -> NetFileError {
        let line = 1 + self.bytes.iter().take(at).filter(|&&b| b == b'\n').count();
        NetFileError::Bad {
            path: self.path.into(),
            line,
            why: why.split_whitespace().collect::<Vec<_>>().join(" "),
        }
    }

    fn parse<T: serde::de::DeserializeOwned>(&self) -> Result<T, NetFileError> {
        let text = std::str::from_utf8(self.bytes)
            .map_err(|e| self.bad(e.valid_up_to(), "not UTF-8 text".into()))?;
        toml::from_str(text).map_err(|e| {
            let at = e.span().map_or(text.trim_end().len(), |span| span.start);
            self.bad(at, e.message().to_owned())
        })
    }

    fn check_format(&self, format: Option<Spanned<i64>>) -> Result<(), NetFileError> {
        match format {
            Some(format) if *format.get_ref() != FORMAT => Err(self.bad(
                format.span().start,
                format!(
                    "format {} is of a newer version: this one knows {FORMAT}",
                    format.get_ref()
                ),
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn key(byte: u8) -> Fingerprint {
        Fingerprint([byte; 32])
    }

    #[test]
    fn trust_is_kept_and_taken_away() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("c");
        assert_eq!(Trusted::load(&config).unwrap(), Trusted::default());
        let edit = |change: &dyn Fn(&mut Trusted) -> Result<String, String>| {
            Trusted::edit(&config, |trusted| {
                change(trusted).map_err(|why| NetFileError::Unsafe {
                    path: "x".into(),
                    why,
                })
            })
        };
        edit(&|t| t.add(key(1), Trees::named(["blog"]), Some("b1"))).unwrap();
        edit(&|t| t.add(key(1), Trees::named(["sh op"]), None)).unwrap();
        edit(&|t| t.add(key(2), Trees::All, None)).unwrap();
        assert!(edit(&|t| t.add(key(3), Trees::All, Some("b1"))).is_err());
        assert!(edit(&|t| t.add(key(3), Trees::named(["a/b"]), None)).is_err());
        let trusted = Trusted::load(&config).unwrap();
        assert_eq!(trusted.may(&key(1), "blog"), Some("b1"));
        assert_eq!(trusted.may(&key(1), "sh op"), Some("b1"));
        assert_eq!(trusted.may(&key(1), "other"), None);
        assert!(trusted.may(&key(2), "other").is_some());
        assert_eq!(trusted.may(&key(3), "blog"), None);
        assert_eq!(trusted.free_name(&key(3), "b1"), "b1-2");
        assert_eq!(trusted.free_name(&key(1), "b1"), "b1");
        assert_eq!(trusted.free_name(&key(3), "/\n"), "peer");
        let mode = fs::metadata(Trusted::path(&config)).unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
        let gone = BTreeSet::from(["blog".to_owned()]);
        edit(&|t| t.remove("b1", Some(&gone)).map(|p| p.name)).unwrap();
        assert!(edit(&|t| t.remove("b1", Some(&gone)).map(|p| p.name)).is_err());
        edit(&|t| t.remove(&key(2).to_string(), None).map(|p| p.name)).unwrap();
        let trusted = Trusted::load(&config).unwrap();
        assert_eq!(trusted.may(&key(1), "blog"), None);
        assert_eq!(trusted.may(&key(1), "sh op"), Some("b1"));
        assert_eq!(trusted.peers().len(), 1);
    }

    #[test]
    fn mistakes_are_named_with_file_and_line() {
        let good = format!(
            "[[key]]\nname = \"a\"\nkey = \"{}\"\ntrees = \"*\"\n",
            key(1)
        );
        assert!(Trusted::parse(Path::new("/t"), good.as_bytes()).is_ok());
        let other = good.replace("mk1:a", "mk1:b");
        for (text, what) in [
            (format!("{good}x = 1\n"), "/t, line 5: unknown field"),
            (format!("{good}{other}"), "/t, line 6: two keys are named a"),
            (
                format!("{good}{}", good.replace("\"a\"", "\"b\"")),
                "/t, line 7: this is the key of a",
            ),
            (good.replace("mk1:", "mk2:"), "/t, line 3: a key is mk1:"),
            (
                good.replace("\"a\"", "\"a b\""),
                "/t, line 2: a b can't be a name",
            ),
            (
                good.replace("\"*\"", "\"blog\""),
                "/t, line 4: trees is a list",
            ),
            (
                good.replace("\"*\"", "[\"a/b\"]"),
                "/t, line 4: a/b can't be the name",
            ),
            (good.replace("\"*\"", "[1]"), "/t, line 4: trees is a list"),
            (
                format!("format = 2\n{good}"),
                "/t, line 1: format 2 is of a newer",
            ),
            (good.replace("\"*\"", "["), "/t, line 4"),
        ] {
            let error = Trusted::parse(Path::new("/t"), text.as_bytes()).unwrap_err();
            assert!(error.to_string().starts_with(what), "{error} for {what}");
        }
        let good = format!("[[host]]\nhost = \"h\"\nport = 1\nkey = \"{}\"\n", key(1));
        for (text, what) in [
            (
                format!("{good}{}", good.replace("\"h\"", "\"H\"")),
                "/k, line 6: h:1 is there twice",
            ),
            (good.replace("= 1", "= 99999"), "/k, line 3"),
            (good.replace("port", "prot"), "/k, line 3: unknown field"),
        ] {
            let error = Known::parse(Path::new("/k"), text.as_bytes()).unwrap_err();
            assert!(error.to_string().starts_with(what), "{error} for {what}");
        }
    }

    #[test]
    fn a_file_that_others_can_write_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("c");
        Known::set(&config, &Address::new("H", None), key(1)).unwrap();
        let path = Known::path(&config);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        let error = Known::load(&config).unwrap_err().to_string();
        assert!(error.contains("written by others"), "{error}");
    }

    #[test]
    fn a_host_has_one_key() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("c");
        let host = Address::new("Worker1", None);
        let six = Address::new("fe80::1", Some(99));
        assert_eq!(Known::set(&config, &host, key(1)).unwrap(), None);
        assert_eq!(Known::set(&config, &six, key(2)).unwrap(), None);
        assert_eq!(Known::set(&config, &host, key(3)).unwrap(), Some(key(1)));
        let known = Known::load(&config).unwrap();
        assert_eq!(
            known.key(&Address::new("worker1", Some(8737))),
            Some(key(3))
        );
        assert_eq!(known.key(&six), Some(key(2)));
        assert_eq!(known.key(&Address::new("worker1", Some(1))), None);
        assert_eq!(six.to_string(), "[fe80::1]:99");
    }
}
