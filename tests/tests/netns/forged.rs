//! Frames with a client's address that the client has not sent: they end, move and re-open nothing.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use etherparse::PacketBuilder;
use hiveway_tests::{
    lab::{Capture, Lab, Netns, PATIENCE, scenario, wait_for, with_and_without_offloads},
    peer,
    table::Table,
};
use nix::sys::socket::{setsockopt, sockopt};

use crate::{
    frames::{ip, mac},
    support::{Cluster, web_table},
};

/// Idle times short enough to wait for.
const TIMEOUTS: [&str; 4] = ["--timeout", "tcp-closing=1s", "--timeout", "tcp-half-closed=1s"];
/// Segments that are forged for each connection.
const FORGED: u64 = 32;
/// Longer than those and two sweeps.
const LONG: Duration = Duration::from_secs(5);

/// web.1 on n1, web.2 on n2 and user.1 on n1; n3 has no task.
fn web() -> Table {
    web_table(&["n1", "n2"], &[("tcp", 8080, 80)], "n1")
}

/// A connection that is kept, and who forges its frames.
struct Victim<'l> {
    stream: TcpStream,
    server: String,
    /// Where forged frames leave from, through which interface, and with which source MAC.
    mallory: &'l Netns,
    interface: &'static str,
    macs: ([u8; 6], [u8; 6]),
}

impl<'l> Victim<'l> {
    /// Connects from `client` to `target`. Forged frames come from `mallory`, for the MAC `next_hop`.
    fn connect(
        client: &Netns,
        target: &str,
        (mallory, interface): (&'l Netns, &'static str),
        macs: (&str, &str),
    ) -> Result<Self> {
        let target: SocketAddr = target.parse()?;
        let stream = client.enter(|| TcpStream::connect_timeout(&target, PATIENCE))??;
        stream.set_read_timeout(Some(PATIENCE))?;
        let macs = (mac(macs.0), mac(macs.1));
        let mut victim = Self { stream, server: String::new(), mallory, interface, macs };
        victim.server = victim.ask()?;
        Ok(victim)
    }

    /// A request over the connection; who answers.
    fn ask(&mut self) -> Result<String> {
        self.stream.write_all(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")?;
        let mut answer = String::new();
        let mut buffer = [0; 4096];
        while !answer.contains("\r\n\r\n") || !answer.contains("web.") {
            let read = self.stream.read(&mut buffer)?;
            ensure!(read > 0, "closed after {answer:?}");
            answer.push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
        let name = answer.find("web.").map(|at| answer[at..].chars().take(5).collect());
        Ok(name.unwrap_or_default())
    }

    /// Sends a segment with the client's address and port, and any numbers.
    fn forge(&self, flags: &str, sequence: u32) -> Result<()> {
        let (SocketAddr::V4(from), SocketAddr::V4(to)) = (self.stream.local_addr()?, self.stream.peer_addr()?) else {
            unreachable!("IPv4");
        };
        let mut tcp = PacketBuilder::ethernet2(self.macs.0, self.macs.1)
            .ipv4(from.ip().octets(), to.ip().octets(), 64)
            .tcp(from.port(), to.port(), sequence, 1024);
        for flag in flags.chars() {
            tcp = match flag {
                'S' => tcp.syn(),
                'F' => tcp.fin(),
                'R' => tcp.rst(),
                _ => tcp.ack(77),
            };
        }
        let mut frame = Vec::new();
        tcp.write(&mut frame, b"").expect("a vector takes everything");
        self.mallory.send_frame(self.interface, &frame)
    }

    /// Goes through what a guesser can do; the connection stays where it is.
    fn outlives_all(&mut self) -> Result<()> {
        for first in ["R", "FA", "RA", "F", "S"] {
            // Not an even number: the turn would come back to the same of two backends.
            for sequence in [0, 77_000_000, 0x8000_0000] {
                self.forge(first, sequence)?;
                self.forge("S", sequence.wrapping_add(1))?;
            }
            let server = self.ask().map_err(|error| error.context(format!("after {first} and SYN")))?;
            ensure!(server == self.server, "moved from {} to {server} by {first} and SYN", self.server);
        }
        self.forge("R", 77_000_000)?;
        self.forge("F", 77_000_000)?;
        std::thread::sleep(LONG);
        let server = self.ask().map_err(|error| error.context("after an idle time that a forged RST began"))?;
        ensure!(server == self.server, "moved from {} to {server} while it was idle", self.server);
        Ok(())
    }

    /// Ends the connection as a program does that has had enough of it.
    fn reset(self) -> Result<()> {
        setsockopt(&self.stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
        drop(self.stream);
        Ok(())
    }
}

pub(crate) fn mac_of(netns: &Netns, interface: &str) -> Result<String> {
    let link = netns.run(&format!("ip -oneline link show {interface}"))?;
    let mac = link.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next());
    mac.map(str::to_owned).with_context(|| format!("no MAC in {link}"))
}

/// No agent remembers a connection to the port any more.
fn forgotten(cluster: &Cluster<'_>) -> Result<()> {
    wait_for("the connection to be forgotten everywhere", PATIENCE, || {
        for agent in &cluster.agents {
            let flows = agent.json(&["flow", "ls"])?;
            ensure!(flows.as_array().is_some_and(Vec::is_empty), "{}: {flows}", agent.netns().label());
        }
        Ok(())
    })
}

/// A client's connections through n3, to both backends, with a stranger on the same link.
fn through_the_mesh(lab: &Lab, extra: &[&str]) -> Result<()> {
    let (client, mallory) = (lab.client()?, lab.node("mallory", 101)?);
    let arguments = [&TIMEOUTS[..], extra].concat();
    let mut cluster = Cluster::start_with(lab, 3, web(), &arguments)?;
    cluster.serve(&["web.1", "web.2"])?;
    // The switch would send the answers to mallory, had he the client's MAC.
    let macs = ("02:00:00:00:66:66".to_owned(), mac_of(&cluster.nodes[2], "eth0")?);
    let connect =
        || Victim::connect(&client, "192.168.77.13:8080", (&mallory, "eth0"), (macs.0.as_str(), macs.1.as_str()));
    let mut victims = [connect()?, connect()?];
    ensure!(victims[0].server != victims[1].server, "both are on {}", victims[0].server);
    let mut seen = Capture::start(lab, lab.switch(), "n3", "ether src host 02:00:00:00:66:66")?;
    for victim in &mut victims {
        victim.outlives_all()?;
    }
    seen.wait_packets(2 * FORGED)?;
    for victim in victims {
        victim.reset()?;
    }
    forgotten(&cluster)
}

#[test]
fn who_guesses_a_clients_port_ends_and_moves_nothing() {
    with_and_without_offloads(|lab| through_the_mesh(lab, &[]));
}

#[test]
fn nor_where_xdp_carries_it() {
    scenario(|lab| through_the_mesh(lab, &["--xdp", "generic"]));
}

#[test]
fn nor_with_direct_server_return() {
    scenario(|lab| through_the_mesh(lab, &["--mesh-return", "dsr"]));
}

/// A container that may send raw frames is in the same position towards its own connections.
#[test]
fn nor_through_a_vip() {
    scenario(|lab| {
        let mut cluster = Cluster::start_with(lab, 2, web(), &TIMEOUTS)?;
        cluster.serve(&["web.1", "web.2"])?;
        let user = cluster.task("user.1");
        user.run("ping -c 1 -W 2 10.0.1.2")?;
        let neighbour = user.run("ip neigh show 10.0.1.2")?;
        let vip = neighbour.split("lladdr ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or_default();
        ensure!(!vip.is_empty(), "{neighbour}");
        let own = mac_of(user, "eth0")?;
        let connect = || Victim::connect(user, "10.0.1.2:80", (user, "eth0"), (own.as_str(), vip));
        let mut victims = [connect()?, connect()?];
        ensure!(victims[0].server != victims[1].server, "both are on {}", victims[0].server);
        for victim in &mut victims {
            victim.outlives_all()?;
        }
        for victim in victims {
            victim.reset()?;
        }
        forgotten(&cluster)
    });
}

/// With them an outsider would pass any list that names the node's own address, and a task would answer to who knows
/// whom.
#[test]
fn sources_that_nobody_outside_has_reach_no_task() {
    scenario(|lab| {
        let (client, mallory) = (lab.client()?, lab.node("mallory", 101)?);
        let mut cluster = Cluster::start(lab, 3, web_table(&["n1", "n2"], &[("udp", 5353, 53)], "n1"))?;
        cluster.serve(&["web.1", "web.2"])?;
        let n3 = mac(&mac_of(&cluster.nodes[2], "eth0")?);
        let mut seen = Capture::start(lab, lab.switch(), "n3", "ether src host 02:00:00:00:66:66")?;
        let sources = ["192.168.77.13", "127.0.0.1", "0.0.0.7", "224.0.0.5", "255.255.255.255"];
        for source in sources {
            let udp = PacketBuilder::ethernet2(mac("02:00:00:00:66:66"), n3)
                .ipv4(ip(source), ip("192.168.77.13"), 64)
                .udp(4000, 5353);
            let mut frame = Vec::new();
            udp.write(&mut frame, b"question").expect("a vector takes everything");
            for _ in 0..3 {
                mallory.send_frame("eth0", &frame)?;
            }
        }
        seen.wait_packets(3 * sources.len() as u64)?;
        for agent in &cluster.agents {
            let flows = agent.json(&["flow", "ls"])?;
            ensure!(flows.as_array().is_some_and(Vec::is_empty), "{}: {flows}", agent.netns().label());
        }
        let tally = peer::udp_load(&client, "192.168.77.13:5353", 4)?;
        ensure!(tally.ok == 4, "{tally:?}");
        Ok(())
    });
}
