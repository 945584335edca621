//! What the two programs understand: commands, options and their help.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use mirror_core::Position;

use crate::cli::import::ImportArgs;
use crate::cli::keys::{KeyCommand, PairArgs, TrustArgs};
use crate::cli::parse::{self, ParseError};
use crate::cli::serve_worker::{LogArgs, ServiceConfigCommand, StageArgs, WorkerServeArgs};
use crate::engine::control::Against;
use crate::engine::options::{Compress, Detector, OnMassChange, Owners};
use crate::engine::status::parse_position;
use crate::history::publish_settings::PublishSettings;

const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 failed; 2 wrong usage; 3 done, but listed paths failed; 4 on hold; 5 busy or timed out; \
6 peer unreachable.";

/// Keeps a directory an exact copy of a live tree, in near real time.
#[derive(Debug, Parser)]
#[command(name = "fs_mirror", version, after_help = EXIT_CODES, disable_help_subcommand = true)]
pub struct FsMirror {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Mirror SRC in DST: copy it, then follow every change until stopped
    Mirror(MirrorArgs),
    /// Follow many trees, as /etc/fs_mirror/fs_mirror.toml and conf.d/*.toml beside it say: the backup daemon
    Serve(ServeArgs),
    /// One tree of the daemon
    #[command(hide = true)]
    ServeTree(ServeTreeArgs),
    /// Let the daemon follow one tree more
    Add(Box<AddArgs>),
    /// Let the daemon follow a tree no more; the copy stays
    Remove(RemoveArgs),
    /// Name the trees that the daemon follows
    List(ListArgs),
    /// Say how a mirror, or the daemon's trees, are
    Status(StatusArgs),
    /// One line and exit code 0, 1, 2 or 3 for Nagios-like monitors
    Check(CheckArgs),
    /// Wait until the copy has what the source has now, or a position
    Wait(WaitArgs),
    /// Stop following for a while: every descriptor into SRC is closed
    Pause(PlainArgs),
    /// Go on after a pause
    Resume(PlainArgs),
    /// Show what a hold will let through, and let it through
    Release(ReleaseArgs),
    /// Keep no log for a mirror that followed this one and will not come back
    Forget(MirrorForgetArgs),
    /// Compare the copy with the source (a stopped mirror is brought up to date first) or with its index
    Verify(VerifyArgs),
    /// Tell how much was moved aside to adopted/, or remove it
    Adopted(AdoptedArgs),
    /// Check or show a mirror's settings, or the daemon's
    #[command(subcommand)]
    Config(ConfigCommand),
    /// What happened: to a path, also one that is gone, or to all; newest first
    Log(HistoryLogArgs),
    /// What is different between two times, or between one and now
    Diff(DiffArgs),
    /// Print a file as it was
    Cat(CatArgs),
    /// Where a name is, or was
    Find(FindArgs),
    /// Changes over time as bars: one sees when it began
    Timeline(TimelineArgs),
    /// Bring paths back as they were
    Restore(RestoreArgs),
    /// Take back what somebody changed, where nobody else changed it later
    Undo(UndoArgs),
    /// Copy the whole tree as it was into a new directory
    Checkout(CheckoutArgs),
    /// Name the tree as it is now, or list or remove names
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Show a directory as it was at another place, at once and read-only
    View(ViewArgs),
    /// Publish the plain hourly, daily, weekly and monthly trees that are due, made of hard links
    Rotate(RotateArgs),
    /// Let go of old versions that nothing keeps any more; a running mirror does that by itself, every few minutes
    Prune(PruneArgs),
    /// Print what an rsnapshot.conf or lsyncd.conf says as the daemon's configuration, and what has no counterpart
    Import(ImportArgs),
    /// This host's key
    #[command(subcommand)]
    Key(KeyCommand),
    /// Let a key follow trees from here, or no more; or list who may
    Trust(TrustArgs),
    /// Make this host and another one know each other's key
    Pair(PairArgs),
}

/// How much is said, and in which form.
#[derive(Debug, Clone, Copy, Args, Default)]
pub struct Say {
    /// JSON, one object a line, on stdout
    #[arg(long)]
    pub json: bool,
    /// Errors only
    #[arg(short, long)]
    pub quiet: bool,
    /// More: a line per path
    #[arg(short, long, conflicts_with = "quiet")]
    pub verbose: bool,
}

/// Which mirror a command is about.
#[derive(Debug, Clone, Args, Default)]
pub struct Which {
    /// The mirror: its DST or its state directory [default: the one around the current directory]
    #[arg(short = 'm', long = "mirror", value_name = "DST")]
    pub mirror: Option<PathBuf>,
}

/// All trees of the daemon instead of one mirror.
#[derive(Debug, Clone, Args, Default)]
pub struct Service {
    /// All trees of the daemon [default: when there is no mirror around the current directory]
    #[arg(long, conflicts_with = "mirror")]
    pub all: bool,
    /// The daemon's configuration
    #[arg(
        short = 'c',
        long = "config",
        value_name = "FILE",
        conflicts_with = "mirror"
    )]
    pub config: Option<PathBuf>,
}

/// Where the daemon's configuration is.
#[derive(Debug, Clone, Args, Default)]
pub struct ConfigFile {
    /// The configuration; conf.d/*.toml beside it belong to it [default: /etc/fs_mirror/fs_mirror.toml as root, else in the
    /// user's configuration directory]
    #[arg(short = 'c', long = "config", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = SERVE_HELP)]
pub struct ServeArgs {
    #[command(flatten)]
    pub file: ConfigFile,
    /// Errors only
    #[arg(short, long)]
    pub quiet: bool,
}

const SERVE_HELP: &str = "\
SIGHUP reads the configuration again; trees that did not change are not touched. SIGTERM ends it within 5 s. It follows; \
each tree has a process, a state and limits of its own. Exit codes: 0 stopped; 1 failed; 2 the configuration is wrong \
(everything that is, a line each); 5 it runs already.";

#[derive(Debug, Args)]
pub struct ServeTreeArgs {
    pub name: String,
    #[arg(long, value_name = "FILE")]
    pub settings: PathBuf,
}

#[derive(Debug, Args)]
pub struct AddArgs {
    /// What it is called
    #[arg(value_name = "NAME")]
    pub name: String,
    /// What to follow: mirror://host[:port]/NAME, [user@]host:/path, ssh://... or /path
    #[arg(value_name = "SRC")]
    pub source: OsString,
    /// The directory that becomes the copy; it holds nothing else
    #[arg(value_name = "DST")]
    pub dst: PathBuf,
    /// Leave out what matches this gitignore pattern (again for more)
    #[arg(long, value_name = "PATTERN")]
    pub ignore: Vec<String>,
    /// Mirror this mount point below SRC too (again for more)
    #[arg(long, value_name = "PATH")]
    pub cross: Vec<PathBuf>,
    /// Owners, set-id bits, devices and capabilities: set in the copy, or only recorded [default: record]
    #[arg(long, value_enum, value_name = "HOW")]
    pub owners: Option<Owners>,
    /// When very much goes at once: hold (ask) or follow [default: hold]
    #[arg(long, value_enum, value_name = "WHAT")]
    pub on_mass_change: Option<OnMassChange>,
    /// That host dials this one (`connect_to` there), because it can't be reached; SRC is mirror://HOST/NAME
    #[arg(long)]
    pub accept: bool,
    /// Where the tree's state is, on DST's file system [default: DST.fs_mirror]
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// How changes are noticed [default: auto, the best that works]
    #[arg(long, value_enum, value_name = "HOW")]
    pub detector: Option<DetectorChoice>,
    /// At most so many bytes per second, as 500K or 10M
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub bwlimit: Option<Rate>,
    /// What comes over a link is compressed: auto (where the link is slow), on or off [default: auto]
    #[arg(long, value_enum, value_name = "WHEN")]
    pub compress: Option<Compress>,
    /// A link that says nothing for so long is dead
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    pub timeout: Option<Duration>,
    /// Look at all of the copy within so long, again and again; 0: never [default: 24h]
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    pub verify_every: Option<Duration>,
    /// What to run at the far end of ssh instead of mirrord
    #[arg(long, value_name = "COMMAND")]
    pub remote_command: Option<String>,
    /// The copy holds no more than so many bytes
    #[arg(long, value_name = "SIZE", value_parser = parse::size)]
    pub bytes_max: Option<u64>,
    /// Nor more files and directories than this
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    pub inodes_max: Option<u64>,
    /// At most so many changes a second
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    pub ops_max: Option<u64>,
    /// So much of DST's file system stays free
    #[arg(long, value_name = "SIZE", value_parser = parse::size)]
    pub min_free: Option<u64>,
    /// CPU niceness of the tree's process
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true, value_parser = clap::value_parser!(i8).range(-20..=19))]
    pub nice: Option<i8>,
    #[command(flatten)]
    pub file: ConfigFile,
    #[command(flatten)]
    pub say: Say,
}

#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// What it is called
    #[arg(value_name = "NAME")]
    pub name: String,
    #[command(flatten)]
    pub file: ConfigFile,
    #[command(flatten)]
    pub say: Say,
}

#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    pub file: ConfigFile,
    #[command(flatten)]
    pub say: Say,
}

#[derive(Debug, Args)]
#[command(after_long_help = MIRROR_HELP)]
pub struct MirrorArgs {
    /// What to mirror: /path, [user@]host:/path (over ssh) or ssh://[user@]host[:port]/path
    #[arg(value_name = "SRC")]
    pub source: OsString,
    /// The directory that becomes the copy; it holds nothing else
    #[arg(value_name = "DST")]
    pub dst: PathBuf,
    /// Return when every entry is as it was at the start or later
    #[arg(long)]
    pub once: bool,
    /// List what would be done, do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Take over a DST that holds something already: what is equal stays, what is extra moves aside after a yes; also
    /// the way out when log or index are damaged: all is compared again
    #[arg(long)]
    pub adopt: bool,
    /// SRC is another place to have the same tree from (the source itself, or a mirror of it): go on from where DST stands
    #[arg(long)]
    pub repoint: bool,
    /// Answer every question with yes
    #[arg(short, long)]
    pub yes: bool,
    /// Leave out what matches this gitignore pattern (again for more; '' for none)
    #[arg(long, value_name = "PATTERN")]
    pub ignore: Vec<String>,
    /// Mirror this mount point below SRC too (again for more; '' for none)
    #[arg(long, value_name = "PATH")]
    pub cross: Vec<PathBuf>,
    /// Keep no old versions; --history takes that back
    #[arg(long, overrides_with = "history")]
    pub no_history: bool,
    #[arg(long, hide = true)]
    pub history: bool,
    /// From the configuration of a service.
    #[arg(skip)]
    pub keeping: Option<Box<crate::history::settings::Settings>>,
    /// Owners, set-id bits, devices and capabilities: set in the copy, or only recorded [default: apply as root, else record]
    #[arg(long, value_enum, value_name = "HOW")]
    pub owners: Option<Owners>,
    /// When very much goes at once: hold (ask), follow, or auto: follow where history keeps what goes, else hold [default: auto]
    #[arg(long, value_enum, value_name = "WHAT")]
    pub on_mass_change: Option<OnMassChange>,
    /// Where the mirror's state is, on DST's file system [default: DST.fs_mirror]
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// How changes are noticed [default: auto, the best that works]
    #[arg(long, value_enum, value_name = "HOW")]
    pub detector: Option<DetectorChoice>,
    /// At most so many bytes per second, as 500K or 10M; 0: no limit
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub bwlimit: Option<Rate>,
    /// What comes over a link is compressed: auto (where the link is slow), on or off [default: auto]
    #[arg(long, value_enum, value_name = "WHEN")]
    pub compress: Option<Compress>,
    /// A link that says nothing for so long is dead, as 90s or 10m; 0: never. Until both sides have greeted it is 30 s at
    /// least; a question that a first copy waits for may take eight times that, while nothing else comes
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    pub timeout: Option<Duration>,
    /// Look at all of the copy within so long, again and again, and repair what was changed by hand; each time a seventh
    /// of the files is read; 0: never [default: 24h]
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    pub verify_every: Option<Duration>,
    /// What to run at the far end instead of mirrord, as 'sudo -n mirrord'
    #[arg(long, value_name = "COMMAND")]
    pub remote_command: Option<String>,
    /// From the daemon's settings only.
    #[arg(skip)]
    pub publish: Option<Option<PublishSettings>>,
    #[command(flatten)]
    pub say: Say,
}

const MIRROR_HELP: &str = "\
Runs until stopped; start it again and it goes on where it was. Settings given (--ignore, --cross, --no-history, \
--owners, --on-mass-change, --detector, --bwlimit, --compress, --timeout, --verify-every, --remote-command) are saved in DST.fs_mirror/config.toml \
and need not be given again.

Exit codes: 0 done; 1 failed; 2 wrong usage; 3 done, but listed paths failed; 4 on hold; 5 busy or timed out; \
6 peer unreachable.";

const TIMES_HELP: &str = "\
A time T is of the worker's clock: 2026-11-22T14:03:07Z, '2026-11-22 14:03', '10m ago', 'yesterday 18:00', 14:03 (today), pos:EPOCH.SEQ, \
or a snapshot's name.";

#[derive(Debug, Args)]
#[command(after_help = TIMES_HELP)]
pub struct HistoryLogArgs {
    /// A file or directory of the tree [default: all of it]
    #[arg(value_name = "PATH")]
    pub path: Option<OsString>,
    /// Only what happened after this time
    #[arg(long, value_name = "T")]
    pub since: Option<String>,
    /// Only what happened until then
    #[arg(long, value_name = "T")]
    pub until: Option<String>,
    /// Only what was done by these: uid=33, pid=4711, exe=/usr/bin/php (again for more: all must fit)
    #[arg(long, value_name = "WHO")]
    pub who: Vec<String>,
    /// Only these: create, write, attributes, rename, link, unlink, remove (again for more)
    #[arg(long, value_name = "OP")]
    pub op: Vec<String>,
    /// With the difference of each written file
    #[arg(short = 'p', long)]
    pub patch: bool,
    /// At most so many lines; 0: all
    #[arg(short = 'n', long, value_name = "N", default_value_t = 200)]
    pub lines: usize,
    #[command(flatten)]
    pub which: Which,
    #[command(flatten)]
    pub say: Say,
}

#[derive(Debug, Args)]
#[command(after_help = TIMES_HELP)]
pub struct DiffArgs {
    /// The earlier time
    #[arg(value_name = "T1")]
    pub from: String,
    /// The later time [default: now], and a path [default: all]
    #[arg(value_name = "T2] [PATH", num_args = 0..=2)]
    pub rest: Vec<OsString>,
    /// Lines of the files that differ
    #[arg(short = 'p', long)]
    pub patch: bool,
    /// How much of each
    #[arg(long, conflicts_with = "patch")]
    pub stat: bool,
    #[command(flatten)]
    pub which: Which,
    #[command(flatten)]
    pub say: Say,
}

#[derive(Debug, Args)]
#[command(after_help = TIMES_HELP)]
pub struct CatArgs {
    /// A file of the tree, as it was called then
    #[arg(value_name = "PATH")]
    pub path: OsString,
    /// As of this time
    #[arg(long, value_name = "T")]
    pub at: String,
    #[command(flatten)]
    pub which: Which,
}

#[derive(Debug, Args)]
pub struct FindArgs {
    /// A name, or a pattern of names with * and ?
    #[arg(value_name = "NAME")]
    pub name: OsString,
    /// Only what is gone
    #[arg(long)]
    pub deleted: bool,
    #[command(flatten)]
    pub which: Which,
    #[command(flatten)]
    pub say: Say,
}

#[derive(Debug, Args)]
#[command(after_help = TIMES_HELP)]
pub struct TimelineArgs {
    /// A file or directory of the tree [default: all of it]
    #[arg(value_name = "PATH")]
    pub path: Option<OsString>,
    /// From this time on [default: all that is kept]
    #[arg(long, value_name = "T")]
    pub since: Option<String>,
    #[arg(long, value_name = "T")]
    pub until: Option<String>,
    #[command(flatten)]
    pub which: Which,
    #[command(flatten)]
    pub say: Say,
}

#[derive(Debug, Args)]
#[command(after_help = TIMES_HELP)]
pub struct RestoreArgs {
    /// Files or directories of the tree, as they were called then
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<OsString>,
    /// As of this time
    #[arg(long, value_name = "T")]
    pub at: String,
    /// Below this directory, under the same paths
    #[arg(long, value_name = "DIR", conflicts_with = "to_source")]
    pub to: Option<PathBuf>,
    /// In the source itself
    #[arg(long)]
    pub to_source: bool,
    /// Also remove there what was not there then
    #[arg(long)]
    pub delete: bool,
    /// Say what would be done, do nothing
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub which: Which,
    #[command(flatten)]
    pub say: Say,
}

#[derive(Debug, Args)]
#[command(after_help = TIMES_HELP)]
pub struct UndoArgs {
    /// What was done after this time
    #[arg(long, value_name = "T")]
    pub since: String,
    /// By these: uid=33, pid=4711, exe=/usr/bin/php (again for more: all must fit) [default: by anybody]
    #[arg(long, value_name = "WHO")]
    pub who: Vec<String>,
    /// Write what was before below this directory
    #[arg(long, value_name = "DIR", conflicts_with = "to_source")]
    pub to: Option<PathBuf>,
    /// Change the source itself
    #[arg(long)]
    pub to_source: bool,
    /// Say what would be done, do nothing
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub which: Which,
    #[command(flatten)]
    pub say: Say,
}

#[derive(Debug, Args)]
#[command(after_help = TIMES_HELP)]
pub struct CheckoutArgs {
    /// A directory that does not exist yet, or is empty
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// As of this time
    #[arg(long, value_name = "T")]
    pub at: String,
    #[command(flatten)]
    pub which: Which,
    #[command(flatten)]
    pub say: Say,
}

#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Give the tree as it is now, or was, a name: costs nothing, at any size
    Create(SnapshotCreateArgs),
    /// All names, oldest first
    List(SnapshotListArgs),
    /// Forget a name, and remove the tree that was published by it
    Rm(SnapshotRmArgs),
    /// Make a plain tree of hard links under this name, as the tree is now, or was
    Publish(SnapshotPublishArgs),
}

#[derive(Debug, Args)]
#[command(after_help = TIMES_HELP)]
pub struct SnapshotPublishArgs {
    #[arg(value_name = "NAME")]
    pub name: String,
    /// As it was at this time [default: as the snapshot of that name, else now]
    #[arg(long, value_name = "T")]
    pub at: Option<String>,
    #[command(flatten)]
    pub which: Which,
    #[command(flatten)]
    pub say: Say,
}

#[derive(Debug, Args)]
#[command(after_help = TIMES_HELP)]
pub struct ViewArgs {
    /// A directory of the tree [default: all of it], and an empty directory to show it at
    #[arg(value_name = "[PATH] MOUNTPOINT", num_args = 1..=2, required = true)]
    pub paths: Vec<PathBuf>,
    /// As of this time
    #[arg(long, value_name = "T", required_unless_present = "drop")]
    pub at: Option<String>,
    /// End the view at MOUNTPOINT
    #[arg(long, conflicts_with = "at")]
    pub drop: bool,
    #[command(flatten)]
    pub which: Which,
    #[command(flatten)]
    pub say: Say,
}

#[derive(Debug, Args)]
#[command(after_help = ROTATE_HELP)]
pub struct RotateArgs {
    /// Of this kind alone
    #[arg(value_name = "KIND", value_parser = ["hourly", "daily", "weekly", "monthly"])]
    pub kind: Option<String>,
    #[command(flatten)]
    pub which: Which,
    #[command(flatten)]
    pub say: Say,
}

const ROTATE_HELP: &str = "\
Each tree is the state at exactly the full hour, midnight, Monday or first of the month (UTC, this host's clock), in \
DST.fs_mirror/snapshots or `publish.dir`. How many are kept, and their names (dated, or hourly.0 as rsnapshot has them), \
stand in `publish` of the settings; without it 24 hourly, 7 daily, 4 weekly and 12 monthly ones. With `publish` a running \
mirror rotates by itself.";

#[derive(Debug, Args)]
#[command(after_help = TIMES_HELP)]
pub struct SnapshotCreateArgs {
    #[arg(value_name = "NAME")]
    pub name: String,
    /// As it was at this time [default: now]
    #[arg(long, value_name = "T")]
    pub at: Option<String>,
    /// Nothing but `snapshot rm` lets it go, want of room neither
    #[arg(long)]
    pub keep: bool,
    /// A line about it
    #[arg(long, value_name = "TEXT")]
    pub note: Option<String>,
    #[command(flatten)]
    pub which: Which,
    #[command(flatten)]
    pub say: Say,
}

#[derive(Debug, Args)]
pub struct PruneArgs {
    /// Say what would go, let nothing go
    #[arg(long)]
    pub dry_run: bool,
    /// Each version, and by which rule it is kept
    #[arg(long, requires = "dry_run")]
    pub explain: bool,
    /// The ten files whose old versions take most
    #[arg(long, conflicts_with = "dry_run")]
    pub top: bool,
    /// What is promised under `governance`, but not by the settings of today, goes, too; that is logged
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub which: Which,
    #[command(flatten)]
    pub say: Say,
}

#[derive(Debug, Args)]
pub struct SnapshotListArgs {
    #[command(flatten)]
    pub which: Which,
    #[command(flatten)]
    pub say: Say,
}

#[derive(Debug, Args)]
pub struct SnapshotRmArgs {
    #[arg(value_name = "NAME")]
    pub name: String,
    #[command(flatten)]
    pub which: Which,
    #[command(flatten)]
    pub say: Say,
}

/// A detector, or the best that works here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DetectorChoice {
    Auto,
    Fanotify,
    Inotify,
    Scan,
}

impl DetectorChoice {
    pub fn detector(self) -> Option<Detector> {
        match self {
            DetectorChoice::Auto => None,
            DetectorChoice::Fanotify => Some(Detector::Fanotify),
            DetectorChoice::Inotify => Some(Detector::Inotify),
            DetectorChoice::Scan => Some(Detector::Scan),
        }
    }
}

/// Bytes per second; `None`: no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate(pub Option<u64>);

fn parse_rate(text: &str) -> Result<Rate, ParseError> {
    parse::rate(text).map(Rate)
}

fn log_size(text: &str) -> Result<u64, ParseError> {
    const LEAST: u64 = 256 << 10;
    match parse::size(text)? {
        bytes if bytes < LEAST => Err(ParseError("a log needs 256K at least".into())),
        bytes => Ok(bytes),
    }
}

fn position(text: &str) -> Result<Position, ParseError> {
    parse_position(text)
        .ok_or_else(|| ParseError("a position is EPOCH.SEQ, as status shows it".into()))
}

#[derive(Debug, Args)]
pub struct PlainArgs {
    #[command(flatten)]
    pub which: Which,
    #[command(flatten)]
    pub say: Say,
}

#[derive(Debug, Args)]
pub struct MirrorForgetArgs {
    /// The mirror that is away, as `fs_mirror status` names it here; or all of a key that is trusted here, by the name it has here
    pub replica: String,
    #[command(flatten)]
    pub which: Which,
    #[command(flatten)]
    pub say: Say,
}

#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    pub which: Which,
    #[command(flatten)]
    pub service: Service,
    #[command(flatten)]
    pub say: Say,
}

#[derive(Debug, Args)]
#[command(after_help = CHECK_CODES)]
pub struct CheckArgs {
    #[command(flatten)]
    pub which: Which,
    #[command(flatten)]
    pub service: Service,
    #[command(flatten)]
    pub limits: CheckLimits,
    #[command(flatten)]
    pub say: Say,
}

const CHECK_CODES: &str = "\
Exit codes: 0 OK; 1 WARNING (seeding, paused, failed paths, briefly disconnected); 2 CRITICAL (not running, on hold, \
failed, lag or disconnected for longer than --max-lag); 3 UNKNOWN (no such mirror).";

#[derive(Debug, Clone, Args)]
pub struct CheckLimits {
    /// More lag than this is critical
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = parse::duration)]
    pub max_lag: Duration,
}

#[derive(Debug, Args)]
#[command(after_help = WAIT_CODES)]
pub struct WaitArgs {
    #[command(flatten)]
    pub for_what: WaitFor,
    /// Give up after this long
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    pub timeout: Option<Duration>,
    #[command(flatten)]
    pub which: Which,
    #[command(flatten)]
    pub say: Say,
}

const WAIT_CODES: &str = "\
Exit codes: 0 it came true; 3 it did, but listed paths failed or are fuzzy; 4 on hold; 5 timed out; 1 not running.";

#[derive(Debug, Clone, Copy, Args)]
#[group(required = true, multiple = false)]
pub struct WaitFor {
    /// Until everything done at the source before this command is in the copy, durably
    #[arg(long)]
    pub idle: bool,
    /// Until this position is applied
    #[arg(long, value_name = "EPOCH.SEQ", value_parser = position)]
    pub position: Option<Position>,
}

#[derive(Debug, Args)]
pub struct ReleaseArgs {
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    #[command(flatten)]
    pub which: Which,
    #[command(flatten)]
    pub say: Say,
}

#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Compare with the source's tree, or with what the copy's index says; or read old versions and their catalogue again
    #[arg(long, value_enum, value_name = "WHAT", default_value = "source")]
    pub against: Against,
    /// Make what differs equal again
    #[arg(long)]
    pub repair: bool,
    #[command(flatten)]
    pub which: Which,
    #[command(flatten)]
    pub say: Say,
}

#[derive(Debug, Args)]
pub struct AdoptedArgs {
    /// Remove it, for good
    #[arg(long)]
    pub empty: bool,
    /// Only what was moved there longer ago than this
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    pub older_than: Option<Duration>,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    #[command(flatten)]
    pub which: Which,
    #[command(flatten)]
    pub say: Say,
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Is config.toml good? With PATH: which ignore line decides about it
    Check(ConfigCheckArgs),
    /// Show the settings
    Show(ConfigShowArgs),
}

#[derive(Debug, Args)]
pub struct ConfigShowArgs {
    #[command(flatten)]
    pub which: Which,
    #[command(flatten)]
    pub service: Service,
    #[command(flatten)]
    pub say: Say,
}

#[derive(Debug, Args)]
pub struct ConfigCheckArgs {
    /// A path in the tree; a slash at the end says that it is a directory
    pub path: Option<PathBuf>,
    #[command(flatten)]
    pub which: Which,
    #[command(flatten)]
    pub service: Service,
    #[command(flatten)]
    pub say: Say,
}

/// The worker: captures a tree's changes and serves them.
#[derive(Debug, Parser)]
#[command(name = "mirrord", version, after_help = EXIT_CODES, disable_help_subcommand = true)]
pub struct Mirrord {
    #[command(subcommand)]
    pub command: WorkerCommand,
}

#[derive(Debug, Subcommand)]
pub enum WorkerCommand {
    /// Serve the trees of a configuration until stopped
    Serve(WorkerServeArgs),
    /// The far end of `fs_mirror mirror host:/path`: speaks on stdin and stdout
    Stdio(StdioArgs),
    /// Say how the trees captured here are
    Status(TreeArgs),
    /// One line a tree and exit code 0, 1, 2 or 3 for Nagios-like monitors
    Check(TreeCheckArgs),
    /// The barrier for deploy scripts: wait until all that was written before has come so far on the replicas
    Wait(StageArgs),
    /// Tell what changed, as the log has it
    Log(LogArgs),
    /// Stop capturing for a while: every descriptor into the tree is closed
    Pause(TreeArgs),
    /// Go on after a pause
    Resume(TreeArgs),
    /// Let through what is on hold
    Release(TreeReleaseArgs),
    /// Wait no more for a replica that will not come back, and keep no log for it
    Forget(ForgetArgs),
    /// This host's key
    #[command(subcommand)]
    Key(KeyCommand),
    /// Let a key follow trees from here, or no more; or list who may
    Trust(TrustArgs),
    /// Make this host and another one know each other's key
    Pair(PairArgs),
    /// Check or show the configuration of `serve`
    #[command(subcommand)]
    Config(ServiceConfigCommand),
}

#[derive(Debug, Args)]
pub struct StdioArgs {
    /// The tree that may be read: in authorized_keys, `command="mirrord stdio --tree /srv"` allows this one alone
    #[arg(long, value_name = "PATH")]
    pub tree: PathBuf,
    /// Where states of trees are kept [default: /var/lib/mirrord as root, else the user's state directory]
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// How changes are noticed [default: auto, the best that works]
    #[arg(long, value_enum, value_name = "HOW")]
    pub detector: Option<DetectorChoice>,
    /// How large the log may grow, as 256M; what mirrors that are away still need is kept up to four times that
    #[arg(long, value_name = "SIZE", value_parser = log_size)]
    pub log_max: Option<u64>,
    /// How long capture outlives the last link
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = parse::duration)]
    pub linger: Duration,
}

#[derive(Debug, Args)]
pub struct TreeArgs {
    /// One tree, by its name in the service or its path [default: all trees known here]
    pub tree: Option<PathBuf>,
    /// Where states of trees are kept [default: /var/lib/mirrord as root, else the user's state directory]
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    #[command(flatten)]
    pub say: Say,
}

#[derive(Debug, Args)]
pub struct TreeReleaseArgs {
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    #[command(flatten)]
    pub trees: TreeArgs,
}

#[derive(Debug, Args)]
pub struct ForgetArgs {
    /// The replica, as `mirrord status` names it; or all of a key that is trusted here, by the name it has here
    pub replica: String,
    #[command(flatten)]
    pub trees: TreeArgs,
}

#[derive(Debug, Args)]
#[command(after_help = CHECK_CODES)]
pub struct TreeCheckArgs {
    #[command(flatten)]
    pub limits: CheckLimits,
    #[command(flatten)]
    pub trees: TreeArgs,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn clap_finds_no_mistake() {
        FsMirror::command().debug_assert();
        Mirrord::command().debug_assert();
    }

    #[test]
    fn command_lines() {
        let good = [
            "mirror /a /b",
            "mirror h:/a /b --once --dry-run --adopt -y --ignore *.log --ignore !x --cross mnt --no-history -v",
            "mirror /a /b --owners record --on-mass-change follow --state /s --detector auto --bwlimit 10M/s --compress on --json",
            "mirror /a /b --timeout 90s --remote-command sudo\u{a0}mirrord -q",
            "status",
            "status -m /b --json",
            "check --max-lag 10s",
            "wait --idle --timeout 5m",
            "wait --position 1.42 -m /b",
            "wait --position pos:1.42",
            "pause",
            "resume -q",
            "release --yes",
            "verify --against index --repair --json",
            "config check",
            "config check a/b/",
            "config show --json",
            "import /etc/rsnapshot.conf",
            "import x.lua --from lsyncd --json",
            "key show",
            "trust",
            "trust mk1:x --tree blog --tree shop --name b",
            "trust --remove b --json",
            "pair worker1:99 mt1:x",
            "pair worker1 mt1:x --tree blog",
            "pair --tree blog --host w.example:1 --name b1 -c /x.toml",
        ];
        for line in good {
            let words = std::iter::once("fs_mirror").chain(line.split(' '));
            assert!(FsMirror::try_parse_from(words).is_ok(), "{line}");
        }
        let bad = [
            "",
            "mirror /a",
            "mirror /a /b /c",
            "mirror /a /b --owners maybe",
            "mirror /a /b --bwlimit 1",
            "mirror /a /b --compress lz4",
            "mirror /a /b -q -v",
            "wait",
            "wait --idle --position 1.2",
            "wait --position 1",
            "check --max-lag soon",
            "fly",
            "config",
            "verify --against me",
            "import",
            "import x --from rsync",
            "pair",
            "pair worker1",
            "trust --remove",
        ];
        for line in bad {
            let words =
                std::iter::once("fs_mirror").chain(line.split(' ').filter(|w| !w.is_empty()));
            assert_eq!(
                FsMirror::try_parse_from(words).err().map(|e| e.exit_code()),
                Some(2),
                "{line}"
            );
        }
        for (line, ok) in [
            (
                "stdio --tree /srv --linger 1h --detector scan --state /s",
                true,
            ),
            ("status", true),
            ("status /srv --json", true),
            ("check /srv --max-lag 1m", true),
            ("pause /srv", true),
            ("pair --tree blog", true),
            ("trust mk1:x --tree blog", true),
            ("key show --json", true),
            ("key", false),
            ("serve", true),
            (
                "serve -c /c.toml --tree a=/x --tree b=/y --listen 127.0.0.1 --state /s",
                true,
            ),
            ("serve blog", false),
            (
                "wait blog --for durable --replicas 2 --timeout 1m --json",
                true,
            ),
            ("wait", true),
            ("wait --replicas 0", false),
            ("wait --for soon", false),
            ("log blog --follow -n 5", true),
            ("config check -c /c.toml", true),
            ("config", false),
            ("stdio", false),
            ("stdio --tree /srv extra", false),
        ] {
            let words = std::iter::once("mirrord").chain(line.split(' '));
            assert_eq!(Mirrord::try_parse_from(words).is_ok(), ok, "{line}");
        }
    }
}
