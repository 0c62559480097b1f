//! `bench report`: tables and a chart for the docs, from the JSON that runs have left.

mod markdown;
mod svg;

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::figures::Figures;

/// What to show.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// What runs have written, in the order in which it shall be shown
    #[arg(required = true)]
    pub(crate) files: Vec<PathBuf>,
    /// Put the tables between the lines `<!-- figures -->` and `<!-- /figures -->` of this file instead of printing
    /// them
    #[arg(long)]
    pub(crate) into: Option<PathBuf>,
    /// Where to write the chart
    #[arg(long)]
    pub(crate) svg: Option<PathBuf>,
}

/// A report without figures yet.
pub(crate) const EMPTY: &str = "# Figures\n\n<!-- figures -->\n<!-- /figures -->\n";

const BEGIN: &str = "<!-- figures -->\n";
const END: &str = "<!-- /figures -->\n";

pub(crate) fn run(options: &Options) -> Result<()> {
    let figures = options.files.iter().map(|file| Figures::read(file)).collect::<Result<Vec<_>>>()?;
    let text = markdown::render(&figures);
    match &options.into {
        None => println!("{text}"),
        Some(path) => {
            let old = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            fs::write(path, inserted(&old, &text).with_context(|| format!("{} has no place", path.display()))?)?;
            eprintln!("bench: tables in {}", path.display());
        }
    }
    if let Some(path) = &options.svg {
        let charts: Vec<_> = figures.iter().flat_map(|run| run.charts.iter().cloned()).collect();
        ensure!(!charts.is_empty(), "there is nothing to draw in these files");
        fs::write(path, svg::render(&charts)).with_context(|| format!("cannot write {}", path.display()))?;
        eprintln!("bench: chart in {}", path.display());
    }
    Ok(())
}

/// `old` with `text` in its place.
fn inserted(old: &str, text: &str) -> Option<String> {
    let (before, rest) = old.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{text}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::inserted;

    #[test]
    fn tables_have_their_place() {
        let once = inserted("a\n<!-- figures -->\nold\n<!-- /figures -->\nb\n", "new").unwrap();
        assert_eq!(once, "a\n<!-- figures -->\n\nnew\n<!-- /figures -->\nb\n");
        assert_eq!(inserted(&once, "new").unwrap(), once);
        assert!(inserted("nothing", "new").is_none());
    }
}
