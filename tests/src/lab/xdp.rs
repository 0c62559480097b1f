//! A program that lets every frame pass, for the far ends of cables into which XDP sends.
//!
//! A veth takes frames that XDP sends only while its own end polls (NAPI). GRO starts that too, but then nobody wakes
//! the poll after XDP_TX, and frames lie there for seconds; so a program it has to be.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result, bail};

use super::{Lab, Netns};

/// Says with which `--xdp` all agents are started that a scenario does not start with one itself: `generic` or
/// `native`.
const VARIABLE: &str = "HIVEWAY_TEST_XDP";

/// What `--xdp` agents are started with; `None`: without.
pub(crate) fn mode() -> Result<Option<String>> {
    match std::env::var(VARIABLE) {
        Err(_) => Ok(None),
        Ok(mode) if mode == "generic" || mode == "native" => Ok(Some(mode)),
        Ok(other) => bail!("{VARIABLE} is {other:?}, neither \"generic\" nor \"native\""),
    }
}

/// `return XDP_PASS`: `r0 = 2; exit`.
const PASS: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 2, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];
const BPF_PROG_LOAD: u32 = 5;
const BPF_OBJ_PIN: u32 = 6;
const BPF_PROG_TYPE_XDP: u32 = 6;
/// A veth takes it at any MTU then.
const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;

/// The beginnings of the two commands' attributes (`union bpf_attr`); the kernel takes the rest for zero.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log: [u64; 2],
    kernel: u32,
    flags: u32,
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
        self.pass_at(self.switch(), ports)
    }

    /// Gives these interfaces of a namespace such a program.
    pub fn pass_at(&self, netns: &Netns, interfaces: &[&str]) -> Result<()> {
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
            kernel: 0,
            flags: BPF_F_XDP_HAS_FRAGS,
        };
        let program = bpf(BPF_PROG_LOAD, &load).context("load a program that passes everything")?;
        // SAFETY: the kernel has just handed out this descriptor and nobody else knows it.
        let program = unsafe { OwnedFd::from_raw_fd(program) };
        bpf(BPF_OBJ_PIN, &Pin { path: c_path.as_ptr() as u64, fd: program.as_raw_fd() as u32, flags: 0 })
            .with_context(|| format!("pin it at {path}"))?;
        let attached = interfaces
            .iter()
            .try_for_each(|name| netns.run(&format!("ip link set {name} xdp pinned {path}")).map(drop));
        // The devices hold it from here on.
        std::fs::remove_file(&path)?;
        attached
    }

    /// Prepares a node's cable for native XDP at the node's end, for the rest of the lab's life: what XDP sends
    /// arrives, and nobody leaves checksums to it, which XDP on a veth would forget.
    pub fn prepare_for_xdp(&self, label: &str) -> Result<()> {
        if !self.switch().interfaces()?.iter().any(|name| name == label) {
            return Ok(());
        }
        let known = {
            let mut native = self.native_xdp();
            let known = native.iter().any(|other| other == label);
            native.push(label.to_owned());
            known
        };
        if !known {
            self.pass_at_switch(&[label])?;
        }
        self.fill_in_checksums()
    }

    /// Whether agents of this lab run with native XDP because all scenarios do.
    pub fn is_native(&self) -> bool {
        !self.native_xdp().is_empty()
    }

    /// The same for a further cable of a node, `interface` there and `other` in the namespace at its other end.
    pub fn prepare_cable(&self, node: &Netns, interface: &str, (far, other): (&Netns, &str)) -> Result<()> {
        if !self.is_native() {
            return Ok(());
        }
        for (netns, interface) in [(node, interface), (far, other)] {
            netns.output(&format!("ethtool -K {interface} tx off"))?;
        }
        self.pass_at(far, &[other])
    }

    /// After offloads have changed.
    pub(super) fn fill_in_checksums(&self) -> Result<()> {
        let native = self.native_xdp().clone();
        for label in &native {
            self.switch().output(&format!("ethtool -K {label} tx off"))?;
            if let Some(node) = self.labelled(label) {
                node.output("ethtool -K eth0 tx off")?;
            }
        }
        Ok(())
    }
}

fn bpf<T>(command: u32, attributes: &T) -> io::Result<i32> {
    // SAFETY: the attributes have the kernel's layout, and point to memory that outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}
