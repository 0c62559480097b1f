//! Packets that no well-behaved host sends, as many as wanted: connections that begin and never go on.

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::AsRawFd,
    sync::atomic::Ordering,
    thread::sleep,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

#[derive(clap::Args, Clone)]
pub(crate) struct Options {
    /// Address and port.
    #[arg(long)]
    target: SocketAddrV4,
    /// Interface that the frames leave by.
    #[arg(long)]
    interface: String,
    /// MAC of the next hop, like 02:00:00:00:00:01.
    #[arg(long, value_parser = mac)]
    next_hop: Mac,
    /// All packets from this address, with its interface's MAC; without it each from another one in 100.64.0.0/10.
    #[arg(long)]
    source: Option<Ipv4Addr>,
    /// Packets per millisecond, at most.
    #[arg(long, default_value_t = 10)]
    rate: u32,
}

/// An address as clap takes it apart.
#[derive(Clone, Copy)]
struct Mac([u8; 6]);

fn mac(text: &str) -> Result<Mac, String> {
    let bytes: Result<Vec<_>, _> = text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect();
    bytes.ok().and_then(|bytes| bytes.try_into().ok()).map(Mac).ok_or_else(|| "not a MAC address".to_owned())
}

/// Floods until stdin is closed; says how far it has come on stderr.
pub(crate) fn run(options: &Options) -> Result<()> {
    let closed = crate::stdin_closed();
    let raw = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None).context("packet socket")?;
    let address = link_address(&options.interface)?;
    let own = own_mac(&options.interface)?;
    let mut sent = 0u32;
    while !closed.load(Ordering::Relaxed) {
        for _ in 0..options.rate {
            for packet in packets(options, sent) {
                let frame = [&options.next_hop.0[..], &own.0, &[0x08, 0x00], &packet].concat();
                send(&raw, &address, &frame)?;
                sent += 1;
            }
        }
        if sent / 1000 != sent.saturating_sub(4 * options.rate) / 1000 {
            eprintln!("sent: {sent}");
        }
        sleep(Duration::from_millis(1));
    }
    Ok(())
}

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// What one invented client sends: a SYN, a SYN out of its window, an ACK of a number that it cannot know; or a
/// datagram.
fn packets(options: &Options, number: u32) -> Vec<Vec<u8>> {
    let mixed = number.wrapping_mul(0x9e37_79b1);
    let source = options.source.unwrap_or_else(|| {
        let [_, b, c, d] = mixed.to_be_bytes();
        Ipv4Addr::new(100, 64 | (b & 0x3f), c, d)
    });
    let port = 1024 + (number % 60_000) as u16;
    let from = SocketAddrV4::new(source, port);
    match number % 4 {
        3 => vec![udp(from, options.target)],
        _ => vec![
            tcp(from, options.target, SYN, mixed, 0),
            tcp(from, options.target, SYN, !mixed, 0),
            tcp(from, options.target, ACK, mixed.wrapping_add(1), mixed ^ 0x1234_5678),
        ],
    }
}

fn tcp(from: SocketAddrV4, to: SocketAddrV4, flags: u8, sequence: u32, acknowledgement: u32) -> Vec<u8> {
    let mut segment = [&from.port().to_be_bytes()[..], &to.port().to_be_bytes()].concat();
    segment.extend(sequence.to_be_bytes());
    segment.extend(acknowledgement.to_be_bytes());
    segment.extend([0x50, flags, 0xfa, 0xf0, 0, 0, 0, 0]);
    ipv4(from, to, 6, segment, 16)
}

fn udp(from: SocketAddrV4, to: SocketAddrV4) -> Vec<u8> {
    let mut datagram = [&from.port().to_be_bytes()[..], &to.port().to_be_bytes()].concat();
    datagram.extend([0, 11, 0, 0, b'w', b'h', b'o']);
    ipv4(from, to, 17, datagram, 6)
}

/// An IPv4 packet (RFC 791) with `body`, whose checksum belongs at `checksum`.
fn ipv4(from: SocketAddrV4, to: SocketAddrV4, protocol: u8, mut body: Vec<u8>, checksum: usize) -> Vec<u8> {
    let addresses = [from.ip().octets(), to.ip().octets()].concat();
    let pseudo = [&addresses[..], &[0, protocol], &(body.len() as u16).to_be_bytes()].concat();
    let sum = internet_checksum(&[&pseudo[..], &body].concat());
    body[checksum..checksum + 2].copy_from_slice(&sum);
    let mut header = vec![0x45, 0];
    header.extend((20 + body.len() as u16).to_be_bytes());
    header.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    header.extend(addresses);
    let sum = internet_checksum(&header);
    header[10..12].copy_from_slice(&sum);
    [header, body].concat()
}

/// RFC 1071.
fn internet_checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

fn own_mac(interface: &str) -> Result<Mac> {
    let addresses = nix::ifaddrs::getifaddrs()?.filter(|address| address.interface_name == interface);
    let mut macs = addresses.filter_map(|address| address.address?.as_link_addr()?.addr());
    macs.next().map(Mac).with_context(|| format!("no interface {interface}"))
}

fn link_address(interface: &str) -> Result<libc::sockaddr_ll> {
    let index = nix::net::if_::if_nametoindex(interface)?;
    // SAFETY: sockaddr_ll is plain data, all zeroes are a valid value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = index.cast_signed();
    Ok(address)
}

fn send(raw: &impl AsRawFd, address: &libc::sockaddr_ll, frame: &[u8]) -> Result<()> {
    // SAFETY: the buffer and the address are valid for the lengths given; the descriptor is open.
    let sent = unsafe {
        libc::sendto(
            raw.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            std::ptr::from_ref(address).cast(),
            size_of::<libc::sockaddr_ll>() as u32,
        )
    };
    if sent >= 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    // A full queue loses packets, as a network does.
    ensure!(error.raw_os_error() == Some(libc::ENOBUFS), "cannot send: {error}");
    Ok(())
}
