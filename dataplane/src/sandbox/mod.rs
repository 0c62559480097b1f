//! Programs on containers' own interfaces, inside their network namespaces, on networks that the engine carries.
//!
//! Each interface has two trampolines (see [`trampoline`]), attached as other programs are: TCX links pinned under
//! `<bpffs>/links/<program>@<id>`, or clsact filters noted under `<bpffs>/filters/`. A link is found again from
//! anywhere. A filter is not, so the note `<bpffs>/filters/netns/<id>` says in which namespace and on which interface
//! it is. What the trampolines call is in the pinned map `SANDBOX_PROGRAMS`; without it they let every packet pass.

mod clsact;
mod netns;
mod trampoline;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    maps::{Map, MapError, ProgramArray},
};
use dataplane_common::{endpoint::SANDBOX_BIT, mark::sandbox_program};

use crate::{
    Detached, MapFault, MapName, Program,
    attach::{self, AttachError, AttachFault, Attached, Hook, PinName, Unpinned, tcx},
    load::{self, LoadError},
    sys,
};

/// Replies are translated before there can be any.
const PROGRAMS: [Program; 2] = [Program::ToSandbox, Program::FromSandbox];

/// Puts loaded programs into a map of programs that others call. The map is pinned: without a holder in user space the
/// kernel would empty it. Returns its descriptor.
pub(crate) fn callable(ebpf: &mut Ebpf, map: MapName, entries: &[(u32, Program)]) -> Result<OwnedFd, TakeError> {
    let fault = |source| TakeError::Map(MapFault { map, source });
    let missing = || fault(MapError::InvalidName { name: map.name().to_owned() });
    let handle = ebpf.take_map(map.name()).ok_or_else(missing)?;
    let Map::ProgramArray(data) = &handle else { return Err(missing()) };
    let fd = data.fd().as_fd().try_clone_to_owned().map_err(|error| fault(error.into()))?;
    let mut programs = ProgramArray::try_from(handle).map_err(fault)?;
    for &(index, program) in entries {
        let loaded = load::classifier(ebpf, program)?;
        let fd =
            loaded.fd().map_err(|source| TakeError::Load(LoadError::Program { program, source: Box::new(source) }))?;
        programs.set(index, fd, 0).map_err(fault)?;
    }
    Ok(fd)
}

/// The trampolines of one data plane.
pub(crate) struct Sandboxes {
    /// Map `SANDBOX_PROGRAMS`. It is pinned: without a holder in user space the kernel would empty it.
    programs: OwnedFd,
    /// The trampolines that this process has attached: descriptor and kernel's id.
    trampolines: BTreeMap<(Program, u32), (OwnedFd, u32)>,
}

/// Where the programs of the interface with that id are pinned.
pub(crate) fn pins(hook: Hook, bpffs: &Path, id: u32) -> impl Iterator<Item = PathBuf> {
    let directory = hook.directory(bpffs);
    PROGRAMS.into_iter().map(move |program| directory.join(pin_name(program, id).to_string()))
}

impl Sandboxes {
    /// Lets all trampolines call the programs of `ebpf` from now on, also those that an earlier agent has attached.
    pub(crate) fn take(ebpf: &mut Ebpf) -> Result<Self, TakeError> {
        let programs = [(sandbox_program::FROM, Program::FromSandbox), (sandbox_program::TO, Program::ToSandbox)];
        let fd = callable(ebpf, MapName::SandboxPrograms, &programs)?;
        Ok(Self { programs: fd, trampolines: BTreeMap::new() })
    }

    /// See [`Dataplane::attach_sandbox`](crate::Dataplane::attach_sandbox).
    pub(crate) fn attach(
        &mut self,
        hook: Hook,
        bpffs: &Path,
        netns: BorrowedFd<'_>,
        ifname: &str,
        id: u32,
        unpinned: &mut Unpinned,
    ) -> Result<Attached, AttachError> {
        let mut result = Attached::Unchanged;
        for program in PROGRAMS {
            let fail = |fault| AttachError::new(program, &format!("{ifname} of sandbox {id:08x}"), fault);
            let attached = self.attach_one(hook, bpffs, netns, ifname, (program, id), unpinned).map_err(fail)?;
            result = result.max(attached);
        }
        Ok(result)
    }

    fn attach_one(
        &mut self,
        hook: Hook,
        bpffs: &Path,
        netns: BorrowedFd<'_>,
        ifname: &str,
        (program, id): (Program, u32),
        unpinned: &mut Unpinned,
    ) -> Result<Attached, AttachFault> {
        if id & SANDBOX_BIT == 0 {
            let error = io::Error::other(format!("{id:08x} is no sandbox's id: its highest bit must be set"));
            return Err(AttachFault::kernel("choose an id")(error));
        }
        let before = self.trampolines.contains_key(&(program, id));
        let (trampoline, trampoline_id) = match self.trampolines.remove(&(program, id)) {
            Some(trampoline) => trampoline,
            None => {
                let trampoline = trampoline::load(program, id, self.programs.as_fd())
                    .map_err(AttachFault::kernel("load the trampoline"))?;
                let trampoline_id =
                    sys::program_id(trampoline.as_fd()).map_err(AttachFault::kernel("read the trampoline's id"))?;
                (trampoline, trampoline_id)
            }
        };
        let name = pin_name(program, id);
        let pin = hook.directory(bpffs).join(name.to_string());
        let attached = netns::inside(netns, || {
            let ifindex = attach::ifindex(ifname)?;
            match hook {
                Hook::Tcx => {
                    tcx::attach(trampoline.as_fd(), trampoline_id, attach::side(program), ifindex, &pin, unpinned)
                }
                Hook::Clsact => clsact::attach(trampoline.as_fd(), netns, &name, ifname, &pin, before, unpinned),
            }
        })
        .map_err(AttachFault::kernel("enter the network namespace"))??;
        self.trampolines.insert((program, id), (trampoline, trampoline_id));
        Ok(attached)
    }

    /// See [`Dataplane::detach_sandboxes_except`](crate::Dataplane::detach_sandboxes_except).
    pub(crate) fn detach_except(
        &mut self,
        hook: Hook,
        bpffs: &Path,
        keep: &BTreeSet<u32>,
        unpinned: &mut Unpinned,
    ) -> Detached {
        let mut result = Detached::default();
        for at in Hook::ALL {
            let names = match pinned(at, bpffs) {
                Ok(names) => names,
                Err(error) => {
                    result.failures.push(format!("{}: {error}", at.directory(bpffs).display()));
                    continue;
                }
            };
            for name in names {
                let kept = at == hook && id_of(&name).is_some_and(|id| keep.contains(&id));
                if kept && !is_dead(at, bpffs, &name) {
                    continue;
                }
                match detach(at, bpffs, &name) {
                    Ok(()) => {
                        unpinned.note(&at.directory(bpffs).join(name.to_string()));
                        result.detached.push((name.program, name.ifname));
                    }
                    Err(error) => result.failures.push(error.to_string()),
                }
            }
        }
        self.trampolines.retain(|(_, id), _| keep.contains(id));
        result
    }
}

/// The trampolines' programs could not be made known to them.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TakeError {
    #[error(transparent)]
    Map(MapFault),
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// What is attached in that way in sandboxes, as the pins say; what is on the way out comes first.
pub(crate) fn pinned(hook: Hook, bpffs: &Path) -> io::Result<Vec<PinName>> {
    let all = attach::pinned(hook, bpffs)?;
    Ok(all.into_iter().filter(|name| name.program.in_sandbox()).collect())
}

/// Ids of the interfaces with a program.
pub(crate) fn ids(hook: Hook, bpffs: &Path) -> io::Result<BTreeSet<u32>> {
    Ok(pinned(hook, bpffs)?.iter().filter_map(id_of).collect())
}

/// Detaches what `name` stands for and removes its pin.
pub(crate) fn detach(hook: Hook, bpffs: &Path, name: &PinName) -> Result<(), AttachError> {
    let pin = hook.directory(bpffs).join(name.to_string());
    match hook {
        Hook::Tcx => tcx::detach(&pin),
        Hook::Clsact => clsact::detach(&pin, name),
    }
    .map_err(|source| AttachError::new(name.program, &format!("sandbox {}", name.ifname), source))
}

/// Whether the interface is gone that a link was on.
fn is_dead(hook: Hook, bpffs: &Path, name: &PinName) -> bool {
    let link = sys::object_get(&hook.directory(bpffs).join(name.to_string()));
    hook == Hook::Tcx && link.and_then(|link| sys::tcx_link(link.as_fd())).is_ok_and(|info| info.ifindex == 0)
}

fn pin_name(program: Program, id: u32) -> PinName {
    PinName { program, ifname: format!("{id:08x}") }
}

fn id_of(name: &PinName) -> Option<u32> {
    u32::from_str_radix(&name.ifname, 16).ok()
}
