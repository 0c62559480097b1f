//! Tries the paths to other nodes: sends probes into the host link, where the programs encapsulate them as any packet,
//! and reads what the programs note about answers. What to send and what it means is `hiveway_core::probe`'s.

use std::{
    collections::{BTreeMap, BTreeSet},
    io, mem,
    net::Ipv4Addr,
    os::fd::{AsRawFd as _, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use dataplane::{MapFault, Probes, monotonic_now};
use dataplane_common::addr::Ip4;
use hiveway_core::{
    path_report::PathReport,
    probe::{Due, PathView, Prober, Stamp, State, frame},
};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};

use crate::liveness::Pulse;

/// How often answers are looked at, and probes sent that are due.
const LOOK: Duration = Duration::from_millis(200);
/// Looks are heard of within this time.
const HEARD: Duration = Duration::from_secs(15);
/// How much time lies between two lines of the log about paths that begin to fail or to pass: where a whole underlay
/// fails, paths do so one after the other.
const LINES: Duration = Duration::from_secs(5);

/// `CLOCK_MONOTONIC` in nanoseconds, to the nanosecond as the programs have it when an answer comes in.
fn exact_now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec; the clock exists on every Linux, so the call cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// Which paths are to be tried.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// This node's tunnel address.
    pub(super) vtep: Ip4,
    /// The nodes that should answer: tunnel address, host name.
    pub(super) nodes: BTreeMap<Ip4, String>,
    /// Index of this node's end of the host link; `None`: it is not there yet.
    pub(super) link: Option<u32>,
    /// What the underlay's interface takes, in bytes.
    pub(super) interface: u16,
}

/// What is known about the paths to other nodes, by their tunnel addresses.
#[derive(Debug, Default)]
pub struct Paths {
    state: Mutex<PathsState>,
}

#[derive(Clone, Debug, Default)]
struct PathsState {
    /// The nodes that are to be tried, from the moment on when that is decided.
    wanted: BTreeSet<Ip4>,
    views: BTreeMap<Ip4, PathView>,
    /// [`Prober::joins`].
    joins: Option<u64>,
    /// The longest outer packet that the programs send there.
    mtus: BTreeMap<Ip4, u16>,
    /// What probes have found to be the most that passes.
    limits: BTreeMap<Ip4, u16>,
    /// What the underlay's interface takes.
    interface: u16,
    /// Why there are no probes.
    fault: Option<String>,
}

impl Paths {
    fn lock(&self) -> MutexGuard<'_, PathsState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What probes have shown of each path that is to be tried.
    pub fn views(&self) -> BTreeMap<Ip4, PathView> {
        let state = self.lock();
        // A path that the prober has not come to yet is known not to have passed.
        let joining = state.joins.is_some_and(|from| from <= monotonic_now());
        let view = |vtep| state.views.get(vtep).cloned().unwrap_or_else(|| PathView::unknown(joining));
        state.wanted.iter().map(|vtep| (*vtep, view(vtep))).collect()
    }

    /// The longest outer packet that the programs send to each node.
    pub fn mtus(&self) -> BTreeMap<Ip4, u16> {
        self.lock().mtus.clone()
    }

    /// Why no probes are sent, if they should be.
    pub fn fault(&self) -> Option<String> {
        self.lock().fault.clone()
    }

    /// All that is known, as other nodes are told.
    pub fn report(&self) -> PathReport {
        let views = self.views();
        let state = self.lock();
        PathReport::whole(&views, &state.mtus, state.interface, state.fault.as_deref())
    }

    pub(super) fn limits(&self) -> BTreeMap<Ip4, u16> {
        self.lock().limits.clone()
    }

    pub(super) fn set_mtus(&self, mtus: BTreeMap<Ip4, u16>) {
        self.lock().mtus = mtus;
    }
}

/// The prober's end that the agent holds.
#[derive(Debug)]
pub(super) struct Probing {
    /// `None`: no table has been read yet.
    wanted: watch::Sender<Option<Wanted>>,
    paths: Arc<Paths>,
    prober: JoinHandle<()>,
}

impl Probing {
    /// Starts, with no paths yet. It ends with what this returns.
    ///
    /// # Errors
    /// When the kernel refuses a packet socket.
    pub(super) fn start(probes: Probes, paths: Arc<Paths>, pulse: Pulse) -> io::Result<Self> {
        let (wanted, wants) = watch::channel(None);
        // Sends only: with protocol 0 nothing is received.
        let raw = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
        let sender = Sender {
            raw,
            probes,
            paths: paths.clone(),
            prober: Prober::default(),
            nodes: None,
            logged: Default::default(),
            pulse,
        };
        Ok(Self { wanted, paths, prober: tokio::spawn(sender.run(wants)) })
    }

    /// Tries these from now on.
    pub(super) fn follow(&self, wanted: Wanted) {
        self.paths.lock().wanted = wanted.nodes.keys().copied().collect();
        self.wanted.send_if_modified(|now| {
            let wanted = Some(wanted);
            let differs = *now != wanted;
            *now = wanted;
            differs
        });
    }
}

impl Drop for Probing {
    fn drop(&mut self) {
        self.prober.abort();
    }
}

struct Sender {
    raw: OwnedFd,
    probes: Probes,
    paths: Arc<Paths>,
    prober: Prober,
    /// Those that the prober follows.
    nodes: Option<BTreeSet<Ip4>>,
    /// The state of each path that the log has last told of, and when.
    logged: (BTreeMap<Ip4, State>, Option<Instant>),
    pulse: Pulse,
}

impl Sender {
    async fn run(mut self, mut wants: watch::Receiver<Option<Wanted>>) {
        let mut tick = interval(LOOK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let wanted = wants.borrow_and_update().clone();
            self.pulse.beat(HEARD);
            if let Some(wanted) = &wanted {
                self.round(wanted);
            }
            let idle = wanted.is_none_or(|wanted| wanted.nodes.is_empty());
            if idle {
                self.pulse.rests();
            }
            tokio::select! {
                changed = wants.changed() => if changed.is_err() {
                    return;
                },
                _ = tick.tick(), if !idle => {}
            }
        }
    }

    /// Looks, and makes known what was seen.
    fn round(&mut self, wanted: &Wanted) {
        let fault = self.look(wanted).err();
        if let Some(fault) = &fault
            && self.paths.fault().as_ref() != Some(fault)
        {
            tracing::warn!("probes of the paths to other nodes: {fault}");
        }
        let views = self.prober.views();
        let mut state = self.paths.lock();
        let now: BTreeMap<_, _> = views.iter().map(|(vtep, view)| (*vtep, view.state)).collect();
        (state.views, state.limits, state.joins) = (views, self.prober.limits(), self.prober.joins());
        (state.interface, state.fault) = (wanted.interface, fault);
        drop(state);
        if self.logged.1.is_none_or(|at| at.elapsed() >= LINES) {
            let turned = turned(&self.logged.0, &now, &wanted.nodes);
            let silent = turned == Turned::default();
            self.logged = (now, if silent { self.logged.1 } else { Some(Instant::now()) });
            if let Some(failing) = turned.failing {
                tracing::warn!("probes to {failing} get no answer: `hiveway check` says more");
            }
            if let Some(passing) = turned.passing {
                tracing::info!("probes to {passing} are answered");
            }
        }
    }

    fn look(&mut self, wanted: &Wanted) -> Result<(), String> {
        if self.nodes.as_ref().is_none_or(|nodes| !nodes.iter().eq(wanted.nodes.keys())) {
            let nodes = wanted.nodes.keys().copied().collect();
            self.prober.follow(&nodes, monotonic_now());
            self.nodes = Some(nodes);
        }
        let probed = self
            .probes
            .follow(self.nodes.as_ref().unwrap_or(&BTreeSet::new()))
            .map_err(|fault: MapFault| fault.to_string())?;
        self.prober.read(monotonic_now(), &probed);
        if wanted.nodes.is_empty() {
            return Ok(());
        }
        let link = wanted.link.ok_or("the host link (hw-host) is not there; see what `status` says is failing")?;
        let mtus = self.paths.mtus();
        let due = self.prober.due(monotonic_now(), &mtus, wanted.interface);
        let mut failed = None;
        for due in due {
            let mtu = mtus.get(&due.vtep).copied().unwrap_or(wanted.interface);
            failed = self.send(wanted.vtep, link, &due, mtu).err().or(failed);
        }
        failed.map_or(Ok(()), |error| Err(format!("cannot send into the host link (hw-host): {error}")))
    }

    fn send(&self, own: Ip4, link: u32, due: &Due, mtu: u16) -> io::Result<()> {
        let frame = frame(own, due, &Stamp { nonce: self.probes.nonce(), now: exact_now(), mtu });
        // SAFETY: sockaddr_ll is plain data, all zeroes are a valid value.
        let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = link.cast_signed();
        // SAFETY: the buffer and the address are valid for the lengths given; the descriptor is open.
        let sent = unsafe {
            libc::sendto(
                self.raw.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const address).cast(),
                mem::size_of_val(&address) as u32,
            )
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// Paths that have begun to fail or to pass, named.
#[derive(Debug, Default, PartialEq, Eq)]
struct Turned {
    failing: Option<String>,
    passing: Option<String>,
}

/// What has become of the paths since `before`.
fn turned(before: &BTreeMap<Ip4, State>, now: &BTreeMap<Ip4, State>, names: &BTreeMap<Ip4, String>) -> Turned {
    const NAMED: usize = 5;
    let into = |state: State| {
        let was = |vtep: &Ip4| before.get(vtep).copied().unwrap_or(State::Waiting);
        let mut all = now.iter().filter(|(vtep, is)| **is == state && was(vtep) != state);
        let name = |(vtep, _): (&Ip4, _)| {
            format!("{} ({})", names.get(vtep).map_or("a node", String::as_str), Ipv4Addr::from(*vtep))
        };
        let named: Vec<_> = all.by_ref().take(NAMED).map(name).collect();
        let more = all.count();
        let others = if more == 0 { String::new() } else { format!(" and {more} more") };
        (!named.is_empty()).then(|| named.join(", ") + &others)
    };
    Turned { failing: into(State::Failing), passing: into(State::Passing) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_waited_for_from_the_moment_when_it_is_wanted() {
        let (a, b) = ([192, 0, 2, 2], [192, 0, 2, 3]);
        let paths = Paths::default();
        paths.lock().wanted.insert(a);
        let view = paths.views().remove(&a).unwrap();
        assert_eq!((view.state, view.joining), (State::Waiting, false));
        // One that joins later, and one that has gone.
        paths.lock().joins = Some(0);
        paths.lock().views.insert(a, PathView { state: State::Passing, ..view });
        paths.lock().wanted.insert(b);
        assert!(paths.views()[&b].joining);
        paths.lock().joins = Some(u64::MAX);
        assert!(!paths.views()[&b].joining);
        paths.lock().wanted.remove(&a);
        assert!(!paths.views().contains_key(&a));
    }

    #[test]
    fn paths_that_turn_are_named_once() {
        let views = |state: State| (1..=7).map(|last| ([192, 0, 2, last], state)).collect::<BTreeMap<_, _>>();
        let names = (1..=7).map(|last| ([192, 0, 2, last], format!("n{last}"))).collect();
        let [waiting, passing, failing] = [State::Waiting, State::Passing, State::Failing].map(views);
        let all = "n1 (192.0.2.1), n2 (192.0.2.2), n3 (192.0.2.3), n4 (192.0.2.4), n5 (192.0.2.5) and 2 more";
        assert_eq!(turned(&BTreeMap::new(), &passing, &names), Turned { failing: None, passing: Some(all.to_owned()) });
        assert_eq!(turned(&passing, &failing, &names).failing.as_deref(), Some(all));
        for (before, now) in [(&passing, &passing), (&failing, &failing), (&BTreeMap::new(), &waiting)] {
            assert_eq!(turned(before, now, &names), Turned { failing: None, passing: None });
        }
        let mut one = passing.clone();
        one.insert([192, 0, 2, 3], State::Failing);
        assert_eq!(turned(&passing, &one, &names).failing.as_deref(), Some("n3 (192.0.2.3)"));
    }
}
