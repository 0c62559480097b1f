//! All maps. Their meaning, keys and values are documented in `dataplane-common` and `docs/maps.md`.

use core::arch::asm;

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::{Array, ArrayOfMaps, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray},
    macros::btf_map,
};
use dataplane_common::{
    addr::{Ip4, VniBytes},
    config::Config,
    counter::{COUNTER_SLOTS, Stat},
    drop_reason::{DROP_SLOTS, DropReason},
    endpoint::{Endpoint, EndpointKey, Local, VniInfo, Vtep, vtep_mesh},
    flow::{Affinity, AffinityKey, DirectGate, Flow, FlowKey, MAX_FLOWS, pending},
    fragment::{FragmentKey, Fragmented, MAX_FRAGMENTED},
    group::MAX_INTERFACES,
    headers::ipproto,
    line::{Bucket, Head, SEGMENT, SEGMENTS},
    mark::{l3_program, sandbox_program},
    mesh::{ClientPrefix, ClientRule, MAX_NODE_ADDRESSES, NodeAddress, Target, TargetKey},
    path::{MAX_PATHS, Path, PathState},
    probe::Probed,
    reverse::{MAX_REVERSE, ReversePath},
    service::{AllowPrefix, Backend, LeftPrefix, MAX_ACCESS, MAX_BACKENDS, MAX_SETS, PortKey, PublishedPort},
    shares::Shares,
    xdp::{HopWords, MAX_DEVICES, MAX_HOPS, XdpDevice, XdpState, reply_hop},
};

// Connection tables grow with use: preallocating a quarter of a million flows would cost tens of MB on an idle node.
pub(crate) const GROWING: usize = BPF_F_NO_PREALLOC as usize;
/// The agent maps it into its memory.
pub(crate) const MMAPABLE: usize = BPF_F_MMAPABLE as usize;

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
pub(crate) static SETS: Array<u64, { MAX_SETS as usize }, MMAPABLE> = Array::new();
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
pub(crate) static SHARES: Array<Shares, 1, MMAPABLE> = Array::new();

/// A part of the lines of connections, pending and established.
// Memory-mapped for its alignment, too: the elements of other arrays lie across two cache lines each.
pub(crate) type Segment = Array<Bucket, { SEGMENT as usize }, MMAPABLE>;
#[btf_map]
pub(crate) static AFFINITY_SEGMENTS: ArrayOfMaps<Segment, { (pending::COUNT * SEGMENTS) as usize }> =
    ArrayOfMaps::new();
#[btf_map]
pub(crate) static AFFINITY_HEAD: Array<Head, 1, MMAPABLE> = Array::new();
#[btf_map]
pub(crate) static FLOWS_SEGMENTS: ArrayOfMaps<Segment, { (pending::COUNT * SEGMENTS) as usize }> = ArrayOfMaps::new();
#[btf_map]
pub(crate) static FLOWS_HEAD: Array<Head, 1, MMAPABLE> = Array::new();
#[btf_map]
pub(crate) static DIRECT_GATE: Array<DirectGate, 1, MMAPABLE> = Array::new();
#[btf_map]
pub(crate) static ALLOW: LpmTrie<AllowPrefix, u32, { MAX_ACCESS as usize }, GROWING> = LpmTrie::new();
#[btf_map]
pub(crate) static LEFT: LpmTrie<LeftPrefix, u32, 262_144, GROWING> = LpmTrie::new();
#[btf_map]
pub(crate) static CLIENTS: LpmTrie<ClientPrefix, ClientRule, 65_536, GROWING> = LpmTrie::new();
#[btf_map]
pub(crate) static XDP_DEVICES: HashMap<u32, XdpDevice, { MAX_DEVICES as usize }, GROWING> = HashMap::new();
#[btf_map]
pub(crate) static XDP_STATE: Array<XdpState, 1, MMAPABLE> = Array::new();
#[btf_map]
pub(crate) static HOPS: Array<HopWords, { MAX_HOPS as usize }, MMAPABLE> = Array::new();
#[btf_map]
pub(crate) static PATHS: HashMap<Ip4, Path, { MAX_PATHS as usize }, GROWING> = HashMap::new();
#[btf_map]
pub(crate) static PATH_STATE: Array<PathState, 1, MMAPABLE> = Array::new();
#[btf_map]
pub(crate) static PROBES: HashMap<Ip4, Probed, { MAX_PATHS as usize }, GROWING> = HashMap::new();
#[btf_map]
pub(crate) static REVERSE: HashMap<u32, ReversePath, { MAX_REVERSE as usize }, GROWING> = HashMap::new();
/// Where the trampolines on containers' own interfaces find their program. Nothing in this object calls it.
#[btf_map]
pub(crate) static SANDBOX_PROGRAMS: ProgramArray<{ sandbox_program::COUNT as usize }> = ProgramArray::new();
/// Where `from_underlay_l3` and `from_client_l3` find the program to go on in.
#[btf_map]
pub(crate) static L3_PROGRAMS: ProgramArray<{ l3_program::COUNT as usize }> = ProgramArray::new();
// Not pinned, these three: what they hold outlives neither a minute nor an agent.
#[btf_map]
pub(crate) static REPLY_HOPS: Array<HopWords, { reply_hop::MAX as usize }> = Array::new();
#[btf_map]
pub(crate) static FRAGS: LruHashMap<FragmentKey, Fragmented, { MAX_FRAGMENTED as usize }> = LruHashMap::new();
#[btf_map]
pub(crate) static GROUP_RATE: LruHashMap<u32, u64, { MAX_INTERFACES as usize }> = LruHashMap::new();
#[btf_map]
pub(crate) static DROPS: PerCpuArray<Stat, { DROP_SLOTS as usize }> = PerCpuArray::new();
#[btf_map]
pub(crate) static COUNTERS: PerCpuArray<Stat, { COUNTER_SLOTS as usize }> = PerCpuArray::new();

/// The node's settings.
#[inline(always)]
pub(crate) fn config() -> Result<&'static Config, DropReason> {
    CONFIG.get(0).ok_or(DropReason::NotConfigured)
}

/// [`pending::of`], without a branch.
// VERIFIER: LLVM makes a jump of any comparison, and all that follows would be verified twice.
#[inline(always)]
pub(crate) fn kind(proto: u8) -> u32 {
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

/// Whether the node with this tunnel address is known to run no Hiveway (any more).
#[inline(always)]
pub(crate) fn is_stock(vtep: &Ip4) -> bool {
    self::vtep(vtep).is_some_and(|vtep| vtep.hiveway != vtep_mesh::MEMBER)
}
