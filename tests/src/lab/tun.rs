//! Links without an Ethernet header: TUN devices, between which this process carries packets, as a VPN does.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    net::Ipv4Addr,
    os::fd::AsRawFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result};

use super::Netns;

const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
/// `struct ifreq`: a name, and flags.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// TUN devices that reach each other. They are gone when this is dropped.
#[derive(Debug)]
pub struct Tunnels {
    stop: Arc<AtomicBool>,
    carriers: Vec<JoinHandle<()>>,
}

impl Tunnels {
    /// Makes a device of that name and MTU in each namespace, up and with its address in a /24. What is sent to one of
    /// the addresses comes out of its device; what is sent to others is lost.
    pub fn start(name: &str, mtu: u32, ends: &[(&Netns, Ipv4Addr)]) -> Result<Self> {
        let mut devices = Vec::new();
        for (netns, address) in ends {
            let device = netns.enter(|| open(name, libc::IFF_TUN))??;
            netns.run(&format!("ip addr add {address}/24 dev {name}"))?;
            netns.run(&format!("ip link set {name} mtu {mtu} up"))?;
            devices.push((address.octets(), Arc::new(device)));
        }
        let stop = Arc::new(AtomicBool::new(false));
        let devices = Arc::new(devices);
        let carry = |at: usize| {
            let (stop, devices) = (stop.clone(), devices.clone());
            thread::spawn(move || carry(&stop, &devices, at))
        };
        Ok(Self { carriers: (0..devices.len()).map(carry).collect(), stop })
    }
}

impl Drop for Tunnels {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for carrier in self.carriers.drain(..) {
            let _ = carrier.join();
        }
    }
}

/// Makes a TAP device, which has an Ethernet header, in a namespace. Its carrier is there and the device exists while
/// the file is open; what it sends is read by nothing.
pub fn tap(netns: &Netns, name: &str) -> Result<File> {
    netns.enter(|| open(name, libc::IFF_TAP))?
}

fn open(name: &str, kind: libc::c_int) -> Result<File> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun").context("/dev/net/tun")?;
    let mut request = Request { name: [0; 16], flags: (kind | libc::IFF_NO_PI) as u16, rest: [0; 22] };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: the request has the layout and the length of `struct ifreq`.
    if unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error()).with_context(|| format!("cannot make {name}"));
    }
    Ok(file)
}

/// Hands on what the device `at` sends, until it is told to stop.
fn carry(stop: &AtomicBool, devices: &[([u8; 4], Arc<File>)], at: usize) {
    let from = &devices[at].1;
    let mut packet = vec![0; 65_536];
    while !stop.load(Ordering::Relaxed) {
        let mut ready = libc::pollfd { fd: from.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid entry; the descriptor stays open.
        if unsafe { libc::poll(&raw mut ready, 1, 100) } != 1 {
            continue;
        }
        let Ok(length) = (&**from).read(&mut packet) else { continue };
        let to = devices.iter().find(|(address, _)| packet.get(16..20) == Some(&address[..]));
        if let Some((_, device)) = to.filter(|_| length >= 20) {
            let _ = (&**device).write(&packet[..length]);
        }
    }
}
