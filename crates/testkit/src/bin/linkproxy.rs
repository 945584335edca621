//! A bad link between two programs, as words say (`latency=50ms rate=100mbit buffer=64k stall=out|in|both cut hold=9,10`):
//! `linkproxy WORDS... -- COMMAND...` runs a command and shapes its input and output;
//! `linkproxy WORDS... --listen ADDR --to ADDR` leads TCP connections on. With `--control FILE` the words are those of the file, as
//! it is from moment to moment, and what went over the link is written beside it.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use testkit::proxy::{Control, Proxy, Settings, run_between};

const USAGE: &str =
    "usage: linkproxy [WORD...] [--control FILE] (--listen ADDR --to ADDR | -- COMMAND...)";

fn main() -> ExitCode {
    match work() {
        Ok(code) => ExitCode::from(code),
        Err(wrong) => {
            eprintln!("linkproxy: {wrong}\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn work() -> Result<u8, String> {
    let mut arguments = std::env::args_os().skip(1);
    let (mut words, mut file, mut listen, mut to) = (String::new(), None, None, None);
    let mut command = None;
    while let Some(argument) = arguments.next() {
        let text = argument.to_string_lossy().into_owned();
        let mut value = || arguments.next().ok_or(format!("{text} lacks its value"));
        let address = |value: std::ffi::OsString| {
            let text = value.to_string_lossy().into_owned();
            text.parse().map_err(|_| format!("`{text}` is no address"))
        };
        match text.as_str() {
            "--control" => file = Some(PathBuf::from(value()?)),
            "--listen" => listen = Some(address(value()?)?),
            "--to" => to = Some(address(value()?)?),
            "--" => {
                let mut whole = Command::new(value()?);
                whole.args(arguments.by_ref());
                command = Some(whole);
            }
            word => words = format!("{words} {word}"),
        }
    }
    let settings = match &file {
        Some(file) => Settings::read(file).map_err(|e| format!("{}: {e}", file.display()))?,
        None => Settings::parse(&words)?,
    };
    let control = Control::new(settings);
    if let Some(file) = &file {
        control.obey(file);
    }
    match (command, listen, to) {
        (Some(command), None, None) => {
            let owned = |fd: std::io::Result<_>| fd.map_err(|e| e.to_string());
            let input = owned(rustix::io::dup(std::io::stdin()).map_err(Into::into))?;
            let output = owned(rustix::io::dup(std::io::stdout()).map_err(Into::into))?;
            let code = run_between(input, output, command, &control).map_err(|e| e.to_string())?;
            Ok(u8::try_from(code).unwrap_or(255))
        }
        (None, Some(listen), Some(to)) => {
            let proxy = Proxy::listen(listen, to, control).map_err(|e| e.to_string())?;
            println!("{}", proxy.address);
            loop {
                std::thread::park();
            }
        }
        _ => Err("either a command, or --listen and --to".into()),
    }
}
