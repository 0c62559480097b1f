//! Loading the object: maps made or adopted, programs verified by the kernel.

use std::path::Path;

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    programs::{ProgramError, SchedClassifier, Xdp},
};

use crate::{MapName, Program, adopt::pin_path, object::OBJECT};

/// The programs could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The object or its maps.
    #[error("cannot load the programs' object: {}", chain(.0))]
    Object(#[source] Box<EbpfError>),
    /// The kernel's verifier, mostly.
    #[error("the kernel refuses program {program}: {}", chain(.source))]
    Program {
        /// Which.
        program: Program,
        /// Why; contains the verifier's log.
        #[source]
        source: Box<ProgramError>,
    },
    /// The object has no such program.
    #[error("the embedded object has no program {0}: build it again with `cargo xtask build-ebpf`")]
    Missing(Program),
}

/// An error with all its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// How often a program is given to a verifier that is interrupted by signals. As often as libbpf does it, and as much
/// again: the larger ones take it most of a second on a busy machine.
const MOST_ATTEMPTS: u32 = 10;

/// How the maps are made.
pub(crate) enum Maps<'a> {
    /// Pinned under this directory; adopted if they are there, made with these numbers of entries otherwise.
    Pinned(&'a Path, &'a [(MapName, u32)]),
    /// Of this process alone, with fewer entries where given.
    Private(&'a [(MapName, u32)]),
}

/// Parses the object, makes its maps and loads all programs.
pub(crate) fn load(maps: &Maps<'_>, log_level: u8) -> Result<Ebpf, LoadError> {
    let mut ebpf = open(maps, log_level)?;
    for program in Program::ALL {
        self::program(&mut ebpf, *program)?;
    }
    Ok(ebpf)
}

/// Parses the object and makes its maps.
pub(crate) fn open(maps: &Maps<'_>, log_level: u8) -> Result<Ebpf, LoadError> {
    let mut loader = EbpfLoader::new();
    loader.override_global("AYA_LOG_LEVEL", &log_level, false);
    let sizes = match maps {
        Maps::Pinned(bpffs, sizes) => {
            for map in MapName::ALL {
                loader.map_pin_path(map.name(), pin_path(bpffs, *map));
            }
            sizes
        }
        Maps::Private(sizes) => sizes,
    };
    for (map, entries) in *sizes {
        loader.map_max_entries(map.name(), *entries);
    }
    loader.load(OBJECT).map_err(|error| LoadError::Object(Box::new(error)))
}

/// Has the kernel verify one program.
pub(crate) fn program(ebpf: &mut Ebpf, program: Program) -> Result<(), LoadError> {
    let mut attempts = 0;
    let loaded = loop {
        let loaded = match program.is_xdp() {
            true => xdp(ebpf, program)?.load(),
            false => classifier(ebpf, program)?.load(),
        };
        attempts += 1;
        match loaded {
            Err(ref error) if was_interrupted(error) && attempts < MOST_ATTEMPTS => {}
            loaded => break loaded,
        }
    };
    loaded.map_err(|source| LoadError::Program { program, source: Box::new(source) })
}

/// Whether the verifier gave up because a signal was pending for its thread (`EAGAIN`), as libbpf asks
/// (`sys_bpf_prog_load`): nothing is wrong with the program.
fn was_interrupted(error: &ProgramError) -> bool {
    matches!(error, ProgramError::LoadError { io_error, .. } if io_error.raw_os_error() == Some(libc::EAGAIN))
}

/// The TC program as aya knows it.
pub(crate) fn classifier(ebpf: &mut Ebpf, program: Program) -> Result<&mut SchedClassifier, LoadError> {
    ebpf.program_mut(program.name())
        .ok_or(LoadError::Missing(program))?
        .try_into()
        .map_err(|source| LoadError::Program { program, source: Box::new(source) })
}

/// The XDP program as aya knows it.
pub(crate) fn xdp(ebpf: &mut Ebpf, program: Program) -> Result<&mut Xdp, LoadError> {
    ebpf.program_mut(program.name())
        .ok_or(LoadError::Missing(program))?
        .try_into()
        .map_err(|source| LoadError::Program { program, source: Box::new(source) })
}
