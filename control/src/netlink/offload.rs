//! Offloads of an interface, read and turned on and off, and its driver's name, by ethtool's ioctl
//! (`<linux/ethtool.h>`).

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

/// Segmentation by the device of UDP (`UDP_SEGMENT`, as QUIC senders use) and SCTP. A packet that is cut only after it
/// has been through a tunnel program still counts as tunnelled there, and the receiving end cuts it wrongly: the
/// container's stack must do it before the packet reaches us.
pub const LATE_SEGMENTATION: [&str; 2] = ["tx-udp-segmentation", "tx-sctp-segmentation"];

const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GFEATURES: u32 = 0x3a;
const ETHTOOL_SFEATURES: u32 = 0x3b;
const ETH_SS_FEATURES: u32 = 4;
const ETH_GSTRING_LEN: usize = 32;
const SIOCETHTOOL: libc::Ioctl = 0x8946;

/// Turns `feature` on or off on the interface `name` of the namespace in which `socket` (any socket) was opened. An
/// interface or kernel that does not know the feature is as good as one that has it off.
///
/// # Errors
/// The kernel's: `ENODEV` without such an interface, `EPERM` without `CAP_NET_ADMIN`.
pub(super) fn set(socket: BorrowedFd<'_>, name: &str, feature: &str, on: bool) -> io::Result<()> {
    let device = Device { socket, name };
    let Some(place) = device.place(feature)? else { return Ok(()) };
    // Blocks of (which bits are meant, what they shall be), 32 features each.
    let mut request = vec![0u32; 2 + 2 * place.blocks];
    (request[0], request[1]) = (ETHTOOL_SFEATURES, place.blocks as u32);
    let block = 2 + 2 * place.block;
    request[block] = place.bit;
    request[block + 1] = if on { place.bit } else { 0 };
    device.call(&mut request)
}

/// Whether `feature` is on; as [`set`] for one that is not known.
///
/// # Errors
/// As [`set`].
pub(super) fn is_on(socket: BorrowedFd<'_>, name: &str, feature: &str) -> io::Result<bool> {
    let device = Device { socket, name };
    let Some(place) = device.place(feature)? else { return Ok(false) };
    Ok(device.active(place.blocks)?[place.block] & place.bit != 0)
}

/// All features that the kernel names, and whether each is on, as `ethtool -k` lists them.
///
/// # Errors
/// As [`set`].
pub(super) fn all(socket: BorrowedFd<'_>, name: &str) -> io::Result<BTreeMap<String, bool>> {
    let device = Device { socket, name };
    let names = device.feature_names()?;
    let active = device.active(names.len().div_ceil(32))?;
    let on = |(at, name): (usize, String)| (name, active[at / 32] & 1 << (at % 32) != 0);
    // Numbers that the kernel does not use have no names.
    Ok(names.into_iter().enumerate().filter(|(_, name)| !name.is_empty()).map(on).collect())
}

/// What the driver calls itself.
///
/// # Errors
/// As [`set`]; `EOPNOTSUPP` where the driver does not say.
pub(super) fn driver(socket: BorrowedFd<'_>, name: &str) -> io::Result<String> {
    // `struct ethtool_drvinfo`: the command, then names of 32 bytes, of which the driver's is the first.
    let mut info = [0u32; 49];
    info[0] = ETHTOOL_GDRVINFO;
    Device { socket, name }.call(&mut info)?;
    Ok(text(&info[1..1 + ETH_GSTRING_LEN / 4]))
}

/// A string of the kernel's, which ends at the first zero byte.
fn text(words: &[u32]) -> String {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

/// Where the kernel's bit masks have a feature.
struct Place {
    blocks: usize,
    block: usize,
    bit: u32,
}

struct Device<'a> {
    socket: BorrowedFd<'a>,
    name: &'a str,
}

impl Device<'_> {
    fn place(&self, feature: &str) -> io::Result<Option<Place>> {
        let names = self.feature_names()?;
        let index = names.iter().position(|known| known == feature);
        Ok(index.map(|index| Place { blocks: names.len().div_ceil(32), block: index / 32, bit: 1 << (index % 32) }))
    }

    /// Which features are on, in blocks of 32.
    fn active(&self, blocks: usize) -> io::Result<Vec<u32>> {
        // Blocks of (available, requested, active, never changed).
        let mut request = vec![0u32; 2 + 4 * blocks];
        (request[0], request[1]) = (ETHTOOL_GFEATURES, blocks as u32);
        self.call(&mut request)?;
        Ok(request[2..].chunks(4).map(|block| block[2]).collect())
    }

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
        Ok(strings[3..].chunks(ETH_GSTRING_LEN / 4).map(text).collect())
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
    fn the_kernel_knows_the_features_and_refuses_unknown_interfaces() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let names = Device { socket: socket.as_fd(), name: "lo" }.feature_names().unwrap();
        for feature in LATE_SEGMENTATION {
            assert!(names.iter().any(|name| name == feature), "{names:?}");
            is_on(socket.as_fd(), "lo", feature).unwrap();
            let error = set(socket.as_fd(), "no-such-if", feature, false).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
        }
    }

    #[test]
    fn all_features_are_listed_as_each_alone_is_read() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let features = all(socket.as_fd(), "lo").unwrap();
        assert!(features.values().any(|on| *on) && features.values().any(|on| !on), "{features:?}");
        for (feature, on) in &features {
            assert_eq!(is_on(socket.as_fd(), "lo", feature).unwrap(), *on, "{feature}");
        }
        for read in [all(socket.as_fd(), "no-such-if").err(), driver(socket.as_fd(), "no-such-if").err()] {
            assert_eq!(read.unwrap().raw_os_error(), Some(libc::ENODEV));
        }
    }
}
