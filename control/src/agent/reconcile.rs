//! One reconciliation: observe, derive, plan, apply. The order matters:
//!
//! 1. firewall and sysctls, so that nothing a container sends is ever unguarded;
//! 2. links come to be, container-facing ones down;
//! 3. maps, which also takes what is gone out of them;
//! 4. programs, new interfaces before they go up; the firewall again, if the host link has come to be;
//! 5. interfaces up, leftovers deleted;
//! 6. the slow path's static entries.

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, Instant},
};

use hiveway_core::{
    Desired, GatewayAddresses, Settings,
    change::Programmed,
    derive,
    plan::{Plan, Stage, plan},
};
use tokio::{sync::watch, task::block_in_place};

use super::{
    apply::{End, RoundLog},
    backoff::Backoff,
    cooldown,
    host_rules::HostRules,
    join_grace::JoinGrace,
    local_tasks::LocalTasks,
    memory,
    next_hops::NextHops,
    observe::Observation,
    pace::Foreign,
    pins,
    probes::Probing,
    reverse::Reverse,
    shared::{Shared, Snapshot},
    sweep::Sweeper,
    table::Table,
    xdp::Xdp,
};
use crate::{
    cli::AgentArgs,
    liveness::Pulse,
    lost_uplinks::LostUplinks,
    netlink::{Port, Socket},
    nft,
    seldom::Seldom,
    source::Hub,
    state_dir::StateDir,
    uplinks::Uplinks,
};

/// The agent's own state.
pub(super) struct Agent {
    pub(super) args: AgentArgs,
    pub(super) table: Table,
    pub(super) socket: Socket,
    pub(super) state: StateDir,
    pub(super) addresses: GatewayAddresses,
    /// They differ from what the state directory says.
    pub(super) unsaved: bool,
    pub(super) shared: Arc<Shared>,
    pub(super) backoff: Backoff,
    pub(super) last: Snapshot,
    /// Firewall and ports that were last made sure of.
    pub(super) guarded: Option<(nft::Firewall, BTreeSet<u16>)>,
    pub(super) sweeper: Sweeper,
    /// What rounds have found of the tasks here.
    pub(super) local: LocalTasks,
    /// The host's own rules about published ports.
    pub(super) host_rules: HostRules,
    /// Whether the other nodes know that this one runs Hiveway.
    pub(super) join_grace: JoinGrace,
    pub(super) xdp: Xdp,
    pub(super) next_hops: NextHops,
    pub(super) reverse: Reverse,
    /// This node's address in the table, if an interface carried it when it was new.
    pub(super) carried: Option<Ipv4Addr>,
    /// What `--underlay` means now.
    pub(super) uplinks: Uplinks,
    pub(super) lost_uplinks: LostUplinks,
    /// For what other nodes can have the log say.
    pub(super) seldom: Seldom,
    /// Bridges that somebody else has put interfaces on: who can do that can do it again and again.
    pub(super) strays: Seldom,
    pub(super) probing: Probing,
    /// When everything was last looked at; changes of links alone are no reason to look at all of it.
    pub(super) looked: Option<Instant>,
    /// The directories of pins after the last round.
    pub(super) pins: pins::Look,
    /// Interfaces that are no concern.
    pub(super) foreign: Foreign,
    /// Processor time of the last round.
    pub(super) cost: Duration,
    /// Says that rounds are at work.
    pub(super) pulse: Pulse,
    /// What the maps show, as far as we know: small changes of it are seen at once.
    pub(super) programmed: Option<Programmed>,
    /// Keeps the UDP port of VXLAN from processes of the node.
    pub(super) port: Option<Port>,
    /// When that was last tried.
    pub(super) port_tried: Option<Instant>,
    /// What the last round was for, if it has ended early for a new table.
    pub(super) gave_way: Option<Cause>,
    /// Where the parts of a live source meet.
    pub(super) hub: Option<Hub>,
}

/// What has made a reconciliation due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// A new table: failing items are tried at once, flows of gone tasks swept.
    Table,
    /// Time: everything is looked at.
    Tick,
    /// The kernel's links or a namespace changed.
    Kernel,
    /// Something in nftables has changed: our own table may be gone.
    Guard,
    /// Routes have changed: they may lead to the other nodes through other interfaces.
    Routes,
    /// Time, too soon after the last look that took long: only connections are swept.
    Cooldown,
    /// Somebody has asked what a round would change, and has been told.
    Preview,
}

impl Agent {
    /// Makes the node what the table says, as far as possible. `news`: of another table.
    pub(super) async fn reconcile(&mut self, cause: Cause, news: Option<watch::Receiver<()>>) {
        let started = Instant::now();
        // Whatever has made this round due: where others always come first, the time to let go of a task never does.
        let cause = if self.table.let_go() { Cause::Table } else { cause };
        let shown = cause == Cause::Table && self.table.node == self.args.node && self.change_maps();
        if cause == Cause::Table {
            self.backoff.hurry(started);
            self.local.looks.hurry(started);
            // Who has left a swarm and joined again has another id.
            self.args.node.clone_from(&self.table.node);
        }
        let used = cooldown::used();
        // Every second round comes to its end, however often the table changes.
        let may_give_way = self.last.ready && self.gave_way.take().is_none();
        let mut round = RoundLog::new(self.pulse.clone(), news.filter(|_| may_give_way));
        let done = match self.everything(cause, shown, &mut round).await {
            Ok(End::GaveWay) => {
                self.gave_way = Some(cause);
                return;
            }
            Ok(End::Whole) => Ok(()),
            Err(error) => {
                self.sweep_all_the_same();
                Err(error)
            }
        };
        round.close(&mut self.backoff, done);
        self.publish(round, started);
        memory::give_back();
        self.pins = pins::Look::at(&self.args.bpffs);
        self.cost = cooldown::used().saturating_sub(used);
        if cause != Cause::Kernel {
            self.looked = Some(Instant::now());
        }
    }

    async fn everything(&mut self, cause: Cause, shown: bool, round: &mut RoundLog) -> anyhow::Result<End> {
        self.mend_pins(round);
        self.local.missing.clear();
        let Some(mut seen) = self.observe(cause, round).await? else { return Ok(End::GaveWay) };
        let desired = self.derive(&seen.settings, round)?;
        self.check_gateway(&desired, &seen, round);
        let early = cause == Cause::Table && self.last.ready;
        if early && !shown {
            // What the kernel takes its time for (deleting a namespace's links: seconds on a busy machine) must not
            // delay what is known now: no new flow for who has left, and an answer for who still talks to it.
            let clients = self.clients(&seen);
            block_in_place(|| {
                self.attach_observers(&desired, &seen, &clients, round);
                self.maps(&desired, &seen, round);
            });
        }
        if early {
            self.sweep(cause, round);
        }
        self.guard(&desired, &seen, cause, round);

        if !self.observe_tasks(&desired, &mut seen, round).await? {
            return Ok(End::GaveWay);
        }
        let plan = plan(&seen.observed, &desired, self.tunnel(&seen));
        round.goes_on();
        round.blocked(&mut self.backoff, &plan);
        self.apply(&plan, &desired, &mut seen, round).await?;
        if cause != Cause::Kernel && !early {
            self.sweep(cause, round);
        }
        self.remember(&desired, &seen);
        Ok(End::Whole)
    }

    /// Carries the plan out, with maps and programs between its stages.
    async fn apply(
        &mut self,
        plan: &Plan,
        desired: &Desired,
        seen: &mut Observation,
        round: &mut RoundLog,
    ) -> anyhow::Result<()> {
        round.run(&mut self.backoff, &self.strays, plan, Stage::Prepare, &self.socket, &seen.spaces).await;
        if plan.steps.iter().any(|step| step.stage == Stage::Prepare) {
            self.observe_again(seen).await?;
        }
        let clients = self.clients(seen);
        block_in_place(|| {
            self.attach_observers(desired, seen, &clients, round);
            self.maps(desired, seen, round);
            self.programs(desired, seen, &clients, round);
            self.attach_sandboxes(desired, &seen.spaces, round);
            self.offloads(desired, &seen.spaces, round);
        });
        // Programs and maps know the host link now: the node's own connections may be led into it.
        self.guard(desired, seen, Cause::Kernel, round);
        round.run(&mut self.backoff, &self.strays, plan, Stage::Finish, &self.socket, &seen.spaces).await;
        self.open(desired, seen, round).await;
        round.fill(&mut self.backoff, plan, &self.socket, seen.links()).await;
        Ok(())
    }

    fn derive(&mut self, settings: &Settings, round: &mut RoundLog) -> anyhow::Result<Desired> {
        let mut addresses = self.addresses.clone();
        let desired = derive(&self.table.model, settings, &mut addresses)?;
        // Kept whether or not they can be saved: containers have them, and a later round must not choose others.
        self.unsaved |= addresses != self.addresses;
        self.addresses = addresses;
        if round.may(&self.backoff, "state directory") {
            let mut kept = self.state.keep();
            // Before anybody uses a new address, whatever has become of other files.
            if self.unsaved {
                let saved = self.state.set_gateway_addresses(&self.addresses);
                self.unsaved = saved.is_err();
                kept = kept.and(saved);
            }
            round.note(&mut self.backoff, "state directory", kept);
        }
        Ok(desired)
    }

    pub(super) fn vtep(&self) -> Ipv4Addr {
        let node = self.table.model.find_node(&self.args.node);
        node.map_or(Ipv4Addr::UNSPECIFIED, |node| node.vtep)
    }

    /// Has connections swept, meanwhile and beside.
    fn sweep(&mut self, cause: Cause, round: &mut RoundLog) {
        self.find_tags();
        let asked = self.sweeper.ask(self.last.tags.clone(), cause == Cause::Table);
        let last = self.shared.sweeps().error.map_or(Ok(()), Err);
        round.note(&mut self.backoff, "flow sweep", asked.map_err(str::to_owned).and(last));
    }
}
