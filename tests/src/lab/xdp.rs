//! A program that lets every frame pass, for the far ends of cables into which XDP sends.
//!
//! A veth takes frames that XDP sends only while its own end polls (NAPI). GRO starts that too, but then nobody wakes the
//! poll after XDP_TX, and frames lie there for seconds; so a program it has to be.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};

use super::Lab;

/// `return XDP_PASS`: `r0 = 2; exit`.
const PASS: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 2, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];
const BPF_PROG_LOAD: u32 = 5;
const BPF_OBJ_PIN: u32 = 6;
const BPF_PROG_TYPE_XDP: u32 = 6;

/// The beginnings of the two commands' attributes (`union bpf_attr`); the kernel takes the rest for zero.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log: [u64; 2],
}
#[repr(C)]
struct Pin {
    path: u64,
    fd: u32,
    flags: u32,
}

impl Lab {
    /// Gives these ends of cables in the switch a program that lets everything pass.
    pub fn pass_at_switch(&self, ports: &[&str]) -> Result<()> {
        let (path, c_path) = {
            let path = format!("/sys/fs/bpf/{}-pass", self.prefix());
            (path.clone(), std::ffi::CString::new(path)?)
        };
        let load = Load {
            kind: BPF_PROG_TYPE_XDP,
            count: PASS.len() as u32,
            instructions: PASS.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            log: [0; 2],
        };
        let program = bpf(BPF_PROG_LOAD, &load).context("load a program that passes everything")?;
        // SAFETY: the kernel has just handed out this descriptor and nobody else knows it.
        let program = unsafe { OwnedFd::from_raw_fd(program) };
        bpf(BPF_OBJ_PIN, &Pin { path: c_path.as_ptr() as u64, fd: program.as_raw_fd() as u32, flags: 0 })
            .with_context(|| format!("pin it at {path}"))?;
        let attached = ports
            .iter()
            .try_for_each(|port| self.switch().run(&format!("ip link set {port} xdp pinned {path}")).map(drop));
        // The devices hold it from here on.
        std::fs::remove_file(&path)?;
        attached
    }
}

fn bpf<T>(command: u32, attributes: &T) -> io::Result<i32> {
    // SAFETY: the attributes have the kernel's layout, and point to memory that outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}
