//! Walls around one thread and all it starts: capabilities, Landlock, seccomp. Each holds for the calling thread only and can't
//! be taken down again.
//!
//! Nothing here decides who needs what. Each call says what this kernel can't do, and the others hold all the same.

use std::os::fd::OwnedFd;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
    clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs,
};

use super::{Errno, Result, raw};

/// What this program runs, set-id or not, gets no right that we don't have. The others below need it without root.
pub fn no_new_privileges() -> Result<()> {
    set_no_new_privs(true)
}

/// No core dump of this process is written, and nobody but root looks into its memory: keys and contents are in it.
pub fn keep_memory_private() -> Result<()> {
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
}

/// All but these go, also out of what a program could get back. Those that we don't have don't come.
pub fn keep_capabilities(keep: CapabilitySet) -> Result<()> {
    // Before the right to do so goes itself.
    let may_bound = capabilities(None)?
        .effective
        .contains(CapabilitySet::SETPCAP);
    if may_bound {
        for capability in (0..64).map(|n| CapabilitySet::from_bits_retain(1 << n)) {
            match capability_is_in_bounding_set(capability) {
                Ok(true) if !keep.contains(capability) => {
                    remove_capability_from_bounding_set(capability)?;
                }
                Ok(_) => {}
                // The kernel has no more of them.
                Err(Errno::INVAL) => break,
                Err(e) => return Err(e),
            }
        }
    }
    clear_ambient_capability_set()?;
    let have = capabilities(None)?.permitted;
    let kept = have.intersection(keep);
    set_capabilities(
        None,
        CapabilitySets {
            effective: kept,
            permitted: kept,
            inheritable: CapabilitySet::empty(),
        },
    )
}

/// Whether it can, and why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Landlocked {
    Yes,
    No(&'static str),
}

/// Below these directories all but executing may be done, and the files of `readable` may be read. Anywhere else nothing may be
/// opened, made, removed, linked or renamed, and no TCP connection is made or waited for. What is open stays open. Not covered by any kernel so far: modes, owners, times
/// and attributes by path, looking (`stat`), `chdir`.
pub fn only_beneath(dirs: &[&OwnedFd], readable: &[OwnedFd]) -> Landlocked {
    let all = AccessFs::from_all(ABI::V6);
    // Sockets and devices in the copy are there to be copied, not to be talked to.
    let used = all & !(AccessFs::Execute | AccessFs::IoctlDev);
    let ruleset = || {
        // Without `Refer` the kernel lets nothing be renamed from one directory to another.
        let mut ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::from_all(ABI::V2))?
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(all)?
            .handle_access(AccessNet::from_all(ABI::V4))?
            .scope(Scope::AbstractUnixSocket)?
            .create()?;
        for dir in dirs {
            ruleset = ruleset.add_rule(PathBeneath::new(dir, used))?;
        }
        for file in readable {
            ruleset = ruleset.add_rule(PathBeneath::new(file, AccessFs::ReadFile))?;
        }
        ruleset.restrict_self()
    };
    match ruleset() {
        Ok(status) if status.ruleset != RulesetStatus::NotEnforced => Landlocked::Yes,
        Ok(_) | Err(landlock::RulesetError::HandleAccesses(_)) => {
            Landlocked::No("this kernel has no Landlock that lets files be renamed (Linux 5.19)")
        }
        Err(_) => Landlocked::No("the kernel refuses our Landlock rules"),
    }
}

/// What a thread that takes bytes and puts them into files never asks the kernel for.
const DENIED: &[libc::c_long] = &[
    // Other programs, and what is in them.
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // Mounts and namespaces.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    SYS_OPEN_TREE_ATTR,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_setns,
    libc::SYS_unshare,
    // The kernel itself.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_kexec_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_userfaultfd,
    libc::SYS_personality,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    // Ways past what is checked here and by Landlock.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_open_by_handle_at,
    libc::SYS_fanotify_init,
    libc::SYS_socket,
    // Paths: ours are names in directories that are open.
    libc::SYS_truncate,
    libc::SYS_chdir,
    libc::SYS_fchdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lchown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_utime,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_utimes,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_futimesat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_kexec_file_load,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
];
const SYS_OPEN_TREE_ATTR: libc::c_long = 467;

/// Denied too where the kernel has the calls that take a directory (Linux 6.6 and 6.13): else a path through `/proc` stands for it.
const MODE_BY_PATH: &[libc::c_long] = &[
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    libc::SYS_fchmodat,
];
const XATTR_BY_PATH: &[libc::c_long] = &[libc::SYS_lsetxattr, libc::SYS_lremovexattr];

/// Denied in the working directory, which is none of ours.
const NOT_HERE: &[libc::c_long] = &[
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_fchmodat2,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_symlinkat,
];

/// Namespaces that a new thread or process could be in.
const CLONE_NEW: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP) as u32;

/// Words put into a terminal as if somebody had typed them.
const TYPED: [u32; 2] = [libc::TIOCSTI as u32, libc::TIOCLINUX as u32];

#[cfg(target_arch = "x86_64")]
const ARCH: Option<u32> = Some(0xc000_003e);
#[cfg(target_arch = "aarch64")]
const ARCH: Option<u32> = Some(0xc000_00b7);
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const ARCH: Option<u32> = None;

/// The system calls in the lists above fail with `EPERM` from now on. Needs [`no_new_privileges`].
/// `EOPNOTSUPP`: not made for this processor.
pub fn deny_system_calls() -> Result<()> {
    let arch = ARCH.ok_or(Errno::OPNOTSUPP)?;
    let mut denied = DENIED.to_vec();
    if super::target::has_fchmodat2() {
        denied.extend(MODE_BY_PATH);
    }
    if super::xattr::has_at_calls() {
        denied.extend(XATTR_BY_PATH);
    }
    let filter = filter(arch, &denied)?;
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(|_| Errno::INVAL)?,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel reads a program of the announced length, which lives through the call.
    let done = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER as libc::c_ulong,
            &raw const program,
        )
    };
    raw::check(done.into()).map(drop)
}

// Where `struct seccomp_data` has them; of an argument the low half, which is all that the kernel takes of these.
const NUMBER: u32 = 0;
const PROCESSOR: u32 = 4;
const fn argument(n: u32) -> u32 {
    16 + 8 * n
}

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const ANY_BIT: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// A program for the kernel's filter. A jump to "denied" is put right at the end, when it is known where that is.
struct Program(Vec<(libc::sock_filter, bool)>);

impl Program {
    fn step(&mut self, code: u16, k: u32) {
        self.0.push((
            libc::sock_filter {
                code,
                jt: 0,
                jf: 0,
                k,
            },
            false,
        ));
    }
    fn denied_if(&mut self, code: u16, k: u32) {
        self.0.push((
            libc::sock_filter {
                code,
                jt: 0,
                jf: 0,
                k,
            },
            true,
        ));
    }
    /// The next `steps` are for this call only. They leave another value loaded.
    fn only_for(&mut self, call: libc::c_long, steps: &[(u16, u32)]) {
        let jf = steps.len() as u8 + 1;
        let k = call as u32;
        self.0.push((
            libc::sock_filter {
                code: EQUAL,
                jt: 0,
                jf,
                k,
            },
            false,
        ));
        for &(code, k) in steps {
            match code {
                LOAD => self.step(code, k),
                _ => self.denied_if(code, k),
            }
        }
        self.step(LOAD, NUMBER);
    }
    fn finish(mut self) -> Result<Vec<libc::sock_filter>> {
        self.step(RETURN, libc::SECCOMP_RET_ALLOW);
        let end = self.0.len();
        self.step(RETURN, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32);
        let steps = self
            .0
            .into_iter()
            .enumerate()
            .map(|(at, (mut step, denied))| {
                if denied {
                    step.jt = u8::try_from(end - at - 1).map_err(|_| Errno::INVAL)?;
                }
                Ok(step)
            });
        steps.collect()
    }
}

fn filter(arch: u32, denied: &[libc::c_long]) -> Result<Vec<libc::sock_filter>> {
    let mut program = Program(Vec::new());
    program.step(LOAD, PROCESSOR);
    // Other numbers for the same calls: of 32-bit programs.
    program.0.push((
        libc::sock_filter {
            code: EQUAL,
            jt: 1,
            jf: 0,
            k: arch,
        },
        false,
    ));
    program.step(RETURN, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32);
    program.step(LOAD, NUMBER);
    if cfg!(target_arch = "x86_64") {
        // And those of x32.
        program.denied_if(AT_LEAST, 0x4000_0000);
    }
    for &call in denied {
        program.denied_if(EQUAL, call as u32);
    }
    for &call in NOT_HERE {
        program.only_for(call, &[(LOAD, argument(0)), (EQUAL, libc::AT_FDCWD as u32)]);
    }
    program.only_for(
        libc::SYS_clone,
        &[(LOAD, argument(0)), (ANY_BIT, CLONE_NEW)],
    );
    let [a, b] = TYPED;
    program.only_for(
        libc::SYS_ioctl,
        &[(LOAD, argument(1)), (EQUAL, a), (EQUAL, b)],
    );
    // What it is asked for can't be seen here; the C library does without.
    program.0.push((
        libc::sock_filter {
            code: EQUAL,
            jt: 0,
            jf: 1,
            k: libc::SYS_clone3 as u32,
        },
        false,
    ));
    program.step(RETURN, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32);
    program.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{open, target, xattr};
    use std::path::Path;

    /// On a thread of its own, behind all walls with `dir` as the only place.
    fn inside<T: Send>(dir: &Path, keep: CapabilitySet, act: impl FnOnce() -> T + Send) -> T {
        let dir = open::dir_at_path(dir).unwrap();
        std::thread::scope(|scope| {
            let walled = scope.spawn(move || {
                no_new_privileges().unwrap();
                match only_beneath(&[&dir], &[]) {
                    Landlocked::Yes => {}
                    Landlocked::No(why) => println!("skipped Landlock: {why}"),
                }
                keep_capabilities(keep).unwrap();
                deny_system_calls().unwrap();
                act()
            });
            walled.join().unwrap()
        })
    }

    #[test]
    fn outside_is_closed_and_inside_all_goes_on() {
        let t = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir().unwrap();
        std::fs::create_dir(t.path().join("a")).unwrap();
        std::fs::write(other.path().join("canary"), b"x").unwrap();
        let out = open::dir_at_path(other.path()).unwrap();
        let root = open::dir_at_path(t.path()).unwrap();
        let has_landlock = matches!(
            std::thread::spawn(|| only_beneath(&[], &[]))
                .join()
                .unwrap(),
            Landlocked::Yes
        );
        inside(t.path(), CapabilitySet::FOWNER, || {
            // Between directories, with and without replacing.
            let a = open::dir(&root, b"a").unwrap();
            let file = target::create_file(&root, b"f").unwrap();
            target::link(&root, b"f", &a, b"g").unwrap();
            target::rename(&root, b"f", &a, b"f").unwrap();
            target::exchange(&a, b"f", &a, b"g").unwrap();
            target::set_mode(&a, b"f", 0o640).unwrap();
            target::set_mode(open::path(&a, b"f").unwrap(), b"", 0o600).unwrap();
            rustix::fs::ftruncate(&file, 7).unwrap();
            let user = mirror_core::types::Xattr {
                name: b"user.x".as_slice().into(),
                value: b"1".as_slice().into(),
            };
            xattr::set(open::path(&a, b"f").unwrap(), b"", &user).unwrap();
            if let Some(unnamed) = target::create_unnamed(&a).unwrap() {
                target::link_fd(unnamed, &a, b"unnamed").unwrap();
            }
            open::again(open::path(&a, b"f").unwrap()).unwrap();
            // A thread of a thread is behind the same walls.
            let nested = std::thread::scope(|scope| {
                scope
                    .spawn(|| std::process::Command::new("/bin/true").status().map(drop))
                    .join()
                    .unwrap()
            });
            assert!(nested.is_err());
            if has_landlock {
                let all = [
                    open::file(&out, b"canary").map(drop),
                    target::create_file(&out, b"new").map(drop),
                    target::unlink(&out, b"canary"),
                    target::rename(&a, b"g", &out, b"g"),
                    target::link(&out, b"canary", &a, b"c"),
                    target::create_dir(&out, b"d"),
                ];
                let refused = |r: &Result<()>| matches!(r, Err(Errno::ACCESS | Errno::XDEV));
                assert!(all.iter().all(refused), "{all:?}");
            }
            let path = other.path().join("canary");
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
            assert!(std::fs::set_permissions(&path, mode).is_err());
            assert!(std::os::unix::fs::chown(&path, Some(1), Some(1)).is_err());
            assert!(std::net::TcpListener::bind("127.0.0.1:0").is_err());
            assert!(
                rustix::mount::mount(
                    "none",
                    &path,
                    "tmpfs",
                    rustix::mount::MountFlags::empty(),
                    None
                )
                .is_err()
            );
        });
        let now = capabilities(None).unwrap();
        assert!(
            !rustix::process::geteuid().is_root() || now.effective.bits().count_ones() > 2,
            "this thread stays as it was"
        );
        assert_eq!(std::fs::read(other.path().join("canary")).unwrap(), b"x");
        assert_eq!(std::fs::read_dir(other.path()).unwrap().count(), 1);
    }

    #[test]
    fn capabilities_go_and_do_not_come_back() {
        if !rustix::process::geteuid().is_root() {
            return println!("skipped: not root");
        }
        let t = tempfile::tempdir().unwrap();
        let keep = CapabilitySet::CHOWN | CapabilitySet::FOWNER;
        inside(t.path(), keep, || {
            let sets = capabilities(None).unwrap();
            assert_eq!((sets.effective, sets.permitted), (keep, keep));
            assert!(sets.inheritable.is_empty());
            assert!(!capability_is_in_bounding_set(CapabilitySet::SYS_ADMIN).unwrap());
            assert!(capability_is_in_bounding_set(CapabilitySet::CHOWN).unwrap());
            let all = CapabilitySets {
                effective: CapabilitySet::SYS_ADMIN,
                ..sets
            };
            assert!(set_capabilities(None, all).is_err());
        });
    }
}
