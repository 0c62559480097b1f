//! Many runs of one program, from any thread: for floods, and for several CPUs at once.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use zerocopy::IntoBytes as _;

use super::{
    context::{Input, SkbContext},
    harness::GROWTH,
    outcome::{Decision, decision},
};
use crate::sys::test_run;

/// A loaded program by itself. Unlike [`Harness::run`](super::Harness::run) it reads no counters, so that a run costs
/// microseconds.
pub struct Shooter {
    pub(super) program: OwnedFd,
}

/// What a run showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shot {
    /// What the program says it did; `None` if it left nothing that makes sense.
    pub decision: Option<Decision>,
    /// The packet afterwards.
    pub packet: Vec<u8>,
}

impl Shooter {
    /// Runs the program once, on this CPU.
    pub fn run(&self, input: &Input) -> io::Result<Shot> {
        let context = SkbContext::of(input);
        let mut context_out = SkbContext::default();
        let mut packet = vec![0; input.packet.len() + GROWTH];
        let contexts = (context.as_bytes(), context_out.as_mut_bytes());
        let len = test_run(self.program.as_fd(), &input.packet, &mut packet, contexts)?;
        packet.truncate(len);
        Ok(Shot { decision: decision(&context_out.cb), packet })
    }
}
