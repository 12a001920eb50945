//! Completions and man pages, made from the same definitions as the command line itself.

use std::{io, path::Path};

use clap::CommandFactory;
use clap_complete::Shell;

use super::{
    args::Args,
    text::{say, say_line},
    trouble::{Exit, Trouble},
};

/// Prints completions.
pub(super) fn completions(shell: Shell) -> Exit {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "wechsler", &mut script);
    say(&String::from_utf8_lossy(&script));
    Exit::Done
}

/// Prints the main man page, or writes all of them into `dir`.
pub(super) fn man(dir: Option<&Path>) -> Result<Exit, Trouble> {
    let failed = |error: io::Error| Trouble::new(Exit::Failed, "system", error.to_string());
    if let Some(dir) = dir {
        clap_mangen::generate_to(Args::command(), dir).map_err(failed)?;
        say_line(&format!("man pages are in {}", dir.display()));
        return Ok(Exit::Done);
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(Args::command()).render(&mut page).map_err(failed)?;
    say(&String::from_utf8_lossy(&page));
    Ok(Exit::Done)
}
