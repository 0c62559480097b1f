//! Pins that are taken away while the agent runs: removed by hand, or gone with their file system. The programs run on
//! as long as something holds them; the pins are made anew, so that the next agent finds everything as if nothing had
//! happened.

use std::{
    collections::BTreeMap,
    fs, io,
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::fs::{MetadataExt as _, symlink},
    },
    path::{Path, PathBuf},
};

use nix::{
    mount::{MsFlags, mount},
    sys::resource::{Resource, getrlimit},
};

use crate::{
    MapName,
    adopt::pin_path,
    attach::{AttachError, Attached, Hook, Unpinned},
    lock::{Lock, LockError},
    preflight::{PreflightError, check_bpffs},
    private::make_directory,
    sys,
};

/// The pins cannot be made anew.
#[derive(Debug, thiserror::Error)]
pub enum PinsError {
    /// There is no BPF file system any more.
    #[error("{}; mounting one at {at} again has failed: {source}", .why)]
    NotMounted {
        /// What is wrong with the directory.
        why: PreflightError,
        /// Where it was mounted.
        at: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The directory cannot be used.
    #[error(transparent)]
    Directory(#[from] PreflightError),
    /// Another agent has it by now.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The kernel refuses a pin, or a directory.
    #[error("{path}: {source}")]
    Refused {
        /// Which.
        path: PathBuf,
        /// What it said.
        #[source]
        source: io::Error,
    },
}

/// What was made anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mended {
    /// A BPF file system was mounted.
    pub mounted: bool,
    /// Maps that were pinned.
    pub maps: usize,
    /// Links and notes of filters that were pinned. Those of a process that has no descriptors left for them have ended
    /// with their pins, and have to be attached anew.
    pub links: usize,
}

impl Mended {
    /// Whether anything was.
    pub fn any(self) -> bool {
        self != Self::default()
    }
}

/// Links are held with this part of the descriptors that the process may have, at most.
const SHARE: u64 = 16;

/// What is needed to make pins anew.
pub(crate) struct Pins {
    /// Descriptors of all maps: while they are open no map ends.
    maps: Vec<(MapName, OwnedFd)>,
    /// Descriptors of what is pinned for each attached program, by its path below the directory: as long as they are
    /// open no link ends with its pin.
    links: BTreeMap<PathBuf, OwnedFd>,
    /// Where the BPF file system is mounted.
    mounted_at: PathBuf,
}

fn refused(path: &Path) -> impl Fn(io::Error) -> PinsError + '_ {
    |source| PinsError::Refused { path: path.to_owned(), source }
}

impl Pins {
    /// Of a data plane whose maps are all pinned.
    pub(crate) fn hold(bpffs: &Path) -> Result<Self, PinsError> {
        let open = |map: &MapName| {
            let path = pin_path(bpffs, *map);
            Ok((*map, sys::object_get(&path).map_err(refused(&path))?))
        };
        let maps = MapName::ALL.iter().map(open).collect::<Result<_, PinsError>>()?;
        Ok(Self { maps, links: BTreeMap::new(), mounted_at: mount_point(bpffs).map_err(refused(bpffs))? })
    }

    /// Lets go of what attaching has taken away, and holds what is pinned at `pins` for the program if it is
    /// `attached`.
    ///
    /// # Errors
    /// What `attached` says.
    pub(crate) fn hold_links(
        &mut self,
        bpffs: &Path,
        pins: impl IntoIterator<Item = PathBuf>,
        unpinned: &Unpinned,
        attached: Result<Attached, AttachError>,
    ) -> Result<Attached, AttachError> {
        self.let_go(bpffs, unpinned);
        let attached = attached?;
        for pin in pins {
            self.hold_link(bpffs, &pin, attached != Attached::Unchanged);
        }
        Ok(attached)
    }

    /// Holds what is pinned at `pin` for a program that is attached, while there are descriptors to spare; `new`: it is
    /// another than before.
    fn hold_link(&mut self, bpffs: &Path, pin: &Path, new: bool) {
        let Ok(name) = pin.strip_prefix(bpffs) else { return };
        if self.links.contains_key(name) && !new {
            return;
        }
        self.links.remove(name);
        if self.links.len() as u64 >= getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft / SHARE) {
            return;
        }
        if let Ok(held) = sys::object_get(pin) {
            self.links.insert(name.to_owned(), held);
        }
    }

    /// Lets go of what was pinned there. A pin that is missing and not `unpinned` was taken away by others: its link
    /// stays held, and [`Pins::mend`] pins it anew.
    pub(crate) fn let_go(&mut self, bpffs: &Path, unpinned: &Unpinned) {
        for name in unpinned.paths().filter_map(|pin| pin.strip_prefix(bpffs).ok()) {
            self.links.remove(name);
        }
    }

    /// Makes anew what is missing below `bpffs`. `lock` is that directory's, and follows it.
    pub(crate) fn mend(&self, bpffs: &Path, lock: &mut Lock) -> Result<Mended, PinsError> {
        let mut mended = Mended::default();
        let missing = |map: MapName| !pin_path(bpffs, map).exists();
        let same = fs::metadata(bpffs).is_ok_and(|now| lock.is_of(&now));
        let mut links = self.links.keys();
        if same && !self.maps.iter().any(|(map, _)| missing(*map)) && links.all(|name| bpffs.join(name).exists()) {
            return Ok(mended);
        }
        match check_bpffs(bpffs) {
            Err(why @ PreflightError::NoBpffs { .. }) => {
                let at = &self.mounted_at;
                // As systemd mounts it: by default anybody may make directories in it.
                let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
                mount(Some("bpf"), at, Some("bpf"), flags, Some("mode=700"))
                    .map_err(|errno| PinsError::NotMounted { why, at: at.clone(), source: errno.into() })?;
                mended.mounted = true;
            }
            checked => checked?,
        }
        let directories = Hook::ALL.map(|hook| hook.directory(bpffs));
        for directory in directories.iter().chain([&bpffs.join("maps")]) {
            make_directory(directory).map_err(refused(directory))?;
        }
        let there = fs::metadata(bpffs).map_err(refused(bpffs))?;
        if !lock.is_of(&there) {
            let new = Lock::take(bpffs)?;
            // What is no longer mounted is still there for who has it open, and so are its links.
            let old = PathBuf::from(format!("/proc/self/fd/{}", lock.directory().as_raw_fd()));
            for hook in Hook::ALL {
                mended.links += move_pins(&hook.directory(&old), &hook.directory(bpffs))?;
            }
            *lock = new;
        }
        for (name, fd) in &self.links {
            let path = bpffs.join(name);
            if !path.exists() {
                sys::object_pin(fd.as_fd(), &path).map_err(refused(&path))?;
                mended.links += 1;
            }
        }
        for (map, fd) in self.maps.iter().filter(|(map, _)| missing(*map)) {
            let path = pin_path(bpffs, *map);
            sys::object_pin(fd.as_fd(), &path).map_err(refused(&path))?;
            mended.maps += 1;
        }
        Ok(mended)
    }
}

/// Pins what is pinned in one directory in another one, with the links beside; returns how many pins.
fn move_pins(from: &Path, to: &Path) -> Result<usize, PinsError> {
    let Ok(entries) = fs::read_dir(from) else { return Ok(0) };
    let mut moved = 0;
    for entry in entries.flatten() {
        let (old, new) = (entry.path(), to.join(entry.file_name()));
        if new.symlink_metadata().is_ok() {
            continue;
        }
        let kind = entry.file_type().map_err(refused(&old))?;
        if kind.is_symlink() {
            fs::read_link(&old).and_then(|target| symlink(target, &new)).map_err(refused(&new))?;
        } else if kind.is_dir() {
            make_directory(&new).map_err(refused(&new))?;
            moved += move_pins(&old, &new)?;
        } else if let Ok(object) = sys::object_get(&old) {
            sys::object_pin(object.as_fd(), &new).map_err(refused(&new))?;
            // In both places it would outlive a teardown.
            let _ = fs::remove_file(&old);
            moved += 1;
        }
    }
    Ok(moved)
}

/// The highest directory above `path` on the same file system.
fn mount_point(path: &Path) -> io::Result<PathBuf> {
    let device = fs::metadata(path)?.dev();
    let same = |path: &&Path| fs::metadata(path).is_ok_and(|found| found.dev() == device);
    Ok(path.ancestors().take_while(same).last().unwrap_or(path).to_owned())
}
