//! What every bench does with what it has measured.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::Result;
use hiveway_tests::lab::Lab;

/// Measures in a lab of its own, prints the table, and has the figures written.
pub(crate) fn measured<R: fmt::Display>(
    measure: impl FnOnce(&Lab) -> Result<R>,
    write: impl FnOnce(&R) -> Result<PathBuf>,
) -> Result<()> {
    let lab = Lab::new()?;
    let result = measure(&lab);
    if result.is_err() {
        eprintln!("{}", lab.diagnosis());
    }
    drop(lab);
    let report = result?;
    println!("{report}");
    eprintln!("bench: figures in {}", write(&report)?.display());
    Ok(())
}

/// Where the figures of `bench` go, measured at `time`: to `asked`, or below `bench-results`.
pub(crate) fn destination(bench: &str, time: &str, asked: Option<&Path>) -> Result<PathBuf> {
    let path = asked.map_or_else(|| format!("bench-results/{bench}-{time}.json").into(), Path::to_path_buf);
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    Ok(path)
}
