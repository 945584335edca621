//! Man pages and shell completions, out of the definitions that also make `--help`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use clap::{Command, CommandFactory};
use clap_complete::Shell;
use mirror::cli::args::{FsMirror, Mirrord};

/// Files made below `into`: `man/*.1`, `completions/*`.
pub fn make(into: &Path) -> Result<usize> {
    let man = into.join("man");
    let completions = into.join("completions");
    for dir in [&man, &completions] {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let mut made = 0;
    for mut command in [FsMirror::command(), Mirrord::command()] {
        command.build();
        made += page(&command, &man)?;
        let name = command.get_name().to_owned();
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            clap_complete::generate_to(shell, &mut command, &name, &completions)?;
            made += 1;
        }
    }
    Ok(made)
}

/// The page of a command and, below it, those of its subcommands.
fn page(command: &Command, into: &Path) -> Result<usize> {
    let name = command
        .get_display_name()
        .unwrap_or(command.get_name())
        .to_owned();
    let mut text = Vec::new();
    // Kept until the program ends, which is soon.
    let shown: &'static str = name.clone().leak();
    clap_mangen::Man::new(command.clone().name(shown))
        .section("1")
        .source(concat!("fs_mirror ", env!("CARGO_PKG_VERSION")))
        .manual("fs_mirror")
        .render(&mut text)?;
    let path = into.join(format!("{name}.1"));
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    let mut made = 1;
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        made += page(sub, into)?;
    }
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_that_names_its_options() {
        let dir = std::env::temp_dir().join(format!("xtask-pages-{}", std::process::id()));
        let made = make(&dir).unwrap();
        let read = |name: &str| fs::read_to_string(dir.join("man").join(name)).unwrap();
        let (mirror, worker) = (read("fs_mirror-mirror.1"), read("mirrord.1"));
        let completion = fs::read_to_string(dir.join("completions/fs_mirror.bash")).unwrap();
        fs::remove_dir_all(&dir).unwrap();
        assert!(made > 10, "{made}");
        assert!(mirror.contains(r"\-\-on\-mass\-change"), "{mirror}");
        assert!(worker.contains("stdio"), "{worker}");
        assert!(completion.contains("--on-mass-change"));
    }
}
