//! `verify --against history`: every old version and every byte of the catalogue is read again.

use serde_json::json;

use crate::cli::args::VerifyArgs;
use crate::cli::exit::{CliError, Exit, chain};
use crate::cli::past::{Past, position};
use crate::cli::{text, ui};
use crate::disk::RealDisk;
use crate::engine::control::Stop;
use crate::history::ask::{Answer, Ask};
use crate::history::events::Events;
use crate::history::scrub::{Damaged, End, scrub};

pub fn run(args: &VerifyArgs) -> Result<Exit, CliError> {
    let say = args.say;
    let mut past = Past::open(&args.which)?;
    let state_dir = past.state_dir.clone();
    let (mut different, mut repaired) = (0u64, 0u64);
    let mut tell = |path: String, what: &str, mended: bool| {
        different += 1;
        repaired += u64::from(mended);
        if say.json {
            ui::say(&json!({"path": path, "what": what, "repaired": mended}).to_string());
        } else {
            let mended = if mended { " (repaired)" } else { "" };
            ui::say(&format!("{path}: {what}{mended}"));
        }
    };
    let failed = |e: &dyn std::error::Error| CliError::failed(chain(e));
    let disk = RealDisk::open(&state_dir).map_err(|e| failed(&e))?;
    let mut names = Events::check(&disk).map_err(|e| failed(&e))?;
    if !names.is_empty() {
        // One may just be written.
        std::thread::sleep(std::time::Duration::from_millis(500));
        names = Events::check(&disk).map_err(|e| failed(&e))?;
    }
    for name in names {
        let what = "damaged: it is made again from its other copy when the mirror is started";
        tell(name.into(), what, false);
    }
    // First what says how the versions must be.
    let (mut after, repair) = (0, args.repair);
    loop {
        match past.ask(&Ask::Check { after, repair })? {
            Answer::Checked(Some(checked)) => {
                after = checked.number;
                for (name, what, mended) in checked.found {
                    let what = match (mended, repair) {
                        (false, true) => {
                            format!("{what}; start the mirror again, which keeps what is intact")
                        }
                        _ => what,
                    };
                    tell(name, &what, mended);
                }
            }
            Answer::Checked(None) => break,
            _ => return Err(CliError::failed("the answer is not of this version")),
        }
    }
    let stop =
        Stop::on_signals().map_err(|e| CliError::failed(format!("cannot catch signals: {e}")))?;
    let done = scrub(
        &disk,
        &state_dir,
        repair,
        &mut || !stop.requested(),
        &mut |Damaged { slot, end }| {
            let what = format!(
                "the bytes that a file had until position {} are damaged{}",
                position(slot.until.0),
                match end {
                    End::Left | End::Repaired => "",
                    End::SetAside =>
                        ", nothing else has them: set aside in history/damaged, not kept any more",
                }
            );
            tell(slot.path(), &what, end == End::Repaired);
        },
    );
    let done = done.map_err(|e| failed(&e))?;
    if stop.requested() {
        return Err(CliError::failed("stopped before all was read"));
    }
    if say.json {
        let end = json!({
            "versions": done.versions, "bytes": done.bytes, "different": different, "repaired": repaired,
        });
        ui::say(&json!({ "end": end }).to_string());
    } else if !say.quiet {
        ui::complain(&format!(
            "{} old versions read ({}): {different} damaged, {repaired} repaired",
            text::count(done.versions),
            text::bytes(done.bytes)
        ));
    }
    Ok(match different > repaired {
        true => Exit::SomeFailed,
        false => Exit::Done,
    })
}
