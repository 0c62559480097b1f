//! Real sockets in two namespaces whose interfaces are ports of a plain Linux bridge in a third, as an engine sets up
//! its networks: VIPs are balanced inside the containers' own namespaces. Needs root.

mod support;

use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd as _,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use dataplane::{Attached, Dataplane, Options, TcHook, teardown};
use dataplane_common::{
    config::Config,
    counter::Counter,
    endpoint::{Endpoint, EndpointKey, Local, SANDBOX_BIT, endpoint_flag, kind},
    service::Backend,
    state::{MapState, SetKey},
};
use support::{
    attached::options,
    netns::Netns,
    sandbox::{run, sandbox},
};

const NET: [u8; 4] = [0, 0, 16, 1];
const CLIENT: [u8; 4] = [10, 0, 1, 3];
const SERVER: [u8; 4] = [10, 0, 1, 4];
/// Served by SERVER.
const VIP: [u8; 4] = [10, 0, 1, 2];
const EMPTY_VIP: [u8; 4] = [10, 0, 1, 20];
/// Served by CLIENT.
const SELF_VIP: [u8; 4] = [10, 0, 1, 21];
/// What the engine's own balancer has on the network.
const BALANCER_MAC: [u8; 6] = [0x02, 0x42, 10, 0, 1, 9];
const IDS: [u32; 2] = [SANDBOX_BIT | 3, SANDBOX_BIT | 4];
const PATIENCE: Duration = Duration::from_secs(20);

fn mac(ip: [u8; 4]) -> [u8; 6] {
    [0x02, 0x42, ip[0], ip[1], ip[2], ip[3]]
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// The two containers and their bridge.
struct Bridged {
    client: Netns,
    server: Netns,
    _bridge: Netns,
}

impl Bridged {
    fn new() -> Result<Self> {
        let bridge = Netns::new()?;
        bridge.run("ip link add br0 type bridge")?;
        bridge.run("ip link set br0 up")?;
        let port = |name: &str, ip: [u8; 4]| -> Result<Netns> {
            let netns = Netns::new()?;
            let inside = format!("in{name}");
            run(&format!("ip link add {name} type veth peer name {inside} address {}", text(mac(ip))))?;
            bridge.take(name)?;
            netns.take(&inside)?;
            bridge.run(&format!("ip link set {name} master br0 up"))?;
            netns.run(&format!("ip link set {inside} name eth0 up"))?;
            netns.run(&format!("ip addr add {}/24 dev eth0", Ipv4Addr::from(ip)))?;
            Ok(netns)
        };
        Ok(Self { client: port("c1", CLIENT)?, server: port("c2", SERVER)?, _bridge: bridge })
    }

    fn offloads(&self, on: bool) -> Result<()> {
        let switch = if on { "on" } else { "off" };
        for netns in [&self.client, &self.server] {
            netns.run(&format!("ethtool -K eth0 tx {switch} tso {switch} gso {switch}"))?;
        }
        Ok(())
    }

    fn attach(&self, dataplane: &mut Dataplane) -> Result<[Attached; 2]> {
        Ok([
            dataplane.attach_sandbox(self.client.as_fd(), "eth0", IDS[0])?,
            dataplane.attach_sandbox(self.server.as_fd(), "eth0", IDS[1])?,
        ])
    }
}

fn state() -> MapState {
    let mut state = MapState {
        config: Config { underlay_mtu: 1500, vtep: [192, 0, 2, 1], underlay_ip: [192, 0, 2, 1], ..Config::default() },
        ..MapState::default()
    };
    for (id, ip, tag) in [(IDS[0], CLIENT, [1; 8]), (IDS[1], SERVER, [2; 8])] {
        state.locals.insert(id, Local { tag, net: NET, vni: NET, ip, mac: mac(ip), ..Local::default() });
        let endpoint = Endpoint {
            tag,
            kind: kind::LOCAL,
            flags: endpoint_flag::VIP_BACKEND,
            mac: mac(ip),
            vtep: state.config.vtep,
            vni: NET,
            ..Endpoint::default()
        };
        state.endpoints.insert(EndpointKey { net: NET, ip }, endpoint);
    }
    let backend = |ip, tag| Backend { tag, ip, vtep: [192, 0, 2, 1] };
    for (vip, backends) in
        [(VIP, vec![backend(SERVER, [2; 8])]), (EMPTY_VIP, vec![]), (SELF_VIP, vec![backend(CLIENT, [1; 8])])]
    {
        let endpoint = Endpoint { kind: kind::VIP, mac: BALANCER_MAC, vni: NET, ..Endpoint::default() };
        state.endpoints.insert(EndpointKey { net: NET, ip: vip }, endpoint);
        state.sets.insert(SetKey::Vip { net: NET, ip: vip }, backends);
    }
    state
}

/// Runs `test` with programs attached in both ways that this kernel has, and with offloads on and off.
fn bridged(test: impl Fn(&Bridged, &mut Dataplane, &Options) -> Result<()> + Send + Copy + 'static) -> Result<()> {
    for (tc_hook, offloads) in [(TcHook::Auto, true), (TcHook::Auto, false), (TcHook::Clsact, true)] {
        sandbox(move |bpffs| {
            let options = Options { tc_hook, ..options(bpffs) };
            let bridged = Bridged::new()?;
            bridged.offloads(offloads)?;
            let mut dataplane = Dataplane::open(&options)?;
            assert_eq!(dataplane.apply(&state())?.failures, []);
            assert_eq!(bridged.attach(&mut dataplane)?, [Attached::New; 2]);
            test(&bridged, &mut dataplane, &options).with_context(|| format!("{tc_hook:?}, offloads: {offloads}"))
        })?;
    }
    Ok(())
}

fn listen(netns: &Netns) -> Result<TcpListener> {
    netns.inside(|| Ok(TcpListener::bind("0.0.0.0:80")?))
}

fn connect(netns: &Netns, to: [u8; 4]) -> Result<TcpStream> {
    let stream = netns.inside(move || Ok(TcpStream::connect_timeout(&SocketAddr::from((to, 80)), PATIENCE)?))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn datagrams(netns: &Netns, port: u16) -> Result<UdpSocket> {
    let socket = netns.inside(move || Ok(UdpSocket::bind(("0.0.0.0", port))?))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Sends this much through a connection and back, all at once.
fn echo(client: &TcpStream, mut server: &TcpStream, length: usize) -> Result<()> {
    let sent: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
    thread::scope(|scope| -> Result<()> {
        let (mut to, sent) = (client, &sent);
        let writer = scope.spawn(move || to.write_all(sent));
        let echoer = scope.spawn(move || -> std::io::Result<()> {
            let mut buffer = vec![0; 65536];
            let mut left = length;
            while left > 0 {
                let got = server.read(&mut buffer)?;
                if got == 0 {
                    return Err(ErrorKind::UnexpectedEof.into());
                }
                server.write_all(&buffer[..got])?;
                left -= got;
            }
            Ok(())
        });
        let mut heard = vec![0; length];
        let mut reader = client;
        reader.read_exact(&mut heard).context("read the echo")?;
        assert!(heard == *sent, "what came back is not what was sent");
        writer.join().expect("no panic")?;
        echoer.join().expect("no panic")?;
        Ok(())
    })
}

fn counted(dataplane: &Dataplane, counter: Counter) -> Result<u64> {
    Ok(dataplane.counters()?.into_iter().find(|(which, _)| *which == counter).map_or(0, |(_, stat)| stat.packets))
}

fn no_drops(dataplane: &Dataplane) -> Result<()> {
    let drops: BTreeMap<_, _> = dataplane.drops()?.into_iter().filter(|(_, stat)| stat.packets > 0).collect();
    assert!(drops.is_empty(), "{drops:?}");
    Ok(())
}

#[test]
fn tcp_through_a_vip_and_an_agents_restart_in_the_middle() -> Result<()> {
    bridged(|net, dataplane, options| {
        let listener = listen(&net.server)?;
        let client = connect(&net.client, VIP)?;
        let (server, peer) = listener.accept()?;
        // The backend sees the client, the client sees the VIP.
        assert_eq!(peer.ip(), Ipv4Addr::from(CLIENT));
        assert_eq!(client.peer_addr()?, SocketAddr::from((VIP, 80)));
        echo(&client, &server, 1 << 20)?;
        assert_eq!(counted(dataplane, Counter::FlowPromoted)?, 1);
        // ARP was answered by us, with what the table says.
        let neighbours = net.client.run("ip neigh show")?;
        assert!(neighbours.contains(&format!("10.0.1.2 dev eth0 lladdr {}", text(BALANCER_MAC))), "{neighbours}");

        // The next agent: the connection goes on, while nobody is there, and after the trampolines were replaced.
        let connections = dataplane.connections()?.rows()?;
        assert_eq!(connections.len(), 1, "{connections:?}");
        no_drops(dataplane)?;
        drop(std::mem::replace(dataplane, Dataplane::open(&elsewhere(options))?));
        echo(&client, &server, 1 << 18)?;
        *dataplane = Dataplane::open(options)?;
        echo(&client, &server, 1 << 18)?;
        assert_eq!(net.attach(dataplane)?, [Attached::Replaced; 2]);
        assert!(dataplane.apply(&state())?.is_empty());
        echo(&client, &server, 1 << 18)?;
        let another = connect(&net.client, VIP)?;
        let (server, _) = listener.accept()?;
        echo(&another, &server, 100)?;
        no_drops(dataplane)
    })
}

/// A data plane of no interest.
fn elsewhere(options: &Options) -> Options {
    Options { bpffs: options.bpffs.with_file_name("elsewhere"), ..options.clone() }
}

#[test]
fn datagrams_whole_and_in_pieces() -> Result<()> {
    bridged(|net, dataplane, _| {
        let (server, client) = (datagrams(&net.server, 53)?, datagrams(&net.client, 5353)?);
        let mut buffer = vec![0; 65536];
        for length in [0, 1, 512, 1400, 4000, 20_000] {
            let sent: Vec<u8> = (0..length).map(|at| (at % 253) as u8).collect();
            client.send_to(&sent, (Ipv4Addr::from(VIP), 53))?;
            let (got, peer) = server.recv_from(&mut buffer).with_context(|| format!("{length} bytes"))?;
            assert_eq!((peer, &buffer[..got]), (SocketAddr::from((CLIENT, 5353)), &sent[..]));
            server.send_to(&sent, peer)?;
            let (got, peer) = client.recv_from(&mut buffer).with_context(|| format!("{length} bytes back"))?;
            assert_eq!((peer, &buffer[..got]), (SocketAddr::from((VIP, 53)), &sent[..]));
        }
        no_drops(dataplane)
    })
}

#[test]
fn pings_and_refusals_are_answered_at_once() -> Result<()> {
    bridged(|net, dataplane, _| {
        net.client.run("ping -c 2 -i 0.1 -W 10 10.0.1.2")?;
        assert_eq!(counted(dataplane, Counter::EchoReply)?, 2);
        net.client.run("ping -c 1 -W 10 10.0.1.4")?;
        let refused = connect(&net.client, EMPTY_VIP).expect_err("nobody serves");
        assert_eq!(kind_of(&refused), Some(ErrorKind::ConnectionRefused), "{refused:#}");
        // The server is there, and nobody listens: its own answer comes back in the VIP's name.
        let refused = connect(&net.client, VIP).expect_err("nobody listens");
        assert_eq!(kind_of(&refused), Some(ErrorKind::ConnectionRefused), "{refused:#}");
        for to in [EMPTY_VIP, VIP] {
            let socket = datagrams(&net.client, 0)?;
            socket.connect((Ipv4Addr::from(to), 4444))?;
            socket.send(b"hello?")?;
            let error = socket.recv(&mut [0; 16]).expect_err("port unreachable");
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to:?}: {error}");
        }
        Ok(())
    })
}

fn kind_of(error: &anyhow::Error) -> Option<ErrorKind> {
    error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>()).map(std::io::Error::kind)
}

#[test]
fn a_task_talks_to_itself_through_its_vip() -> Result<()> {
    bridged(|net, dataplane, _| {
        let listener = listen(&net.client)?;
        let client = connect(&net.client, SELF_VIP)?;
        let (server, peer) = listener.accept()?;
        assert_eq!(peer.ip(), Ipv4Addr::from(SELF_VIP));
        echo(&client, &server, 1 << 18)?;
        no_drops(dataplane)
    })
}

#[test]
fn direct_connections_beside_the_vips_and_after_a_teardown() -> Result<()> {
    bridged(|net, dataplane, options| {
        let listener = listen(&net.server)?;
        let through = connect(&net.client, VIP)?;
        let (served, _) = listener.accept()?;
        let direct = connect(&net.client, SERVER)?;
        let (server, _) = listener.accept()?;
        assert_eq!(direct.peer_addr()?, SocketAddr::from((SERVER, 80)));
        echo(&through, &served, 1000)?;
        echo(&direct, &server, 1 << 18)?;
        no_drops(dataplane)?;

        // Taken down, the network is as the engine has made it.
        drop(std::mem::replace(dataplane, Dataplane::open(&elsewhere(options))?));
        let report = teardown(&options.bpffs)?;
        assert_eq!(report.failures, [""; 0]);
        echo(&direct, &server, 1 << 18)?;
        let direct = connect(&net.client, SERVER)?;
        let (server, _) = listener.accept()?;
        echo(&direct, &server, 1000)
    })
}
