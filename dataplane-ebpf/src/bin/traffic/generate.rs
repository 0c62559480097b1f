//! The generator. Live frames come back with what was last written in them, by whoever had them, so every byte of the
//! headers is written anew; nobody on the way writes into the payload.

use aya_ebpf::{
    bindings::xdp_action::{XDP_ABORTED, XDP_TX},
    helpers::generated::bpf_get_prandom_u32,
    programs::XdpContext,
};
use dataplane_common::{
    headers::{ETH_LEN, IPV4_LEN},
    traffic::{CLIENT_ADDRESSES, CLIENT_PORTS, CLIENTS, FIRST_PORT, HEADERS, Order},
};

use crate::ORDER;

const IP_CHECKSUM: usize = ETH_LEN + 10;
const SOURCE: usize = ETH_LEN + 12;
const SOURCE_PORT: usize = ETH_LEN + IPV4_LEN;
const DESTINATION_PORT: usize = SOURCE_PORT + 2;
/// UDP's checksum, and TCP's.
const CHECKSUMS: [usize; 2] = [SOURCE_PORT + 6, SOURCE_PORT + 16];

/// The part of the headers that differs from frame to frame.
struct Flow {
    /// The client's address.
    client: u32,
    client_port: u16,
    published: u16,
}

#[inline(always)]
pub(crate) fn fill(ctx: &XdpContext) -> u32 {
    let Some(order) = ORDER.get_ptr_mut(0) else { return XDP_ABORTED };
    // SAFETY: one generator runs at a time, on one CPU, and user space writes an order only between its runs.
    let order = unsafe { &mut *order };
    let frame = ctx.data();
    if frame + HEADERS > ctx.data_end() {
        return XDP_ABORTED;
    }
    let flow = next(order);
    // SAFETY: within the bounds checked above. Frames begin at a multiple of eight, so these are aligned.
    unsafe {
        copy(frame, order);
        let client = flow.client.to_be_bytes();
        put(frame + SOURCE, [client[0], client[1]]);
        put(frame + SOURCE + 2, [client[2], client[3]]);
        put(frame + SOURCE_PORT, flow.client_port.to_be_bytes());
        put(frame + DESTINATION_PORT, flow.published.to_be_bytes());
        let address = (flow.client >> 16) + (flow.client & 0xffff);
        put(frame + IP_CHECKSUM, (!fold(order.ip_sum + address)).to_be_bytes());
        let ports = u32::from(flow.client_port) + u32::from(flow.published);
        let sum = fold(order.transport_sum + address + ports);
        // All ones, not zero: in UDP a checksum of zero says that there is none, and TCP takes both.
        let checksum = if sum == 0xffff { 0xffff } else { !sum }.to_be_bytes();
        // Constant offsets, for the verifier.
        if usize::from(order.checksum_at) == CHECKSUMS[0] {
            put(frame + CHECKSUMS[0], checksum);
        } else {
            put(frame + CHECKSUMS[1], checksum);
        }
    }
    XDP_TX
}

#[inline(always)]
fn next(order: &mut Order) -> Flow {
    let first = u32::from_be_bytes(CLIENTS);
    if order.flows == 0 {
        // SAFETY: the helper takes nothing and cannot fail.
        let random = unsafe { bpf_get_prandom_u32() };
        // SAFETY: the helper takes nothing and only returns a number.
        let more = unsafe { bpf_get_prandom_u32() };
        let client_port = FIRST_PORT + (more as u16 & (CLIENT_PORTS - 1));
        let client = first + (random & (CLIENT_ADDRESSES - 1));
        return Flow { client, client_port, published: order.first_published };
    }
    let (flow, published) = (order.flow, order.published_at);
    // No division: two additions and two comparisons.
    let following = flow + order.stride;
    order.flow = if following >= order.flows { following - order.flows } else { following };
    let following = published + order.published_stride;
    order.published_at = if following >= order.published { following - order.published } else { following };
    let client_port = FIRST_PORT + ((flow >> (order.port_shift & 31)) as u16 & (CLIENT_PORTS - 1));
    Flow { client: first + flow, client_port, published: order.first_published + published }
}

/// # Safety
/// [`HEADERS`] bytes at `frame` may be written.
#[inline(always)]
unsafe fn copy(frame: usize, order: &Order) {
    const WORDS: usize = HEADERS / 8;
    const REST: usize = WORDS * 8;
    let from = order.headers.as_ptr();
    // SAFETY: as the caller says; `headers` stands at the beginning of a map's value, which is aligned to eight.
    unsafe {
        let (to, words) = (frame as *mut u64, from.cast::<u64>());
        for index in 0..WORDS {
            *to.add(index) = *words.add(index);
        }
        *((frame + REST) as *mut u32) = *from.add(REST).cast::<u32>();
        *((frame + REST + 4) as *mut u16) = *from.add(REST + 4).cast::<u16>();
    }
}

/// # Safety
/// Two bytes at `at` may be written, and `at` is even.
#[inline(always)]
unsafe fn put(at: usize, bytes: [u8; 2]) {
    // SAFETY: as the caller says.
    unsafe { *(at as *mut u16) = u16::from_ne_bytes(bytes) };
}

/// RFC 1071, not complemented.
#[inline(always)]
fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}
