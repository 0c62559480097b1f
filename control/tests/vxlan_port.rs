//! The UDP port of VXLAN is the agent's while it runs. Needs root and `nft`.

mod support;

use std::{
    net::UdpSocket,
    process::{Child, Command, Stdio},
    time::Duration,
};

use control::netlink::{Port, Socket};
use support::{
    in_fresh_netns,
    node::{Node, eventually},
    run,
};

/// What engines make, and what Hiveway does.
const ENGINES: &str = "id 4097 dstport 4789 proxy l2miss l3miss udpcsum";
const OURS: &str = "id 4098 dstport 4789 local 192.0.2.1 nolearning noudpcsum";

#[test]
fn networks_devices_come_up_beside_and_processes_do_not() {
    in_fresh_netns(|| async {
        // Something else of the node is at the port.
        let node = Socket::open().unwrap();
        let taken = UdpSocket::bind("127.0.0.1:4789").unwrap();
        assert_eq!(Port::hold(&node, 4789).await.unwrap_err().errno(), Some(libc::EADDRINUSE));
        drop(taken);
        let port = loop {
            // The namespace of the one that failed may take a moment to go.
            match Port::hold(&node, 4789).await {
                Ok(port) => break port,
                Err(error) => assert_eq!(error.errno(), Some(libc::EEXIST), "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        assert_eq!(run("ip -o link").lines().count(), 1, "lo alone");
        for address in ["0.0.0.0:4789", "127.0.0.1:4789", "[::]:4789"] {
            let error = UdpSocket::bind(address).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse, "{address}");
        }
        for (name, device) in [("engines", ENGINES), ("ours", OURS)] {
            run(&format!("ip link add {name} type vxlan {device} && ip link set {name} up"));
        }
        // As an engine does it.
        let space = support::Netns::new("overlay");
        run(&format!("ip link set engines netns {0} && ip -n {0} link set engines up", space.0));
        run("ip link del ours");
        drop(space);
        drop(port);
        for _ in 0..1200 {
            if UdpSocket::bind("127.0.0.1:4789").is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the port is not free again within 60 s");
    });
}

#[test]
fn what_is_sent_to_its_device_reaches_nothing() {
    in_fresh_netns(|| async {
        run("ip link add e0 type veth peer name e1 && ip addr add 192.0.2.1/24 dev e0 && ip link set e0 up");
        let _port = Port::hold(&Socket::open().unwrap(), 4789).await.unwrap();
        let heard = UdpSocket::bind("192.0.2.1:9999").unwrap();
        heard.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let sender = UdpSocket::bind("192.0.2.1:0").unwrap();
        // A datagram to everybody's MAC and to the node, in VNI 0.
        let mut inner = vec![0xff; 6];
        datagram_to_the_node(&mut inner);
        let datagram = [&[8, 0, 0, 0, 0, 0, 0, 0][..], &inner].concat();
        for _ in 0..5 {
            sender.send_to(&datagram, "192.0.2.1:4789").unwrap();
        }
        assert!(heard.recv(&mut [0; 64]).is_err(), "it has come through");
        // The same frame does come through where a device is in the node's namespace: it is no broken one.
        run("sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0");
        run("ip link add open type vxlan id 7 dstport 4789 && ip link set open up");
        run("sysctl -qw net.ipv4.conf.open.rp_filter=0");
        let datagram = [&[8, 0, 0, 0, 0, 0, 7, 0][..], &inner].concat();
        sender.send_to(&datagram, "192.0.2.1:4789").unwrap();
        heard.recv(&mut [0; 64]).unwrap();
    });
}

/// An Ethernet frame after its destination: UDP from 198.51.100.9 to 192.0.2.1:9999, without a UDP checksum.
fn datagram_to_the_node(frame: &mut Vec<u8>) {
    frame.extend([2, 0, 0, 0, 0, 9, 8, 0]);
    let mut ip = [0x45, 0, 0, 32, 0, 0, 0x40, 0, 64, 17, 0, 0, 198, 51, 100, 9, 192, 0, 2, 1];
    let sum: u32 = ip.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    ip[10..12].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    frame.extend(ip);
    frame.extend([0x9c, 0x40, 0x27, 0x0f, 0, 12, 0, 0, b'l', b'i', b'a', b'r']);
}

/// Nothing of it needs a vxlan device.
const IDLE: &str = "version: 1\n\
    nodes: [{id: n1, hostname: one, address: 192.0.2.1}, {id: n2, hostname: two, address: 192.0.2.2}]\n";

/// A process of nobody's that has the port until it is dropped.
struct Squatter(Child);

impl Squatter {
    fn start(node: &Node, connected: bool) -> Self {
        let connect = if connected { "s.connect(('192.0.2.2', 9))" } else { "pass" };
        let script = format!(
            "import os, socket, time\nos.setuid(65534)\ns = socket.socket(socket.AF_INET, \
             socket.SOCK_DGRAM)\ns.bind(('192.0.2.1', 4789))\n{connect}\nprint('bound', flush=True)\ntime.sleep(600)"
        );
        let mut command: Command = node.netns.command("python3");
        let mut child = command.args(["-c", &script]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line).unwrap();
        assert_eq!(line, "bound\n");
        Self(child)
    }
}

impl Drop for Squatter {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_local_user_cannot_take_the_port_and_one_who_has_it_is_named() {
    let node = Node::new();
    node.write_table(IDLE);
    let failing = || node.ask(&["status"])["failing"].clone();
    for connected in [false, true] {
        let squatter = Squatter::start(&node, connected);
        let agent = node.start(&[]);
        eventually("it is named", || {
            let why = failing()[0]["why"].as_str().unwrap_or_default().to_owned();
            let (pid, user) = (format!("process {} (", squatter.0.id()), "of user 65534, bound to 192.0.2.1");
            why.contains("UDP port 4789 is taken by ") && why.contains(&pid) && why.contains(user)
        });
        drop(squatter);
        eventually("it is held now", || failing() == serde_json::json!([]));
        let bind = node.netns.try_run("python3 -c 'import socket; socket.socket(2, 2).bind((\"192.0.2.1\", 4789))'");
        assert!(support::stderr(&bind).contains("Address already in use"), "{}", support::stderr(&bind));
        assert_eq!(node.netns.run("ip -o link show type vxlan"), "", "nothing to be seen of it");
        agent.stop();
        assert!(node.teardown().status.success());
        node.assert_untouched();
    }
}

#[test]
fn a_device_of_another_kind_is_a_warning() {
    let node = Node::new();
    node.write_table(IDLE);
    node.netns.run("sh -c 'ip link add ext type vxlan external dstport 4789 && ip link set ext up'");
    let agent = node.start(&[]);
    eventually("a word of it", || {
        node.ask(&["status"])["warnings"].to_string().contains("no process is seen to have it")
    });
    assert_eq!(node.ask(&["status"])["failing"], serde_json::json!([]));
    agent.stop();
    node.netns.run("ip link del ext");
    assert!(node.teardown().status.success());
}
