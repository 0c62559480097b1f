//! `hiveway validate`: every problem of a table with its place.
use std::time::Duration;

use hiveway_core::table::Reserved;
use tokio::time::timeout;

use crate::{
    cli::{EngineArgs, exit},
    plain::line,
    say::{errln, outln},
    source::{LoadError, Loaded, Source, load},
    swarm,
};

/// How long a manager may take for its table.
const PATIENCE: Duration = Duration::from_secs(15);

/// Prints what is wrong with the table; returns the exit code.
pub fn run(source: &Source, engine: &EngineArgs) -> u8 {
    match source {
        Source::Relay(_) => {
            errln!("error: the table of another agent can't be checked; check {} on a manager", Source::Swarm);
            exit::USAGE
        }
        Source::Swarm => match live(engine) {
            Ok(loaded) => {
                report(source, &loaded);
                exit::OK
            }
            Err(error) => {
                errln!("error: {error:#}");
                exit::FAILED
            }
        },
        Source::File(_) | Source::Engine(_) => read(source),
    }
}

/// What the manager on this node says now.
fn live(engine: &EngineArgs) -> anyhow::Result<Loaded> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut tables, _task) = swarm::follow(engine.manager());
        let first = timeout(PATIENCE, tables.wait_for(|live| live.table.is_some() || live.lost.is_some())).await;
        let live = first.map_err(|_| anyhow::anyhow!("no answer within {} s", PATIENCE.as_secs()))??.clone();
        match (&live.table, &live.lost) {
            (Some(table), _) => Ok(Loaded::from((**table).clone())),
            (None, lost) => anyhow::bail!(lost.as_ref().map_or_else(String::new, |lost| lost.why.clone())),
        }
    })
}

fn read(source: &Source) -> u8 {
    match load(source, Reserved::default(), None) {
        Ok(loaded) => {
            report(source, &loaded);
            exit::OK
        }
        Err(LoadError::Invalid(problems)) => {
            for problem in &problems {
                outln!("{}", line(&problem.to_string()));
            }
            let errors = problems.iter().filter(|p| p.severity == hiveway_core::Severity::Error).count();
            errln!("{source}: {errors} error{}", if errors == 1 { "" } else { "s" });
            exit::FAILED
        }
        Err(error) => {
            errln!("error: {error}");
            exit::FAILED
        }
    }
}

fn report(source: &Source, loaded: &Loaded) {
    for warning in &loaded.warnings {
        outln!("{}", line(&warning.to_string()));
    }
    for item in &loaded.left_out {
        outln!("{}", line(&format!("left out: {}: {}", item.what, item.why)));
    }
    let model = &loaded.model;
    outln!(
        "{source}: valid: {} nodes, {} networks, {} services, {} tasks",
        model.nodes.len(),
        model.networks.len(),
        model.services.len(),
        model.tasks.len()
    );
}
