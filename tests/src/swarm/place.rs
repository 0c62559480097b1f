//! Where a lab keeps what: everything follows from its name.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::statfs::{OVERLAYFS_SUPER_MAGIC, statfs},
};

/// Labs' directories. On disk: the engines' layers are large, and overlayfs wants an ordinary file system below.
const ROOT: &str = "/var/tmp/hiveway-swarm";

/// A lab's name, and what follows from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    name: String,
}

impl Place {
    /// Up to 12 lower-case letters and digits.
    pub fn new(name: &str) -> Result<Self> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let valid = !name.is_empty() && name.len() <= 12 && name.chars().all(plain);
        ensure!(valid, "a lab's name has 1 to 12 lower-case letters and digits, unlike {name:?}");
        Ok(Self { name: name.to_owned() })
    }

    /// Those that have a directory, whoever made them.
    pub fn all() -> Vec<Self> {
        let entries = fs::read_dir(ROOT).into_iter().flatten().flatten();
        entries.filter_map(|entry| Self::new(entry.file_name().to_str()?).ok()).collect()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Logs, sockets, pids, and what the nodes have on disk.
    pub fn directory(&self) -> PathBuf {
        Path::new(ROOT).join(&self.name)
    }

    /// A node's part of it.
    pub fn node_directory(&self, label: &str) -> PathBuf {
        self.directory().join(label)
    }

    /// Prefix of its network namespaces, and of whatever else has one name space for the whole machine.
    pub fn prefix(&self) -> String {
        format!("hws-{}-", self.name)
    }

    /// The network namespace of a node, or of the switch.
    pub fn namespace(&self, label: &str) -> String {
        format!("{}{label}", self.prefix())
    }

    /// Parent of its containers' control groups.
    pub fn cgroup(&self) -> String {
        format!("hws-{}", self.name)
    }

    /// Creates its directory. In a container's own file system, an overlay, the nodes could not make overlays of
    /// theirs: it is in memory there.
    pub(super) fn create_directory(&self) -> Result<()> {
        let directory = self.directory();
        fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
        if statfs(&directory)?.filesystem_type() == OVERLAYFS_SUPER_MAGIC {
            mount(Some("tmpfs"), &directory, Some("tmpfs"), MsFlags::empty(), None::<&str>)
                .with_context(|| format!("cannot mount a tmpfs on {}", directory.display()))?;
        }
        Ok(())
    }

    /// Removes its directory, and that of all labs if it was the last.
    pub(super) fn remove_directory(&self) -> Result<()> {
        // No mount point unless it is in memory.
        let _ = umount2(&self.directory(), MntFlags::MNT_DETACH);
        match fs::remove_dir_all(self.directory()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        // Fails while there are others, which is right.
        let _ = fs::remove_dir(ROOT);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_safe_in_paths_and_command_lines() {
        assert_eq!(Place::new("swarm").unwrap().namespace("n1"), "hws-swarm-n1");
        for bad in ["", "..", "a/b", "a b", "Swarm", "thirteenchars"] {
            assert!(Place::new(bad).is_err(), "{bad:?}");
        }
    }
}
