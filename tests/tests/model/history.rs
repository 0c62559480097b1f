//! Random steps: batches of changes to the table, and between them flows.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    net::{Ipv4Addr, SocketAddrV4},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use hiveway_tests::lab::{Lab, PATIENCE};

use crate::{
    client::{Answer, Client, Socket},
    connection::{Connection, Fate, Way},
    reference::{NODES, Reference, SERVICES, State, Task, User},
    rng::Rng,
    stage::Stage,
};

/// Tasks at once, and last bytes of their addresses: few, so that they are used again soon.
const TASKS: usize = 7;
const HOSTS: std::ops::Range<usize> = 10..20;
/// Connections that are kept at once.
const KEPT: usize = 60;
/// Number of the client outside; the users' are 0 and 1.
const OUTSIDE: usize = 2;

/// When a history is over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limit {
    pub(crate) steps: u64,
    pub(crate) time: Duration,
}

pub(crate) struct History {
    rng: Rng,
    stage: Stage,
    reference: Reference,
    kept: Vec<Connection>,
    /// Client, port and target of every flow so far.
    opened: HashSet<(usize, u16, SocketAddrV4)>,
    steps: u64,
    tasks: u64,
    /// What was done how often, and the last few steps.
    counts: BTreeMap<&'static str, u64>,
    log: VecDeque<String>,
}

impl History {
    pub(crate) fn start(lab: &Lab, seed: u64) -> Result<Self> {
        let mut stage = Stage::new(lab)?;
        let users = stage.users.iter().enumerate();
        let users = users.map(|(node, user)| User { node, address: user.address, netns: user.netns.path() }).collect();
        let published = [true; SERVICES.len()];
        let reference = Reference { tasks: Vec::new(), users, down: [false; NODES], published };
        stage.start(lab, &reference)?;
        let (kept, opened, counts, log) = (Vec::new(), HashSet::new(), BTreeMap::new(), VecDeque::new());
        Ok(Self { rng: Rng::new(seed), stage, reference, kept, opened, steps: 0, tasks: 0, counts, log })
    }

    pub(crate) fn run(&mut self, limit: Limit) -> Result<()> {
        let started = Instant::now();
        while self.steps < limit.steps && started.elapsed() < limit.time {
            self.change()?;
            for _ in 0..8 + self.rng.below(8) {
                self.flows()?;
            }
        }
        self.finish()
    }

    /// Every connection is looked at once more, those whose task has gone until they have ended.
    fn finish(&mut self) -> Result<()> {
        // With all nodes ready there is none that is not looked at.
        self.reference.down = [false; NODES];
        self.stage.apply(&self.reference)?;
        let mut open = std::mem::take(&mut self.kept);
        while !open.is_empty() {
            for connection in open {
                self.check(connection)?;
            }
            let left = std::mem::take(&mut self.kept);
            open = left.into_iter().filter(|connection| connection.orphan.is_some()).collect();
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    pub(crate) fn summary(&self) -> String {
        let counts: Vec<_> = self.counts.iter().map(|(what, count)| format!("{count} × {what}")).collect();
        format!("{} steps: {}", self.steps, counts.join(", "))
    }

    /// The last steps, for a failure's explanation.
    pub(crate) fn tail(&self) -> String {
        let log: Vec<_> = self.log.iter().map(String::as_str).collect();
        format!("step {} disagrees; the last ones:\n{}\n{:#?}", self.steps, log.join("\n"), self.reference)
    }

    fn note(&mut self, what: &'static str, text: String) {
        self.steps += 1;
        *self.counts.entry(what).or_default() += 1;
        if self.log.len() == 40 {
            self.log.pop_front();
        }
        self.log.push_back(format!("{}: {what} {text}", self.steps));
    }

    // ---- the table ----

    /// One to four changes at once.
    fn change(&mut self) -> Result<()> {
        self.reference.tasks.retain(|task| task.state != State::Failed);
        let lives = |path: &std::path::Path, tasks: &[Task]| tasks.iter().any(|task| task.netns == path);
        for place in &mut self.stage.places {
            if !place.is_free() && !lives(&place.netns.path(), &self.reference.tasks) {
                place.vacate()?;
            }
        }
        for _ in 0..=self.rng.below(4) {
            self.change_one();
        }
        self.stage.apply(&self.reference)
    }

    fn change_one(&mut self) {
        match self.rng.below(20) {
            0..=5 => self.add(None),
            6..=8 => self.set_state("start", State::Starting, State::Active),
            9..=11 => self.set_state("drain", State::Active, State::Draining),
            12..=13 => self.remove(),
            14 => self.set_state("fail", State::Active, State::Failed),
            15..=16 => self.replace(),
            17 => self.publish(),
            _ => self.node_state(),
        }
    }

    /// A new task, on a host's address if that is given.
    fn add(&mut self, host: Option<u8>) {
        if self.reference.tasks.len() >= TASKS {
            return;
        }
        let in_use = |host: u8| self.reference.endpoints().any(|task| task.host == host);
        let free: Vec<u8> = HOSTS.filter_map(|host| u8::try_from(host).ok()).filter(|&host| !in_use(host)).collect();
        let Some(host) = host.or_else(|| self.rng.pick(&free).copied()) else { return };
        let service = self.rng.below(SERVICES.len());
        self.tasks += 1;
        let id = format!("{}.{}", SERVICES[service].name, self.tasks);
        let Some(place) = self.stage.places.iter_mut().find(|place| place.is_free()) else { return };
        place.take(&id);
        let state = if self.rng.one_in(3) { State::Starting } else { State::Active };
        let task = Task { id, service, node: self.rng.below(NODES), host, netns: place.netns.path(), state };
        self.note("add", format!("{} on n{} at .{host}, {state:?}", task.id, task.node + 1));
        self.reference.tasks.push(task);
    }

    fn set_state(&mut self, what: &'static str, from: State, to: State) {
        let candidates: Vec<usize> =
            (0..self.reference.tasks.len()).filter(|&n| self.reference.tasks[n].state == from).collect();
        if let Some(&number) = self.rng.pick(&candidates) {
            self.reference.tasks[number].state = to;
            let id = self.reference.tasks[number].id.clone();
            self.note(what, id);
        }
    }

    /// In an orderly way, mostly after draining.
    fn remove(&mut self) {
        let living: Vec<usize> = (0..self.reference.tasks.len())
            .filter(|&n| matches!(self.reference.tasks[n].state, State::Draining | State::Active))
            .collect();
        if let Some(&number) = self.rng.pick(&living) {
            let task = self.reference.tasks.remove(number);
            self.note("remove", task.id);
        }
    }

    /// Another task, of any service on any node, takes over an address in the same moment.
    fn replace(&mut self) {
        if self.reference.endpoints().next().is_none() {
            return;
        }
        let number = self.rng.below(self.reference.tasks.len());
        if self.reference.tasks[number].state == State::Failed {
            return;
        }
        let fails = self.rng.one_in(2);
        let host = self.reference.tasks[number].host;
        let id = self.reference.tasks[number].id.clone();
        if fails {
            self.reference.tasks[number].state = State::Failed;
        } else {
            self.reference.tasks.remove(number);
        }
        self.note("replace", format!("{id}, which {}", if fails { "failed" } else { "was removed" }));
        self.add(Some(host));
    }

    fn publish(&mut self) {
        let service = self.rng.below(SERVICES.len());
        if SERVICES[service].tcp.is_none() {
            return;
        }
        self.reference.published[service] ^= true;
        // What becomes of connections to a port that is no longer published is nobody's promise.
        self.kept.retain(|connection| !matches!(connection.way, Way::Mesh(of, _) if of == service));
        let published = self.reference.published[service];
        self.note("publish", format!("{}: {published}", SERVICES[service].name));
    }

    /// One node at a time is down, mostly none.
    fn node_state(&mut self) {
        let node = self.rng.below(NODES);
        let down = !self.reference.down.contains(&true);
        self.reference.down = [false; NODES];
        self.reference.down[node] = down;
        self.note("node", format!("n{} {}", node + 1, if down { "down" } else { "and all others ready" }));
    }

    // ---- flows ----

    fn flows(&mut self) -> Result<()> {
        match self.rng.below(10) {
            0..=2 => self.vip(),
            3..=5 => self.mesh(),
            6 => self.direct(),
            _ => self.use_kept(),
        }
    }

    fn vip(&mut self) -> Result<()> {
        let (user, service) = (self.rng.below(OUTSIDE), self.rng.below(SERVICES.len()));
        let Some((vip, _)) = SERVICES[service].vips else { return Ok(()) };
        if self.reference.down[self.reference.users[user].node] {
            return Ok(());
        }
        let tcp = !self.rng.one_in(3);
        let backends = names(&self.reference.backends(service));
        self.round(user, Way::Vip(service), tcp, &target(vip, if tcp { 80 } else { 53 })?, backends)
    }

    fn mesh(&mut self) -> Result<()> {
        let (node, service) = (self.rng.below(NODES), self.rng.below(SERVICES.len()));
        let tcp = !self.rng.one_in(3);
        let port = if tcp { SERVICES[service].tcp } else { SERVICES[service].udp };
        let Some(port) = port.filter(|_| !self.reference.down[node]) else { return Ok(()) };
        let backends = names(&self.reference.mesh_backends(service));
        let address = format!("192.168.77.{}", 11 + node);
        self.round(OUTSIDE, Way::Mesh(service, node), tcp, &target(&address, port)?, backends)
    }

    fn direct(&mut self) -> Result<()> {
        let user = self.rng.below(OUTSIDE);
        let reachable: Vec<&Task> = self.reference.endpoints().collect();
        let Some(task) = self.rng.pick(&reachable).copied() else { return Ok(()) };
        let (id, address) = (task.id.clone(), task.address());
        if self.reference.down[self.reference.users[user].node] || self.reference.down[task.node] {
            return Ok(());
        }
        let tcp = !self.rng.one_in(3);
        self.round(user, Way::Direct, tcp, &target(&address, if tcp { 80 } else { 53 })?, vec![id])
    }

    /// As many new flows as there are backends: each gets one. None is served where there is no backend.
    fn round(
        &mut self,
        client: usize,
        way: Way,
        tcp: bool,
        target: &SocketAddrV4,
        backends: Vec<String>,
    ) -> Result<()> {
        let what = match way {
            Way::Vip(_) => "VIP flow",
            Way::Mesh(..) => "mesh flow",
            Way::Direct => "direct flow",
        };
        let mut left = backends.clone();
        for _ in 0..backends.len().max(1) {
            // Now and then from the port of a connection that is still there: only the target tells them apart.
            let is_new = |port: u16| !self.opened.contains(&(client, port, *target));
            let twin = |c: &&Connection| c.client == client && c.tcp && tcp && is_new(c.port);
            let twin = self.kept.iter().find(twin).map(|c| c.port).filter(|_| self.rng.one_in(3));
            let asking = if client == OUTSIDE { &self.stage.outside } else { &self.stage.users[client] };
            let port = twin.unwrap_or_else(|| asking.fresh_port());
            self.opened.insert((client, port, *target));
            let (answer, socket) = open(asking, tcp, port, *target)?;
            let (address, protocol) = (asking.address, if tcp { "TCP" } else { "UDP" });
            self.note(what, format!("{way:?} {protocol} {client}:{port} → {target}: {answer:?}"));
            match answer {
                Answer::Refused if backends.is_empty() => {}
                Answer::From { task, seen } if left.contains(&task) && seen == address => {
                    left.retain(|name| *name != task);
                    let Some(socket) = socket.filter(|_| self.rng.one_in(2) && self.kept.len() < KEPT) else {
                        continue;
                    };
                    self.kept.push(Connection { socket, way, tcp, client, port, task, seen, orphan: None });
                }
                other => bail!("{what} to {target}: {other:?}, but {left:?} of {backends:?} were to answer {address}"),
            }
        }
        Ok(())
    }

    fn use_kept(&mut self) -> Result<()> {
        if self.kept.is_empty() {
            return Ok(());
        }
        let number = self.rng.below(self.kept.len());
        let connection = self.kept.swap_remove(number);
        self.check(connection)
    }

    fn check(&mut self, mut connection: Connection) -> Result<()> {
        // A node that is down on the way: see Connection::check.
        let on_down_node = match (connection.way, connection.client) {
            (Way::Mesh(_, ingress), _) => self.reference.down[ingress],
            (_, user) => self.reference.down[self.reference.users[user].node],
        };
        if !on_down_node {
            let living = self.reference.endpoint(&connection.task).is_some();
            let what = if living { "use of a connection" } else { "use after its task's end" };
            self.note(what, connection.to_string());
            if connection.check(&self.reference).with_context(|| connection.to_string())? == Fate::Ended {
                return Ok(());
            }
        }
        self.kept.push(connection);
        Ok(())
    }
}

/// A new flow with a first request; the socket if somebody answered.
fn open(client: &Client, tcp: bool, port: u16, target: SocketAddrV4) -> Result<(Answer, Option<Socket>)> {
    let socket = if tcp { client.tcp(port, target)? } else { Some(client.udp(port, target)?) };
    let Some(mut socket) = socket else { return Ok((Answer::Refused, None)) };
    let answer = socket.ask(PATIENCE)?;
    Ok((answer, Some(socket)))
}

fn names(tasks: &[&Task]) -> Vec<String> {
    tasks.iter().map(|task| task.id.clone()).collect()
}

fn target(address: &str, port: u16) -> Result<SocketAddrV4> {
    Ok(SocketAddrV4::new(address.parse::<Ipv4Addr>()?, port))
}
