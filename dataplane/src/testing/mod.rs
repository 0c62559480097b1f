//! Runs one program on one packet, without a device: for golden packets.

mod context;
mod harness;

pub use self::{
    context::Input,
    harness::{Decision, Harness, HarnessError, Outcome, RunError},
};
