//! A model-based property test: random histories of the table and random traffic on three real nodes, compared with a
//! simple reference of who may answer. Needs root, and `hiveway` built.
//!
//! `HIVEWAY_MODEL_SEED` repeats a history, `HIVEWAY_MODEL_STEPS` lengthens it (and takes the time limit away). A step
//! is one change of the table or one check of one flow.

mod client;
mod connection;
mod history;
mod place;
mod reference;
mod rng;
mod stage;

use std::time::Duration;

use anyhow::{Context as _, Result};
use hiveway_tests::lab::scenario;

use crate::history::{History, Limit};

const SEED: u64 = 3;
const STEPS: u64 = 2500;
/// A machine that does not get through all steps in this time has checked enough; it is not the subject.
const TIME: Duration = Duration::from_secs(70);

#[test]
fn random_histories_agree_with_the_reference() {
    scenario(|lab| {
        let steps = variable("HIVEWAY_MODEL_STEPS")?;
        let seed = variable("HIVEWAY_MODEL_SEED")?.unwrap_or(SEED);
        let limit = Limit { steps: steps.unwrap_or(STEPS), time: if steps.is_some() { Duration::MAX } else { TIME } };
        eprintln!("model: seed {seed}, {} steps", limit.steps);
        let mut history = History::start(lab, seed)?;
        let ended = history.run(limit);
        eprintln!("model: {}", history.summary());
        ended.with_context(|| format!("seed {seed}: {}", history.tail()))
    });
}

fn variable(name: &str) -> Result<Option<u64>> {
    std::env::var(name).ok().map(|text| text.parse().with_context(|| format!("{name}={text}"))).transpose()
}
