//! XDP links, pinned beside the TCX links and taken down as those are.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd},
    path::Path,
};

use dataplane_common::xdp::xdp_mode;

use super::{AttachFault, Attached, Unpinned, tcx};
use crate::{Program, sys};

/// Where an XDP program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum XdpMode {
    /// In the driver, if it can.
    Native,
    /// In the stack, on every device.
    Generic,
}

impl XdpMode {
    /// As in [`dataplane_common::xdp::XdpDevice::mode`].
    pub(crate) const fn number(self) -> u32 {
        match self {
            Self::Native => xdp_mode::NATIVE,
            Self::Generic => xdp_mode::GENERIC,
        }
    }

    /// What is attached.
    pub(crate) const fn program(self) -> Program {
        match self {
            Self::Native => Program::XdpMeshFrags,
            Self::Generic => Program::XdpMesh,
        }
    }
}

/// Attaches `program`, with that id, to a device of this thread's network namespace, or lets the link pinned at `pin`
/// run it from now on, if that is on this device in this mode. `before`: the mode that the device's link was made with,
/// which the kernel does not tell.
pub(crate) fn attach(
    program: BorrowedFd<'_>,
    program_id: u32,
    mode: XdpMode,
    before: Option<u32>,
    ifindex: u32,
    pin: &Path,
    unpinned: &mut Unpinned,
) -> Result<Attached, AttachFault> {
    match sys::object_get(pin) {
        Ok(link) => {
            let info = sys::xdp_link(link.as_fd()).map_err(AttachFault::kernel("read the pinned link"))?;
            if info.ifindex == ifindex && before == Some(mode.number()) {
                if info.program == program_id {
                    return Ok(Attached::Unchanged);
                }
                match sys::link_update(link.as_fd(), program) {
                    Ok(()) => return Ok(Attached::Replaced),
                    // The device went away between the two calls.
                    Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {}
                    Err(error) => return Err(AttachFault::kernel("replace the program of the pinned link")(error)),
                }
            }
            drop(link);
            tcx::detach(pin)?;
            unpinned.note(pin);
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(AttachFault::kernel("open the pinned link")(error)),
    }
    let link = sys::xdp_attach(program, ifindex, mode == XdpMode::Native).map_err(AttachFault::kernel(match mode {
        XdpMode::Native => "attach the program in the driver",
        XdpMode::Generic => "attach the program in the stack",
    }))?;
    sys::object_pin(link.as_fd(), pin).map_err(AttachFault::kernel("pin the link"))?;
    Ok(Attached::New)
}

/// The device that the link pinned at `pin` is on; `None`: it is gone, or there is no such link.
pub(crate) fn device(pin: &Path) -> Option<u32> {
    let link = sys::object_get(pin).ok()?;
    sys::xdp_link(link.as_fd()).ok().map(|info| info.ifindex).filter(|ifindex| *ifindex != 0)
}
