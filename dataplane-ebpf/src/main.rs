//! Hiveway's data plane: TC programs at eight hooks, and an XDP program in front of them. Each entry point below is one
//! hook; where a packet's fate is decided is one file away.
//!
//! Every TC program computes `Result<Action, DropReason>` and folds it into a TC verdict in [`verdict::fold`], the only
//! place that drops a packet.
#![no_std]
#![no_main]
// One instruction (fetch-and-add) that the target's core library does not offer; see `service`.
#![feature(asm_experimental_arch)]
#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "keys and values in scratch memory are passed by address; by value they would be copied onto the stack"
)]
#![expect(missing_docs, unreachable_pub, reason = "the classifier macro generates the exported symbols without docs")]

mod admission;
mod affinity;
mod arp;
mod atomics;
mod client;
mod client_lines;
mod clock;
mod container;
mod decap;
mod deliver;
mod direct;
mod echo;
mod encap;
mod fib;
mod flow;
mod flow_lines;
mod follow;
mod fragment;
mod gateway;
mod global;
mod group;
mod host;
mod icmp;
mod left;
mod lines_map;
mod maps;
mod mesh_backend;
mod mesh_direct;
mod mesh_ingress;
mod mesh_stock;
mod nat;
mod next_hop;
mod no_ethernet;
mod opening;
mod outside;
mod path;
mod pending;
mod probe;
mod reject;
mod returns;
mod reverse;
mod sandbox;
mod scratch;
mod sender;
mod service;
mod shares;
mod skb;
mod slow_path;
mod ttl;
mod tunnel;
mod underlay;
mod verdict;
mod vip;
mod xdp;

use aya_ebpf::{
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use dataplane_common::{headers::ETH_LEN, mark::l3_program};
use dataplane_core::{
    age, checksum, connection, ending, headers, ingress, lines, mss, notes, options, parse, proof, quote, segment,
    succession, timestamp,
};

use self::skb::Skb;

// Each is inlined into the function that its macro makes, which would be a frame more otherwise.

/// Host side of a container's overlay veth.
#[classifier]
#[inline(always)]
pub fn from_container(ctx: TcContext) -> i32 {
    let ctx = Skb(ctx);
    verdict::fold(&ctx, container::handle(&ctx))
}

/// Host side of a container's gateway-bridge veth.
#[classifier]
#[inline(always)]
pub fn from_gateway(ctx: TcContext) -> i32 {
    let ctx = Skb(ctx);
    verdict::fold(&ctx, gateway::handle(&ctx))
}

/// The interface that carries the VTEP.
#[classifier]
#[inline(always)]
pub fn from_underlay(ctx: TcContext) -> i32 {
    let ctx = Skb(ctx);
    verdict::fold(&ctx, underlay::handle(&ctx))
}

/// Any other interface where clients of the routing mesh arrive.
#[classifier]
#[inline(always)]
pub fn from_client(ctx: TcContext) -> i32 {
    let ctx = Skb(ctx);
    verdict::fold(&ctx, client::handle(&ctx))
}

/// `from_underlay` on a link without an Ethernet header.
#[classifier]
#[inline(always)]
pub fn from_underlay_l3(ctx: TcContext) -> i32 {
    let ctx = Skb(ctx);
    no_ethernet::enter(&ctx, l3_program::UNDERLAY)
}

/// `from_client` on a link without an Ethernet header.
#[classifier]
#[inline(always)]
pub fn from_client_l3(ctx: TcContext) -> i32 {
    let ctx = Skb(ctx);
    no_ethernet::enter(&ctx, l3_program::CLIENT)
}

/// A kernel vxlan device: the slow path's receiving end.
#[classifier]
#[inline(always)]
pub fn from_vxlan(ctx: TcContext) -> i32 {
    let ctx = Skb(ctx);
    verdict::fold(&ctx, slow_path::handle(&ctx))
}

/// The way out: TC egress of the underlay and of every other interface where clients arrive.
#[classifier]
#[inline(always)]
pub fn to_outside(ctx: TcContext) -> i32 {
    let ctx = Skb(ctx);
    verdict::fold(&ctx, outside::handle::<ETH_LEN>(&ctx))
}

/// `to_outside` on a link without an Ethernet header.
#[classifier]
#[inline(always)]
pub fn to_outside_l3(ctx: TcContext) -> i32 {
    let ctx = Skb(ctx);
    verdict::fold(&ctx, outside::handle::<0>(&ctx))
}

/// A container's own interface on a network that the engine carries, its way out. Called by the interface's trampoline.
#[classifier]
#[inline(always)]
pub fn from_sandbox(ctx: TcContext) -> i32 {
    let ctx = Skb(ctx);
    verdict::fold_out(&ctx, sandbox::from(&ctx))
}

/// The same interface's way in.
#[classifier]
#[inline(always)]
pub fn to_sandbox(ctx: TcContext) -> i32 {
    let ctx = Skb(ctx);
    verdict::fold(&ctx, sandbox::to(&ctx))
}

/// Where clients arrive, and the VTEP's interface, in front of everything else: the routing mesh's hot path.
#[xdp]
#[inline(always)]
pub fn xdp_mesh(ctx: XdpContext) -> u32 {
    xdp::handle(&ctx)
}

/// The same in a driver. It declares that it copes with frames in several buffers, so that drivers take it at MTUs of
/// more than a page: it sees the first buffer, and leaves to TC what does not lie in it.
///
/// Not for generic mode: there the kernel copies the packet for such a program and forgets the length of its Ethernet
/// header (`skb_pp_cow_data`, as of Linux 6.18), and TC programs behind it would see a packet without one.
#[xdp(frags)]
#[inline(always)]
pub fn xdp_mesh_frags(ctx: XdpContext) -> u32 {
    xdp::handle(&ctx)
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: nothing here can panic: the verifier rejects the loop that a reachable one would be.
    unsafe { core::hint::unreachable_unchecked() }
}

/// The kernel allows the helpers we need only to programs under a GPL-compatible licence.
// SAFETY: the section is read by the loader only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
