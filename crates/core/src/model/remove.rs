//! Removing a directory that lost its name, with everything below it.

use alloc::vec;

use super::ModelError;
use crate::rows::Rows;
use crate::types::*;

/// Names looked at in one go.
const BATCH: usize = 256;

/// Removes a directory and all names below it, and every object that has no name elsewhere. Returns how many
/// objects went. Memory: at most [`BATCH`] ids for each level of depth.
pub(super) fn subtree<R: Rows>(rows: &mut R, root: ObjectId) -> Result<u64, ModelError<R::Error>> {
    if rows.object(root).map_err(ModelError::Rows)?.is_none() {
        // It lay below another one that went.
        return Ok(0);
    }
    let mut removed = 0;
    let mut stack = vec![root];
    while let Some(&dir) = stack.last() {
        let children = rows.children(dir, None, BATCH).map_err(ModelError::Rows)?;
        if children.is_empty() {
            rows.remove(dir).map_err(ModelError::Rows)?;
            removed += 1;
            stack.pop();
            continue;
        }
        for (name, id) in children {
            let Some(mut object) = rows.object(id).map_err(ModelError::Rows)? else {
                return Err(ModelError::BrokenRows(id));
            };
            if object.state.kind.is_dir() {
                // One way to each directory and none back to where we began: so this ends.
                let only = |at: &At| at.parent == dir && at.name == name;
                if id == root || object.names.len() != 1 || !object.names.iter().all(only) {
                    return Err(ModelError::BrokenRows(id));
                }
                stack.push(id);
                continue;
            }
            if !object.names.remove(&At { parent: dir, name }) {
                return Err(ModelError::BrokenRows(id));
            }
            if object.names.is_empty() {
                rows.remove(id).map_err(ModelError::Rows)?;
                removed += 1;
            } else {
                rows.put(id, object).map_err(ModelError::Rows)?;
            }
        }
    }
    Ok(removed)
}
