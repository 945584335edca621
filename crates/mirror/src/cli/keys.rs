//! `key`, `trust` and `pair`, the same for both programs: who is trusted and known here.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use mirror_core::escape;
use serde_json::json;

use crate::cli::args::Say;
use crate::cli::exit::{CliError, Exit, chain};
use crate::cli::places::show;
use crate::cli::{parse, serve_worker, trees, ui};
use crate::engine::service::settings::plain_file;
use crate::engine::status::Stamp;
use crate::link::serve::hostname;
use crate::net::pair::{self, JoinError, Token, TokenError, Tokens};
use crate::net::trust::{Address, Peer, Trees, Trusted};
use crate::net::{self, Fingerprint, KeyPair, NetFileError, PORT, Program};

#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Show this host's key; the first time it is made
    Show(KeyShowArgs),
}

#[derive(Debug, Args)]
pub struct KeyShowArgs {
    #[command(flatten)]
    pub say: Say,
}

#[derive(Debug, Args)]
#[command(after_help = "Without KEY it lists who is trusted.")]
pub struct TrustArgs {
    /// The other host's key, as `key show` prints it there; with --remove its name here is enough
    #[arg(value_name = "KEY")]
    pub key: Option<String>,
    /// A tree it may follow; again for more; '*' is all
    #[arg(long = "tree", value_name = "NAME")]
    pub trees: Vec<String>,
    /// What it is called here
    #[arg(long, value_name = "NAME", conflicts_with = "remove")]
    pub name: Option<String>,
    /// Trust it no more, or no more with the trees named; its connections are ended
    #[arg(long, requires = "key")]
    pub remove: bool,
    #[command(flatten)]
    pub say: Say,
}

#[derive(Debug, Args)]
#[command(after_help = PAIR_HELP)]
pub struct PairArgs {
    /// The service to pair with: HOST or HOST:PORT
    #[arg(value_name = "HOST", requires = "token", conflicts_with_all = ["host_name", "config", "accept", "list", "withdraw"])]
    pub host: Option<String>,
    /// What `pair --tree NAME` printed there
    #[arg(value_name = "TOKEN")]
    pub token: Option<String>,
    /// Make a token for whoever is to follow this tree; again for more; '*' is all. With HOST: that service may follow it
    /// from here, over connections made with `connect_to`
    #[arg(long = "tree", value_name = "NAME", required_unless_present_any = ["host", "accept", "list", "withdraw"])]
    pub trees: Vec<String>,
    /// Make a token for a worker that is to dial this host with `connect_to`, because this host can't reach it
    #[arg(long, conflicts_with = "trees")]
    pub accept: bool,
    /// Name the tokens that were made here and are still good
    #[arg(long, conflicts_with_all = ["trees", "accept", "withdraw"])]
    pub list: bool,
    /// End a token that was made here and is still good: its id, or the beginning of it, as --list shows it
    #[arg(long, value_name = "ID", conflicts_with_all = ["trees", "accept"])]
    pub withdraw: Option<String>,
    /// The name others reach this host by, and the port if it is not the service's [default: the host's name]
    #[arg(long = "host", value_name = "NAME")]
    pub host_name: Option<String>,
    /// What the other host is to be called here [default: its name]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// The service's configuration, which says where it listens [default: the usual one]
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub say: Say,
}

const PAIR_HELP: &str = "\
On the host that serves: pair --tree NAME prints a token, good once and for ten minutes. On the other one: pair HOST TOKEN. After \
that each knows the other's key.";

impl From<NetFileError> for CliError {
    fn from(e: NetFileError) -> CliError {
        CliError::failed(chain(&e))
    }
}

impl From<TokenError> for CliError {
    fn from(e: TokenError) -> CliError {
        match e {
            TokenError::Refused(why) => CliError::usage(why),
            TokenError::Files(e) => e.into(),
        }
    }
}

impl From<JoinError> for CliError {
    fn from(e: JoinError) -> CliError {
        let exit = match e {
            JoinError::Files(_) => Exit::Failed,
            _ => Exit::Unreachable,
        };
        CliError::new(exit, chain(&e))
    }
}

fn config_dir(program: Program) -> Result<PathBuf, CliError> {
    net::config_dir(program).map_err(CliError::usage)
}

pub fn key(program: Program, command: &KeyCommand) -> Result<Exit, CliError> {
    let KeyCommand::Show(args) = command;
    let key = KeyPair::load_or_make(&config_dir(program)?)?.fingerprint();
    if args.say.json {
        ui::say(&json!({ "key": key }).to_string());
    } else {
        ui::say(&key.to_string());
    }
    Ok(Exit::Done)
}

fn trees_text(trees: &Trees) -> String {
    match trees {
        Trees::All => "all trees".into(),
        Trees::Named(names) if names.is_empty() => "no tree".into(),
        Trees::Named(names) => {
            let names: Vec<String> = names.iter().map(|n| escape(n.as_bytes())).collect();
            names.join(", ")
        }
    }
}

fn trees_of(names: &[String]) -> Trees {
    if names.iter().any(|name| name == "*") {
        Trees::All
    } else {
        Trees::named(names.iter().cloned())
    }
}

/// A change of `trusted.toml` that a person asked for.
fn edit<T>(
    dir: &Path,
    change: impl FnOnce(&mut Trusted) -> Result<T, String>,
) -> Result<T, CliError> {
    Trusted::edit(dir, |trusted| change(trusted).map_err(CliError::usage))
}

pub fn trust(program: Program, args: &TrustArgs) -> Result<Exit, CliError> {
    let dir = config_dir(program)?;
    let Some(which) = &args.key else {
        if !args.trees.is_empty() || args.name.is_some() {
            let line = format!("whom? `{program} trust KEY --tree NAME`");
            return Err(CliError::usage(line));
        }
        return list(&dir, args.say);
    };
    if args.remove {
        let gone: BTreeSet<String> = args.trees.iter().cloned().collect();
        let gone = (!gone.is_empty() && !gone.contains("*")).then_some(gone);
        let was = edit(&dir, |trusted| trusted.remove(which, gone.as_ref()))?;
        if program == Program::Mirrord && gone.is_none() {
            // It can't come back, so nobody need wait for it.
            crate::cli::worker::forget_key(&was.name);
        }
        let of = gone.map_or_else(String::new, |gone| {
            format!(" with {}", trees_text(&Trees::Named(gone)))
        });
        tell(
            args.say,
            &format!("{} is not trusted{of} any more", was.name),
            || json!({ "name": was.name, "key": was.key, "trusted": false }),
        );
        return Ok(Exit::Done);
    }
    let key: Fingerprint = which
        .parse()
        .map_err(|e| CliError::usage(format!("{}: {e}", escape(which.as_bytes()))))?;
    if args.trees.is_empty() {
        return Err(CliError::usage(format!(
            "with which trees? `{program} trust {key} --tree NAME`, or --tree '*' for all"
        )));
    }
    let trees = trees_of(&args.trees);
    let peer = edit(&dir, |trusted| {
        trusted.add(key, trees, args.name.as_deref())?;
        trusted
            .peer(&key)
            .cloned()
            .ok_or_else(|| "it is not there".into())
    })?;
    let line = format!("{} may follow {}", peer.name, trees_text(&peer.trees));
    tell(args.say, &line, || shown(&peer));
    Ok(Exit::Done)
}

fn shown(peer: &Peer) -> serde_json::Value {
    let trees = match &peer.trees {
        Trees::All => json!("*"),
        Trees::Named(names) => json!(names),
    };
    json!({ "name": peer.name, "key": peer.key, "trees": trees, "trusted": true })
}

fn tell(say: Say, line: &str, json: impl FnOnce() -> serde_json::Value) {
    if say.json {
        ui::say(&json().to_string());
    } else if !say.quiet {
        ui::say(line);
    }
}

fn list(dir: &Path, say: Say) -> Result<Exit, CliError> {
    let trusted = Trusted::load(dir)?;
    if trusted.peers().is_empty() && !say.json && !say.quiet {
        ui::say("nobody is trusted here");
    }
    for peer in trusted.peers() {
        if say.json {
            ui::say(&shown(peer).to_string());
        } else {
            let Peer { name, key, trees } = peer;
            ui::say(&format!("{name}  {key}  {}", trees_text(trees)));
        }
    }
    Ok(Exit::Done)
}

pub fn pair(program: Program, args: &PairArgs) -> Result<Exit, CliError> {
    if args.list {
        return open_tokens(program, args.say);
    }
    if let Some(id) = &args.withdraw {
        let tokens = Tokens::new(program, &config_dir(program)?);
        let gone = tokens.withdraw(id, Stamp::now().ms)?;
        let line = format!("withdrawn: {}", in_short(&gone));
        tell(args.say, &line, || json!({ "withdrawn": gone }));
        return Ok(Exit::Done);
    }
    match (&args.host, &args.token) {
        (Some(host), Some(token)) => join(program, host, token, args),
        _ => make(program, args),
    }
}

fn open_tokens(program: Program, say: Say) -> Result<Exit, CliError> {
    let now = Stamp::now();
    let open = Tokens::new(program, &config_dir(program)?).open(now.ms)?;
    if say.json {
        ui::say(&json!({ "open": open }).to_string());
        return Ok(Exit::Done);
    }
    if open.is_empty() && !say.quiet {
        ui::say("no token is good now");
    }
    for one in &open {
        let left = now.seconds_until(one.until);
        ui::say(&format!(
            "{}, for {}",
            in_short(one),
            crate::cli::text::seconds(left)
        ));
    }
    Ok(Exit::Done)
}

/// Its beginning is enough to name it.
fn in_short(one: &pair::Open) -> String {
    let id: String = one.id.chars().take(12).collect();
    let what = if one.trees.is_empty() {
        "for a worker that dials".to_owned()
    } else {
        format!("to follow {}", trees_text(&trees_of(&one.trees)))
    };
    let name = one
        .name
        .as_ref()
        .map(|name| format!(", as {}", escape(name.as_bytes())));
    format!("{id}  {what}{}", name.unwrap_or_default())
}

/// A host as it is typed, with or without a port.
fn address(text: &str) -> Result<(String, Option<u16>), CliError> {
    parse::host(text).map_err(CliError::from)
}

fn make(program: Program, args: &PairArgs) -> Result<Exit, CliError> {
    let dir = config_dir(program)?;
    let listens = listens(program, &dir, args.config.as_deref())?;
    let (host, port) = match &args.host_name {
        Some(name) => address(name)?,
        None => (hostname(), None),
    };
    let port = port.or(listens).unwrap_or(PORT);
    let key = KeyPair::load_or_make(&dir)?;
    if let Some(name) = &args.name {
        crate::net::trust::check_name(name).map_err(CliError::usage)?;
    }
    if !args.accept {
        unknown(program, &args.trees, args.config.as_deref());
    }
    let tokens = Tokens::new(program, &dir);
    let now = Stamp::now().ms;
    let token = tokens.make(key.fingerprint(), &args.trees, args.name.as_deref(), now)?;
    let target = if port == PORT && !host.contains(':') {
        host.clone()
    } else {
        Address::new(&host, Some(port)).to_string()
    };
    let minutes = pair::GOOD_FOR.as_secs() / 60;
    if args.say.json {
        let until = Stamp {
            ms: now + pair::GOOD_FOR.as_millis() as i64,
        };
        let token = token.to_string();
        let all = json!({ "host": host, "port": port, "token": token, "trees": args.trees, "until": until });
        ui::say(&all.to_string());
        return Ok(Exit::Done);
    }
    let line = if args.accept {
        format!("{} pair {target} {token} --tree NAME", Program::Mirrord)
    } else {
        format!("{} pair {target} {token}", Program::FsMirror)
    };
    if args.say.quiet {
        ui::say(&line);
        return Ok(Exit::Done);
    }
    let who = if args.accept {
        "that serves the trees".to_owned()
    } else {
        format!("that is to follow {}", trees_text(&trees_of(&args.trees)))
    };
    ui::say(&format!(
        "On the host {who}, once and within {minutes} minutes:\n\n  {line}\n\nIt reaches this host as {host} port {port}. `{program} pair --list` shows what is open, `--withdraw` ends it.",
        host = escape(host.as_bytes()),
    ));
    Ok(Exit::Done)
}

/// The port that the service's configuration has in `listen`, which is all that is looked at. Says so when there is none.
fn listens(program: Program, dir: &Path, config: Option<&Path>) -> Result<Option<u16>, CliError> {
    let path = config.map_or_else(|| dir.join(format!("{program}.toml")), Path::to_path_buf);
    let text = plain_file(&path).and_then(|bytes| {
        String::from_utf8(bytes).map_err(|_| std::io::Error::other("it is not UTF-8 text"))
    });
    let text = match text {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && config.is_none() => return Ok(None),
        Err(e) => {
            let line = format!("cannot read {}: {e}", show(&path));
            return Err(CliError::failed(line));
        }
    };
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| {
        CliError::failed(format!("{}: {}", show(&path), e.message()))
    })?;
    let first = match table.get("listen") {
        Some(toml::Value::Array(all)) => all.first(),
        one => one,
    };
    match first.and_then(toml::Value::as_str) {
        Some(text) => {
            let port = text
                .rsplit_once(':')
                .and_then(|(_, port)| port.parse().ok());
            Ok(Some(port.unwrap_or(PORT)))
        }
        None => {
            ui::complain(&format!(
                "{program}: {} has no `listen`, so that nobody can come in: add listen = \"[::]:{PORT}\"",
                show(&path)
            ));
            Ok(None)
        }
    }
}

/// A tree may come later; one that was mistyped never does.
fn unknown(program: Program, wanted: &[String], config: Option<&Path>) {
    let names = match program {
        Program::Mirrord => serve_worker::tree_names(config),
        Program::FsMirror => trees::names(config),
    };
    // A configuration that can't be read is told by those who need it.
    let Some(names) = names.filter(|names| !names.is_empty()) else {
        return;
    };
    let missing = wanted
        .iter()
        .filter(|name| *name != "*" && !names.contains(*name));
    for name in missing {
        let some: Vec<String> = names.iter().take(5).map(|n| escape(n.as_bytes())).collect();
        let more = if names.len() > some.len() {
            ", ..."
        } else {
            ""
        };
        ui::complain(&format!(
            "{program}: there is no tree {} here yet; there is {}{more}",
            escape(name.as_bytes()),
            some.join(", ")
        ));
    }
}

fn join(program: Program, host: &str, token: &str, args: &PairArgs) -> Result<Exit, CliError> {
    let say = args.say;
    let token: Token = token
        .parse()
        .map_err(|e: pair::NoToken| CliError::usage(e.to_string()))?;
    let (host, port) = address(host)?;
    let address = Address::new(&host, port);
    let dir = config_dir(program)?;
    let done = pair::join(program, &dir, &address, &token)?;
    if !args.trees.is_empty() {
        edit(&dir, |trusted| {
            let plain = trusted.free_name(&done.key, &host);
            let had = trusted.peer(&done.key).is_some();
            let name = args.name.as_deref().or((!had).then_some(plain.as_str()));
            trusted.add(done.key, trees_of(&args.trees), name)
        })?;
    }
    let trees: Vec<String> = done.trees.iter().map(|t| escape(t.as_bytes())).collect();
    if say.json {
        let all = json!({
            "host": done.address.host, "port": done.address.port, "key": done.key, "trees": done.trees, "name": done.name,
        });
        ui::say(&all.to_string());
        return Ok(Exit::Done);
    }
    if say.quiet {
        return Ok(Exit::Done);
    }
    if let Some(before) = done.before {
        ui::say(&format!("(it had another key before: {before})"));
    }
    let of_all = trees.iter().any(|tree| tree == "*");
    let what = if of_all {
        "all trees".into()
    } else {
        trees.join(", ")
    };
    let lets = if trees.is_empty() {
        String::new()
    } else {
        format!(" and lets it follow {what}")
    };
    ui::say(&format!(
        "paired with {address}, which calls this host {}{lets}",
        done.name
    ));
    if !args.trees.is_empty() {
        let which = trees_text(&trees_of(&args.trees));
        ui::say(&format!(
            "it may follow {which} from here. Next: connect_to = [\"{address}\"] in {program}.toml here; there \
             `fs_mirror add NAME mirror://{}/{} DST --accept`",
            done.name,
            args.trees
                .first()
                .filter(|name| *name != "*")
                .map_or("NAME", String::as_str)
        ));
    } else if program == Program::FsMirror {
        let tree = trees
            .first()
            .filter(|_| !of_all)
            .map_or("NAME", String::as_str);
        let at = address.to_string();
        let usual = format!(":{PORT}");
        let at = at.strip_suffix(&usual).unwrap_or(&at);
        ui::say(&format!("next: fs_mirror mirror mirror://{at}/{tree} DST"));
    }
    Ok(Exit::Done)
}
