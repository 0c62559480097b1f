//! `hw-readers`: the targets' inputs, and one input read outside of any fuzzer.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use hiveway_readers::{Target, damage, seeds::seeds};

#[derive(Parser)]
#[command(about = "Inputs for the readers of whatever comes from outside, and what they make of one")]
enum Arguments {
    /// Writes the inputs that every target begins with, into a directory per target
    Seeds {
        /// Where those directories are made
        directory: PathBuf,
    },
    /// Writes the damaged input of a number, which a failing test names, to stdout
    Input {
        /// Whose input
        target: Target,
        /// The number
        number: u64,
    },
    /// Reads a file as the target does; a defect is a panic
    Read {
        /// By which readers
        target: Target,
        /// The input
        file: PathBuf,
    },
}

fn main() -> Result<()> {
    match Arguments::parse() {
        Arguments::Seeds { directory } => {
            Target::ALL.into_iter().try_for_each(|target| write_seeds(&directory, target))
        }
        Arguments::Input { target, number } => {
            Ok(std::io::stdout().write_all(&damage::input(&seeds(target)?, number))?)
        }
        Arguments::Read { target, file } => {
            target.read(&fs::read(&file).with_context(|| file.display().to_string())?);
            Ok(())
        }
    }
}

fn write_seeds(directory: &Path, target: Target) -> Result<()> {
    let name = target.to_possible_value().context("a target without a name")?;
    let directory = directory.join(name.get_name());
    fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
    for (number, seed) in seeds(target)?.iter().enumerate() {
        let path = directory.join(format!("seed-{number}"));
        fs::write(&path, seed).with_context(|| path.display().to_string())?;
    }
    Ok(())
}
