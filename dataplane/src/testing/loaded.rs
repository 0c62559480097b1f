//! Loaded programs that harnesses of one process use one after the other: to verify them takes the kernel many times as
//! long as to empty their maps.

use std::{
    os::fd::{AsFd as _, BorrowedFd},
    sync::{Mutex, MutexGuard, PoisonError},
};

use aya::{
    Ebpf,
    maps::{Map, MapData, MapError, MapInfo, MapType},
};

use super::harness::{HarnessError, SIZES};
use crate::{
    LoadError, MapFault, MapName, Program, Sizes,
    load::{self, Maps},
    sys,
    table::map_fd,
    tables::Tables,
};

/// What harnesses of the usual sizes have left.
static LEFT: Mutex<Vec<Ebpf>> = Mutex::new(Vec::new());

/// Programs, loaded when they are first asked for, and their maps.
pub(super) struct Loaded {
    /// `None` only while it is given back.
    ebpf: Option<Ebpf>,
    /// Whether it goes back when it is dropped.
    shared: bool,
    /// Whether an earlier harness has used it.
    pub(super) used: bool,
}

impl Loaded {
    /// Maps with nothing in them, with this number of entries in some.
    pub(super) fn take(sizes: &[(MapName, u32)]) -> Result<Self, HarnessError> {
        let left = if sizes.is_empty() { left().pop() } else { None };
        let used = left.is_some();
        let ebpf = match left {
            Some(ebpf) => ebpf,
            None => load::open(&Maps::Private(&[SIZES, sizes].concat()), 0)?,
        };
        Ok(Self { ebpf: Some(ebpf), shared: sizes.is_empty(), used })
    }

    /// The maps as the agent has them, by descriptors of their own: programs that are loaded later look for the maps
    /// where the object has put them.
    pub(super) fn tables(&self, lines: Sizes) -> Result<Tables, HarnessError> {
        Ok(Tables::of(|map| self.map(map), lines)?)
    }

    /// Another handle of a map.
    pub(super) fn map(&self, map: MapName) -> Result<Map, MapFault> {
        let fault = |source| MapFault { map, source };
        let missing = || fault(MapError::InvalidName { name: map.name().to_owned() });
        let handle = self.ebpf.as_ref().and_then(|ebpf| ebpf.map(map.name())).and_then(map_fd).ok_or_else(missing)?;
        let fd = handle.try_clone_to_owned().map_err(|error| fault(error.into()))?;
        MapData::from_fd(fd).and_then(Map::from_map_data).map_err(fault)
    }

    /// A map that only the programs use.
    pub(super) fn unnamed(&mut self, name: &str) -> Result<&mut Map, HarnessError> {
        Ok(self.ebpf.as_mut().and_then(|ebpf| ebpf.map_mut(name)).ok_or(MapError::KeyNotFound)?)
    }

    /// The object with this program loaded.
    pub(super) fn with(&mut self, program: Program) -> Result<&mut Ebpf, LoadError> {
        let ebpf = self.ebpf.as_mut().ok_or(LoadError::Missing(program))?;
        let is_loaded = match program.is_xdp() {
            true => load::xdp(ebpf, program)?.fd().is_ok(),
            false => load::classifier(ebpf, program)?.fd().is_ok(),
        };
        if !is_loaded {
            load::program(ebpf, program)?;
        }
        Ok(ebpf)
    }

    /// The programs may be in use elsewhere from here on, after the harness is gone: they are not given back.
    pub(super) fn keep(&mut self) {
        self.shared = false;
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        // What a failed test has left may be anything.
        if !self.shared || std::thread::panicking() {
            return;
        }
        if let Some(ebpf) = self.ebpf.take().filter(|ebpf| empty(ebpf).is_ok()) {
            left().push(ebpf);
        }
    }
}

fn left() -> MutexGuard<'static, Vec<Ebpf>> {
    LEFT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes all maps what they were when they were made.
fn empty(ebpf: &Ebpf) -> Result<(), MapError> {
    for (name, map) in ebpf.maps() {
        // Constants of the programs, frozen.
        if let Some(fd) = map_fd(map).filter(|_| !name.starts_with('.')) {
            empty_map(fd)?;
        }
    }
    Ok(())
}

fn empty_map(fd: BorrowedFd<'_>) -> Result<(), MapError> {
    let info = MapData::from_fd(fd.try_clone_to_owned()?)?.info()?;
    match info.map_type()? {
        MapType::Array | MapType::PerCpuArray => zero(fd, &info)?,
        // What is in them is emptied with them, or by whoever finds the head of a table empty.
        MapType::ArrayOfMaps => {}
        _ => {
            let mut key = vec![0; info.key_size() as usize];
            while sys::first_key(fd, &mut key)? {
                sys::delete(fd, &key)?;
            }
        }
    }
    Ok(())
}

fn zero(fd: BorrowedFd<'_>, info: &MapInfo) -> Result<(), MapError> {
    let copies = match info.map_type()? {
        MapType::PerCpuArray => aya::util::nr_cpus().map_err(|(_, error)| error)?,
        _ => 1,
    };
    let entries = info.max_entries();
    let keys: Vec<u8> = (0..entries).flat_map(u32::to_ne_bytes).collect();
    // The kernel's values of one CPU begin at multiples of eight bytes.
    let value = (info.value_size() as usize).next_multiple_of(if copies == 1 { 1 } else { 8 });
    let values = vec![0; entries as usize * value * copies];
    sys::update_batch(fd.as_fd(), &keys, &values, entries as usize)
        .map_err(|_| MapError::from(std::io::Error::other("the kernel refuses zeroes")))
}
