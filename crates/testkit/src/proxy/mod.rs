//! A link that is slow, far away, silent or cut, as told: what stands between two programs in a test or a measurement.
//!
//! [`Proxy`] listens on a TCP port of its own and leads each connection on; [`run_between`] shapes the two streams of a program
//! that is started in ssh's place. Both obey a [`Control`]. The program `linkproxy` is a face of this.
//! It knows nothing of what travels, but for [`Settings::hold`], which tells frames apart by their header.

mod frames;
mod pump;
mod settings;

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

pub use settings::Settings;

use crate::sys::inherited;

/// How soon a change of the settings, or the end, is seen.
const TICK: Duration = Duration::from_millis(5);

/// Seen from whoever connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Out,
    In,
}

/// How the link is now, and what went over it.
#[derive(Debug, Default)]
pub struct Control {
    settings: Mutex<Settings>,
    bytes: [AtomicU64; 2],
}

impl Control {
    pub fn new(settings: Settings) -> Arc<Control> {
        Arc::new(Control {
            settings: Mutex::new(settings),
            bytes: Default::default(),
        })
    }
    fn lock(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }
    pub fn settings(&self) -> Settings {
        self.lock().clone()
    }
    pub fn change(&self, change: impl FnOnce(&mut Settings)) {
        change(&mut self.lock());
    }
    /// What arrived at the other end so far, over all connections.
    pub fn bytes(&self, way: Way) -> u64 {
        self.counter(way).load(Ordering::Acquire)
    }
    /// From now on does what the file says (see [`Settings::parse`]), whenever that changes, and writes what went over
    /// the link (`OUT IN`, bytes) into a file beside it that ends in `.bytes`.
    pub fn obey(self: &Arc<Control>, file: &Path) {
        let (control, file) = (self.clone(), file.to_path_buf());
        std::thread::spawn(move || {
            let beside = file.with_extension("bytes");
            let mut told = None;
            loop {
                // One that is just being written is read again.
                if let Ok(settings) = Settings::read(&file) {
                    control.change(|now| *now = settings);
                }
                let bytes = (control.bytes(Way::Out), control.bytes(Way::In));
                if told != Some(bytes) {
                    told = Some(bytes);
                    let _ = std::fs::write(&beside, format!("{} {}\n", bytes.0, bytes.1));
                }
                std::thread::sleep(TICK);
            }
        });
    }
    fn counter(&self, way: Way) -> &AtomicU64 {
        match way {
            Way::Out => &self.bytes[0],
            Way::In => &self.bytes[1],
        }
    }
}

/// Leads TCP connections on until it is dropped, which cuts them.
pub struct Proxy {
    pub address: SocketAddr,
    pub control: Arc<Control>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    pub fn start(to: SocketAddr, control: Arc<Control>) -> io::Result<Proxy> {
        Proxy::listen(
            "127.0.0.1:0".parse().map_err(io::Error::other)?,
            to,
            control,
        )
    }

    pub fn listen(at: SocketAddr, to: SocketAddr, control: Arc<Control>) -> io::Result<Proxy> {
        let listener = TcpListener::bind(at)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let over = Arc::new(AtomicBool::new(false));
        let (told, obeyed) = (over.clone(), control.clone());
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::Acquire) {
                match listener.accept() {
                    // While it is cut nobody gets through.
                    Ok((near, _)) if obeyed.settings().cut => drop(near),
                    Ok((near, _)) => {
                        let (obeyed, told) = (obeyed.clone(), told.clone());
                        std::thread::spawn(move || {
                            let _ = lead(near, to, &obeyed, &told);
                        });
                    }
                    Err(_) => std::thread::sleep(TICK),
                }
            }
        });
        Ok(Proxy {
            address,
            control,
            over,
            thread: Some(thread),
        })
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lead(near: TcpStream, to: SocketAddr, control: &Control, over: &AtomicBool) -> io::Result<()> {
    let far = TcpStream::connect(to)?;
    for stream in [&near, &far] {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
    }
    let ends = [
        (
            OwnedFd::from(near.try_clone()?),
            OwnedFd::from(far.try_clone()?),
        ),
        (
            OwnedFd::from(far.try_clone()?),
            OwnedFd::from(near.try_clone()?),
        ),
    ];
    pump::both(ends, false, control, over, &|| {
        let _ = near.shutdown(std::net::Shutdown::Both);
        let _ = far.shutdown(std::net::Shutdown::Both);
    });
    Ok(())
}

/// Runs a command as ssh would, its input and output shaped; returns when either side is gone. Whoever asked for it talks
/// through `input` and `output`.
pub fn run_between(
    input: OwnedFd,
    output: OwnedFd,
    mut command: Command,
    control: &Control,
) -> io::Result<i32> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let (Some(to), Some(from)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(io::ErrorKind::BrokenPipe.into());
    };
    let ends = [(input, OwnedFd::from(to)), (OwnedFd::from(from), output)];
    let over = AtomicBool::new(false);
    let child = Mutex::new(child);
    pump::both(ends, true, control, &over, &|| end(&child));
    let mut child = child.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(child.wait()?.code().unwrap_or(255))
}

/// It may just be ending.
fn end(child: &Mutex<Child>) {
    let mut child = child.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..100 {
        if child.try_wait().is_ok_and(|ended| ended.is_some()) {
            return;
        }
        std::thread::sleep(TICK);
    }
    let _ = child.kill();
}

/// Where a test's own program finds what it is to be; see [`become_link`].
const COMMAND: &str = "LINKPROXY_COMMAND";
const CONTROL: &str = "LINKPROXY_CONTROL";

/// The lines of a shell script that stands for ssh and runs `$last` over a link. The link is the calling test program itself, in
/// its test `test`, which does nothing but call [`become_link`].
pub fn script(test: &str, control: &Path) -> io::Result<String> {
    Ok(format!(
        "for last; do :; done\nexec 3<&0 4>&1\n{COMMAND}=\"$last\" {CONTROL}='{}' exec '{}' --exact {test} --nocapture \
         </dev/null >/dev/null",
        control.display(),
        std::env::current_exe()?.display()
    ))
}

/// In a program that [`script`] started: is the link, and ends. In any other: nothing.
pub fn become_link() {
    let (Some(command), Some(control)) = (std::env::var_os(COMMAND), std::env::var_os(CONTROL))
    else {
        return;
    };
    let file = PathBuf::from(control);
    let mut shell = Command::new("sh");
    let mut line = std::ffi::OsString::from("exec ");
    line.push(command);
    shell.arg("-c").arg(line);
    shell.env_remove(COMMAND).env_remove(CONTROL);
    let run = || -> io::Result<i32> {
        let control = Control::new(Settings::read(&file)?);
        control.obey(&file);
        run_between(inherited(3)?, inherited(4)?, shell, &control)
    };
    match run() {
        Ok(code) => std::process::exit(code),
        Err(e) => {
            eprintln!("the link: {e}");
            std::process::exit(255);
        }
    }
}
