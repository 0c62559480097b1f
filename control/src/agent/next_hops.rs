//! Keeps the routes to other nodes for the programs: the next hops, so that neither routes nor neighbours are asked for
//! each packet, and the path MTUs that the kernel knows.
//!
//! It follows what the kernel tells of changes, and looks for itself once in a while. The programs believe a next hop
//! for a few seconds only after the last look: an agent that is gone, or stuck, leaves no route in force that may be
//! wrong.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, Instant},
};

use dataplane::{Hops, MapFault, PathLimit, Paths};
use dataplane_common::addr::Ip4;
use futures::{StreamExt, TryStreamExt};
use hiveway_core::next_hop::{Route, Underlay, hop, route_mtu, to_confirm};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{MissedTickBehavior, interval, sleep},
};

use super::{
    pace::{Foreign, Pace, paced, until},
    probes,
};
use crate::{
    netlink::{
        Error, Socket, confirm,
        monitor::{self, RouteChanges},
        neighbours, route, underlay,
    },
    sysctl,
};

/// How often neighbours are looked at, and the programs are told that all is well.
const LOOK: Duration = Duration::from_secs(1);
/// How many such looks after the last one routes are asked for again, whatever was heard.
const ROUTES: u32 = 5;
/// For how long the programs believe what they were told.
const VALID: Duration = Duration::from_secs(3);
/// The least time from asking for them because of what was heard to asking again: one question per node each time.
const ROUTES_APART: Duration = Duration::from_millis(500);
/// How long to wait for more changes before acting on them together.
const SETTLE: Duration = Duration::from_millis(20);
/// Requests under way together.
const AT_ONCE: usize = 64;

/// What is to be followed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Index of the only uplink; 0: there are several, and the kernel is asked for each packet.
    pub(super) underlay: u32,
    /// The own address that tunnels leave with. Routing rules may ask for it.
    pub(super) from: Ip4,
    /// The smallest MTU of the uplinks.
    pub(super) mtu: u32,
    /// Tunnel addresses, and where the next hop of each is stored.
    pub(super) nodes: BTreeMap<Ip4, u16>,
    /// The next hops are to be kept: there is one uplink.
    pub(super) hops: bool,
}

/// The follower's end that the agent holds.
#[derive(Debug)]
pub(super) struct NextHops {
    wanted: watch::Sender<Wanted>,
    follower: JoinHandle<()>,
}

impl NextHops {
    /// Starts following, nothing yet. It ends with what this returns.
    ///
    /// # Errors
    /// When the kernel refuses a socket.
    pub(super) fn start(hops: Hops, paths: Paths, board: Arc<probes::Paths>, foreign: Foreign) -> io::Result<Self> {
        let (wanted, wants) = watch::channel(Wanted::default());
        let (hear, heard) = watch::channel(RouteChanges::default());
        // Ends when nobody hears it.
        drop(monitor::watch_next_hops(hear, move |event| foreign.ignores(event))?);
        let follower = Follower {
            socket: Socket::open()?,
            hops,
            paths,
            board,
            probed: BTreeMap::new(),
            wanted: wants,
            heard,
            underlay: None,
            routes: BTreeMap::new(),
            stored: None,
            failing: false,
        };
        Ok(Self { wanted, follower: tokio::spawn(follower.run()) })
    }

    /// Follows these from now on.
    pub(super) fn follow(&self, wanted: Wanted) {
        self.wanted.send_if_modified(|now| {
            let differs = *now != wanted;
            *now = wanted;
            differs
        });
    }
}

impl Drop for NextHops {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

/// When the kernel is asked for routes. What changes them, or may have, can happen all the time.
#[derive(Debug, Default)]
struct Asking {
    /// Changes heard of so far.
    heard: u64,
    /// One of them has not been asked about yet.
    news: bool,
    /// When was last asked.
    last: Option<Instant>,
    /// Looks until it is asked again, whatever was heard.
    rest: u32,
}

impl Asking {
    /// Whether this look is to ask; `heard`: changes so far.
    fn now(&mut self, heard: u64, now: Instant) -> bool {
        self.news |= self.heard != heard;
        self.heard = heard;
        let rested = self.last.is_none_or(|last| now >= last + ROUTES_APART);
        let asks = rested && (self.news || self.rest == 0);
        if asks {
            (self.news, self.last, self.rest) = (false, Some(now), ROUTES);
        }
        asks
    }

    /// When a look is due that asks because of what was heard, or because the last one has failed.
    fn due(&self) -> Option<Instant> {
        let due = || self.last.map_or_else(Instant::now, |last| last + ROUTES_APART);
        (self.news || self.rest == 0).then(due)
    }

    /// Something else is to be followed.
    fn at_once(&mut self) {
        (self.last, self.rest) = (None, 0);
    }

    /// Time has passed.
    fn tick(&mut self) {
        self.rest = self.rest.saturating_sub(1);
    }
}

/// A look has failed.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Kernel(#[from] Error),
    #[error("open a netlink socket: {0}")]
    Socket(#[from] io::Error),
    #[error(transparent)]
    Map(#[from] MapFault),
}

struct Follower {
    socket: Socket,
    hops: Hops,
    paths: Paths,
    /// Where path MTUs are shown, and probes say what passes.
    board: Arc<probes::Paths>,
    /// What they last said.
    probed: BTreeMap<Ip4, u16>,
    wanted: watch::Receiver<Wanted>,
    heard: watch::Receiver<RouteChanges>,
    underlay: Option<Underlay>,
    routes: BTreeMap<Ip4, Route>,
    /// Numbers that something may be stored under; `None`: whatever an earlier agent has left.
    stored: Option<BTreeSet<u16>>,
    failing: bool,
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.hops.valid_for(Duration::ZERO);
    }
}

impl Follower {
    async fn run(mut self) {
        let mut tick = interval(LOOK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut asking, mut pace) = (Asking::default(), Pace::default());
        loop {
            let wanted = self.wanted.borrow_and_update().clone();
            if wanted.nodes.is_empty() {
                self.hops.valid_for(Duration::ZERO);
                if self.wanted.changed().await.is_err() {
                    return;
                }
                asking.at_once();
                continue;
            }
            let started = Instant::now();
            let heard = *self.heard.borrow_and_update();
            let ask = asking.now(heard.routes, started);
            let done = self.look(&wanted, ask).await;
            match &done {
                Ok(()) => self.hops.valid_for(if wanted.hops { VALID } else { Duration::ZERO }),
                Err(_) => asking.news |= ask,
            }
            self.complain(done);
            pace.round(Instant::now(), started.elapsed());
            tokio::select! {
                biased;
                changed = self.wanted.changed() => match changed {
                    Ok(()) => asking.at_once(),
                    Err(_) => return,
                },
                // Before what is heard: the programs stop to believe what they are not told in time.
                _ = tick.tick() => asking.tick(),
                () = until(asking.due()) => {}
                _ = paced(&pace, self.heard.changed()) => sleep(SETTLE).await,
            }
        }
    }

    /// Stores how it is now.
    async fn look(&mut self, wanted: &Wanted, ask: bool) -> Result<(), Trouble> {
        if self.socket.is_spent() {
            self.socket = Socket::open()?;
        }
        if ask {
            self.underlay = match wanted.underlay {
                0 => None,
                only => underlay(&self.socket, only).await?,
            };
            self.routes = self.ask_routes(wanted).await?;
        }
        let probed = self.board.limits();
        if ask || probed != self.probed {
            self.probed = probed;
            self.limit_paths(wanted)?;
        }
        if !wanted.hops {
            return Ok(());
        }
        let neighbours = neighbours(&self.socket, wanted.underlay).await?;
        for (vtep, number) in &wanted.nodes {
            let found = self
                .underlay
                .and_then(|underlay| hop(Ipv4Addr::from(*vtep), self.routes.get(vtep), &underlay, &neighbours));
            if self.hops.put(*number, found) {
                tracing::debug!("route to {}: {found:?}", Ipv4Addr::from(*vtep));
            }
        }
        let numbers: BTreeSet<u16> = wanted.nodes.values().copied().collect();
        let stored = self.stored.take().unwrap_or_else(|| self.hops.numbers().collect());
        for number in stored.difference(&numbers) {
            self.hops.put(*number, None);
        }
        self.stored = Some(numbers);
        for neighbour in to_confirm(self.routes.values(), &neighbours) {
            // It may be gone, or permanent, since.
            if let Err(error) = confirm(&self.socket, wanted.underlay, neighbour).await {
                tracing::debug!("{error}");
            }
        }
        Ok(())
    }

    /// Has packets keep to the MTUs that the routing table has for the paths: of routes, and what the kernel was told
    /// of.
    fn limit_paths(&mut self, wanted: &Wanted) -> Result<(), Trouble> {
        self.paths.believe(sysctl::path_mtu());
        let interface = u16::try_from(wanted.mtu).unwrap_or(u16::MAX);
        let limit = |vtep: &Ip4| PathLimit {
            route: route_mtu(self.routes.get(vtep), interface),
            probed: self.probed.get(vtep).copied().unwrap_or(0),
        };
        let limits = wanted.nodes.keys().map(|vtep| (*vtep, limit(vtep))).collect();
        self.board.set_mtus(self.paths.limit(&limits, interface)?);
        Ok(())
    }

    async fn ask_routes(&self, wanted: &Wanted) -> Result<BTreeMap<Ip4, Route>, Error> {
        let socket = &self.socket;
        let (from, underlay) = (Ipv4Addr::from(wanted.from), wanted.underlay);
        let questions: Vec<_> = (wanted.nodes.keys().copied())
            .map(|vtep| async move { route(socket, from, vtep.into(), underlay).await.map(|route| (vtep, route)) })
            .collect();
        let found: Vec<_> = futures::stream::iter(questions).buffer_unordered(AT_ONCE).try_collect().await?;
        Ok(found.into_iter().filter_map(|(vtep, route)| Some((vtep, route?))).collect())
    }

    /// Says once that it fails, and once that it does no longer.
    fn complain(&mut self, done: Result<(), Trouble>) {
        match (done, self.failing) {
            (Err(error), false) => {
                tracing::warn!(
                    "routes to other nodes: {error}; path MTUs stay as they are, and the kernel is asked for each packet"
                );
                self.failing = true;
            }
            (Ok(()), true) => {
                tracing::info!("routes to other nodes: no longer failing");
                self.failing = false;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_asked_for_twice_a_second_at_most_whatever_happens() {
        let (mut asking, start) = (Asking::default(), Instant::now());
        let ms = |ms: u64| start + Duration::from_millis(ms);
        // Something changes every 25 ms, for ten seconds.
        let asked: Vec<u64> = (0..400).map(|at| at * 25).filter(|at| asking.now(1 + at / 25, ms(*at + 1000))).collect();
        assert_eq!(asked.len(), 20, "{asked:?}");
        assert!(asked.windows(2).all(|two| two[1] - two[0] == 500), "{asked:?}");
        // What was heard too early to ask about it is asked about in time, and then nothing more until time has passed.
        let heard = asking.heard;
        assert_eq!(asking.due(), asking.last.map(|last| last + ROUTES_APART));
        assert!(asking.now(heard, ms(20_000)) && asking.due().is_none());
        for tick in 1..ROUTES {
            asking.tick();
            assert!(!asking.now(heard, ms(20_000 + 1000 * u64::from(tick))));
        }
        asking.tick();
        assert!(asking.now(heard, ms(30_000)));
        asking.at_once();
        assert!(asking.now(heard, ms(30_001)), "something else is to be followed");
    }
}
