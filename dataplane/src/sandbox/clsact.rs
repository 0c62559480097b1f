//! Trampolines as filters of the clsact qdisc, for kernels without TCX.
//!
//! A filter is known by its namespace and interface only, so both are noted, as what a symbolic link
//! `<bpffs>/filters/netns/<id>` points to: `<inode of the namespace>/<interface>`. It points nowhere.

use std::{
    fs, io,
    os::fd::{AsFd as _, BorrowedFd},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use aya::programs::SchedClassifier;

use super::netns;
use crate::{
    attach::{AttachFault, Attached, PinName, Unpinned, clsact},
    sys,
};

/// Attaches the trampoline to `ifname` in this thread's namespace, which is `netns`.
pub(super) fn attach(
    trampoline: BorrowedFd<'_>,
    netns: BorrowedFd<'_>,
    name: &PinName,
    ifname: &str,
    pin: &Path,
    attached_before: bool,
    unpinned: &mut Unpinned,
) -> Result<Attached, AttachFault> {
    let inode = netns::inode(netns).map_err(AttachFault::kernel("identify the network namespace"))?;
    let place = PathBuf::from(inode.to_string()).join(ifname);
    let same_place = note(pin).and_then(|note| fs::read_link(note).ok()) == Some(place.clone());
    write_note(pin, &place).map_err(AttachFault::kernel("note the network namespace"))?;
    // aya takes programs by their pins.
    clsact::unpin(pin)?;
    unpinned.note(pin);
    sys::object_pin(trampoline, pin).map_err(AttachFault::kernel("pin the trampoline"))?;
    let mut program = SchedClassifier::from_pin(pin)?;
    clsact::attach(&mut program, name.program, ifname, pin, attached_before && same_place, unpinned)
}

/// Removes the filter, if its namespace is still there, and the notes.
///
/// The kernel gives the inode of a namespace that is gone to the next one, whose interface has the same name. What is
/// found there may be another container's filter: only one that runs this container's trampoline is removed.
/// Trampolines differ by their constant, so their tags do.
pub(super) fn detach(pin: &Path, name: &PinName) -> Result<(), AttachFault> {
    let place = note(pin).and_then(|note| fs::read_link(note).ok());
    let found = place.as_deref().and_then(|place| {
        let ifname = place.file_name()?.to_str()?.to_owned();
        let inode = place.parent()?.to_str()?.parse().ok()?;
        Some((netns::find(inode)?, ifname))
    });
    match found {
        Some((namespace, ifname)) => netns::inside(namespace.as_fd(), || {
            if clsact::runs(pin, name.program, &ifname).map_err(AttachFault::kernel("read the filter"))? {
                clsact::detach(pin, name.program, &ifname)
            } else {
                clsact::forget(pin)
            }
        })
        .map_err(AttachFault::kernel("enter the network namespace"))??,
        // The filter went with its interface.
        None => clsact::forget(pin)?,
    }
    remove_note(pin).map_err(AttachFault::kernel("remove the namespace's note"))
}

fn note(pin: &Path) -> Option<PathBuf> {
    let id = pin.file_name()?.to_str()?.split_once('@')?.1;
    Some(pin.parent()?.join("netns").join(id))
}

fn write_note(pin: &Path, place: &Path) -> io::Result<()> {
    let note = note(pin).ok_or(io::ErrorKind::InvalidInput)?;
    match fs::read_link(&note) {
        Ok(noted) if noted == place => return Ok(()),
        Ok(_) => fs::remove_file(&note)?,
        Err(_) => note.parent().map_or(Ok(()), fs::create_dir_all)?,
    }
    symlink(place, note)
}

/// The note goes with the last of the interface's two filters, its directory with the last note.
fn remove_note(pin: &Path) -> io::Result<()> {
    let Some((note, (directory, id))) = note(pin)
        .zip(pin.parent().zip(pin.file_name().and_then(|name| name.to_str()?.split_once('@')).map(|(_, id)| id)))
    else {
        return Ok(());
    };
    if super::PROGRAMS.iter().any(|program| directory.join(format!("{program}@{id}")).exists()) {
        return Ok(());
    }
    match fs::remove_file(&note) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    if let Some(notes) = note.parent() {
        let _ = fs::remove_dir(notes);
    }
    Ok(())
}
