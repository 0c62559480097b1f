//! TCX links, pinned.
//!
//! Ours go first, so that packets are seen as they came; what is not ours the programs hand on to whoever is next.

use std::{fs, io, os::fd::AsFd as _, path::Path};

use aya::programs::{LinkOrder, links::FdLink, tc::TcAttachOptions};

use super::{AttachFault, Attached, Target, side};
use crate::sys;

pub(super) fn attach(target: Target<'_>, pin: &Path) -> Result<Attached, AttachFault> {
    match sys::object_get(pin) {
        Ok(link) => {
            let info = sys::tcx_link(link.as_fd()).map_err(AttachFault::kernel("read the pinned link"))?;
            if info.ifindex == target.ifindex && info.program == target.id {
                return Ok(Attached::Unchanged);
            }
            if info.ifindex == target.ifindex {
                match sys::link_update(link.as_fd(), target.fd()?) {
                    Ok(()) => return Ok(Attached::Replaced),
                    // The device went away between the two calls.
                    Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {}
                    Err(error) => return Err(AttachFault::kernel("replace the program of the pinned link")(error)),
                }
            }
            // The link belongs to a device that is gone; the one of that name now is another.
            drop(link);
            detach(pin)?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(AttachFault::kernel("open the pinned link")(error)),
    }

    let ifname = target.name.ifname.as_str();
    let order = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = target.program.attach_with_options(ifname, side(target.name.program), order)?;
    let link = FdLink::try_from(target.program.take_link(id)?)
        .map_err(|error| AttachFault::kernel("take the link")(io::Error::other(error)))?;
    // Closing our descriptor afterwards leaves the pin, and with it the link, in place.
    link.pin(pin)?;
    Ok(Attached::New)
}

/// Detaches and unpins. What is gone already is fine.
pub(super) fn detach(pin: &Path) -> Result<(), AttachFault> {
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
