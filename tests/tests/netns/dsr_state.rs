//! Direct server return, and what the ingress node remembers all the same: it sees few of the replies.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::{
    agent::Agent,
    lab::{Netns, PATIENCE, scenario, wait_for, with_and_without_offloads},
    peer::LoadLoop,
    table::Table,
};

use crate::{
    dsr::{DSR, receive, replies, replies_of},
    sockets::{connected, udp},
    support::{Cluster, web_table},
};

/// All idle times are short, but for that of established TCP: what is never seen would be forgotten in the time that
/// the transfers below take.
const SHORT: &str =
    "tcp-half-open=3s,tcp-established=3s,tcp-half-closed=3s,tcp-closing=3s,udp-unreplied=3s,udp-replied=3s";
const LONG: Duration = Duration::from_secs(10);

/// web.1 and web.2 on n1 and n2, with own servers of the scenario's.
fn web() -> Table {
    web_table(&["n1", "n2"], &[("tcp", 8080, 8888), ("udp", 7000, 7777)], "n3")
}

fn start<'l>(lab: &'l hiveway_tests::lab::Lab, table: Table) -> Result<Cluster<'l>> {
    Cluster::start_with(lab, 3, table, &[&DSR[..], &["--timeout", SHORT]].concat())
}

/// States of the connections that a node has handed on, by `flow ls`.
fn handed_on(agent: &Agent) -> Result<Vec<String>> {
    let flows = agent.json(&["flow", "ls"])?;
    let rows = flows.as_array().cloned().unwrap_or_default();
    let ingress = rows.iter().filter(|row| row["kind"] == "ingress");
    Ok(ingress.map(|row| row["state"].as_str().unwrap_or_default().to_owned()).collect())
}

fn forgets(agent: &Agent) -> Result<()> {
    wait_for("the ingress node to forget the connection", PATIENCE, || {
        let left = handed_on(agent)?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
}

fn listen(netns: &Netns) -> Result<TcpListener> {
    Ok(netns.enter(|| TcpListener::bind(("0.0.0.0", 8888)))??)
}

fn connect(netns: &Netns) -> Result<TcpStream> {
    let stream = netns.enter(|| TcpStream::connect("192.168.77.13:8080"))??;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Sends one way for long, now and then a piece, and what arrives is complete.
fn one_way(from: &mut TcpStream, to: &mut TcpStream, mut meanwhile: impl FnMut() -> Result<()>) -> Result<()> {
    let started = Instant::now();
    let piece = vec![7; 100_000];
    let mut got = vec![0; piece.len()];
    while started.elapsed() < LONG {
        std::thread::scope(|scope| {
            let sender = scope.spawn(|| from.write_all(&piece));
            to.read_exact(&mut got).context("it stopped")?;
            sender.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
            anyhow::Ok(())
        })?;
        meanwhile()?;
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

#[test]
fn long_transfers_one_way_are_not_forgotten() {
    with_and_without_offloads(|lab| {
        let client = lab.client()?;
        let cluster = start(lab, web_table(&["n2"], &[("tcp", 8080, 8888)], "n3"))?;
        let listener = listen(cluster.task("web.1"))?;
        let (n2, n3) = (&cluster.agents[1], &cluster.agents[2]);
        for upload in [false, true] {
            let mut asking = connect(&client)?;
            let (mut serving, _) = listener.accept()?;
            let known = || {
                let states = handed_on(n3)?;
                ensure!(states == ["established"], "n3 knows {states:?}");
                Ok(())
            };
            let before = replies(n2)?;
            if upload {
                one_way(&mut asking, &mut serving, known)?;
            } else {
                one_way(&mut serving, &mut asking, known)?;
            }
            let after = replies(n2)?;
            let (by_tunnel, directly) = (after.0 - before.0, after.1 - before.1);
            // A turn comes every 17 seconds at most.
            ensure!(by_tunnel <= 2 && directly > 20, "{by_tunnel} by the tunnel, {directly} directly");
            // The server goes first: its FIN passes n3, and the client may go on.
            drop(serving);
            ensure!(asking.read(&mut [0; 16])? == 0, "an end");
            wait_for("n3 to have seen the FIN", PATIENCE, || {
                ensure!(handed_on(n3)? == ["half-closed"], "{:?}", handed_on(n3)?);
                Ok(())
            })?;
            drop(asking);
            forgets(n3)?;
        }
        // A reset of the server's is seen, too.
        let asking = connect(&client)?;
        let (serving, _) = listener.accept()?;
        reset(serving)?;
        wait_for("n3 to have seen the reset", PATIENCE, || {
            let states = handed_on(n3)?;
            ensure!(states == ["closing"], "{states:?}");
            Ok(())
        })?;
        drop(asking);
        forgets(n3)
    });
}

/// Closes with a reset.
fn reset(stream: TcpStream) -> Result<()> {
    use std::os::fd::AsRawFd as _;
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: the descriptor is open and the value lives on our stack with the length given.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of::<libc::linger>() as u32,
        )
    };
    ensure!(result == 0, "setsockopt: {}", std::io::Error::last_os_error());
    Ok(())
}

/// A client that asks once and then only listens, for longer than the ingress node remembers what it does not see. When
/// it speaks again, it is to the same backend.
#[test]
fn a_udp_client_that_only_listens_keeps_its_backend() {
    scenario(|lab| {
        let client = lab.client()?;
        let cluster = start(lab, web())?;
        let servers = [udp(cluster.task("web.1"), 7777)?, udp(cluster.task("web.2"), 7777)?];
        servers.iter().try_for_each(|server| server.set_read_timeout(Some(Duration::from_millis(500))))?;
        let asking = connected(&client, "192.168.77.13:7000")?;
        asking.send(b"play")?;
        let serves = |index: usize| servers[index].recv_from(&mut [0; 64]).ok();
        let (index, seen) =
            (0..2).cycle().take(20).find_map(|i| Some((i, serves(i)?.1))).context("nobody was asked")?;
        let (n, n3) = (&cluster.agents[index], &cluster.agents[2]);
        let started = Instant::now();
        let mut sent = 0;
        let (by_tunnel, directly) = replies_of(n, || {
            while started.elapsed() < LONG {
                servers[index].send_to(&[7; 1000], seen)?;
                receive(&asking, 1000)?;
                sent += 1;
                ensure!(handed_on(n3)? == ["replied"], "after {:?}: {:?}", started.elapsed(), handed_on(n3)?);
                std::thread::sleep(Duration::from_millis(10));
            }
            Ok(())
        })?;
        ensure!(by_tunnel + directly == sent, "{by_tunnel} and {directly} are not {sent}");
        ensure!((10..=25).contains(&by_tunnel), "{by_tunnel} by the tunnel: about two a second are needed");
        asking.send(b"again")?;
        ensure!(serves(index).is_some(), "it was given to another backend");
        forgets(n3)
    });
}

#[test]
fn another_choice_of_the_agents_keeps_connections() {
    with_and_without_offloads(|lab| {
        let client = lab.client()?;
        let mut cluster = Cluster::start(lab, 3, web_table(&["n2"], &[("tcp", 8080, 80), ("udp", 5353, 53)], "n3"))?;
        cluster.serve(&["web.1"])?;
        let n2 = cluster.agents[1].clone();
        let loops = [
            ("TCP", LoadLoop::tcp(lab, &client, "192.168.77.13:8080", 2, true)?),
            ("UDP", LoadLoop::udp(lab, &client, "192.168.77.13:5353")?),
        ];
        for flags in [&DSR[..], &[], &DSR[..]] {
            n2.restart_with(flags)?;
            // Killed, it leaves the programs as they are.
            let (by_tunnel, directly) = replies_of(&n2, || loops.iter().try_for_each(|(_, l)| l.wait_answers(200)))?;
            let dsr = !flags.is_empty();
            ensure!(dsr == (directly >= 200), "{flags:?}: {by_tunnel} by the tunnel, {directly} directly");
            ensure!(dsr == (by_tunnel < 50), "{flags:?}: {by_tunnel} by the tunnel, {directly} directly");
        }
        for (what, running) in loops {
            let tally = running.stop()?;
            ensure!(tally.failed == 0 && tally.names.len() == 1, "{what}: {tally:?}");
        }
        Ok(())
    });
}
