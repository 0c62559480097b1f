//! Runs one program on one packet, without a device: for golden packets.

mod connections;
mod context;
mod harness;
mod in_front;
mod loaded;
mod outcome;
mod shooter;

pub use self::{
    context::Input,
    harness::{Harness, HarnessError, RunError},
    outcome::{Decision, Outcome, XdpOutcome},
    shooter::{Shooter, Shot},
};
