//! `verify` of a follower: the worker reads its source, we read the copy, and both logs are one.

use crossbeam_channel::RecvTimeoutError;
use std::time::Duration;

use super::hub::{Handles, Hub};
use super::wire::VerifyOf;
use crate::engine::control::{
    Against, Control, ControlError, Until, VerifyEnd, VerifyLine, VerifyOptions,
};
use crate::engine::status::PathText;
use crate::engine::verify as both;

pub fn verify(
    hub: &Hub,
    handles: &Handles,
    options: VerifyOptions,
    line: &mut dyn FnMut(VerifyLine) -> bool,
) -> Result<VerifyEnd, ControlError> {
    let mut end = VerifyEnd::default();
    if options.against == Against::Source {
        source(hub, options.repair, line, &mut end)?;
        // What differed there comes as records.
        let forever = Until {
            at: None,
            gone: &|| false,
        };
        hub.wait_idle(&forever)?;
    }
    both::copy(&handles.apply_orders, options.repair, line, &mut end)?;
    let status = hub.refresh();
    (end.entries, end.bytes) = (status.entries, status.bytes);
    Ok(end)
}

fn source(
    hub: &Hub,
    repair: bool,
    line: &mut dyn FnMut(VerifyLine) -> bool,
    end: &mut VerifyEnd,
) -> Result<(), ControlError> {
    let down = || {
        ControlError::Unreachable(format!(
            "the source went away while it was compared: {}",
            hub.last_reason()
        ))
    };
    let link = hub.links.get().ok_or_else(down)?;
    let found = link.verify(repair).map_err(|_| down())?;
    let mut listening = true;
    loop {
        match found.recv_timeout(Duration::from_millis(500)) {
            Ok(VerifyOf::Found { path, what }) => {
                // It came as text already; nothing of it may reach a terminal raw.
                let path =
                    String::from_utf8_lossy(&path).replace(mirror_core::is_tricky, "\u{fffd}");
                let path = serde_json::from_value(path.clone().into())
                    .unwrap_or_else(|_| PathText::new(path.as_bytes()));
                end.repaired += u64::from(repair);
                listening = listening
                    && line(VerifyLine {
                        path,
                        what,
                        repaired: repair,
                    });
                if !listening {
                    return Ok(());
                }
            }
            Ok(VerifyOf::Done(done)) if done.error.is_empty() => {
                end.different += done.different;
                end.unknown += done.unknown;
                return Ok(());
            }
            Ok(VerifyOf::Done(done)) => {
                return Err(ControlError::Failed(crate::link::conn::escaped(
                    &done.error,
                )));
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(down()),
        }
    }
}
