//! Flows are opened before they are measured, as a real conversation does it: both ends are heard of.

use std::{thread, time::Duration};

use anyhow::{Result, ensure};
use dataplane_common::traffic::far_end;

use super::{
    Bench,
    contestants::Case,
    order::{self, Flows, Protocol, Stage as Of, requests},
    stage::Established,
};

/// Fewest new flows of which the maps' memory is divided.
const ENOUGH: u64 = 1000;
/// Flows that are opened before they are answered for good: Hiveway begins with room for 16,384 of them.
const AT_ONCE: u32 = 4096;
/// Hiveway's agent looks four times a second whether its tables are too small. Until it has made them larger, a burst
/// of more flows than these displaces some of its own that are not established yet.
const GROWS_IN: Duration = Duration::from_millis(700);

/// What opening flows has shown.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Opened {
    /// Part of the flows that was answered.
    pub(super) answered: f64,
    /// How many of them servers have kept, to reply to.
    pub(super) answers: u32,
    /// Map memory for each of them, if enough were new to tell.
    pub(super) bytes_per_flow: Option<f64>,
}

impl Bench<'_> {
    /// Opens the flows of a case.
    pub(super) fn open(&mut self, case: Case) -> Result<Opened> {
        let Case { flows, .. } = case;
        // A floor remembers nothing, and replies to nobody are as good as others.
        if flows == 0 || self.instance.contestant.is_floor() {
            return Ok(Opened { answered: 1.0, answers: flows, bytes_per_flow: None });
        }
        let before = self.instance.established()?;
        let mut answered = 0;
        // Packets may be lost on the way; what is open already is not harmed by being opened again.
        for _ in 0..3 {
            answered = self.open_once(case)?;
            if answered >= flows.into() {
                break;
            }
        }
        let answers = self.traffic.answers()?;
        ensure!(answered > 0 && answers > 0, "no flow was answered");
        let mut bytes_per_flow = None;
        if let (Some(before), Some(after)) = (before, self.instance.established()?) {
            // Since the start; the flows of a smaller case are among those of a larger one.
            ensure!(after.flows >= answered.min(flows.into()), "{} of {flows} flows are established", after.flows);
            bytes_per_flow = self::bytes_per_flow(before, after);
        }
        Ok(Opened { answered: answered as f64 / f64::from(flows), answers: answers.min(flows), bytes_per_flow })
    }

    /// Returns how many were answered.
    fn open_once(&mut self, case: Case) -> Result<u64> {
        let (frame, protocol) = (usize::from(self.options.size), case.protocol(self.options.protocol));
        let opening = requests(&self.instance.target, protocol, Of::Open, Flows::InTurn(case.flows), frame);
        let (generator, port) = (&self.stage.generator, self.instance.port);
        let mut answered = 0;
        self.traffic.forget_answers()?;
        for first in (0..case.flows).step_by(AT_ONCE as usize) {
            let some = (case.flows - first).min(AT_ONCE);
            let opening = order::from(opening, first);
            self.traffic.set_far_end(far_end::ANSWER)?;
            answered += self.traffic.send(generator, port, &opening, some)?.answered;
            // The second packet of a client that was answered; TCP's was the acknowledgement of the SYN-ACK.
            if protocol == Protocol::Udp {
                self.traffic.set_far_end(far_end::COUNT)?;
                self.traffic.send(generator, port, &opening, some)?;
            }
            if first == 0 && case.flows > AT_ONCE {
                thread::sleep(GROWS_IN);
            }
        }
        Ok(answered)
    }
}

/// What all maps have grown by for each connection that was promoted meanwhile, if there were enough of them.
fn bytes_per_flow(before: Established, after: Established) -> Option<f64> {
    let (new, bytes) = (after.flows - before.flows, after.map_bytes.saturating_sub(before.map_bytes));
    (new >= ENOUGH).then(|| bytes as f64 / new as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_flows_say_nothing_of_memory() {
        let of = |flows, map_bytes| Established { flows, map_bytes };
        assert_eq!(bytes_per_flow(of(100, 1000), of(10_100, 3_761_000)), Some(376.0));
        assert_eq!(bytes_per_flow(of(0, 0), of(999, 4096)), None);
        assert_eq!(bytes_per_flow(of(0, 5000), of(1000, 4000)), Some(0.0), "maps may shrink");
    }
}
