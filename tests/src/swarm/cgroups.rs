//! The control groups that a lab's containers had: engines leave their parents behind.

use std::{fs, path::Path};

const ROOT: &str = "/sys/fs/cgroup";

/// Removes a lab's groups from every hierarchy. Their processes have ended.
pub(super) fn remove(group: &str) {
    // One hierarchy per controller (v1), or a single one (v2).
    let hierarchies = fs::read_dir(ROOT).into_iter().flatten().flatten().map(|entry| entry.path());
    for hierarchy in hierarchies.chain([ROOT.into()]) {
        remove_tree(&hierarchy.join(group));
    }
}

/// A group goes when those below it have gone; the files in it are not ours to remove.
fn remove_tree(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    let _ = fs::remove_dir(group);
}
