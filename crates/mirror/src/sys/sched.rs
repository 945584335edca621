//! Who goes first when the processor is short: threads on the way of a change, before those that carry what is large.
//!
//! To ask for less needs no right, and what a person has set is kept. The way back needs one, so only threads that never do
//! anything else stand back. Threads they start inherit it.
//!
//! The others ask for nothing: with short slices (`sched_setattr`, Linux 6.12) those that carry both, as the door's, kept the
//! kernel's own threads from the processor, the journal's and the network's, for 25 ms; and a change waits for these, too.

use rustix::process::{getpriority_process, setpriority_process};

/// Added to the nice value of whoever stands back: about a tenth of the weight.
const BACK: i32 = 10;
const NICE_MAX: i32 = 19;

/// The calling thread has much to do for long: it leaves the processor to others of ours, and takes what is left.
pub fn stand_back() {
    // Linux keeps a nice value for each thread; `None` is the calling one. Where it is refused all goes on as it is.
    if let Ok(nice) = getpriority_process(None) {
        let _ = setpriority_process(None, (nice + BACK).min(NICE_MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_stands_back_by_itself_and_never_forward() {
        let nice = || getpriority_process(None).unwrap();
        let before = nice();
        let told = std::thread::spawn(move || {
            stand_back();
            let one = nice();
            let inherited = std::thread::spawn(nice).join().unwrap();
            stand_back();
            stand_back();
            (one, inherited, nice())
        });
        let (one, inherited, three) = told.join().unwrap();
        assert_eq!(one, (before + BACK).min(NICE_MAX));
        assert_eq!(inherited, one);
        assert_eq!(three, (before + 3 * BACK).min(NICE_MAX));
        assert_eq!(nice(), before);
    }
}
