//! Where tunnels to this node arrive: at which of its addresses, and on which interfaces.

use std::{collections::BTreeMap, net::Ipv4Addr};

use hiveway_core::{model::Node, observed::Link};

use super::{apply::RoundLog, facts::gateway, reconcile::Agent};
use crate::{
    local_address,
    netlink::{self, observe_links},
    uplinks::{self, Destination, Uplinks},
};

impl Agent {
    /// The node's own address where tunnels arrive.
    pub(super) fn local_address(&self) -> Ipv4Addr {
        self.uplinks.own_address.unwrap_or_else(|| self.vtep())
    }

    /// Looks for that address again: a swarm that is made anew may announce another one, and a lease may end. Where
    /// none is found, the last one stays.
    ///
    /// # Errors
    /// When none is there.
    pub(super) fn find_own_address(&mut self, links: &BTreeMap<String, Link>) -> Result<(), String> {
        let last = self.uplinks.own_address;
        // What the node itself has carried and has lost is no NAT's.
        if last.is_none() && self.carried == Some(self.vtep()) && self.args.underlay_address.is_none() {
            return Ok(());
        }
        let candidates = self.hub.as_ref().map(|hub| local_address::candidates(&hub.engine.borrow(), last));
        let (asked, underlay, vtep) = (self.args.underlay_address, self.args.underlay(), self.vtep());
        let found = local_address::find(asked, &underlay, links, vtep, candidates.as_deref())?;
        self.carried = uplinks::carried(links, vtep).then_some(vtep);
        if found != last && (found.is_some() || uplinks::carried(links, vtep)) {
            match found {
                Some(own) => tracing::warn!("tunnels to this node, {vtep} to the others, arrive at {own} from now on"),
                None => tracing::info!("tunnels to this node arrive at {vtep} from now on: there is no NAT any more"),
            }
            self.uplinks.own_address = found;
        }
        Ok(())
    }

    /// Whether routes lead to the other nodes through other interfaces than in the last round.
    pub(super) async fn uplinks_moved(&self) -> bool {
        let Ok(links) = observe_links(&self.socket).await else { return true };
        self.uplinks_now(&links).await.is_ok_and(|found| found != self.uplinks)
    }

    async fn uplinks_now(&self, links: &BTreeMap<String, Link>) -> Result<Uplinks, netlink::Error> {
        let (underlay, vtep, local) = (self.args.underlay(), self.vtep(), self.local_address());
        let others = self.table.model.nodes.values().filter(|node| node.vtep != vtep);
        // What a file says is its author's word.
        let claims = |node: &Node| self.hub.is_some() && node.vtep != node.address;
        let destination =
            |node: &Node| Destination { vtep: node.vtep, claimed_by: claims(node).then(|| node.hostname.clone()) };
        let routes = uplinks::routes(&self.socket, &underlay, local, others.map(destination)).await?;
        let chosen = uplinks::choose(&underlay, links, local, &routes, &gateway(&self.args, links).name);
        Ok(Uplinks { own_address: self.uplinks.own_address, ..chosen })
    }

    /// What `--underlay` means now. What the kernel does not tell stays as it was.
    pub(super) async fn find_uplinks(&mut self, links: &BTreeMap<String, Link>, round: &mut RoundLog) {
        let found = self.uplinks_now(links).await;
        let Some(found) = round.note(&mut self.backoff, "uplinks", found) else { return };
        if found != self.uplinks {
            if !found.carry_as(&self.uplinks) {
                tracing::info!("VXLAN of other nodes arrives on {}", found.text());
            }
            found.news(&self.uplinks, &self.seldom).iter().for_each(|why| tracing::warn!("{why}"));
            self.uplinks = found;
        }
        self.lost_uplinks.note(&self.uplinks, links);
    }
}
