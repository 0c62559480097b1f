//! The whole lab: up, found again, down.

use std::{fs, net::Ipv4Addr, path::Path, process::Command, thread};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::{Engine, Hiveway, Node, Place, cgroups, image, need_engine, output};
use crate::lab::Netns;

/// How many nodes of which kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// All nodes.
    pub nodes: u8,
    /// The first of them.
    pub managers: u8,
}

/// A lab that is up.
#[derive(Clone, Debug)]
pub struct Swarm {
    place: Place,
    shape: Shape,
}

impl Swarm {
    /// Makes a lab: engines joined to a swarm, with the images. Nothing is left of it if that fails.
    pub fn up(place: &Place, shape: Shape, engine: &Engine) -> Result<Self> {
        ensure!((1..=shape.nodes).contains(&shape.managers) && shape.nodes <= 9, "1 to 9 nodes, managers among them");
        need_engine()?;
        let directory = place.directory();
        if directory.exists() || !leftovers(place).is_empty() {
            bail!("there is a lab named {0} already: `cargo xtask swarm --name {0} down` removes it", place.name());
        }
        let swarm = Self { place: place.clone(), shape };
        let built = place.create_directory().and_then(|()| engine.keep(place)).and_then(|()| swarm.build());
        if built.is_err() {
            let _ = Self::down(place);
        }
        built.map(|()| swarm)
    }

    /// A lab that another process has made.
    pub fn open(place: &Place) -> Result<Self> {
        let missing = || format!("no lab named {0}: `cargo xtask swarm --name {0} up`", place.name());
        let text = fs::read(place.directory().join("shape.json")).with_context(missing)?;
        Ok(Self { place: place.clone(), shape: serde_json::from_slice(&text)? })
    }

    /// Removes everything of that name, also what a crashed `up` has left.
    pub fn down(place: &Place) -> Result<()> {
        let nodes: Vec<_> = (1..=9).map(|number| Node::new(place, number)).collect();
        // One thing that can't be removed must not keep the rest.
        let mut errors = Vec::new();
        thread::scope(|scope| {
            let ends: Vec<_> = nodes.iter().map(|node| scope.spawn(|| node.end_processes())).collect();
            errors.extend(ends.into_iter().filter_map(|end| end.join().ok()?.err()));
        });
        for name in leftovers(place) {
            errors.extend(output(Command::new("ip").args(["netns", "del", &name])).err());
        }
        cgroups::remove(&place.cgroup());
        errors.extend(place.remove_directory().err());
        match errors.into_iter().next() {
            Some(first) => Err(first.context(format!("the lab {} is not all gone", place.name()))),
            None => Ok(()),
        }
    }

    fn build(&self) -> Result<()> {
        fs::write(self.place.directory().join("shape.json"), serde_json::to_vec(&self.shape)?)?;
        let name = self.place.namespace("switch");
        output(Command::new("ip").args(["netns", "add", &name]))?;
        let switch = self.switch();
        switch.run("ip link set lo up")?;
        switch.run("ip link add br0 type bridge forward_delay 0 mcast_snooping 0")?;
        switch.run("ip addr add 192.168.77.1/24 dev br0")?;
        switch.run("ip link set br0 up")?;
        switch.run("sysctl -qw net.ipv4.ip_forward=1")?;
        let nodes = self.nodes();
        for node in &nodes {
            node.plug_in()?;
            node.start_engine()?;
        }
        let archive = image::pack(&self.place.directory())?;
        for_each(&nodes, |node| {
            node.wait_engine()?;
            image::import(node, &archive)
        })?;
        fs::remove_file(archive)?;
        self.join_all(&nodes, &[], |_| Vec::new(), Node::address)
    }

    /// Makes the swarm anew under the running engines: every node leaves, the first makes another one with the flags
    /// `init`, the others join it, and all of them with the flags `each`. Services, networks and containers of the
    /// swarm are gone with the old one.
    pub fn remake(&self, init: &[&str], each: impl Fn(&Node) -> Vec<String> + Sync) -> Result<()> {
        self.remake_announcing(init, each, Node::address)
    }

    /// As [`Swarm::remake`], with another address that each node announces to the others. A node whose announced
    /// address is on none of its interfaces needs `--listen-addr` among its flags.
    pub fn remake_announcing(
        &self,
        init: &[&str],
        each: impl Fn(&Node) -> Vec<String> + Sync,
        announced: impl Fn(&Node) -> Ipv4Addr + Sync,
    ) -> Result<()> {
        let nodes = self.nodes();
        // Workers first: a manager that is alone takes the swarm with it.
        nodes.iter().rev().try_for_each(|node| node.docker(&["swarm", "leave", "--force"]).map(drop))?;
        self.join_all(&nodes, init, each, announced)
    }

    fn join_all(
        &self,
        nodes: &[Node],
        init: &[&str],
        each: impl Fn(&Node) -> Vec<String> + Sync,
        announced: impl Fn(&Node) -> Ipv4Addr + Sync,
    ) -> Result<()> {
        let first = nodes.first().context("no nodes")?;
        let address = announced(first).to_string();
        let swarm = |node: &Node, words: &[&str]| -> Result<()> {
            let flags = each(node);
            let mut line = vec!["swarm"];
            line.extend(words);
            // Where the client outside and the other nodes find it, whatever other interfaces it has.
            let own = announced(node).to_string();
            line.extend(["--advertise-addr", &own]);
            line.extend(flags.iter().map(String::as_str));
            if words[0] == "join" {
                line.push(&address);
            }
            node.docker(&line).map(drop)
        };
        swarm(first, &[&["init"], init].concat())?;
        let (managers, workers) = nodes.split_at(self.shape.managers.into());
        // Managers one after the other: each changes the raft group.
        for node in &managers[1..] {
            swarm(node, &["join", "--token", &token(first, "manager")?])?;
        }
        let token = token(first, "worker")?;
        for_each(workers, |node| swarm(node, &["join", "--token", &token]))
    }

    /// All nodes, in order.
    pub fn nodes(&self) -> Vec<Node> {
        (1..=self.shape.nodes).map(|number| Node::new(&self.place, number)).collect()
    }

    /// The node of this label.
    pub fn node(&self, label: &str) -> Result<Node> {
        let found = self.nodes().into_iter().find(|node| node.label() == label);
        found.with_context(|| format!("no node {label}: there are n1 to n{}", self.shape.nodes))
    }

    /// Where the client outside is: 192.168.77.1.
    pub fn switch(&self) -> Netns {
        Netns::existing("switch", &self.place.namespace("switch"))
    }

    /// Where it keeps what.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// How many nodes of which kind it began with.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Starts Hiveway on all nodes, managers first: workers get their table from them.
    pub fn start_hiveway(&self, extra: &[&str]) -> Result<()> {
        let agents: Vec<_> = self.nodes().iter().map(Hiveway::on).collect();
        agents.iter().try_for_each(|agent| agent.launch(extra))?;
        agents.iter().try_for_each(Hiveway::wait_ready)
    }
}

/// Labs of test processes that no longer exist; their names are `t` and the pid.
pub fn sweep_dead() -> Result<()> {
    for place in Place::all() {
        let owner = place.name().strip_prefix('t').and_then(|pid| pid.parse().ok());
        if owner.is_some_and(crate::lab::has_ended) {
            Swarm::down(&place)?;
        }
    }
    Ok(())
}

fn token(manager: &Node, role: &str) -> Result<String> {
    Ok(manager.docker(&["swarm", "join-token", "--quiet", role])?.trim().to_owned())
}

/// Names of its network namespaces.
fn leftovers(place: &Place) -> Vec<String> {
    let entries = fs::read_dir(Path::new("/run/netns")).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with(&place.prefix())).collect()
}

/// Does the same on several nodes at once; the first error.
fn for_each(nodes: &[Node], work: impl Fn(&Node) -> Result<()> + Sync) -> Result<()> {
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = nodes.iter().map(|node| scope.spawn(move || work(node))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("panicked"))?)
    })
}
