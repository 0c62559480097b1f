//! How large a GSO and GRO packet of IPv4 may be on an interface (`IFLA_GSO_IPV4_MAX_SIZE`, `IFLA_GRO_IPV4_MAX_SIZE`):
//! above 64 kB this is BIG TCP. Debian 12's `ip` has no word for it.

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, ensure};
use nix::net::if_::if_nametoindex;

/// `<linux/if_link.h>`.
const IFLA_GSO_IPV4_MAX_SIZE: u16 = 63;
const IFLA_GRO_IPV4_MAX_SIZE: u16 = 64;

/// Sets both for `interface` of this network namespace, in bytes.
pub(crate) fn set(interface: &str, size: u32) -> Result<()> {
    let index = if_nametoindex(interface).with_context(|| format!("interface {interface}"))?;
    // struct nlmsghdr, struct ifinfomsg, two attributes of eight bytes.
    let mut message = Vec::with_capacity(48);
    message.extend(48u32.to_ne_bytes());
    message.extend(libc::RTM_SETLINK.to_ne_bytes());
    message.extend(((libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16).to_ne_bytes());
    message.extend([0; 8]);
    message.extend([0; 4]);
    message.extend(index.to_ne_bytes());
    message.extend([0; 8]);
    for kind in [IFLA_GSO_IPV4_MAX_SIZE, IFLA_GRO_IPV4_MAX_SIZE] {
        message.extend(8u16.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(size.to_ne_bytes());
    }
    // SAFETY: no pointers; the result is checked.
    let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE) };
    ensure!(fd >= 0, "netlink: {}", std::io::Error::last_os_error());
    // SAFETY: just opened, and not known elsewhere.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: the buffer is valid for its length.
    let sent = unsafe { libc::send(socket.as_raw_fd(), message.as_ptr().cast(), message.len(), 0) };
    ensure!(sent == 48, "netlink: {}", std::io::Error::last_os_error());
    let mut answer = [0u8; 1024];
    // SAFETY: likewise.
    let got = unsafe { libc::recv(socket.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0) };
    ensure!(got >= 20, "netlink: {}", std::io::Error::last_os_error());
    let errno = -i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
    ensure!(errno == 0, "{interface} refuses {size}: {}", std::io::Error::from_raw_os_error(errno));
    Ok(())
}
