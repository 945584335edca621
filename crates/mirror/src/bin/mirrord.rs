//! The worker's program; all it does is in `mirror::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    mirror::cli::mirrord(std::env::args_os()).into()
}
