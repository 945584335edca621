//! `cargo xtask dist`: what a package holds beside the two programs, made from the programs' own command lines.

mod pages;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::Parser;

/// What the project does to itself.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Task {
    /// Man pages and completions, in target/dist
    Dist,
    /// The Debian package (needs `cargo install cargo-deb`), in target/debian
    Deb,
    /// Both programs without a shared library, in target/static (needs the target of musl, and musl-tools)
    Static,
}

fn main() -> ExitCode {
    match run(Task::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    let root = root()?;
    match task {
        Task::Dist => dist(&root).map(drop),
        Task::Deb => {
            dist(&root)?;
            cargo(
                &root,
                &["deb", "--package", "mirror", "--locked", "--strip"],
            )
        }
        Task::Static => build_static(&root),
    }
}

/// The workspace's directory.
fn root() -> Result<PathBuf> {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .map(Path::to_path_buf)
        .context("the workspace has moved: build xtask again")
}

fn dist(root: &Path) -> Result<PathBuf> {
    let into = root.join("target/dist");
    if into.exists() {
        std::fs::remove_dir_all(&into)
            .with_context(|| format!("cannot empty {}", into.display()))?;
    }
    let made = pages::make(&into)?;
    println!("{made} files in {}", into.display());
    Ok(into)
}

fn build_static(root: &Path) -> Result<()> {
    const MUSL: &str = "x86_64-unknown-linux-musl";
    let installed = Command::new("rustup")
        .args(["target", "list", "--installed"])
        .output()
        .is_ok_and(|out| String::from_utf8_lossy(&out.stdout).contains(MUSL));
    if !installed {
        bail!("no target {MUSL}: `rustup target add {MUSL}` and `apt install musl-tools`");
    }
    cargo(
        root,
        &[
            "build",
            "--release",
            "--locked",
            "--package",
            "mirror",
            "--target",
            MUSL,
        ],
    )?;
    let into = root.join("target/static");
    std::fs::create_dir_all(&into).with_context(|| format!("cannot make {}", into.display()))?;
    for program in ["fs_mirror", "mirrord"] {
        let made = root.join("target").join(MUSL).join("release").join(program);
        // Most of what the linker wrote is for debuggers. `strip` comes with the compiler that musl-tools needs.
        let status = Command::new("strip")
            .arg("-o")
            .args([&into.join(program), &made])
            .status()
            .context("cannot start strip")?;
        if !status.success() {
            bail!("strip failed on {}", made.display());
        }
    }
    println!("fs_mirror and mirrord in {}", into.display());
    Ok(())
}

fn cargo(root: &Path, words: &[&str]) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(words)
        .current_dir(root)
        .status()
        .context("cannot start cargo")?;
    if !status.success() {
        bail!("`cargo {}` failed", words.join(" "));
    }
    Ok(())
}
