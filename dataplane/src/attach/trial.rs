//! An XDP program that passes every frame, attached for a moment to see what attaching costs on a device.

use std::{
    io,
    os::fd::{AsFd as _, FromRawFd as _, OwnedFd},
};

use aya_obj::generated::{
    BPF_ALU64, BPF_EXIT, BPF_F_XDP_HAS_FRAGS, BPF_JMP, BPF_K, BPF_MOV, bpf_attach_type, bpf_attr, bpf_cmd, bpf_insn,
    bpf_prog_type,
};

use crate::sys;

/// The program's verdict (`XDP_PASS` of `<linux/bpf.h>`).
const XDP_PASS: i32 = 2;

/// The attachment. The kernel detaches the program when this is dropped, and when the process dies.
#[derive(Debug)]
pub struct XdpTrial {
    link: OwnedFd,
}

impl XdpTrial {
    /// Attaches the program to a device of this thread's network namespace in the driver, as `--xdp native` does: the
    /// program declares that it takes frames in several buffers, which drivers ask for at large MTUs.
    ///
    /// # Errors
    /// The kernel's, from loading or from attaching: one that [`super::is_taken`] knows if an XDP program is attached
    /// there, or on a device above, which stays; `EOPNOTSUPP` if the driver has no XDP; whatever else the driver
    /// refuses with.
    pub fn start(ifindex: u32) -> io::Result<Self> {
        let program = load()?;
        Ok(Self { link: sys::xdp_attach(program.as_fd(), ifindex, true)? })
    }

    /// Detaches the program before it returns. Dropping alone may leave that to the kernel's workers.
    ///
    /// # Errors
    /// The kernel's; the program goes with the link's descriptor all the same.
    pub fn stop(self) -> io::Result<()> {
        sys::link_detach(self.link.as_fd())
    }
}

fn load() -> io::Result<OwnedFd> {
    let instructions = [instruction(BPF_ALU64 | BPF_MOV | BPF_K, XDP_PASS), instruction(BPF_JMP | BPF_EXIT, 0)];
    // SAFETY: `bpf_attr` is a union of plain integers; all zeroes is a valid value of each member.
    let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
    // SAFETY: all members of the union are plain integers.
    let load = unsafe { &mut attr.__bindgen_anon_3 };
    load.prog_type = bpf_prog_type::BPF_PROG_TYPE_XDP as u32;
    load.expected_attach_type = bpf_attach_type::BPF_XDP as u32;
    load.prog_flags = BPF_F_XDP_HAS_FRAGS;
    load.insn_cnt = instructions.len() as u32;
    load.insns = instructions.as_ptr() as u64;
    load.license = c"Dual MIT/GPL".as_ptr() as u64;
    for (to, from) in load.prog_name.iter_mut().zip(b"hiveway_trial") {
        *to = *from as libc::c_char;
    }
    let command = bpf_cmd::BPF_PROG_LOAD as u32;
    // SAFETY: the block has the kernel's layout and size; instructions and license live until the call returns.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut attr, size_of::<bpf_attr>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just handed out this descriptor and nothing else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// One on register 0.
fn instruction(code: u32, imm: i32) -> bpf_insn {
    bpf_insn { code: code as u8, _bitfield_align_1: [], _bitfield_1: bpf_insn::new_bitfield_1(0, 0), off: 0, imm }
}

#[cfg(test)]
mod tests {
    use std::{process::Command, thread};

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    fn ip(arguments: &str) -> String {
        let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
        assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn the_program_is_attached_until_it_is_stopped_and_never_in_place_of_another() {
        // In a network namespace of its own, which ends with the thread.
        let thread = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("as root");
            ip("link add v0 index 10 type veth peer name v1 index 11");
            let is_attached = || ip("-o link show v0").contains(" xdp ");
            let trial = XdpTrial::start(10).unwrap();
            assert!(is_attached());
            assert_eq!(XdpTrial::start(10).unwrap_err().raw_os_error(), Some(libc::EBUSY));
            assert!(is_attached());
            trial.stop().unwrap();
            assert!(!is_attached());
            // The loopback device's driver has no XDP.
            assert_eq!(XdpTrial::start(1).unwrap_err().raw_os_error(), Some(libc::EOPNOTSUPP));
        });
        thread.join().unwrap();
    }
}
