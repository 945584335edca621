//! The mirror's program; all it does is in `mirror::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    mirror::cli::fs_mirror(std::env::args_os()).into()
}
