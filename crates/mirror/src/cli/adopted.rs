//! `fs_mirror adopted`: what was moved aside, and how it is got rid of.

use std::io;
use std::time::SystemTime;

use serde_json::json;

use crate::cli::args::AdoptedArgs;
use crate::cli::exit::{CliError, Exit};
use crate::cli::find::find;
use crate::cli::places::show;
use crate::cli::text::{bytes, count, counted};
use crate::cli::ui;
use crate::engine::aside::{self, Aside};

pub fn run(args: &AdoptedArgs) -> Result<Exit, CliError> {
    let found = find(args.which.mirror.as_deref())?;
    let dir = found.state_dir.join(aside::DIR);
    let failed =
        |step: &str, e: io::Error| CliError::failed(format!("cannot {step} {}: {e}", show(&dir)));
    let oldest = args
        .older_than
        .and_then(|age| SystemTime::now().checked_sub(age));
    let mut batches = aside::batches(&found.state_dir).map_err(|e| failed("read", e))?;
    if args.older_than.is_some() {
        batches.retain(|(_, changed)| oldest.is_some_and(|oldest| *changed <= oldest));
    }
    let mut sum = Aside::default();
    for (batch, _) in &batches {
        let found = aside::in_batch(batch).map_err(|e| failed("read", e))?;
        sum.entries += found.entries;
        sum.bytes += found.bytes;
    }
    let told = format!(
        "{} ({}) in {}",
        counted(sum.entries, "entry", "entries"),
        bytes(sum.bytes),
        show(&dir)
    );
    if !args.empty {
        if args.say.json {
            let text = json!({"entries": sum.entries, "bytes": sum.bytes, "dir": show(&dir)});
            ui::say(&text.to_string());
        } else {
            ui::say(&told);
            if args.say.verbose {
                for (batch, _) in &batches {
                    ui::say(&format!("  {}", show(batch)));
                }
            }
        }
        return Ok(Exit::Done);
    }
    if batches.is_empty() {
        return crate::cli::control::done("nothing to remove", args.say);
    }
    if !args.yes {
        if !ui::can_ask() || args.say.json {
            let text = format!("nothing was removed: {told}; --yes removes it for good");
            return Err(CliError::failed(text));
        }
        ui::complain(&told);
        if !ui::ask("Remove it for good?", None) {
            return Err(CliError::failed("nothing was removed"));
        }
    }
    for (batch, _) in &batches {
        std::fs::remove_dir_all(batch).map_err(|e| failed("empty", e))?;
    }
    let word = format!("removed: {} ({})", count(sum.entries), bytes(sum.bytes));
    crate::cli::control::done(&word, args.say)
}
