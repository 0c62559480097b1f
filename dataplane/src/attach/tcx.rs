//! TCX links, pinned.
//!
//! Ours go first, so that packets are seen as they came; what is not ours the programs hand on to whoever is next.

use std::{
    fs, io,
    os::fd::{AsFd as _, BorrowedFd},
    path::Path,
};

use aya::programs::TcAttachType;

use super::{AttachFault, Attached, Unpinned};
use crate::sys;

/// Attaches `program`, with that id, to a device of this thread's network namespace, or lets the link pinned at `pin`
/// run it from now on, if that is on this very device.
pub(crate) fn attach(
    program: BorrowedFd<'_>,
    program_id: u32,
    side: TcAttachType,
    ifindex: u32,
    pin: &Path,
    unpinned: &mut Unpinned,
) -> Result<Attached, AttachFault> {
    match sys::object_get(pin) {
        Ok(link) => {
            let info = sys::tcx_link(link.as_fd()).map_err(AttachFault::kernel("read the pinned link"))?;
            // The index alone does not tell: another namespace may have a device with the same one.
            let here = info.ifindex == ifindex
                && sys::tcx_links(ifindex, side)
                    .map_err(AttachFault::kernel("read the device's links"))?
                    .contains(&info.id);
            if here && info.program == program_id {
                return Ok(Attached::Unchanged);
            }
            if here {
                match sys::link_update(link.as_fd(), program) {
                    Ok(()) => return Ok(Attached::Replaced),
                    // The device went away between the two calls.
                    Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {}
                    Err(error) => return Err(AttachFault::kernel("replace the program of the pinned link")(error)),
                }
            }
            // The link belongs to a device that is gone; the one of that name now is another.
            drop(link);
            detach(pin)?;
            unpinned.note(pin);
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(AttachFault::kernel("open the pinned link")(error)),
    }
    let link = sys::tcx_attach(program, ifindex, side).map_err(AttachFault::kernel("attach the program"))?;
    // Closing our descriptor afterwards leaves the pin, and with it the link, in place.
    sys::object_pin(link.as_fd(), pin).map_err(AttachFault::kernel("pin the link"))?;
    Ok(Attached::New)
}

/// Detaches and unpins. What is gone already is fine.
pub(crate) fn detach(pin: &Path) -> Result<(), AttachFault> {
    match sys::object_get(pin) {
        Ok(link) => match sys::link_detach(link.as_fd()) {
            Ok(()) => {}
            // The device is gone.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOLINK | libc::ENODEV)) => {}
            Err(error) => return Err(AttachFault::kernel("detach the pinned link")(error)),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(AttachFault::kernel("open the pinned link")(error)),
    }
    match fs::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(AttachFault::kernel("unpin the link")(error)),
        _ => Ok(()),
    }
}
