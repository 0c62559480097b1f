//! The UDP port of VXLAN: which one it is, and whether all nodes use the same. It is held for as long as the agent
//! runs: else a local user who binds it while no vxlan device is up would keep them all down, Hiveway's and the
//! engine's.

use std::{
    num::NonZeroU16,
    sync::Arc,
    time::{Duration, Instant},
};

use hiveway_core::{DEFAULT_VXLAN_PORT, agreement::vxlan_ports};

use super::{apply::RoundLog, reconcile::Agent};
use crate::{
    listeners::{Holder, holders},
    netlink::Port,
};

const ITEM: &str = "UDP port of VXLAN";
/// Each attempt makes a namespace, and where a device has the port that goes on for as long as the device is there: not
/// with every round that changes of links make due.
const PAUSE: Duration = Duration::from_secs(4);

impl Agent {
    /// UDP port of VXLAN: as the command line says, else as the swarm does. The other agents are told.
    pub(super) fn vxlan_port(&self) -> u16 {
        let port = self.args.vxlan_port.or(self.table.loaded.data_path_port.map(NonZeroU16::get));
        let port = port.unwrap_or(DEFAULT_VXLAN_PORT);
        if let Some(hub) = &self.hub {
            hub.own.send_if_modified(|own| {
                let news = own.vxlan_port != NonZeroU16::new(port);
                if news {
                    Arc::make_mut(own).vxlan_port = NonZeroU16::new(port);
                }
                news
            });
        }
        port
    }

    /// Whether all nodes use the same port.
    pub(super) fn ports_agree(&self, port: u16) -> Result<(), String> {
        let problems = vxlan_ports(&self.table.model, &self.args.node, port, self.table.loaded.data_path_port);
        if problems.is_empty() { Ok(()) } else { Err(problems.join("; ")) }
    }

    /// Holds `number`; says who has it where it cannot.
    pub(super) async fn hold_port(&mut self, number: u16, round: &mut RoundLog) {
        if self.port.as_ref().is_some_and(|port| port.number() == number) || !round.may(&self.backoff, ITEM) {
            return;
        }
        if self.port_tried.is_some_and(|at| at.elapsed() < PAUSE) && !self.backoff.all().contains_key(ITEM) {
            return;
        }
        self.port_tried = Some(Instant::now());
        self.port = None;
        let (held, warning) = match Port::hold(&self.socket, number).await {
            Ok(port) => {
                self.port = Some(port);
                (Ok(()), None)
            }
            // A device of the same kind is there, a former agent's that is still being taken down, say: what was found
            // out before still holds.
            Err(error) if error.errno() == Some(libc::EEXIST) => return,
            Err(error) if error.errno() == Some(libc::EADDRINUSE) => match taken(number) {
                Ok(why) => (Err(why), None),
                Err(warning) => (Ok(()), Some(warning)),
            },
            Err(error) => (Err(error.to_string()), None),
        };
        self.last.port_warning = warning;
        round.note(&mut self.backoff, ITEM, held);
    }
}

/// Who has the port: a process (`Ok`), which keeps all vxlan devices down, or else a device (`Err`), whose matter it is
/// that others cannot come up.
fn taken(number: u16) -> Result<String, String> {
    let found = holders(number).unwrap_or_default();
    let name = |holder: &Holder| {
        format!("process {} ({}) of user {}, bound to {}", holder.pid, holder.process, holder.uid, holder.address)
    };
    if found.is_empty() {
        return Err(format!(
            "UDP port {number} is taken, and no process is seen to have it: a vxlan device of another kind (external, \
             gbp) keeps Hiveway's and the engine's from coming up; give it another port (`ip -d link show type vxlan`)"
        ));
    }
    Ok(format!(
        "UDP port {number} is taken by {}: no vxlan device can come up, neither Hiveway's nor the engine's; end it",
        found.iter().map(name).collect::<Vec<_>>().join("; ")
    ))
}
