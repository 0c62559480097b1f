//! A packet in memory, with what the kernel's helpers do to one.

use core::cell::RefCell;
use std::vec::Vec;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{Edit, Failed, PACKET_HOST, View, csum};

/// A frame and its metadata. Checksums are whole, as on the wire.
#[derive(Clone, Debug)]
pub struct Bytes {
    bytes: RefCell<Vec<u8>>,
    /// See [`View::gso_size`].
    pub gso_size: u32,
    /// See [`View::vlan_tci`].
    pub vlan_tci: Option<u16>,
    /// See [`View::pkt_type`].
    pub pkt_type: u32,
}

impl Bytes {
    /// A frame for this interface, in no VLAN and of one segment.
    pub fn new(bytes: &[u8]) -> Self {
        Self { bytes: RefCell::new(bytes.to_vec()), gso_size: 0, vlan_tci: None, pkt_type: PACKET_HOST }
    }

    /// The frame as it is now.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes.into_inner()
    }

    /// Runs `change` on the 16-bit word at `offset`, in the packet's byte order.
    fn word(&self, offset: usize, change: impl FnOnce(u16) -> u16) -> Result<(), Failed> {
        // As the helpers refuse it.
        if offset > 0xffff || !offset.is_multiple_of(2) {
            return Err(Failed);
        }
        let mut bytes = self.bytes.borrow_mut();
        let word = bytes.get_mut(offset..offset + 2).ok_or(Failed)?;
        let old = u16::from_ne_bytes([word[0], word[1]]);
        word.copy_from_slice(&change(old).to_ne_bytes());
        Ok(())
    }
}

impl View for Bytes {
    fn load<T: FromBytes>(&self, offset: usize) -> Result<T, Failed> {
        let bytes = self.bytes.borrow();
        let from = bytes.get(offset..).ok_or(Failed)?;
        T::read_from_prefix(from).map(|(value, _)| value).map_err(|_| Failed)
    }

    fn load_to(&self, offset: usize, to: &mut [u8]) -> Result<(), Failed> {
        // As the helper refuses it.
        if to.is_empty() {
            return Err(Failed);
        }
        let bytes = self.bytes.borrow();
        to.copy_from_slice(bytes.get(offset..).and_then(|from| from.get(..to.len())).ok_or(Failed)?);
        Ok(())
    }

    fn frame_len(&self) -> u32 {
        self.bytes.borrow().len() as u32
    }

    fn gso_size(&self) -> u32 {
        self.gso_size
    }

    fn vlan_tci(&self) -> Option<u16> {
        self.vlan_tci
    }

    fn pkt_type(&self) -> u32 {
        self.pkt_type
    }
}

impl Edit for Bytes {
    fn store<T: IntoBytes + Immutable>(&self, offset: usize, value: &T) -> Result<(), Failed> {
        let value = value.as_bytes();
        let mut bytes = self.bytes.borrow_mut();
        bytes.get_mut(offset..offset + value.len()).ok_or(Failed)?.copy_from_slice(value);
        Ok(())
    }

    fn l3_csum_replace(&self, offset: usize, from: u64, to: u64, size: u64) -> Result<(), Failed> {
        self.word(offset, |sum| replaced(sum, from, to, size))
    }

    fn l4_csum_replace(&self, offset: usize, from: u64, to: u64, flags: u64) -> Result<(), Failed> {
        const SIZE: u64 = 0x0f;
        let none_stays = flags & csum::MARK_MANGLED_0 != 0;
        self.word(offset, |sum| {
            if none_stays && sum == 0 {
                return 0;
            }
            match replaced(sum, from, to, flags & SIZE) {
                0 if none_stays => 0xffff,
                sum => sum,
            }
        })
    }
}

/// The checksum `sum` after `size` bytes that were `from` have become `to`, or with size 0 after the sum of them has
/// become larger by `to` (RFC 1624, equation 3).
fn replaced(sum: u16, from: u64, to: u64, size: u64) -> u16 {
    let words = |value: u64| {
        let value = if size == 2 { value & 0xffff } else { value & 0xffff_ffff };
        (value & 0xffff) + (value >> 16)
    };
    let mut folded = u64::from(!sum) + (0xffff * 2 - words(from)) + words(to);
    while folded > 0xffff {
        folded = (folded & 0xffff) + (folded >> 16);
    }
    !(folded as u16)
}
