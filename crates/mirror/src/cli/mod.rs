//! The two programs' commands: what a person types, and what they get to see. No decision about files is made here.

pub mod adopted;
pub mod args;
pub mod check;
pub mod config;
pub mod control;
pub mod exit;
pub mod find;
pub mod import;
pub mod keys;
pub mod mirror;
pub mod parse;
pub mod past;
pub mod places;
pub mod screen;
pub mod serve_backup;
pub mod serve_tree;
pub mod serve_worker;
pub mod settings;
pub mod show;
pub mod text;
pub mod textdiff;
pub mod timeline;
pub mod trees;
pub mod ui;
pub mod worker;

use std::ffi::{CStr, OsString};

use clap::Parser;

use args::{Command, FsMirror, Mirrord};
use exit::{CliError, Exit};

use crate::listener;
use crate::net::{Program, door};

/// What holds for every process of ours, before it does anything.
fn begin(name: &CStr) {
    let _ = crate::sys::confine::keep_memory_private();
    // One that a service starts is `exe` for `ps` and `top` otherwise.
    let _ = rustix::thread::set_name(name);
}

/// `fs_mirror`, from its arguments to its exit code.
pub fn fs_mirror(args: impl IntoIterator<Item = OsString>) -> Exit {
    begin(c"fs_mirror");
    if door::asked() {
        return be_a_door("fs_mirror");
    }
    let command = match FsMirror::try_parse_from(args) {
        Ok(parsed) => parsed.command,
        Err(e) => return not_understood(&e),
    };
    ended(
        "fs_mirror",
        match command {
            Command::Mirror(args) => mirror::run(args),
            Command::Serve(args) => serve_backup::run(&args),
            Command::ServeTree(args) => serve_tree::run(&args),
            Command::Add(args) => trees::add(&args),
            Command::Remove(args) => trees::remove(&args),
            Command::List(args) => trees::list(&args),
            Command::Status(args) => control::status(&args),
            Command::Check(args) => Ok(control::check(&args)),
            Command::Wait(args) => control::wait(&args),
            Command::Pause(args) => control::pause(&args),
            Command::Resume(args) => control::resume(&args),
            Command::Release(args) => control::release(&args),
            Command::Forget(args) => control::forget(&args),
            Command::Verify(args) => control::verify(&args),
            Command::Adopted(args) => adopted::run(&args),
            Command::Config(command) => settings::run(&command),
            Command::Log(args) => past::log::run(&args),
            Command::Diff(args) => past::diff::run(&args),
            Command::Cat(args) => past::get::cat(&args),
            Command::Find(args) => past::find::run(&args),
            Command::Timeline(args) => past::log::timeline(&args),
            Command::Restore(args) => past::get::restore(&args),
            Command::Undo(args) => past::back::undo(&args),
            Command::Checkout(args) => past::get::checkout(&args),
            Command::View(args) => past::view::run(&args),
            Command::Rotate(args) => past::rotate::rotate(&args),
            Command::Snapshot(command) => past::snapshot::run(&command),
            Command::Prune(args) => past::prune::run(&args),
            Command::Import(args) => import::run(&args),
            Command::Key(command) => keys::key(Program::FsMirror, &command),
            Command::Trust(args) => keys::trust(Program::FsMirror, &args),
            Command::Pair(args) => keys::pair(Program::FsMirror, &args),
        },
    )
}

/// `mirrord`, from its arguments to its exit code.
pub fn mirrord(args: impl IntoIterator<Item = OsString>) -> Exit {
    begin(c"mirrord");
    if door::asked() {
        return be_a_door("mirrord");
    }
    if let Some(base) = listener::asked() {
        let done = listener::run(&base).map(|()| Exit::Done);
        return ended("mirrord", done.map_err(CliError::failed));
    }
    match Mirrord::try_parse_from(args) {
        Ok(parsed) => ended("mirrord", worker::run(parsed.command)),
        Err(e) => not_understood(&e),
    }
}

/// This process was started by a service, to talk to the network for it.
fn be_a_door(program: &str) -> Exit {
    let done = door::run().map(|()| Exit::Done);
    ended(
        program,
        done.map_err(|line| CliError::failed(format!("door: {line}"))),
    )
}

fn ended(program: &str, result: Result<Exit, CliError>) -> Exit {
    result.unwrap_or_else(|e| {
        ui::complain(&format!("{program}: {}", e.line));
        e.exit
    })
}

/// Help and version go to stdout; a mistake goes to stderr, with nothing in it that a terminal would obey.
fn not_understood(e: &clap::Error) -> Exit {
    if !e.use_stderr() {
        let _ = e.print();
        return Exit::Done;
    }
    let text = e.render().to_string();
    let lines: Vec<String> = text.trim_end().lines().map(plain).collect();
    ui::complain(&lines.join("\n"));
    Exit::Usage
}

fn plain(line: &str) -> String {
    line.chars()
        .map(|c| {
            if c.is_control() {
                mirror_core::escape(c.to_string().as_bytes())
            } else {
                c.to_string()
            }
        })
        .collect()
}
