//! Turning an offload of an interface off, by ethtool's ioctl (`<linux/ethtool.h>`).

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

/// Segmentation of UDP by the device (`UDP_SEGMENT`, as QUIC senders use). A datagram that is cut only after it has been
/// through a tunnel program still counts as tunnelled there, and the receiving end cuts it wrongly: the container's stack
/// must do it before the packet reaches us.
pub(super) const UDP_SEGMENTATION: &str = "tx-udp-segmentation";

const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_SFEATURES: u32 = 0x3b;
const ETH_SS_FEATURES: u32 = 4;
const ETH_GSTRING_LEN: usize = 32;
const SIOCETHTOOL: libc::Ioctl = 0x8946;

/// Turns `feature` off on the interface `name` of the namespace in which `socket` (any socket) was opened. An interface
/// or kernel that does not know the feature is as good as one that has it off.
///
/// # Errors
/// The kernel's: `ENODEV` without such an interface, `EPERM` without `CAP_NET_ADMIN`.
pub(super) fn disable(socket: BorrowedFd<'_>, name: &str, feature: &str) -> io::Result<()> {
    let device = Device { socket, name };
    let names = device.feature_names()?;
    let Some(index) = names.iter().position(|known| known == feature) else { return Ok(()) };
    // Blocks of (which bits are meant, what they shall be), 32 features each.
    let blocks = names.len().div_ceil(32);
    let mut request = vec![0u32; 2 + 2 * blocks];
    request[0] = ETHTOOL_SFEATURES;
    request[1] = blocks as u32;
    request[2 + 2 * (index / 32)] = 1 << (index % 32);
    device.call(&mut request)
}

struct Device<'a> {
    socket: BorrowedFd<'a>,
    name: &'a str,
}

impl Device<'_> {
    fn feature_names(&self) -> io::Result<Vec<String>> {
        // Command, reserved, 64-bit mask of string sets, number of strings in the one that is asked for.
        let mut info = [ETHTOOL_GSSET_INFO, 0, 0, 0, 0, 0];
        let mask = (1u64 << ETH_SS_FEATURES).to_ne_bytes();
        let half = |at: usize| u32::from_ne_bytes([mask[at], mask[at + 1], mask[at + 2], mask[at + 3]]);
        (info[2], info[3]) = (half(0), half(4));
        self.call(&mut info)?;
        let count = info[4] as usize;
        // Command, string set, number, then 32 bytes each.
        let mut strings = vec![0u32; 3 + count * ETH_GSTRING_LEN / 4];
        strings[..3].copy_from_slice(&[ETHTOOL_GSTRINGS, ETH_SS_FEATURES, count as u32]);
        self.call(&mut strings)?;
        let bytes: Vec<u8> = strings[3..].iter().flat_map(|word| word.to_ne_bytes()).collect();
        let text = |raw: &[u8]| String::from_utf8_lossy(raw.split(|b| *b == 0).next().unwrap_or_default()).into_owned();
        Ok(bytes.chunks(ETH_GSTRING_LEN).map(text).collect())
    }

    /// One request, answered in place.
    fn call(&self, data: &mut [u32]) -> io::Result<()> {
        // SAFETY: all zeroes are a valid ifreq.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        if self.name.len() >= request.ifr_name.len() {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        for (to, from) in request.ifr_name.iter_mut().zip(self.name.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_data = data.as_mut_ptr().cast();
        // SAFETY: `data` is as large as its own header says, which bounds what the kernel reads and writes.
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::{net::UdpSocket, os::fd::AsFd};

    use super::*;

    #[test]
    fn the_kernel_knows_the_feature_and_refuses_unknown_interfaces() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let names = Device { socket: socket.as_fd(), name: "lo" }.feature_names().unwrap();
        assert!(names.iter().any(|name| name == UDP_SEGMENTATION), "{names:?}");
        let error = disable(socket.as_fd(), "no-such-if", UDP_SEGMENTATION).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    }
}
