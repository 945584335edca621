//! `verify`: reads everything again and says what is not as it should be.
//!
//! Against the index: the copy in full, with what its rows say. Against the source: first the source in full, with
//! what capture's rows say (a difference there is one that no event told), then the copy as above.

use std::sync::{Arc, PoisonError, RwLock};

use crossbeam_channel::{Sender, bounded, unbounded};
use mirror_core::reconcile::{Dir, Look, ReadEnd};
use mirror_core::{At, Kind, Name, Object, ObjectId, Rows};

use super::applying::{ApplyOrder, ApplyOrders, path_of, root_or};
use super::control::{ControlError, VerifyEnd, VerifyLine};
use super::status::PathText;
use crate::apply::{Difference, DifferenceKind};
use crate::capture::kernel::{look, read_one, way};
use crate::capture::read::{Into, ReadOptions, Reader};
use crate::capture::sink::NoSink;
use crate::capture::state::{Order, Shared};
use crate::capture::tree::{SourceTree, Walker};
use crate::index::Index;

/// Rows read under one lock.
const ROWS: usize = 256;

/// Reads the copy and compares it with its rows.
pub fn copy(
    apply_orders: &ApplyOrders,
    repair: bool,
    line: &mut dyn FnMut(VerifyLine) -> bool,
    end: &mut VerifyEnd,
) -> Result<(), ControlError> {
    let (found, differences) = unbounded();
    let (done, verified) = bounded(1);
    let _ = apply_orders.send(ApplyOrder::Verify {
        content: true,
        found,
        done,
    });
    let mut all: Vec<Difference> = Vec::new();
    for difference in differences {
        // What is listed as failed is told by `status`, with its reason.
        if difference.what == DifferenceKind::Pending {
            end.unknown += 1;
            continue;
        }
        end.different += 1;
        if repair {
            all.push(difference);
        } else if !line(VerifyLine {
            path: PathText::new(root_or(&difference.path)),
            what: word(difference.what).into(),
            repaired: false,
        }) {
            return Ok(());
        }
    }
    verified
        .recv()
        .map_err(|_| ControlError::Busy("the mirror is restarting".into()))?
        .map_err(ControlError::Failed)?;
    if !repair || all.is_empty() {
        return Ok(());
    }
    for part in all.chunks(4096) {
        let (done, answer) = bounded(1);
        let _ = apply_orders.send(ApplyOrder::Repair {
            differences: part.to_vec(),
            done,
        });
        let still = answer
            .recv()
            .map_err(|_| ControlError::Busy("the mirror is restarting".into()))?
            .map_err(ControlError::Failed)?;
        for difference in part {
            let failed = difference
                .object
                .is_some_and(|object| still.iter().any(|failure| failure.object == object));
            end.repaired += u64::from(!failed);
            line(VerifyLine {
                path: PathText::new(root_or(&difference.path)),
                what: word(difference.what).into(),
                repaired: !failed,
            });
        }
    }
    Ok(())
}

pub fn word(what: DifferenceKind) -> &'static str {
    match what {
        DifferenceKind::Missing => "missing",
        DifferenceKind::Extra => "extra",
        DifferenceKind::Type => "type",
        DifferenceKind::Content => "content",
        DifferenceKind::Meta => "attributes",
        DifferenceKind::Links => "links",
        DifferenceKind::Unreadable => "unreadable",
        DifferenceKind::Pending => "pending",
    }
}

/// A source and what capture knows of it.
pub struct SourceOf<'a> {
    pub tree: Arc<SourceTree>,
    pub index: Arc<RwLock<Index>>,
    pub shared: Arc<Shared>,
    pub orders: Sender<Order>,
    /// Returns when all that happened before is in the rows.
    pub settled: &'a dyn Fn() -> Result<(), ControlError>,
}

/// Reads the source again. What differs from the rows and still does after a barrier was missed: it is told, and put
/// right by capture itself, as any change.
pub fn source(
    handles: &SourceOf<'_>,
    repair: bool,
    line: &mut dyn FnMut(VerifyLine) -> bool,
    end: &mut VerifyEnd,
) -> Result<(), ControlError> {
    let mut walk = Walk {
        handles,
        walker: Walker::new(handles.tree.clone()),
        reader: Reader::new(ReadOptions::default()),
    };
    let mut suspects = Vec::new();
    let mut dirs = vec![ObjectId::ROOT];
    while let Some(dir) = dirs.pop() {
        let mut after: Option<Name> = None;
        loop {
            let rows = {
                let rows = handles.index.read().unwrap_or_else(PoisonError::into_inner);
                rows.scan(dir, after.as_ref(), ROWS)
                    .map_err(|e| ControlError::Failed(e.to_string()))?
            };
            let Some(last) = rows.last() else { break };
            after = Some(last.name.clone());
            for child in rows {
                if child.object.state.kind.is_dir() {
                    dirs.push(child.id);
                }
                let at = At {
                    parent: dir,
                    name: child.name,
                };
                if let Some(what) = walk.differs(&at, &child.object) {
                    suspects.push((at, child.id, what));
                }
            }
        }
        walk.walker.forget_all();
    }
    // Names that nobody told of are found by a scan, which counts what it corrects.
    let before = handles.shared.lock().corrections;
    let _ = handles.orders.send(Order::Rescan);
    (handles.settled)()?;
    let corrected = handles.shared.lock().corrections.saturating_sub(before);
    for (at, id, what) in suspects {
        let now = {
            let rows = handles.index.read().unwrap_or_else(PoisonError::into_inner);
            if rows.name(&at).ok().flatten() != Some(id) {
                continue;
            }
            rows.object(id).ok().flatten()
        };
        let Some(now) = now else { continue };
        if walk.differs(&at, &now).is_none() {
            // A change under way when it was first read.
            continue;
        }
        end.different += 1;
        if repair {
            let _ = handles.orders.send(Order::Reread(id));
            (handles.settled)()?;
            end.repaired += 1;
        }
        let path = {
            let rows = handles.index.read().unwrap_or_else(PoisonError::into_inner);
            path_of(&*rows, id).unwrap_or_default()
        };
        if !line(VerifyLine {
            path: PathText::new(root_or(&path)),
            what: what.into(),
            repaired: repair,
        }) {
            return Ok(());
        }
    }
    if corrected > 0 {
        end.different += corrected;
        end.repaired += corrected;
        line(VerifyLine {
            path: PathText::new(b"."),
            what: format!(
                "{corrected} changes at the source that no event told: found by this look and copied"
            ),
            repaired: true,
        });
    }
    Ok(())
}

struct Walk<'a> {
    handles: &'a SourceOf<'a>,
    walker: Walker,
    reader: Reader,
}

impl Walk<'_> {
    fn differs(&mut self, at: &At, row: &Object) -> Option<&'static str> {
        let (handle, trail) = {
            let rows = self
                .handles
                .index
                .read()
                .unwrap_or_else(PoisonError::into_inner);
            way(&*rows, at.parent, self.handles.tree.by_handle).ok()??
        };
        let Ok(dir) = self.walker.open(&Dir {
            handle: &handle,
            trail,
        }) else {
            return Some("missing");
        };
        let dir: Arc<_> = dir;
        let seen = match look(self.walker.tree(), &handle, &dir, &at.name) {
            Look::Seen(seen) => seen,
            Look::Absent | Look::Stale => return Some("missing"),
            Look::Foreign => return None,
            Look::Failed(_) => return Some("unreadable"),
        };
        if !seen.is_kind(&row.state.kind) {
            return Some("type");
        }
        match read_one(
            self.walker.tree(),
            &mut self.reader,
            (&handle, &dir),
            &at.name,
            &seen,
            seen.is_file(),
            Into::Sink(&NoSink),
        ) {
            ReadEnd::Done(reading) => {
                if let (Some(Kind::File(now)), Kind::File(known)) = (&reading.kind, &row.state.kind)
                    && !now.same(known)
                {
                    return Some("content");
                }
                (reading.meta != row.state.meta).then_some("attributes")
            }
            ReadEnd::Moved | ReadEnd::Later => None,
            ReadEnd::Failed(_) => Some("unreadable"),
        }
    }
}
