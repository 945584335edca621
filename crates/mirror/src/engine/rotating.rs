//! Rotation by itself: a thread beside apply that publishes what is due, a question at a time. It has the rights of the
//! process, and takes no word of the far end but through apply's answers.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mirror_core::escape;

use super::applied::{ApplyOrders, past};
use super::applying::{NO_HISTORY, chain};
use super::control::{ControlError, Stop};
use super::event::{Event, Ui};
use super::options::MirrorOptions;
use crate::apply;
use crate::engine::options::Owners;
use crate::history::ask::{Answer, Ask};
use crate::history::asked::{Asks, Places};
use crate::history::now_ns;
use crate::history::publish_settings::PublishSettings;
use crate::history::published::ShelfError;
use crate::history::rotate::{Done, RotateError, Rotation, is_due};
use crate::history::tree::PastError;

/// How soon after the full hour it is seen.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// What failed is tried again, and told once an hour.
const AGAIN_AFTER: Duration = Duration::from_secs(60);
const TELL_EVERY: Duration = Duration::from_secs(3600);

/// What is published, and of what.
pub struct Publishing {
    settings: PublishSettings,
    owners: apply::Owners,
    /// As a person knows them: links do not cross from one view of a mount to another.
    places: Places,
}

impl Publishing {
    pub fn of(options: &MirrorOptions) -> Option<Publishing> {
        let settings = options.publish.clone().filter(|_| options.history)?;
        Some(Publishing {
            settings,
            owners: match options.owners {
                Owners::Apply => apply::Owners::Apply,
                Owners::Record => apply::Owners::Record,
            },
            places: Places {
                dst: options.dst.clone(),
                state_dir: options.state_dir.clone(),
            },
        })
    }
}

/// Answers come from the apply loop of this process.
struct Orders(ApplyOrders);

impl Asks for Orders {
    fn ask(&mut self, ask: &Ask) -> Result<Answer, PastError> {
        past(&self.0, ask.clone()).map_err(|e| match e {
            ControlError::Refused(text) => PastError::Unknown(text),
            e => PastError::Asking(chain(&e)),
        })
    }
}

pub struct Rotating {
    stop: Stop,
    thread: JoinHandle<()>,
}

impl Rotating {
    pub fn start(
        publishing: Publishing,
        orders: ApplyOrders,
        ui: Arc<dyn Ui>,
    ) -> std::io::Result<Rotating> {
        let stop = Stop::new();
        let asked = stop.clone();
        let thread = std::thread::Builder::new()
            .name("rotate".into())
            .spawn(move || run(&publishing, &orders, &*ui, &asked))?;
        Ok(Rotating { stop, thread })
    }

    /// To be called once apply answers no more: whatever goes on breaks off then.
    pub fn end(self) {
        self.stop.request();
        let _ = self.thread.join();
    }
}

fn run(publishing: &Publishing, orders: &ApplyOrders, ui: &dyn Ui, stop: &Stop) {
    let mut told: Option<Instant> = None;
    let mut wait = LOOK_EVERY;
    while !stop.wait(wait) {
        wait = LOOK_EVERY;
        match rotate(publishing, orders) {
            Ok(made) => {
                told = None;
                for (line, missing) in made {
                    ui.event(Event::Notice(line));
                    if missing > 0 {
                        ui.event(Event::Notice(format!(
                            "{missing} files of it are not kept as they were then: `fs_mirror snapshot list -v` names them"
                        )));
                    }
                }
            }
            // It begins once the first copy is complete.
            Err(RotateError::Past(PastError::Unknown(why))) if why == NO_HISTORY => {}
            // Somebody does it by hand.
            Err(RotateError::Shelf(ShelfError::Busy)) => {}
            Err(_) if stop.requested() => {}
            Err(e) => {
                wait = AGAIN_AFTER;
                if told.is_none_or(|at| at.elapsed() > TELL_EVERY) {
                    told = Some(Instant::now());
                    ui.event(Event::Notice(format!("rotation failed: {}", chain(&e))));
                }
            }
        }
    }
}

fn rotate(
    publishing: &Publishing,
    orders: &ApplyOrders,
) -> Result<Vec<(String, u64)>, RotateError> {
    if !is_due(&publishing.places.state_dir, &publishing.settings, now_ns())? {
        return Ok(Vec::new());
    }
    let mut orders = Orders(orders.clone());
    let mut rotation = Rotation::open(
        &mut orders,
        publishing.places.clone(),
        publishing.owners,
        publishing.settings.clone(),
    )?;
    let done = rotation.rotate(None, now_ns())?;
    let told = |done| match done {
        Done::Made(tree, path) => {
            let path: PathBuf = path;
            let path = escape(std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()));
            Some((format!("published {path}"), tree.missing))
        }
        _ => None,
    };
    Ok(done.into_iter().filter_map(told).collect())
}
