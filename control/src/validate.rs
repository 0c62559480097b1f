//! `hiveway validate`: every problem of a table with its place.
#![expect(clippy::print_stdout, reason = "stdout is this command's result")]

use hiveway_core::table::Reserved;

use crate::{
    cli::exit,
    source::{LoadError, Loaded, Source, load},
};

/// Prints what is wrong with the table; returns the exit code.
pub fn run(source: &Source) -> u8 {
    if let Some(why) = source.unsupported() {
        eprintln!("error: {why}");
        return exit::USAGE;
    }
    match load(source, Reserved::default(), None) {
        Ok(loaded) => {
            report(source, &loaded);
            exit::OK
        }
        Err(LoadError::Invalid(problems)) => {
            for problem in &problems {
                println!("{problem}");
            }
            let errors = problems.iter().filter(|p| p.severity == hiveway_core::Severity::Error).count();
            eprintln!("{source}: {errors} error{}", if errors == 1 { "" } else { "s" });
            exit::FAILED
        }
        Err(error) => {
            eprintln!("error: {error}");
            exit::FAILED
        }
    }
}

fn report(source: &Source, loaded: &Loaded) {
    for warning in &loaded.warnings {
        println!("{warning}");
    }
    for item in &loaded.left_out {
        println!("left out: {}: {}", item.what, item.why);
    }
    let model = &loaded.model;
    println!(
        "{source}: valid: {} nodes, {} networks, {} services, {} tasks",
        model.nodes.len(),
        model.networks.len(),
        model.services.len(),
        model.tasks.len()
    );
}
