//! What the kernel's verifier makes of each program, for `cargo xtask verify`.

mod stack;

use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
};

use aya::{Ebpf, maps::Map};
use aya_obj::{Object, ParseError, relocation::EbpfRelocationError};

use crate::{
    LoadError, PreflightError, Program, TcHook,
    load::{self, Maps},
    object::OBJECT,
    preflight,
    sys::{self, FunctionInfo, load_with_statistics},
    table::map_fd,
};

/// The verifier's figures for one program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Which program.
    pub program: Program,
    /// Its length in instructions, as loaded.
    pub length: usize,
    /// Instructions the verifier went through on all paths; the kernel's limit is one million.
    pub instructions: u64,
    /// Stack in bytes of the deepest chain of calls, as kernel 6.1 counts it, which is the most: each frame rounded up
    /// to
    /// 32. A kernel refuses more than 512.
    pub stack: u64,
    /// Verifier states kept at the peak.
    pub peak_states: u64,
}

/// The programs could not be verified.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// This machine will not do.
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    /// The kernel refused.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The object cannot be read.
    #[error("the embedded object cannot be read: {0}")]
    Parse(#[from] ParseError),
    /// The object's references cannot be resolved.
    #[error("the embedded object cannot be linked: {0}")]
    Relocate(#[from] EbpfRelocationError),
    /// The kernel refused when asked for figures.
    #[error("program {program} was loaded, but not with statistics: {source}")]
    Statistics {
        /// Which program.
        program: Program,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The verifier's log does not look as expected.
    #[error("program {program}: no figures in the verifier's log:\n{log}")]
    Log {
        /// Which program.
        program: Program,
        /// What it says.
        log: String,
    },
}

/// Loads every program and returns the verifier's figures. Nothing is pinned or attached.
///
/// aya throws the log of a successful load away, so that each program is loaded a second time here, against the maps of
/// the first.
pub fn verify() -> Result<Vec<Verified>, VerifyError> {
    preflight::check_machine(TcHook::Auto)?;
    let mut loaded = load::load(&Maps::Private(&[]), 0)?;
    let btf = btf(&mut loaded)?;
    let mut object = Object::parse(OBJECT)?;
    let definitions = std::mem::take(&mut object.maps);
    let maps = loaded.maps().filter_map(|(name, map)| {
        let definition = definitions.get(name)?;
        Some((name, descriptor(map)?.as_raw_fd(), definition))
    });
    let sections = object.functions.keys().map(|(section, _)| *section).collect();
    object.relocate_maps(maps, &sections)?;
    object.relocate_calls(&sections)?;
    object.sanitize_functions(aya::features());
    Program::ALL.iter().map(|program| figures(&object, btf.as_fd(), *program)).collect()
}

/// The BTF that the loaded programs share.
fn btf(loaded: &mut Ebpf) -> Result<OwnedFd, VerifyError> {
    let program = Program::FromContainer;
    let fail = |source| VerifyError::Statistics { program, source };
    let fd = load::classifier(loaded, program)?
        .fd()
        .map_err(|source| LoadError::Program { program, source: Box::new(source) })?;
    sys::program_btf(fd.as_fd()).and_then(sys::btf_by_id).map_err(fail)
}

/// The descriptor of a map; `None` for kinds that the object has none of.
fn descriptor(map: &Map) -> Option<BorrowedFd<'_>> {
    match map {
        Map::RingBuf(data) | Map::ProgramArray(data) | Map::ArrayOfMaps(data) => Some(data.fd().as_fd()),
        other => map_fd(other),
    }
}

fn figures(object: &Object, btf: BorrowedFd<'_>, program: Program) -> Result<Verified, VerifyError> {
    let missing = || VerifyError::Load(LoadError::Missing(program));
    let definition = object.programs.get(program.name()).ok_or_else(missing)?;
    let function = object.functions.get(&definition.function_key()).ok_or_else(missing)?;
    let records = function.func_info.func_info_bytes();
    let functions = FunctionInfo { btf, records: &records, record_len: function.func_info_rec_size };
    let log = load_with_statistics(&function.instructions, &definition.license, program.is_xdp(), &functions)
        .map_err(|source| VerifyError::Statistics { program, source })?;
    let log = CStr::from_bytes_until_nul(&log).unwrap_or_default().to_string_lossy().into_owned();
    let (length, stack) = (function.instructions.len(), stack::deepest(&function.instructions));
    parse(&log)
        .map(|(instructions, peak_states)| Verified { program, length, instructions, stack, peak_states })
        .ok_or(VerifyError::Log { program, log })
}

/// Instructions and peak states from a line such as
/// `processed 4711 insns (limit 1000000) max_states_per_insn 4 total_states 99 peak_states 77 …`.
fn parse(log: &str) -> Option<(u64, u64)> {
    let after = |key: &str| {
        let rest = log.split_once(key)?.1;
        rest.split_whitespace().next()
    };
    Some((after("processed ")?.parse().ok()?, after("peak_states ")?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_verifiers_log() {
        let log = "verification time 1234 usec\nstack depth 352+0+4+8\nprocessed 4711 insns (limit 1000000) \
                   max_states_per_insn 4 total_states 99 peak_states 77 mark_read 5\n";
        assert_eq!(parse(log), Some((4711, 77)));
        assert_eq!(parse("stack depth 16\nprocessed 2 insns (limit 9) peak_states 1\n"), Some((2, 1)));
        assert_eq!(parse("no such thing"), None);
    }
}
