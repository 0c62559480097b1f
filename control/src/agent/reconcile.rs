//! One reconciliation: observe, derive, plan, apply. The order matters:
//!
//! 1. firewall and sysctls, so that nothing a container sends is ever unguarded;
//! 2. links come to be, container-facing ones down;
//! 3. maps, which also takes what is gone out of them;
//! 4. programs, new interfaces before they go up; the firewall again, if the host link has come to be;
//! 5. interfaces up, leftovers deleted;
//! 6. the slow path's static entries.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use dataplane::{MapFault, Program};
use hiveway_core::{
    Desired, Facts, GatewayAddresses, Settings,
    change::Programmed,
    derive, map_state, names,
    observed::{HostEnd, Link, Observed, Replies, Sandbox},
    peers,
    plan::{Stage, Tunnel, plan},
};
use tokio::{sync::watch, task::block_in_place};

use super::{
    apply::{End, Round},
    backoff::Backoff,
    facts::{Answering, Gateway, facts, gateway, gateway_subnet, settings, underlay},
    firewall::{self, firewall, ports, stale},
    host_rules::HostRules,
    memory,
    newcomer::Newcomer,
    next_hops::{NextHops, Wanted},
    opened::Opened,
    pace::Foreign,
    pins,
    probes::{self, Probing},
    programs::{self, Attachment},
    rest,
    reverse::Reverse,
    shared::{Shared, Snapshot, Trouble},
    sweep::Sweeper,
    table::Table,
    tags::Tags,
    takeover,
    xdp::{self, Xdp},
};
use crate::{
    cli::AgentArgs,
    liveness::Pulse,
    lost_uplinks::LostUplinks,
    mesh,
    netlink::{Looked, Port, Socket, observe_entries, observe_host, observe_links, observe_node},
    nft,
    seldom::Seldom,
    source::Hub,
    state_dir::StateDir,
    sysctl,
    uplinks::Uplinks,
};

/// The failing item of our own nftables table.
const OWN_TABLE: &str = "firewall";

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
    /// What the last round found in the sandboxes of tapped tasks.
    pub(super) sandboxes: BTreeMap<String, Sandbox>,
    /// Running tasks that were seen without an interface on the gateway bridge, and since when.
    pub(super) without_gateway: BTreeMap<String, Instant>,
    /// Where replies of this node's tasks go, as the last round found it.
    pub(super) replies: BTreeMap<String, Replies>,
    /// An interface was missing in one of them.
    pub(super) incomplete: bool,
    /// Where namespaces are waited for.
    pub(super) missing: Vec<PathBuf>,
    /// Which namespace is looked into first: the one that the last round has not come to.
    pub(super) first_look: usize,
    /// Tasks' interfaces that have been up.
    pub(super) opened: Opened,
    /// Namespaces whose last looks have failed, by path.
    pub(super) looks: Backoff,
    /// Tasks of whose namespaces was said that not everything could be read.
    pub(super) unread: BTreeSet<String>,
    /// The host's own rules about published ports.
    pub(super) host_rules: HostRules,
    /// Whether the other nodes know that this one runs Hiveway.
    pub(super) newcomer: Newcomer,
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
    Rest,
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
            self.looks.hurry(started);
            // Who has left a swarm and joined again has another id.
            self.args.node.clone_from(&self.table.node);
        }
        let used = rest::used();
        // Every second round comes to its end, however often the table changes.
        let may_give_way = self.last.ready && self.gave_way.take().is_none();
        let mut round = Round::new(self.pulse.clone(), news.filter(|_| may_give_way));
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
        self.cost = rest::used().saturating_sub(used);
        if cause != Cause::Kernel {
            self.looked = Some(Instant::now());
        }
    }

    async fn everything(&mut self, cause: Cause, shown: bool, round: &mut Round) -> anyhow::Result<End> {
        self.mend_pins(round);
        self.missing.clear();
        self.renew_socket(round);
        let mut links = observe_links(&self.socket).await?;
        if round.gives_way() && cause != Cause::Table {
            return Ok(End::GaveWay);
        }
        let found = self.find_own_address(&links);
        self.find_uplinks(&links, round).await;
        let carried = underlay(&self.args, self.local(), &links, &self.uplinks);
        round.note(&mut self.backoff, "underlay", found.and(carried));
        let gateway = gateway(&self.args, &links);
        let answering = Answering::new(self.args.mesh_addresses().as_ref(), &links, &gateway.name);
        round.note(&mut self.backoff, "addresses", answering.fits());
        let vxlan_port = self.vxlan_port();
        let agreed = self.ports_agree(vxlan_port);
        round.note(&mut self.backoff, "VXLAN port", agreed);
        self.hold_port(vxlan_port, round).await;
        let mut settings =
            settings(&self.args, vxlan_port, &gateway, &links, &self.uplinks).map_err(anyhow::Error::msg)?;
        let host = self.mesh_refused(&links, &gateway);
        round.note(&mut self.backoff, "host firewall", host.problem.map_or(Ok(()), Err));
        settings.mesh_refused =
            host.refused.or_else(|| self.newcomer.waits(&self.table.model, &self.args.node, Instant::now()));
        let desired = self.derive(&settings, round)?;
        let subnet = self.args.gwbridge_subnet;
        let free = desired.gateway.as_ref().map_or(Ok(()), |_| gateway_subnet(subnet, &gateway, &links));
        round.note(&mut self.backoff, "gateway subnet", free);
        let early = cause == Cause::Table && self.last.ready;
        if early && shown {
            self.sweep(cause, round);
        } else if early {
            // What the kernel takes its time for (deleting a namespace's links: seconds on a busy machine) must not
            // delay what is known now: no new flow for who has left, and an answer for who still talks to it.
            let clients = self.clients(&links, &gateway);
            block_in_place(|| {
                self.lookout(&desired, &links, &clients, round);
                self.maps(&desired, &settings, &links, &gateway, round);
            });
            self.sweep(cause, round);
        }
        self.guard(&desired, &settings, &gateway, &links, cause, round);

        observe_entries(&self.socket, &mut links).await?;
        round.goes_on();
        // A container's namespace may answer late.
        let Some(looked) = self.look_into_namespaces(&desired, &settings, round).await else {
            return Ok(End::GaveWay);
        };
        let Looked { spaces, namespaces, .. } = looked;
        self.note_replies(&namespaces, round);
        let host = match links.get(names::HOST) {
            Some(link) => observe_host(&self.socket, link.index).await?,
            None => HostEnd::default(),
        };
        let underlay_mtu = self.uplinks.mtu;
        self.look_into_sandboxes(&desired, &settings, &links, &namespaces, round);
        let observed = Observed { links, namespaces, host };
        if round.gives_way() {
            return Ok(End::GaveWay);
        }
        let tunnel = Tunnel { local: self.local(), port: vxlan_port, underlay_mtu };
        let plan = plan(&observed, &desired, tunnel);
        round.goes_on();
        links = observed.links;
        round.blocked(&mut self.backoff, &plan);
        round.run(&mut self.backoff, &self.strays, &plan, Stage::Prepare, &self.socket, &spaces).await;
        if plan.steps.iter().any(|step| step.stage == Stage::Prepare) {
            links = observe_node(&self.socket).await?;
        }

        let clients = self.clients(&links, &gateway);
        block_in_place(|| {
            self.lookout(&desired, &links, &clients, round);
            self.maps(&desired, &settings, &links, &gateway, round);
            self.programs(&desired, &links, &clients, round);
            self.taps(&desired, &spaces, round);
            self.offloads(&desired, &spaces, round);
        });
        // Programs and maps know the host link now: the node's own connections may be led into it.
        self.guard(&desired, &settings, &gateway, &links, Cause::Kernel, round);
        round.run(&mut self.backoff, &self.strays, &plan, Stage::Finish, &self.socket, &spaces).await;
        self.open(&desired, &settings, &gateway, round).await;
        round.fill(&mut self.backoff, &plan, &self.socket, &links).await;
        if cause != Cause::Kernel && !early {
            self.sweep(cause, round);
        }
        self.note_foreign(&links, &gateway, &clients);
        self.remember(&desired, &settings, &gateway, clients, &links);
        Ok(End::Whole)
    }

    fn derive(&mut self, settings: &Settings, round: &mut Round) -> anyhow::Result<Desired> {
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

    /// Firewall and sysctls. They are read by running programs and files, so changes of links alone don't count.
    fn guard(
        &mut self,
        desired: &Desired,
        settings: &Settings,
        gateway: &Gateway,
        links: &BTreeMap<String, Link>,
        cause: Cause,
        round: &mut Round,
    ) {
        let model = &self.table.model;
        let sandbox = self.host_rules.sandbox();
        let wanted = (firewall(model, desired, settings, gateway, links, &self.uplinks, sandbox), ports(desired));
        if cause == Cause::Kernel && self.guarded.as_ref() == Some(&wanted) {
            return;
        }
        let mut guarded = true;
        if round.may(&self.backoff, OWN_TABLE) {
            let done = block_in_place(|| nft::ensure(&wanted.0));
            match round.note(&mut self.backoff, OWN_TABLE, done) {
                Some(changed) => {
                    round.changes += usize::from(changed);
                    if changed {
                        let stale = stale(&wanted.0, settings, gateway, links);
                        block_in_place(|| firewall::forget(stale));
                    }
                }
                None => guarded = false,
            }
        } else {
            guarded = false;
        }
        if round.may(&self.backoff, "sysctls") {
            let done = sysctl::quiet(links).and_then(|quiet| Ok(sysctl::ensure(&self.state, &wanted.1)? || quiet));
            match round.note(&mut self.backoff, "sysctls", done) {
                Some(changed) => round.changes += usize::from(changed),
                None => guarded = false,
            }
        } else {
            guarded = false;
        }
        self.guarded = guarded.then_some(wanted);
    }

    /// Makes sure of our own table alone. Returns whether everything is to be looked at: it had to be replaced, or
    /// could not be looked at, which the next round tells and tries again in its turn.
    pub(super) fn guard_table(&mut self) -> bool {
        let Some((firewall, _)) = &self.guarded else { return false };
        if !self.backoff.ready(OWN_TABLE, Instant::now()) {
            return false;
        }
        match block_in_place(|| nft::ensure(firewall)) {
            Ok(replaced) => replaced,
            Err(error) => {
                tracing::error!("{OWN_TABLE}: {error}");
                self.backoff.failed(OWN_TABLE, error.to_string(), Instant::now());
                self.guarded = None;
                true
            }
        }
    }

    fn maps(
        &mut self,
        desired: &Desired,
        settings: &Settings,
        links: &BTreeMap<String, Link>,
        gateway: &Gateway,
        round: &mut Round,
    ) {
        let left = self.host_rules.entries(links);
        // First: what is missing around the agent must not put the maps off once it is back.
        let facts = match facts(&self.args, links, gateway, &self.sandboxes, &self.uplinks, &self.replies, left) {
            Ok(facts) => facts,
            Err(why) => return round.lacks(&mut self.backoff, "maps", &why),
        };
        if round.may(&self.backoff, "maps") {
            self.write_maps(desired, settings, facts, links, round);
        }
    }

    /// As `map_state` has them, but for tasks' interfaces that have not been up.
    fn write_maps(
        &mut self,
        desired: &Desired,
        settings: &Settings,
        facts: Facts,
        links: &BTreeMap<String, Link>,
        round: &mut Round,
    ) {
        let facts = Facts { unopened: self.opened.others(desired, links).clone(), ..facts };
        let want = map_state(&self.table.model, desired, settings, &facts);
        let before = self.programmed.take();
        let applied = self.shared.dataplane().apply(&want);
        let Some(changes) = round.note(&mut self.backoff, "maps", applied) else { return };
        round.changes += usize::from(!changes.maps.is_empty());
        if !changes.maps.is_empty() {
            tracing::debug!("maps: {:?}", changes.maps);
        }
        match changes.failures.first() {
            None => self.programmed(before, settings, facts),
            Some(first) => {
                let (map, more) = (first.map, changes.failures.len() - 1);
                let why = format!("map {map:?}, entry {}: {} (and {more} more)", first.item, first.error);
                round.note::<(), _>(&mut self.backoff, "maps", Err(why));
            }
        }
    }

    /// Leads clients to tasks whose interfaces have come up since the maps were written. That is written even if
    /// another entry could not be. What fails here the next round does.
    async fn open(&mut self, desired: &Desired, settings: &Settings, gateway: &Gateway, round: &mut Round) {
        if self.opened.is_all() {
            return;
        }
        let links = match observe_links(&self.socket).await {
            Ok(links) => links,
            Err(error) => return tracing::debug!("which interfaces are up: {error}"),
        };
        if !self.opened.has_news(desired, &links) {
            return;
        }
        let left = self.host_rules.entries(&links);
        let facts = facts(&self.args, &links, gateway, &self.sandboxes, &self.uplinks, &self.replies, left);
        if let Ok(facts) = facts {
            block_in_place(|| self.write_maps(desired, settings, facts, &links, round));
        }
    }

    /// Interfaces where clients arrive.
    fn clients(&self, links: &BTreeMap<String, Link>, gateway: &Gateway) -> BTreeSet<String> {
        mesh::interfaces(links, &self.args.mesh_interfaces, &self.uplinks.names, &gateway.name)
    }

    /// What must be there before ports are: the reverse-path filters, and what notes the node's own use of published
    /// ports.
    fn lookout(
        &mut self,
        desired: &Desired,
        links: &BTreeMap<String, Link>,
        clients: &BTreeSet<String>,
        round: &mut Round,
    ) {
        let filters = self.reverse.keep(clients, links);
        let changed = round.note(&mut self.backoff, "reverse-path filters", filters);
        round.changes += usize::from(changed.unwrap_or(false));
        let mut wanted = programs::wanted(desired, links, &self.uplinks.names, clients, &self.sandboxes);
        wanted.retain(|attachment| attachment.program == Program::ToOutside);
        self.attach(&wanted, round);
    }

    fn programs(
        &mut self,
        desired: &Desired,
        links: &BTreeMap<String, Link>,
        clients: &BTreeSet<String>,
        round: &mut Round,
    ) {
        let wanted = programs::wanted(desired, links, &self.uplinks.names, clients, &self.sandboxes);
        self.attach(&wanted, round);
        let (xdp, changes) = self.xdp.attach(
            (self.args.xdp, &self.args.state_dir),
            &mut self.shared.dataplane(),
            (clients, &self.uplinks.names),
            links,
            &self.socket,
        );
        round.changes += changes;
        let ways = self.ways();
        if let Some(ways) = round.note(&mut self.backoff, "next hops", ways) {
            self.next_hops.follow(ways);
        }
        let keep = wanted.into_iter().map(|attachment| (attachment.program, attachment.interface));
        let keep = keep.chain(xdp::kept(&xdp)).collect();
        self.last.xdp = xdp;
        let detached = self.shared.dataplane().detach_all_except(&keep);
        if !detached.failures.is_empty() {
            round.note::<(), _>(&mut self.backoff, "detaching programs", Err(detached.failures.join("; ")));
        }
    }

    /// The paths that are to be tried.
    fn probes(&self, links: &BTreeMap<String, Link>) -> probes::Wanted {
        let own = self.vtep();
        let up = |name: &str| links.get(name).filter(|link| link.up && link.is_ours(name));
        probes::Wanted {
            vtep: own.octets(),
            nodes: peers(&self.table.model, &self.last.node, own)
                .map(|node| (node.vtep.octets(), node.hostname.clone()))
                .collect(),
            link: up(names::HOST).filter(|_| up(names::HOST_FAR).is_some()).map(|link| link.index),
            interface: self.underlay_mtu(),
        }
    }

    fn underlay_mtu(&self) -> u16 {
        u16::try_from(self.uplinks.mtu).unwrap_or(u16::MAX)
    }

    /// The ways that are to be followed.
    fn ways(&self) -> Result<Wanted, MapFault> {
        Ok(Wanted {
            underlay: self.uplinks.only,
            from: self.local().octets(),
            mtu: self.uplinks.mtu,
            nodes: self.shared.dataplane().hop_numbers()?,
            // With several uplinks the kernel spreads connections over them, and is asked for each packet.
            hops: self.uplinks.only != 0,
        })
    }

    fn attach(&mut self, wanted: &[Attachment], round: &mut Round) {
        let mut dataplane = self.shared.dataplane();
        for attachment in wanted {
            if round.may(&self.backoff, &attachment.item) {
                let attached = dataplane.attach(attachment.program, &attachment.interface);
                round.note(&mut self.backoff, &attachment.item, attached);
            }
        }
    }

    /// Has connections swept, meanwhile and beside.
    fn sweep(&mut self, cause: Cause, round: &mut Round) {
        self.find_tags();
        let asked = self.sweeper.ask(self.last.tags.clone(), cause == Cause::Table);
        let last = self.shared.sweeps().error.map_or(Ok(()), Err);
        round.note(&mut self.backoff, "flow sweep", asked.map_err(str::to_owned).and(last));
    }

    fn remember(
        &mut self,
        desired: &Desired,
        settings: &Settings,
        gateway: &Gateway,
        clients: BTreeSet<String>,
        links: &BTreeMap<String, Link>,
    ) {
        let model = &self.table.model;
        let mut left_out = self.table.loaded.left_out.clone();
        left_out.extend(desired.left_out.iter().cloned());
        left_out.sort();
        left_out.dedup();
        self.last.node = model.find_node(&self.args.node).map(|node| node.id.to_string()).unwrap_or_default();
        self.last.vtep = Some(self.vtep());
        self.last.underlay_address = self.uplinks.own_address;
        self.last.vxlan_port = Some(settings.vxlan_port);
        self.last.uplinks = self.uplinks.clone();
        let lost = self.lost_uplinks.warnings(&self.args.underlay(), &self.uplinks, links);
        self.last.uplink_warnings = lost.into_iter().chain(self.uplinks.warnings()).collect();
        self.last.underlay_mtu = self.underlay_mtu();
        self.probing.follow(self.probes(links));
        self.last.gateway = desired.gateway.as_ref().map(|_| (gateway.name.clone(), gateway.ours));
        self.last.gateway_subnet = Some(settings.gwbridge_subnet.trunc());
        let answering = Answering::new(settings.mesh_addresses.as_ref(), links, &gateway.name);
        (self.last.addresses, self.last.wanted_addresses) = (answering.at, answering.wanted);
        let mut unserved = mesh::left_out(links, &self.args.mesh_interfaces, &gateway.name);
        if let Some(bound) = &settings.mesh_addresses {
            let own = mesh::addresses(links, &gateway.name);
            unserved.extend(mesh::idle_places(bound, links, &own));
        }
        unserved.extend(mesh::idle_labels(model.services.values().map(|s| &**s), &desired.bound, links));
        unserved.iter().filter(|why| !self.last.unserved.contains(why)).for_each(|why| tracing::warn!("{why}"));
        self.last.unserved = unserved;
        self.last.mesh_interfaces = clients.into_iter().collect();
        self.last.published = desired.published.clone();
        self.last.local_tasks = desired.tasks.len() + desired.tapped.len();
        let takeover = takeover::account(model, settings, desired, &self.sandboxes);
        takeover::tell_of_mesh(self.last.takeover.as_ref(), takeover.as_ref());
        self.last.takeover = takeover;
        self.last.firewall = self.host_rules.status(&self.args.ignored());
        self.last.left_out = left_out;
        self.find_tags();
        self.last.ready = true;
    }

    fn find_tags(&mut self) {
        let Table { model, departing, .. } = &self.table;
        if !self.last.tags.is_of(model) {
            self.last.tags = Arc::new(Tags::new(model.clone(), departing.clone()));
        }
    }

    /// Makes the result visible.
    fn publish(&mut self, round: Round, started: Instant) {
        let failing = self.backoff.all().iter().map(|(item, failing)| Trouble {
            item: item.clone(),
            why: failing.error.clone(),
            attempts: failing.attempts,
            retry: Some(failing.next),
        });
        self.last.failing = failing.collect();
        self.last.errors += round.failures() as u64;
        self.last.waiting = round.waiting;
        self.last.model = self.table.model.clone();
        self.last.read_at = Some(self.table.read_at);
        self.last.changed_at = Some(self.table.changed_at);
        self.last.refused = self.table.refused.clone();
        self.last.live = self.table.live.clone();
        self.last.warnings = self.table.loaded.warnings.clone();
        self.last.runs += 1;
        self.last.last_run = Some(Instant::now());
        self.last.last_duration = started.elapsed();
        if round.changes > 0 {
            tracing::info!("reconciled: {} changes in {} ms", round.changes, started.elapsed().as_millis());
        }
        self.shared.publish(self.last.clone());
    }
}
