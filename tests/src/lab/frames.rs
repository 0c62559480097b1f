//! Sending a frame exactly as given, which no well-behaved program would.

use std::{ffi::CString, io, mem, os::fd::AsRawFd as _};

use anyhow::{Context as _, Result, bail};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::Netns;

impl Netns {
    /// Sends one Ethernet frame out of an interface of this namespace.
    pub fn send_frame(&self, interface: &str, frame: &[u8]) -> Result<()> {
        self.send_frames(interface, frame, 1)
    }

    /// Sends the same frame many times, as fast as it goes.
    pub fn send_frames(&self, interface: &str, frame: &[u8], count: u32) -> Result<()> {
        self.enter(|| send(interface, frame, count))?
    }
}

fn send(interface: &str, frame: &[u8], count: u32) -> Result<()> {
    let raw = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None).context("packet socket")?;
    let name = CString::new(interface)?;
    // SAFETY: `name` is a terminated string that outlives the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 {
        bail!("no interface {interface}: {}", io::Error::last_os_error());
    }
    // SAFETY: sockaddr_ll is plain data, all zeroes are a valid value.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = index.cast_signed();
    for _ in 0..count {
        // SAFETY: the buffer and the address are valid for the lengths given; the descriptor is open.
        let sent = unsafe {
            libc::sendto(
                raw.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const address).cast(),
                mem::size_of_val(&address) as u32,
            )
        };
        if sent < 0 {
            bail!("cannot send on {interface}: {}", io::Error::last_os_error());
        }
    }
    Ok(())
}
