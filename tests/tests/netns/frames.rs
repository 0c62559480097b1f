//! Addresses as they stand in frames of a scenario's own making.

use std::net::Ipv4Addr;

pub(crate) fn mac(text: &str) -> [u8; 6] {
    let mut bytes = [0; 6];
    for (byte, part) in bytes.iter_mut().zip(text.split(':')) {
        *byte = u8::from_str_radix(part, 16).unwrap_or_default();
    }
    bytes
}

pub(crate) fn ip(text: &str) -> [u8; 4] {
    text.parse::<Ipv4Addr>().map(|ip| ip.octets()).unwrap_or_default()
}
