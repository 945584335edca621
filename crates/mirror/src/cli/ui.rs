//! The terminal (or pipe) a person or script watches: where the [`Screen`]'s lines go, and where questions are asked.

use std::io::{self, BufRead, IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use jiff::tz::TimeZone;

use crate::cli::screen::{Out, Screen};
use crate::engine::control::Stop;
use crate::engine::event::{Event, Ui};
use crate::engine::options::Output;
use crate::engine::status::Stamp;
use crate::sync::lock;

/// What this process's stdin, stdout and stderr are good for.
pub fn output(json: bool, quiet: bool, verbose: bool) -> Output {
    let dumb = std::env::var_os("TERM").is_none_or(|t| t.is_empty() || t == "dumb");
    Output {
        json,
        quiet,
        verbose,
        terminal: io::stderr().is_terminal() && !dumb,
    }
}

pub fn colour(output: &Output) -> bool {
    output.terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// One line on stdout. A reader that went away is not our trouble.
pub fn say(line: &str) {
    let _ = writeln!(io::stdout().lock(), "{line}");
}

/// One line on stderr.
pub fn complain(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Asks on the terminal; false when there is none, or when it is time to stop.
pub fn ask(question: &str, stop: Option<&Stop>) -> bool {
    if !can_ask() {
        return false;
    }
    let mut err = io::stderr().lock();
    let _ = write!(err, "{question} [y/N] ");
    let _ = err.flush();
    while let Some(stop) = stop
        && !answered(Duration::from_millis(200))
    {
        if stop.requested() {
            let _ = writeln!(err);
            return false;
        }
    }
    let mut answer = String::new();
    let _ = io::stdin().lock().read_line(&mut answer);
    matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

/// A line was typed.
fn answered(within: Duration) -> bool {
    let stdin = io::stdin();
    let mut fds = [rustix::event::PollFd::new(
        &stdin,
        rustix::event::PollFlags::IN,
    )];
    let timeout = rustix::event::Timespec {
        tv_sec: within.as_secs() as i64,
        tv_nsec: i64::from(within.subsec_nanos()),
    };
    matches!(rustix::event::poll(&mut fds, Some(&timeout)), Ok(n) if n > 0)
}

pub fn can_ask() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// The [`Ui`] of `fs_mirror mirror`. Dropping it leaves the terminal tidy.
pub struct Console {
    shared: Arc<Shared>,
    /// Ends a question too.
    stop: Stop,
    yes: bool,
    json: bool,
    ticking: Stop,
    ticker: Option<thread::JoinHandle<()>>,
}

struct Shared {
    screen: Mutex<Screen>,
    start: Instant,
}

impl Console {
    pub fn new(output: Output, yes: bool, stop: Stop) -> Console {
        let screen = Mutex::new(Screen::new(output, colour(&output), TimeZone::system()));
        let shared = Arc::new(Shared {
            screen,
            start: Instant::now(),
        });
        let ticking = Stop::new();
        // Without it the line is only as fresh as the last event.
        let ticker = (output.terminal && !output.json && !output.quiet)
            .then(|| {
                let (shared, ticking) = (shared.clone(), ticking.clone());
                thread::Builder::new()
                    .name("live line".into())
                    .spawn(move || {
                        while !ticking.wait(Duration::from_millis(200)) {
                            let mut screen = shared.lock();
                            let lines = screen.tick(shared.start.elapsed(), columns());
                            write_all(&lines);
                        }
                    })
            })
            .and_then(Result::ok);
        Console {
            shared,
            stop,
            yes,
            json: output.json,
            ticking,
            ticker,
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Screen> {
        lock(&self.screen)
    }
}

impl Ui for Console {
    fn event(&self, event: Event) {
        let mut screen = self.shared.lock();
        let lines = screen.event(event, self.shared.start.elapsed(), Stamp::now(), columns());
        // Written under the lock, so that lines come in order.
        write_all(&lines);
    }

    fn ask(&self, question: &str) -> bool {
        if self.yes {
            return true;
        }
        let mut screen = self.shared.lock();
        write_all(&screen.end());
        !self.json && ask(question, Some(&self.stop))
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.ticking.request();
        if let Some(ticker) = self.ticker.take() {
            let _ = ticker.join();
        }
        write_all(&self.shared.lock().end());
    }
}

/// The terminal's width now: it may change while we run.
fn columns() -> usize {
    match rustix::termios::tcgetwinsize(io::stderr()) {
        Ok(size) if size.ws_col > 0 => usize::from(size.ws_col),
        _ => 80,
    }
}

/// Clears the terminal's line, whatever is on it.
const CLEAR: &str = "\r\x1b[K";

fn write_all(lines: &[Out]) {
    if lines.is_empty() {
        return;
    }
    let live = lines.iter().any(|l| matches!(l, Out::Live(_)));
    let mut err = io::stderr().lock();
    for line in lines {
        let _ = match line {
            Out::Stdout(line) => {
                if live {
                    let _ = write!(err, "{CLEAR}");
                    let _ = err.flush();
                }
                writeln!(io::stdout().lock(), "{line}")
            }
            Out::Stderr(line) if live => writeln!(err, "{CLEAR}{line}"),
            Out::Stderr(line) => writeln!(err, "{line}"),
            Out::Live(line) => write!(err, "{CLEAR}{line}"),
        };
    }
    let _ = err.flush();
}
