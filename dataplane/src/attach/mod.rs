//! Attaching programs to devices so that they stay when the agent goes.
//!
//! Two ways: TCX links (kernel 6.6 and later), pinned under `<bpffs>/links/`; or filters of the clsact qdisc, noted
//! under `<bpffs>/filters/` because the kernel has no place to pin them. XDP programs have links on all kernels, under
//! `<bpffs>/links/`. Entries in both directories are called
//! `<program>@<interface>`; that is how a restarted agent recognises its own.

pub(crate) mod clsact;
mod pin_name;
mod qdisc;
pub(crate) mod tcx;
mod trial;
pub(crate) mod xdp;

use std::{
    collections::BTreeSet,
    fs, io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use aya::programs::{ProgramError, SchedClassifier, TcAttachType};

pub(crate) use self::pin_name::PinName;
pub use self::{trial::XdpTrial, xdp::XdpMode};
use crate::{Direction, Program, sys};

/// What an `attach` did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Attached {
    /// The program was attached already.
    Unchanged,
    /// An older program on that device was replaced; no packet went past both.
    Replaced,
    /// The device had no program of ours.
    New,
}

/// Pins that this process has taken away on purpose: detached, replaced or renamed. A pin that is missing and not among
/// them was taken away by others.
#[derive(Debug, Default)]
pub(crate) struct Unpinned(Vec<PathBuf>);

impl Unpinned {
    pub(crate) fn note(&mut self, pin: &Path) {
        self.0.push(pin.to_owned());
    }

    pub(crate) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.iter().map(PathBuf::as_path)
    }
}

/// Directories of the pins, and which of the two ways is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    Tcx,
    Clsact,
}

impl Hook {
    /// Both ways.
    pub(crate) const ALL: [Self; 2] = [Self::Tcx, Self::Clsact];

    /// The directory with this way's pins.
    pub(crate) fn directory(self, bpffs: &Path) -> PathBuf {
        bpffs.join(match self {
            Self::Tcx => "links",
            Self::Clsact => "filters",
        })
    }

    /// Detaches what `name` stands for and removes its pin.
    pub(crate) fn detach(self, bpffs: &Path, name: &PinName) -> Result<(), AttachError> {
        let pin = self.directory(bpffs).join(name.to_string());
        match self {
            Self::Tcx => tcx::detach(&pin),
            Self::Clsact => clsact::detach_noted(&pin, name),
        }
        .map_err(|source| AttachError::new(name.program, &name.ifname, source))
    }
}

/// A program could not be attached or detached.
#[derive(Debug, thiserror::Error)]
#[error("{program} on {ifname}: {source}")]
pub struct AttachError {
    /// The program.
    pub program: Program,
    /// The device.
    pub ifname: String,
    /// What went wrong.
    #[source]
    pub source: AttachFault,
}

impl AttachError {
    pub(crate) fn new(program: Program, ifname: &str, source: AttachFault) -> Self {
        Self { program, ifname: ifname.to_owned(), source }
    }

    /// Whether the reason is that there is no such device (any more).
    pub fn no_interface(&self) -> bool {
        matches!(self.source, AttachFault::NoInterface)
    }

    /// Whether the reason is somebody else's XDP program, there or on a device above: it may go at any time.
    pub fn is_taken(&self) -> bool {
        matches!(&self.source, AttachFault::Kernel { source, .. } if is_taken(source))
    }
}

/// Whether the kernel refuses an XDP program because there is another one (`dev_xdp_attach`): at the device, or at its
/// master, a bridge or bond.
pub fn is_taken(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EEXIST))
}

/// Why a program could not be attached or detached.
#[derive(Debug, thiserror::Error)]
pub enum AttachFault {
    /// There is no such device in this network namespace.
    #[error("there is no such interface")]
    NoInterface,
    /// The kernel refused.
    #[error("{doing}: {source}")]
    Kernel {
        /// What was being done.
        doing: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// aya refused.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// Pinning failed.
    #[error(transparent)]
    Pin(#[from] aya::pin::PinError),
}

impl AttachFault {
    pub(crate) fn kernel(doing: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Kernel { doing, source }
    }
}

/// A loaded program on its way to a device.
pub(crate) struct Target<'a> {
    pub(crate) program: &'a mut SchedClassifier,
    /// Its id, to tell whether a link runs it already.
    pub(crate) id: u32,
    pub(crate) name: PinName,
    pub(crate) ifindex: u32,
}

impl Target<'_> {
    /// Attaches it, or replaces what is attached.
    pub(crate) fn attach(
        self,
        hook: Hook,
        bpffs: &Path,
        attached_before: bool,
        unpinned: &mut Unpinned,
    ) -> Result<Attached, AttachFault> {
        let pin = hook.directory(bpffs).join(self.name.to_string());
        let PinName { program, ifname } = &self.name;
        match hook {
            Hook::Tcx => tcx::attach(self.program.fd()?.as_fd(), self.id, side(*program), self.ifindex, &pin, unpinned),
            Hook::Clsact => {
                let attached = clsact::attach(self.program, *program, ifname, &pin, attached_before, unpinned)?;
                clsact::note_device(&pin, self.ifindex)?;
                Ok(attached)
            }
        }
    }
}

/// Index of a device in this thread's network namespace.
pub(crate) fn ifindex(ifname: &str) -> Result<u32, AttachFault> {
    nix::net::if_::if_nametoindex(ifname).map_err(|errno| match errno {
        nix::Error::ENODEV | nix::Error::ENXIO => AttachFault::NoInterface,
        other => AttachFault::Kernel { doing: "look up the interface", source: other.into() },
    })
}

/// If there is no pin of that name, and the device has a link of that program under a name that no device has any more,
/// the device was renamed: so is the pin. A device takes one XDP link only.
pub(crate) fn follow_rename(bpffs: &Path, name: &PinName, ifindex: u32, unpinned: &mut Unpinned) -> io::Result<()> {
    let directory = Hook::Tcx.directory(bpffs);
    let pin = directory.join(name.to_string());
    if pin.exists() || !name.program.on_hosts_interfaces() {
        return Ok(());
    }
    for other in pinned(Hook::Tcx, bpffs)?.into_iter().filter(|other| other.program == name.program) {
        let at = directory.join(other.to_string());
        if matches!(self::ifindex(&other.ifname), Err(AttachFault::NoInterface))
            && device(name.program, &at) == Some(ifindex)
        {
            fs::rename(&at, pin)?;
            // The link is to be held under its new name only: under the former one it would be pinned anew.
            unpinned.note(&at);
            return Ok(());
        }
    }
    Ok(())
}

/// The device that the link pinned at `pin` is on.
fn device(program: Program, pin: &Path) -> Option<u32> {
    match program.is_xdp() {
        true => xdp::device(pin),
        false => sys::tcx_link(sys::object_get(pin).ok()?.as_fd()).ok().map(|info| info.ifindex),
    }
}

/// What is attached in that way, as the pins say. Names that are not of our making are left out.
pub(crate) fn pinned(hook: Hook, bpffs: &Path) -> io::Result<BTreeSet<PinName>> {
    let entries = match fs::read_dir(hook.directory(bpffs)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => return Err(error),
    };
    let mut found = BTreeSet::new();
    for entry in entries {
        found.extend(entry?.file_name().to_str().and_then(|name| name.parse().ok()));
    }
    Ok(found)
}

/// The hook that a program runs at, as aya calls it.
pub(crate) fn side(program: Program) -> TcAttachType {
    match program.direction() {
        Direction::Ingress => TcAttachType::Ingress,
        Direction::Egress => TcAttachType::Egress,
    }
}
