//! The generator. Live frames come back with what was last written in them, by whoever had them, so every byte of the
//! headers is written anew; nobody on the way writes into the payload.

use aya_ebpf::{
    bindings::xdp_action::{XDP_ABORTED, XDP_TX},
    helpers::generated::bpf_get_prandom_u32,
    programs::XdpContext,
};
use dataplane_common::{
    headers::{ETH_LEN, IPV4_LEN},
    traffic::{Answer, CLIENT_ADDRESSES, CLIENT_PORTS, CLIENTS, FIRST_PORT, HEADERS, Order},
};

use crate::{ANSWERS, ORDER};

const IP_CHECKSUM: usize = ETH_LEN + 10;
const SOURCE_MAC: usize = 6;
const SOURCE: usize = ETH_LEN + 12;
const DESTINATION: usize = SOURCE + 4;
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
        copy::<HEADERS>(frame, order);
        let client = flow.client.to_be_bytes();
        put(frame + SOURCE, [client[0], client[1]]);
        put(frame + SOURCE + 2, [client[2], client[3]]);
        put(frame + SOURCE_PORT, flow.client_port.to_be_bytes());
        put(frame + DESTINATION_PORT, flow.published.to_be_bytes());
        let address = (flow.client >> 16) + (flow.client & 0xffff);
        let ports = u32::from(flow.client_port) + u32::from(flow.published);
        checksums(frame, order, address, ports);
    }
    XDP_TX
}

/// Fills in a reply of a flow that was opened. `AT`: the length of the tunnel's headers in front of the frame, or 0.
/// `LENGTH`: of all headers.
#[inline(always)]
pub(crate) fn reply<const AT: usize, const LENGTH: usize>(ctx: &XdpContext) -> u32 {
    const { assert!(LENGTH == AT + HEADERS) };
    let Some(order) = ORDER.get_ptr_mut(0) else { return XDP_ABORTED };
    // SAFETY: as in `fill`.
    let order = unsafe { &mut *order };
    let frame = ctx.data();
    if frame + LENGTH > ctx.data_end() {
        return XDP_ABORTED;
    }
    let flow = next_flow(order);
    // SAFETY: the far end writes answers only while flows are opened.
    let Some(answer) = ANSWERS.get_ptr(flow).map(|answer| unsafe { &*answer }) else { return XDP_ABORTED };
    let Answer { server, client, server_port, client_port, task } = *answer;
    let [server_high, server_low, client_high, client_low] =
        [[server[0], server[1]], [server[2], server[3]], [client[0], client[1]], [client[2], client[3]]];
    // SAFETY: within the bounds checked above, and aligned as in `fill`.
    unsafe {
        copy::<LENGTH>(frame, order);
        let frame = frame + AT;
        if AT > 0 {
            put(frame + SOURCE_MAC + 2, [task[0], task[1]]);
            put(frame + SOURCE_MAC + 4, [task[2], task[3]]);
        }
        put(frame + SOURCE, server_high);
        put(frame + SOURCE + 2, server_low);
        put(frame + DESTINATION, client_high);
        put(frame + DESTINATION + 2, client_low);
        put(frame + SOURCE_PORT, server_port);
        put(frame + DESTINATION_PORT, client_port);
        let word = |bytes| u32::from(u16::from_be_bytes(bytes));
        let addresses = word(server_high) + word(server_low) + word(client_high) + word(client_low);
        checksums(frame, order, addresses, word(server_port) + word(client_port));
    }
    XDP_TX
}

/// Fills in both checksums of the frame that begins at `frame`.
///
/// # Safety
/// [`HEADERS`] bytes at `frame` may be written.
#[inline(always)]
unsafe fn checksums(frame: usize, order: &Order, addresses: u32, ports: u32) {
    // SAFETY: as the caller says.
    unsafe {
        put(frame + IP_CHECKSUM, (!fold(order.ip_sum + addresses)).to_be_bytes());
        let sum = fold(order.transport_sum + addresses + ports);
        // All ones, not zero: in UDP a checksum of zero says that there is none, and TCP takes both.
        let checksum = if sum == 0xffff { 0xffff } else { !sum }.to_be_bytes();
        // Constant offsets, for the verifier.
        if usize::from(order.checksum_at) == CHECKSUMS[0] {
            put(frame + CHECKSUMS[0], checksum);
        } else {
            put(frame + CHECKSUMS[1], checksum);
        }
    }
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
    let (flow, published) = (next_flow(order), order.published_at);
    let following = published + order.published_stride;
    order.published_at = if following >= order.published { following - order.published } else { following };
    let client_port = FIRST_PORT + ((flow >> (u32::from(order.port_shift) & 31)) as u16 & (CLIENT_PORTS - 1));
    Flow { client: first + flow, client_port, published: order.first_published + published }
}

/// This frame's flow; moves on. No division: an addition and a comparison.
#[inline(always)]
fn next_flow(order: &mut Order) -> u32 {
    let flow = order.flow;
    let following = flow + order.stride;
    order.flow = if following >= order.flows { following - order.flows } else { following };
    flow
}

/// # Safety
/// `LENGTH` bytes at `frame` may be written.
#[inline(always)]
unsafe fn copy<const LENGTH: usize>(frame: usize, order: &Order) {
    const { assert!(LENGTH.is_multiple_of(8) || LENGTH % 8 == 6) };
    let (count, rest) = (LENGTH / 8, LENGTH / 8 * 8);
    let from = order.headers.as_ptr();
    // SAFETY: as the caller says; `headers` stands at the beginning of a map's value, which is aligned to eight.
    unsafe {
        let (to, words) = (frame as *mut u64, from.cast::<u64>());
        for index in 0..count {
            *to.add(index) = *words.add(index);
        }
        if rest < LENGTH {
            *((frame + rest) as *mut u32) = *from.add(rest).cast::<u32>();
            *((frame + rest + 4) as *mut u16) = *from.add(rest + 4).cast::<u16>();
        }
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
