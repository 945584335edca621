//! Whether what a worker has put into DST could do something on this host: its set-id programs and device nodes are kept as they
//! are where owners are applied.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{StatVfsMountFlags, statvfs};

use crate::engine::options::Owners;
use crate::engine::session::show;

/// One line, if others get there and the mount takes set-id bits and devices seriously.
pub fn warning(dst: &Path, owners: Owners) -> Option<String> {
    let inert = StatVfsMountFlags::NOSUID | StatVfsMountFlags::NODEV;
    let is_inert = statvfs(dst).is_ok_and(|found| found.f_flag.contains(inert));
    if owners == Owners::Record || is_inert || !others_reach(dst) {
        return None;
    }
    Some(format!(
        "set-id programs and device nodes of the source work in {} for every user who gets there: keep it below a directory \
         of mode 0700, or on a mount with nosuid,nodev",
        show(dst)
    ))
}

/// Whether every directory above lets everybody pass. DST itself is as the source has it.
fn others_reach(dst: &Path) -> bool {
    let mut above = dst.ancestors().skip(1);
    above.all(|dir| std::fs::metadata(dir).is_ok_and(|meta| meta.mode() & 0o001 != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn below_a_closed_directory_nothing_is_to_be_said() {
        use std::os::unix::fs::PermissionsExt;
        let base = tempfile::tempdir_in("/var/tmp").unwrap();
        let dst = base.path().join("dst");
        std::fs::create_dir(&dst).unwrap();
        let closed = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(base.path(), closed).unwrap();
        assert_eq!(warning(&dst, Owners::Apply), None);
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(base.path(), open).unwrap();
        assert_eq!(warning(&dst, Owners::Record), None);
        let flags = statvfs(&dst).unwrap().f_flag;
        let inert = flags.contains(StatVfsMountFlags::NOSUID | StatVfsMountFlags::NODEV);
        assert_eq!(warning(&dst, Owners::Apply).is_none(), inert);
    }
}
