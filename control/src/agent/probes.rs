//! Tries the paths to other nodes: sends probes into the host link, where the programs encapsulate them as any packet, and
//! reads what the programs note about answers. What to send and what it means is `hiveway_core::probe`'s.

use std::{
    collections::{BTreeMap, BTreeSet},
    io, mem,
    os::fd::{AsRawFd as _, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
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

/// How often answers are looked at, and probes sent that are due.
const LOOK: Duration = Duration::from_millis(200);

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
    /// Tunnel addresses of the nodes that should answer.
    pub(super) nodes: BTreeSet<Ip4>,
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
        let joining = state.views.values().any(|view| view.state == State::Passing);
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
    wanted: watch::Sender<Wanted>,
    paths: Arc<Paths>,
    prober: JoinHandle<()>,
}

impl Probing {
    /// Starts, with no paths yet. It ends with what this returns.
    ///
    /// # Errors
    /// When the kernel refuses a packet socket.
    pub(super) fn start(probes: Probes, paths: Arc<Paths>) -> io::Result<Self> {
        let (wanted, wants) = watch::channel(Wanted::default());
        // Sends only: with protocol 0 nothing is received.
        let raw = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
        let sender = Sender { raw, probes, paths: paths.clone(), prober: Prober::default(), nodes: BTreeSet::new() };
        Ok(Self { wanted, paths, prober: tokio::spawn(sender.run(wants)) })
    }

    /// Tries these from now on.
    pub(super) fn follow(&self, wanted: Wanted) {
        self.paths.lock().wanted.clone_from(&wanted.nodes);
        self.wanted.send_if_modified(|now| {
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
    nodes: BTreeSet<Ip4>,
}

impl Sender {
    async fn run(mut self, mut wants: watch::Receiver<Wanted>) {
        let mut tick = interval(LOOK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let wanted = wants.borrow_and_update().clone();
            let fault = self.look(&wanted).err();
            if let Some(fault) = &fault
                && self.paths.fault().as_ref() != Some(fault)
            {
                tracing::warn!("probes of the paths to other nodes: {fault}");
            }
            {
                let mut state = self.paths.lock();
                (state.views, state.limits) = (self.prober.views(), self.prober.limits());
                (state.interface, state.fault) = (wanted.interface, fault);
            }
            let idle = wanted.nodes.is_empty();
            tokio::select! {
                changed = wants.changed() => if changed.is_err() {
                    return;
                },
                _ = tick.tick(), if !idle => {}
            }
        }
    }

    fn look(&mut self, wanted: &Wanted) -> Result<(), String> {
        if self.nodes != wanted.nodes {
            self.prober.follow(&wanted.nodes, monotonic_now());
            self.nodes.clone_from(&wanted.nodes);
        }
        let probed = self.probes.follow(&wanted.nodes).map_err(|fault: MapFault| fault.to_string())?;
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
        paths.lock().views.insert(a, PathView { state: State::Passing, ..view });
        paths.lock().wanted.insert(b);
        assert!(paths.views()[&b].joining);
        paths.lock().wanted.remove(&a);
        assert!(!paths.views().contains_key(&a));
    }
}
