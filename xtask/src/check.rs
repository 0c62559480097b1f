//! `cargo xtask check`: everything about the sources that a machine can judge. Runs all of it, then lists what failed.

mod circles;
mod deny;
mod direction;
mod files;
mod lints;
mod text;
mod words;

use anyhow::{Result, bail};

use crate::{build_ebpf, setup};

/// A check's name, and what does it; the problems found, one line each.
type Check = (&'static str, fn() -> Result<Vec<String>>);

const CHECKS: &[Check] = &[
    ("formatting", lints::formatting),
    ("clippy, host", lints::clippy_host),
    ("clippy, BPF target", lints::clippy_ebpf),
    ("dependency direction", direction::check),
    ("circles of modules", circles::check),
    ("licences, bans, sources, advisories", deny::check),
    ("files in git", files::check),
    ("width of comments and Markdown", text::check),
    ("words that were given up", words::check),
];

/// Runs every check.
pub(crate) fn run() -> Result<()> {
    setup::run()?;
    setup::for_check()?;
    // The host crates embed it, so clippy cannot look at them without.
    build_ebpf::run()?;
    let mut problems = Vec::new();
    for (name, check) in CHECKS {
        eprintln!("check: {name}");
        let found = check().unwrap_or_else(|error| vec![format!("{error:#}")]);
        problems.extend(found.into_iter().map(|problem| format!("{name}: {problem}")));
    }
    if !problems.is_empty() {
        bail!("{} problems\n  {}", problems.len(), problems.join("\n  "));
    }
    eprintln!("check: clean");
    Ok(())
}
