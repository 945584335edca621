//! Who goes first when the processor is short: threads on the way of a change, before those that carry what is large.
//!
//! Both ask for less than they have, so neither needs a right, and both keep what a person has set (a nice value, a policy).
//! Threads that are started later inherit it. What a kernel does not know is left out: nothing depends on it but time.

use std::mem::size_of;

/// How long a thread that is to be quick goes on once it runs and others want to: the least that Linux (6.12) knows.
const QUICK_SLICE_NS: u64 = 100_000;
/// Added to the nice value of whoever stands back: about a tenth of the weight.
const BACK: i32 = 10;
const NICE_MAX: i32 = 19;

/// As in `sched_setattr(2)`, its first version.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
struct Attr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// The calling thread has little to do and is waited for: it runs soon after it is woken.
pub fn quick() {
    change(|attr| attr.runtime = QUICK_SLICE_NS);
}

/// The calling thread has much to do for long: it leaves the processor to others of ours, and takes what is left.
pub fn stand_back() {
    change(|attr| {
        attr.runtime = 0;
        attr.nice = (attr.nice + BACK).min(NICE_MAX);
    });
}

fn change(how: impl FnOnce(&mut Attr)) {
    let Some(mut attr) = now() else { return };
    // Another policy than those that share by weight was somebody's choice.
    if ![libc::SCHED_OTHER, libc::SCHED_BATCH].contains(&attr.policy.cast_signed()) {
        return;
    }
    how(&mut attr);
    // SAFETY: the kernel reads `size` bytes of a struct of that size; 0 is the calling thread.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) };
}

fn now() -> Option<Attr> {
    let mut attr = Attr::default();
    let size = size_of::<Attr>() as u32;
    // SAFETY: the kernel writes at most `size` bytes into a struct of that size, all of them plain numbers.
    let done = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attr, size, 0) };
    (done == 0).then_some(attr)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_stands_back_by_itself_and_never_forward() {
        let before = now().unwrap();
        let told = std::thread::spawn(|| {
            quick();
            let one = now().unwrap();
            let inherited = std::thread::spawn(|| now().unwrap()).join().unwrap();
            stand_back();
            let two = now().unwrap();
            stand_back();
            stand_back();
            quick();
            (one, inherited, two, now().unwrap())
        });
        let (one, inherited, two, three) = told.join().unwrap();
        assert_eq!((one.nice, one.policy), (before.nice, before.policy));
        // Older kernels have no slices of one's own.
        assert!(
            [0, before.runtime, QUICK_SLICE_NS].contains(&one.runtime),
            "{one:?}"
        );
        assert_eq!(inherited.runtime, one.runtime);
        assert_eq!(two.nice, (before.nice + BACK).min(NICE_MAX));
        assert_eq!(two.runtime, before.runtime);
        assert_eq!(three.nice, NICE_MAX);
        assert_eq!(now().unwrap().nice, before.nice);
    }
}
