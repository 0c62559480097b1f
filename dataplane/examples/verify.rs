//! Loads every program and prints one line for each: its name, the instructions that the verifier walked through, and
//! the stack in bytes. `cargo xtask verify` runs this and judges.
#![allow(clippy::print_stdout, reason = "the lines are its result")]

fn main() -> anyhow::Result<()> {
    for figures in dataplane::verify()? {
        println!("{} {} {}", figures.program, figures.instructions, figures.stack);
    }
    Ok(())
}
