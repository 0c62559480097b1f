//! Filters of the clsact qdisc, for kernels without TCX.
//!
//! A filter of ours has a fixed priority and handle, so that it can be replaced in place by an agent that knows
//! nothing of its predecessor. That there is one is noted by pinning its program.

use std::{
    fs, io,
    os::{fd::AsFd as _, unix::fs::symlink},
    path::{Path, PathBuf},
};

use aya::programs::{
    Link as _, ProgramError, SchedClassifier, TcAttachType,
    tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle},
};

use nix::net::if_::if_indextoname;

use super::{AttachFault, Attached, PinName, Unpinned, qdisc, side};
use crate::{Program, sys};

/// Before what users add by hand (49152 and down) and what other tools commonly take.
const PRIORITY: u16 = 72;

/// Each program has its own handle, so that one can replace another on a device without a gap.
fn handle(program: Program) -> TcHandle {
    /// `H` in ASCII.
    const FIRST: u16 = 0x4800;
    TcHandle::new(0, FIRST + program as u16)
}

/// Attaches `loaded` as our filter `program` of the device `ifname`, or replaces that, and notes it at `pin`.
pub(crate) fn attach(
    loaded: &mut SchedClassifier,
    program: Program,
    ifname: &str,
    pin: &Path,
    attached_before: bool,
    unpinned: &mut Unpinned,
) -> Result<Attached, AttachFault> {
    match tc::qdisc_add_clsact(ifname) {
        Ok(()) => note_qdisc(pin)?,
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {}
        Err(error) => return Err(ProgramError::from(error).into()),
    }

    // Replacing never creates: it fails if there is no filter of ours.
    let (link, replaced) = match loaded.attach_to_link(ours(program, ifname)?) {
        Ok(link) => (link, true),
        Err(error) if errno(&error) == Some(libc::ENOENT) => {
            let options =
                TcAttachOptions::Netlink(NlOptions { priority: PRIORITY, handle: handle(program), classid: None });
            (loaded.attach_with_options(ifname, side(program), options)?, false)
        }
        Err(error) => return Err(error.into()),
    };
    // Dropping aya's link would remove the filter.
    std::mem::forget(loaded.take_link(link)?);

    if replaced && attached_before {
        return Ok(Attached::Unchanged);
    }
    unpin(pin)?;
    unpinned.note(pin);
    loaded.pin(pin)?;
    Ok(if replaced { Attached::Replaced } else { Attached::New })
}

/// Whether the filter `program` of the device `ifname` runs a program with the same instructions as the one pinned at
/// `pin`. `false` also where there is no such filter, device or pin.
pub(crate) fn runs(pin: &Path, program: Program, ifname: &str) -> io::Result<bool> {
    let Ok(ifindex) = super::ifindex(ifname) else { return Ok(false) };
    let pinned = match sys::object_get(pin) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        pinned => sys::program_tag(pinned?.as_fd())?,
    };
    let egress = side(program) == TcAttachType::Egress;
    Ok(qdisc::filter_tag(ifindex, egress, PRIORITY, handle(program).into())? == Some(pinned))
}

/// Removes our filter and the note. What is gone already is fine.
pub(crate) fn detach(pin: &Path, program: Program, ifname: &str) -> Result<(), AttachFault> {
    match ours(program, ifname) {
        Ok(link) => match link.detach() {
            Ok(()) => {}
            // No such filter, no clsact qdisc, or no such device any more.
            Err(error) if matches!(errno(&error), Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)) => {}
            Err(error) => return Err(error.into()),
        },
        Err(AttachFault::NoInterface) => {}
        Err(error) => return Err(error),
    }
    unpin(pin)?;
    remove_qdisc(pin, ifname)
}

/// Notes which device the filter of that pin is on, as what a symbolic link `at/<pin>` points to: its name may change.
pub(crate) fn note_device(pin: &Path, ifindex: u32) -> Result<(), AttachFault> {
    let failed = AttachFault::kernel("note the interface");
    let Some(note) = device_note(pin) else { return Ok(()) };
    let device = PathBuf::from(ifindex.to_string());
    match fs::read_link(&note) {
        Ok(noted) if noted == device => return Ok(()),
        Ok(_) => fs::remove_file(&note).map_err(&failed)?,
        Err(_) => note.parent().map_or(Ok(()), fs::create_dir_all).map_err(&failed)?,
    }
    symlink(device, note).map_err(failed)
}

/// As [`detach`], wherever the device is by now called something else.
pub(crate) fn detach_noted(pin: &Path, name: &PinName) -> Result<(), AttachFault> {
    let noted = device_note(pin).and_then(|note| fs::read_link(note).ok());
    let now = noted.and_then(|index| if_indextoname(index.to_str()?.parse().ok()?).ok()?.into_string().ok());
    match now.filter(|now| *now != name.ifname) {
        None => detach(pin, name.program, &name.ifname)?,
        Some(now) => {
            let successor = pin.with_file_name(PinName { program: name.program, ifname: now.clone() }.to_string());
            if successor.exists() {
                // Attached anew under the device's name of today, in the same place: the filter is that one's now.
                unpin(pin)?;
                if let (Some(old), Some(new)) = (qdisc_note(pin).filter(|note| note.exists()), qdisc_note(&successor)) {
                    let moved = if new.exists() { fs::remove_dir(old) } else { fs::rename(old, new) };
                    moved.map_err(AttachFault::kernel("note the clsact qdisc"))?;
                }
            } else {
                detach(pin, name.program, &now)?;
            }
        }
    }
    let Some(note) = device_note(pin) else { return Ok(()) };
    unpin(&note)?;
    // The last one takes the directory with it; it is no matter if others are there.
    let _ = note.parent().map(fs::remove_dir);
    Ok(())
}

fn device_note(pin: &Path) -> Option<PathBuf> {
    Some(pin.parent()?.join("at").join(pin.file_name()?))
}

/// Removes the notes of a filter that went with its device.
pub(crate) fn forget(pin: &Path) -> Result<(), AttachFault> {
    unpin(pin)?;
    match qdisc_note(pin).filter(|note| note.exists()) {
        Some(note) => remove_qdisc_note(&note),
        None => Ok(()),
    }
}

/// Where it is noted that we have added the qdisc: a directory, the only thing besides pins that the file system takes.
fn qdisc_note(pin: &Path) -> Option<PathBuf> {
    let ifname = pin.file_name()?.to_str()?.split_once('@')?.1;
    Some(pin.parent()?.join("clsact").join(ifname))
}

fn note_qdisc(pin: &Path) -> Result<(), AttachFault> {
    let Some(note) = qdisc_note(pin) else { return Ok(()) };
    fs::create_dir_all(note).map_err(AttachFault::kernel("note the clsact qdisc"))
}

/// Removes the qdisc if we have added it and nobody else uses it now.
fn remove_qdisc(pin: &Path, ifname: &str) -> Result<(), AttachFault> {
    let Some(note) = qdisc_note(pin).filter(|note| note.exists()) else { return Ok(()) };
    let removed = match super::ifindex(ifname) {
        Ok(ifindex) => qdisc::remove_if_unused(ifindex).map_err(AttachFault::kernel("remove the clsact qdisc"))?,
        Err(_) => true,
    };
    if removed { remove_qdisc_note(&note) } else { Ok(()) }
}

fn remove_qdisc_note(note: &Path) -> Result<(), AttachFault> {
    fs::remove_dir(note).map_err(AttachFault::kernel("remove the clsact qdisc's note"))?;
    // The last one takes the directory with it; it is no matter if others are there.
    if let Some(notes) = note.parent() {
        let _ = fs::remove_dir(notes);
    }
    Ok(())
}

/// aya's idea of the filter that we have on the device, or would have.
fn ours(program: Program, ifname: &str) -> Result<SchedClassifierLink, AttachFault> {
    SchedClassifierLink::attached(ifname, side(program), PRIORITY, handle(program), None).map_err(|error| {
        match error.raw_os_error() {
            Some(libc::ENODEV | libc::ENXIO) => AttachFault::NoInterface,
            _ => AttachFault::kernel("look up the interface")(error),
        }
    })
}

fn errno(error: &ProgramError) -> Option<i32> {
    match error {
        ProgramError::TcError(TcError::NetlinkError(error)) | ProgramError::NetlinkError(error) => error.raw_os_error(),
        _ => None,
    }
}

pub(crate) fn unpin(pin: &Path) -> Result<(), AttachFault> {
    match fs::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(AttachFault::kernel("remove the note")(error)),
        _ => Ok(()),
    }
}
