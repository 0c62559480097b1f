//! Runs one program on one packet, without a device: for golden packets.

mod context;
mod harness;
mod in_front;
mod shooter;

pub use self::{
    context::Input,
    harness::{Decision, Harness, HarnessError, Outcome, RunError, XdpOutcome},
    shooter::{Shooter, Shot},
};
