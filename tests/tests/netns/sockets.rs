//! UDP sockets of a scenario's own in a lab's namespaces, for what tools do not show.

use std::{
    io,
    net::UdpSocket,
    os::fd::AsRawFd as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use hiveway_tests::lab::{Netns, PATIENCE, wait_for};

/// A socket bound to `port` (0: any) in `netns`. It stays there, whoever uses it. Reads give up after a while.
pub(crate) fn udp(netns: &Netns, port: u16) -> Result<UdpSocket> {
    // A process that another scenario is starting holds a copy of a socket that was just closed, until it is another
    // program.
    let socket = wait_for(&format!("port {port} to be free"), PATIENCE, || {
        netns.enter(|| UdpSocket::bind(("0.0.0.0", port)))?.context("bind")
    })?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// A socket connected to `target`.
pub(crate) fn connected(netns: &Netns, target: &str) -> Result<UdpSocket> {
    let socket = udp(netns, 0)?;
    socket.connect(target).with_context(|| format!("connect to {target}"))?;
    Ok(socket)
}

/// Sets an `IPPROTO_IP` option.
pub(crate) fn set_ip(socket: &UdpSocket, name: i32, value: i32) -> Result<()> {
    // SAFETY: the descriptor is open and the value lives on our stack with the length given.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, name, (&raw const value).cast(), size_of::<i32>() as u32)
    };
    ensure!(result == 0, "setsockopt {name}: {}", io::Error::last_os_error());
    Ok(())
}

/// The path MTU that the kernel knows for a connected socket.
pub(crate) fn path_mtu(socket: &UdpSocket) -> Result<i32> {
    let (mut value, mut length) = (0i32, size_of::<i32>() as u32);
    // SAFETY: value and length live on our stack.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_MTU, (&raw mut value).cast(), &raw mut length)
    };
    ensure!(result == 0, "getsockopt IP_MTU: {}", io::Error::last_os_error());
    Ok(value)
}

/// Sends from a connected socket, again and again as datagrams may be lost, until the kernel reports `errno` for it.
pub(crate) fn send_until_error(socket: &UdpSocket, payload: &[u8], errno: i32) -> Result<()> {
    socket.set_read_timeout(Some(Duration::from_millis(300)))?;
    let started = Instant::now();
    let mut last = String::from("nothing");
    while started.elapsed() < PATIENCE {
        for outcome in [socket.send(payload), socket.recv(&mut [0; 2048])] {
            match outcome {
                Err(error) if error.raw_os_error() == Some(errno) => return Ok(()),
                other => last = format!("{other:?}"),
            }
        }
    }
    bail!("instead of error {errno} the kernel reports {last}")
}
