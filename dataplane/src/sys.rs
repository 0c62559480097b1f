//! The few bpf(2) commands that aya does not offer.

use std::{
    ffi::{CStr, CString},
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use aya::programs::TcAttachType;
use aya_obj::generated::{
    bpf_attach_type, bpf_attr, bpf_cmd, bpf_insn, bpf_link_info, bpf_link_type, bpf_map_type, bpf_prog_info,
    bpf_prog_type,
};

/// What the kernel says about a link between a program and a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeviceLink {
    /// The link itself.
    pub(crate) id: u32,
    /// The program that it runs.
    pub(crate) program: u32,
    /// The device; 0 once that is gone.
    pub(crate) ifindex: u32,
}

/// An all-zero attribute block, as the kernel wants what a command does not use.
fn attributes() -> bpf_attr {
    // SAFETY: `bpf_attr` is a union of plain integers; all zeroes is a valid value of each member.
    unsafe { std::mem::zeroed() }
}

fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<libc::c_long> {
    // SAFETY: the block has the kernel's layout and size; every pointer that the callers below put into it points to
    // memory that lives until they return.
    let ret = unsafe { libc::syscall(libc::SYS_bpf, command as u32, &raw mut *attr, size_of::<bpf_attr>()) };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(ret) }
}

/// Opens a pinned object.
pub(crate) fn object_get(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut attr = attributes();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    let fd = bpf(bpf_cmd::BPF_OBJ_GET, &mut attr)?;
    // SAFETY: the kernel has just handed out this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// What the kernel says about the TCX link `fd`.
pub(crate) fn tcx_link(fd: BorrowedFd<'_>) -> io::Result<DeviceLink> {
    let info = link_info(fd)?;
    if info.type_ != bpf_link_type::BPF_LINK_TYPE_TCX as u32 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the pinned object is no TCX link"));
    }
    // SAFETY: the kernel fills in this member for links of this type.
    let ifindex = unsafe { info.__bindgen_anon_1.tcx.ifindex };
    Ok(DeviceLink { id: info.id, program: info.prog_id, ifindex })
}

/// What the kernel says about the XDP link `fd`.
pub(crate) fn xdp_link(fd: BorrowedFd<'_>) -> io::Result<DeviceLink> {
    let info = link_info(fd)?;
    if info.type_ != bpf_link_type::BPF_LINK_TYPE_XDP as u32 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the pinned object is no XDP link"));
    }
    // SAFETY: the kernel fills in this member for links of this type.
    let ifindex = unsafe { info.__bindgen_anon_1.xdp.ifindex };
    Ok(DeviceLink { id: info.id, program: info.prog_id, ifindex })
}

fn link_info(fd: BorrowedFd<'_>) -> io::Result<bpf_link_info> {
    // SAFETY: plain integers; all zeroes is a valid value.
    let mut info: bpf_link_info = unsafe { std::mem::zeroed() };
    let mut attr = attributes();
    attr.info.bpf_fd = fd.as_raw_fd() as u32;
    attr.info.info_len = size_of::<bpf_link_info>() as u32;
    attr.info.info = &raw mut info as u64;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info)
}

/// The kernel's id of the program `fd`.
pub(crate) fn program_id(fd: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(program_info(fd)?.id)
}

/// The tag of the program `fd`: a digest of its instructions, the same for the same instructions loaded again.
pub(crate) fn program_tag(fd: BorrowedFd<'_>) -> io::Result<[u8; 8]> {
    Ok(program_info(fd)?.tag)
}

fn program_info(fd: BorrowedFd<'_>) -> io::Result<bpf_prog_info> {
    // SAFETY: plain integers; all zeroes is a valid value.
    let mut info: bpf_prog_info = unsafe { std::mem::zeroed() };
    let mut attr = attributes();
    attr.info.bpf_fd = fd.as_raw_fd() as u32;
    attr.info.info_len = size_of::<bpf_prog_info>() as u32;
    attr.info.info = &raw mut info as u64;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info)
}

/// Attaches a program to a device of this thread's network namespace, in front of all others there.
pub(crate) fn tcx_attach(program: BorrowedFd<'_>, ifindex: u32, side: TcAttachType) -> io::Result<OwnedFd> {
    /// Without a program to be in front of: first (`<linux/bpf.h>`).
    const BPF_F_BEFORE: u32 = 1 << 3;
    let mut attr = attributes();
    attr.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
    attr.link_create.__bindgen_anon_2.target_ifindex = ifindex;
    attr.link_create.attach_type = tcx_side(side)?;
    attr.link_create.flags = BPF_F_BEFORE;
    let fd = bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr)?;
    // SAFETY: the kernel has just handed out this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Loads a description of types (Documentation/bpf/btf.rst).
pub(crate) fn load_btf(btf: &[u8]) -> io::Result<OwnedFd> {
    let mut attr = attributes();
    attr.__bindgen_anon_7.btf = btf.as_ptr() as u64;
    attr.__bindgen_anon_7.btf_size = btf.len() as u32;
    let fd = bpf(bpf_cmd::BPF_BTF_LOAD, &mut attr)?;
    // SAFETY: the kernel has just handed out this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Makes an array map, whose key and value are the first two types of `btf`.
pub(crate) fn create_array(value: u32, entries: u32, flags: u32, btf: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attr = attributes();
    // SAFETY: a block of zeroes is valid as any of the commands' attributes.
    let create = unsafe { &mut attr.__bindgen_anon_1 };
    create.map_type = bpf_map_type::BPF_MAP_TYPE_ARRAY as u32;
    (create.key_size, create.value_size) = (size_of::<u32>() as u32, value);
    (create.max_entries, create.map_flags) = (entries, flags);
    (create.btf_fd, create.btf_key_type_id, create.btf_value_type_id) = (btf.as_raw_fd() as u32, 1, 2);
    let fd = bpf(bpf_cmd::BPF_MAP_CREATE, &mut attr)?;
    // SAFETY: the kernel has just handed out this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Attaches an XDP program to a device of this thread's network namespace, in the driver or in the stack. The kernel
/// refuses if another one is there.
pub(crate) fn xdp_attach(program: BorrowedFd<'_>, ifindex: u32, native: bool) -> io::Result<OwnedFd> {
    use aya_obj::generated::{XDP_FLAGS_DRV_MODE, XDP_FLAGS_SKB_MODE};
    let mut attr = attributes();
    attr.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
    attr.link_create.__bindgen_anon_2.target_ifindex = ifindex;
    attr.link_create.attach_type = bpf_attach_type::BPF_XDP as u32;
    attr.link_create.flags = if native { XDP_FLAGS_DRV_MODE } else { XDP_FLAGS_SKB_MODE };
    let fd = bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr)?;
    // SAFETY: the kernel has just handed out this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Ids of the links on one side of a device of this thread's network namespace; programs attached in other ways are 0.
pub(crate) fn tcx_links(ifindex: u32, side: TcAttachType) -> io::Result<Vec<u32>> {
    let mut links = vec![0u32; 64];
    let mut programs = vec![0u32; links.len()];
    let mut attr = attributes();
    attr.query.__bindgen_anon_1.target_ifindex = ifindex;
    attr.query.attach_type = tcx_side(side)?;
    attr.query.prog_ids = programs.as_mut_ptr() as u64;
    attr.query.link_ids = links.as_mut_ptr() as u64;
    attr.query.__bindgen_anon_2.count = links.len() as u32;
    match bpf(bpf_cmd::BPF_PROG_QUERY, &mut attr) {
        Ok(_) => {
            // SAFETY: the kernel has written this member.
            links.truncate(unsafe { attr.query.__bindgen_anon_2.count } as usize);
            Ok(links)
        }
        // Nothing is attached.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(vec![]),
        Err(error) => Err(error),
    }
}

fn tcx_side(side: TcAttachType) -> io::Result<u32> {
    Ok(match side {
        TcAttachType::Ingress => bpf_attach_type::BPF_TCX_INGRESS as u32,
        TcAttachType::Egress => bpf_attach_type::BPF_TCX_EGRESS as u32,
        TcAttachType::Custom(_) => return Err(io::ErrorKind::InvalidInput.into()),
    })
}

/// Pins an object.
pub(crate) fn object_pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut attr = attributes();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    attr.__bindgen_anon_4.bpf_fd = fd.as_raw_fd() as u32;
    bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr).map(|_| ())
}

/// Loads a TC program under a name of at most 15 letters, digits and underscores.
pub(crate) fn load_classifier(instructions: &[bpf_insn], license: &CStr, name: &str) -> io::Result<OwnedFd> {
    let mut attr = attributes();
    let load = classifier(&mut attr, instructions, license);
    for (to, from) in load.prog_name.iter_mut().take(15).zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let fd = bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr)?;
    // SAFETY: the kernel has just handed out this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// What to say to load a TC program.
fn classifier<'a>(
    attr: &'a mut bpf_attr,
    instructions: &[bpf_insn],
    license: &CStr,
) -> &'a mut aya_obj::generated::bpf_attr__bindgen_ty_4 {
    // SAFETY: all members of the union are plain integers.
    let load = unsafe { &mut attr.__bindgen_anon_3 };
    load.prog_type = bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS as u32;
    load.insn_cnt = instructions.len() as u32;
    load.insns = instructions.as_ptr() as u64;
    load.license = license.as_ptr() as u64;
    load
}

/// Lets the link `link` run `program` from now on; no packet sees the device without a program.
pub(crate) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = attributes();
    attr.link_update.link_fd = link.as_raw_fd() as u32;
    attr.link_update.__bindgen_anon_1.new_prog_fd = program.as_raw_fd() as u32;
    bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attr).map(|_| ())
}

/// Detaches the link now, whoever else holds it.
pub(crate) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = attributes();
    attr.link_detach.link_fd = link.as_raw_fd() as u32;
    bpf(bpf_cmd::BPF_LINK_DETACH, &mut attr).map(|_| ())
}

/// One step of reading a hash map bucket by bucket.
pub(crate) enum Batch {
    /// This many entries; more may follow from the cursor on.
    More(usize),
    /// This many entries, and these were the last.
    Last(usize),
    /// A bucket holds more entries than there is room for.
    TooSmall,
}

/// Reads up to `capacity` entries of the hash map `fd` into `keys` and `values`, from `cursor` on (`None`: from the
/// start), and moves the cursor.
pub(crate) fn lookup_batch(
    fd: BorrowedFd<'_>,
    cursor: &mut Option<u32>,
    keys: &mut [u8],
    values: &mut [u8],
    capacity: usize,
) -> io::Result<Batch> {
    let mut next = 0u32;
    let mut attr = attributes();
    attr.batch.in_batch = cursor.as_ref().map_or(0, |c| &raw const *c as u64);
    attr.batch.out_batch = &raw mut next as u64;
    attr.batch.keys = keys.as_mut_ptr() as u64;
    attr.batch.values = values.as_mut_ptr() as u64;
    attr.batch.count = capacity as u32;
    attr.batch.map_fd = fd.as_raw_fd() as u32;
    let result = bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr);
    // SAFETY: the kernel has written this member, or left what we put there.
    let count = unsafe { attr.batch.count } as usize;
    match result {
        Ok(_) => {
            *cursor = Some(next);
            Ok(Batch::More(count))
        }
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOENT) => Ok(Batch::Last(count)),
            Some(libc::ENOSPC) => Ok(Batch::TooSmall),
            _ => Err(error),
        },
    }
}

/// Writes the first `count` of `keys` and `values` into the map `fd`, as many calls for one entry would. On an error,
/// how many have been written before it.
pub(crate) fn update_batch(fd: BorrowedFd<'_>, keys: &[u8], values: &[u8], count: usize) -> Result<(), usize> {
    let mut attr = attributes();
    attr.batch.keys = keys.as_ptr() as u64;
    attr.batch.values = values.as_ptr() as u64;
    attr.batch.count = count as u32;
    attr.batch.map_fd = fd.as_raw_fd() as u32;
    match bpf(bpf_cmd::BPF_MAP_UPDATE_BATCH, &mut attr) {
        Ok(_) => Ok(()),
        // SAFETY: the kernel has written this member, or left what we put there: then it has done nothing.
        Err(_) => Err(match unsafe { attr.batch.count } as usize {
            written if written < count => written,
            _ => 0,
        }),
    }
}

/// Writes the first key of the map `fd` to `key`, which has the map's size of keys; `false`: the map is empty.
#[cfg(feature = "testing")]
pub(crate) fn first_key(fd: BorrowedFd<'_>, key: &mut [u8]) -> io::Result<bool> {
    let mut attr = attributes();
    attr.__bindgen_anon_2.map_fd = fd.as_raw_fd() as u32;
    attr.__bindgen_anon_2.__bindgen_anon_1.next_key = key.as_mut_ptr() as u64;
    match bpf(bpf_cmd::BPF_MAP_GET_NEXT_KEY, &mut attr) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes an entry of the map `fd`.
#[cfg(feature = "testing")]
pub(crate) fn delete(fd: BorrowedFd<'_>, key: &[u8]) -> io::Result<()> {
    let mut attr = attributes();
    attr.__bindgen_anon_2.map_fd = fd.as_raw_fd() as u32;
    attr.__bindgen_anon_2.key = key.as_ptr() as u64;
    bpf(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut attr).map(drop)
}

/// Runs the program `fd` once on `packet`; returns the length of what it made of it, in `out`. `contexts`: what it sees
/// and leaves as `struct __sk_buff`.
#[cfg(feature = "testing")]
pub(crate) fn test_run(
    fd: BorrowedFd<'_>,
    packet: &[u8],
    out: &mut [u8],
    contexts: (&[u8], &mut [u8]),
) -> io::Result<usize> {
    let mut attr = attributes();
    attr.test.prog_fd = fd.as_raw_fd() as u32;
    attr.test.data_in = packet.as_ptr() as u64;
    attr.test.data_size_in = packet.len() as u32;
    attr.test.data_out = out.as_mut_ptr() as u64;
    attr.test.data_size_out = out.len() as u32;
    attr.test.ctx_in = contexts.0.as_ptr() as u64;
    attr.test.ctx_size_in = contexts.0.len() as u32;
    attr.test.ctx_out = contexts.1.as_mut_ptr() as u64;
    attr.test.ctx_size_out = contexts.1.len() as u32;
    bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr)?;
    // SAFETY: the kernel has written this member.
    Ok(unsafe { attr.test.data_size_out } as usize)
}

/// The kernel's id of the BTF of the program `fd`; 0 if it has none.
pub(crate) fn program_btf(fd: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(program_info(fd)?.btf_id)
}

/// Opens the BTF with that id.
pub(crate) fn btf_by_id(id: u32) -> io::Result<OwnedFd> {
    let mut attr = attributes();
    attr.__bindgen_anon_6.__bindgen_anon_1.btf_id = id;
    let fd = bpf(bpf_cmd::BPF_BTF_GET_FD_BY_ID, &mut attr)?;
    // SAFETY: the kernel has just handed out this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// What the kernel must know of a program's functions where one is passed to a helper: their BTF, and records of
/// `struct bpf_func_info`, each that many bytes long.
pub(crate) struct FunctionInfo<'a> {
    pub(crate) btf: BorrowedFd<'a>,
    pub(crate) records: &'a [u8],
    pub(crate) record_len: usize,
}

/// Loads a program only to see the verifier's statistics; returns its log, which ends with a zero byte. `xdp`: an XDP
/// program, otherwise a TC program.
pub(crate) fn load_with_statistics(
    instructions: &[bpf_insn],
    license: &CStr,
    xdp: bool,
    functions: &FunctionInfo<'_>,
) -> io::Result<Vec<u8>> {
    /// `BPF_LOG_STATS`.
    const STATISTICS: u32 = 4;
    let mut log = vec![0u8; 64 * 1024];
    let mut attr = attributes();
    let load = classifier(&mut attr, instructions, license);
    if xdp {
        load.prog_type = bpf_prog_type::BPF_PROG_TYPE_XDP as u32;
        load.expected_attach_type = bpf_attach_type::BPF_XDP as u32;
    }
    load.prog_btf_fd = functions.btf.as_raw_fd() as u32;
    load.func_info_rec_size = functions.record_len as u32;
    load.func_info = functions.records.as_ptr() as u64;
    load.func_info_cnt = (functions.records.len() / functions.record_len.max(1)) as u32;
    load.log_level = STATISTICS;
    load.log_size = log.len() as u32;
    load.log_buf = log.as_mut_ptr() as u64;
    let fd = bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr)?;
    // SAFETY: the kernel has just handed out this descriptor and nobody else knows it; dropping it unloads the program.
    drop(unsafe { OwnedFd::from_raw_fd(fd as i32) });
    Ok(log)
}
