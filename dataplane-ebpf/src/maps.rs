//! All maps. Their meaning, keys and values are documented in `dataplane-common` and `docs/maps.md`.

use core::arch::asm;

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, bpf_fib_lookup},
    btf_maps::{Array, ArrayOfMaps, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray},
    macros::btf_map,
};
use dataplane_common::{
    addr::{Ip4, VniBytes},
    config::Config,
    counter::{COUNTER_SLOTS, Stat},
    drop_reason::{DROP_SLOTS, DropReason},
    endpoint::{Endpoint, EndpointKey, Local, VniInfo, Vtep},
    flow::{Affinity, AffinityKey, DirectGate, Flow, FlowKey, MAX_FLOWS, MAX_PENDING, pending},
    fragment::{FragmentKey, Fragmented, MAX_FRAGMENTED},
    group::MAX_INTERFACES,
    headers::ipproto,
    mark::{l3_program, sandbox_program},
    mesh::{ClientPrefix, ClientRule, MAX_NODE_ADDRESSES, NodeAddress, Target, TargetKey},
    path::{MAX_PATHS, Path, PathState},
    probe::{Probe, Probed},
    reverse::{MAX_REVERSE, ReversePath},
    service::{AllowPrefix, Backend, LeftPrefix, MAX_ACCESS, MAX_BACKENDS, MAX_SETS, PortKey, PublishedPort},
    shares::Shares,
    xdp::{HopWords, MAX_DEVICES, MAX_HOPS, XdpDevice, XdpState},
};

use crate::{flow::NewFlow, options::Room, parse::Packet, quote::Quote, timestamp::Walk};

// Connection tables grow with use: preallocating a quarter of a million flows would cost tens of MB on an idle node.
const GROWING: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map]
pub(crate) static CONFIG: Array<Config, 1> = Array::new();
#[btf_map]
pub(crate) static LOCALS: HashMap<u32, Local, 16_384, GROWING> = HashMap::new();
#[btf_map]
pub(crate) static ENDPOINTS: HashMap<EndpointKey, Endpoint, 262_144, GROWING> = HashMap::new();
#[btf_map]
pub(crate) static VNIS: HashMap<VniBytes, VniInfo, 4_096, GROWING> = HashMap::new();
#[btf_map]
pub(crate) static VTEPS: HashMap<Ip4, Vtep, 16_384, GROWING> = HashMap::new();
#[btf_map]
pub(crate) static NODE_ADDRESSES: HashMap<Ip4, NodeAddress, { MAX_NODE_ADDRESSES as usize }, GROWING> = HashMap::new();
#[btf_map]
pub(crate) static PORTS: HashMap<PortKey, PublishedPort, 65_536, GROWING> = HashMap::new();
#[btf_map]
pub(crate) static SETS: Array<u64, { MAX_SETS as usize }, { BPF_F_MMAPABLE as usize }> = Array::new();
#[btf_map]
pub(crate) static CURSORS: Array<u64, { MAX_SETS as usize }> = Array::new();
#[btf_map]
pub(crate) static BACKENDS: Array<Backend, { MAX_BACKENDS as usize }> = Array::new();
#[btf_map]
pub(crate) static MESH_TARGETS: HashMap<TargetKey, Target, 65_536, GROWING> = HashMap::new();
#[btf_map]
pub(crate) static AFFINITY: HashMap<AffinityKey, Affinity, { MAX_FLOWS as usize }, GROWING> = HashMap::new();
#[btf_map]
pub(crate) static FLOWS: HashMap<FlowKey, Flow, { MAX_FLOWS as usize }, GROWING> = HashMap::new();
#[btf_map]
pub(crate) static SHARES: Array<Shares, 1, { BPF_F_MMAPABLE as usize }> = Array::new();

/// Connections that have proved nothing yet.
type PendingAffinity = LruHashMap<AffinityKey, Affinity, { MAX_PENDING as usize }>;
type PendingFlows = LruHashMap<FlowKey, Flow, { MAX_PENDING as usize }>;
#[btf_map]
pub(crate) static AFFINITY_PENDING: PendingAffinity = LruHashMap::new();
#[btf_map]
pub(crate) static AFFINITY_PENDING_OTHER: PendingAffinity = LruHashMap::new();
#[btf_map]
pub(crate) static FLOWS_PENDING: PendingFlows = LruHashMap::new();
#[btf_map]
pub(crate) static FLOWS_PENDING_OTHER: PendingFlows = LruHashMap::new();
// What programs reach those four through; filled before any is attached, and not pinned.
// VERIFIER: were the table chosen by a branch, all that follows a look-up would be verified once for each table.
#[btf_map]
static AFFINITY_PENDING_BY: ArrayOfMaps<PendingAffinity, { pending::COUNT as usize }> = ArrayOfMaps::new();
#[btf_map]
static FLOWS_PENDING_BY: ArrayOfMaps<PendingFlows, { pending::COUNT as usize }> = ArrayOfMaps::new();
#[btf_map]
pub(crate) static DIRECT_GATE: Array<DirectGate, 1, { BPF_F_MMAPABLE as usize }> = Array::new();
#[btf_map]
pub(crate) static ALLOW: LpmTrie<AllowPrefix, u32, { MAX_ACCESS as usize }, GROWING> = LpmTrie::new();
#[btf_map]
pub(crate) static LEFT: LpmTrie<LeftPrefix, u32, 262_144, GROWING> = LpmTrie::new();
#[btf_map]
pub(crate) static CLIENTS: LpmTrie<ClientPrefix, ClientRule, 65_536, GROWING> = LpmTrie::new();
#[btf_map]
pub(crate) static XDP_DEVICES: HashMap<u32, XdpDevice, { MAX_DEVICES as usize }, GROWING> = HashMap::new();
#[btf_map]
pub(crate) static XDP_STATE: Array<XdpState, 1, { BPF_F_MMAPABLE as usize }> = Array::new();
#[btf_map]
pub(crate) static HOPS: Array<HopWords, { MAX_HOPS as usize }, { BPF_F_MMAPABLE as usize }> = Array::new();
#[btf_map]
pub(crate) static PATHS: HashMap<Ip4, Path, { MAX_PATHS as usize }, GROWING> = HashMap::new();
#[btf_map]
pub(crate) static PATH_STATE: Array<PathState, 1, { BPF_F_MMAPABLE as usize }> = Array::new();
#[btf_map]
pub(crate) static PROBES: HashMap<Ip4, Probed, { MAX_PATHS as usize }, GROWING> = HashMap::new();
#[btf_map]
pub(crate) static REVERSE: HashMap<u32, ReversePath, { MAX_REVERSE as usize }, GROWING> = HashMap::new();
/// Where the stubs on containers' own interfaces find their program. Nothing in this object calls it.
#[btf_map]
pub(crate) static SANDBOX_PROGRAMS: ProgramArray<{ sandbox_program::COUNT as usize }> = ProgramArray::new();
/// Where `from_underlay_l3` and `from_client_l3` find the program to go on in.
#[btf_map]
pub(crate) static L3_PROGRAMS: ProgramArray<{ l3_program::COUNT as usize }> = ProgramArray::new();
// Not pinned, these two: what they hold outlives neither a minute nor an agent.
#[btf_map]
pub(crate) static FRAGS: LruHashMap<FragmentKey, Fragmented, { MAX_FRAGMENTED as usize }> = LruHashMap::new();
#[btf_map]
pub(crate) static GROUP_RATE: LruHashMap<u32, u64, { MAX_INTERFACES as usize }> = LruHashMap::new();
#[btf_map]
pub(crate) static DROPS: PerCpuArray<Stat, { DROP_SLOTS as usize }> = PerCpuArray::new();
#[btf_map]
pub(crate) static COUNTERS: PerCpuArray<Stat, { COUNTER_SLOTS as usize }> = PerCpuArray::new();

/// Room for the longest headers that are written at once: a frame with an ICMP error and the longest quote.
pub(crate) const SCRATCH_PACKET: usize = 112;

/// Aligned, so that it is written in words.
#[repr(C, align(8))]
pub(crate) struct Buffer(pub(crate) [u8; SCRATCH_PACKET]);

/// Room for what would not fit the 512 bytes of stack: one slot per CPU, used within one program run only. Not pinned.
#[repr(C)]
pub(crate) struct Scratch {
    /// The packet, or the outer one of two.
    pub(crate) outer: Packet,
    /// The packet inside a tunnel.
    pub(crate) inner: Packet,
    /// An entry that is about to be inserted.
    pub(crate) flow: Flow,
    /// The same of `AFFINITY`.
    pub(crate) affinity: Affinity,
    /// Key of `flow`.
    pub(crate) key: FlowKey,
    /// Key of the reply entry of a connection that may have proved itself.
    pub(crate) reply_key: FlowKey,
    /// A connection that is being opened.
    pub(crate) new: NewFlow,
    /// The sequence number of its SYN, whether a source port was found for it, and when the entry whose place it takes was
    /// made (0: none): see `flow::usable`.
    pub(crate) isn: u64,
    pub(crate) port_found: u64,
    pub(crate) displaced: u64,
    /// A walk through the options of its SYN.
    pub(crate) options: Walk,
    /// IPv4 options that are looked through.
    pub(crate) options_room: Room,
    /// A question to the routing table.
    pub(crate) fib: bpf_fib_lookup,
    /// What a first fragment leaves or has left.
    pub(crate) fragmented: Fragmented,
    /// Headers that are about to be written.
    pub(crate) packet: Buffer,
    /// A probe.
    pub(crate) probe: Probe,
    /// The packet that an ICMP error quotes.
    pub(crate) quote: Quote,
}
#[btf_map]
pub(crate) static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

/// This CPU's scratch slot. At most one reference to each field at a time; nothing in it survives the program run.
#[inline(always)]
pub(crate) fn scratch() -> Result<&'static mut Scratch, DropReason> {
    // SAFETY: TC and XDP programs run with bottom halves off: nothing else uses this CPU's slot meanwhile.
    SCRATCH.get_ptr_mut(0).map(|slot| unsafe { &mut *slot }).ok_or(DropReason::NotConfigured)
}

/// Copies a value of a map, in words.
// VERIFIER: for `*to = *from` LLVM calls `memmove` where it cannot tell that the two do not overlap, and that goes byte by byte:
// 760 instructions for 48 bytes, and as many to verify for each way that leads there. Volatile, or LLVM would see through it.
#[inline(always)]
pub(crate) fn copy<T>(from: &T, to: &mut T) {
    const { assert!(size_of::<T>().is_multiple_of(8) && align_of::<T>() == 8) };
    let (from, to) = (core::ptr::from_ref(from).cast::<u64>(), core::ptr::from_mut(to).cast::<u64>());
    for word in 0..size_of::<T>() / 8 {
        // SAFETY: within both values, which are aligned as words; map values have no uninitialised bytes.
        unsafe { to.add(word).write(from.add(word).read_volatile()) }
    }
}

/// The node's settings.
#[inline(always)]
pub(crate) fn config() -> Result<&'static Config, DropReason> {
    CONFIG.get(0).ok_or(DropReason::NotConfigured)
}

/// The table of pending clients' connections of this protocol.
#[inline(always)]
pub(crate) fn pending_affinity(proto: u8) -> Option<&'static PendingAffinity> {
    AFFINITY_PENDING_BY.get(kind(proto))
}

/// The table of pending translated connections of this protocol.
#[inline(always)]
pub(crate) fn pending_flows(proto: u8) -> Option<&'static PendingFlows> {
    FLOWS_PENDING_BY.get(kind(proto))
}

/// [`pending::of`], without a branch.
// VERIFIER: LLVM makes a jump of any comparison, and all that follows would be verified twice.
#[inline(always)]
fn kind(proto: u8) -> u32 {
    const { assert!(pending::of(ipproto::TCP) == 0 && pending::of(ipproto::UDP) == 1) };
    let mut differs = u64::from(proto ^ ipproto::TCP);
    // SAFETY: two instructions on a register: the sign of its negative.
    unsafe { asm!("{0} = -{0}", "{0} >>= 63", inout(reg) differs) };
    differs as u32
}

/// Who answers at an overlay address.
#[inline(always)]
pub(crate) fn endpoint(key: &EndpointKey) -> Option<&'static Endpoint> {
    // SAFETY: entries are replaced as a whole by the agent; the element stays readable until the RCU grace period
    // after this program's run.
    unsafe { ENDPOINTS.get(key) }
}

/// Whose veth this is.
#[inline(always)]
pub(crate) fn local(ifindex: u32) -> Option<&'static Local> {
    // SAFETY: as for `endpoint`.
    unsafe { LOCALS.get(ifindex) }
}

/// A node's tunnel address.
#[inline(always)]
pub(crate) fn vtep(ip: &Ip4) -> Option<&'static Vtep> {
    // SAFETY: as for `endpoint`.
    unsafe { VTEPS.get(ip) }
}
