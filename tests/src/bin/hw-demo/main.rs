//! `cargo xtask demo`: the product's main job on the table of a real Docker Swarm. Three node namespaces with an agent
//! each, a client outside, a namespace with a web server per running task; every claim is checked and listed at the
//! end.

#![expect(clippy::print_stdout, reason = "the demo speaks on stdout")]

mod capture;
mod report;
mod show;
mod stage;
mod story;

use std::process::ExitCode;

use clap::Parser;
use hiveway_tests::lab::Lab;
use report::Report;
use stage::Stage;

#[derive(Parser)]
#[command(about = "Shows Hiveway on the captured task table of a real swarm")]
struct Arguments {
    /// Leave everything up at the end, say how to look around, and wait for ctrl-c.
    #[arg(long)]
    keep: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let lab = match Lab::new() {
        Ok(lab) => lab,
        Err(error) => {
            eprintln!("cannot set up the demo: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let mut report = Report::default();
    let mut stage = None;
    let outcome = Stage::build(&lab).and_then(|built| story::tell(stage.insert(built), &mut report));
    if let Err(error) = &outcome {
        report.note("the demo runs to its end", "yes", &format!("{error:#}"), false);
    }
    report.print();
    if !report.all_ok() {
        eprintln!("\nWhat the agents say:\n{}", lab.diagnosis());
    }
    if arguments.keep
        && let Some(stage) = &stage
    {
        stage.how_to_look_around();
        loop {
            // The handler for ctrl-c and SIGTERM takes everything down and ends the process.
            std::thread::park();
        }
    }
    drop(stage);
    drop(lab);
    if report.all_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
