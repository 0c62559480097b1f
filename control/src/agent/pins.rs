//! Pins that somebody takes away while the agent runs, or that go with their file system: noticed soon, and made anew.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, SystemTime},
};

use tokio::{task::block_in_place, time::sleep};

use super::{apply::RoundLog, reconcile::Agent, shared::PinsGone};

/// How often it is looked whether they are there.
const LOOK: Duration = Duration::from_millis(250);
/// Directories of pins. That of links changes with each that is attached.
const DIRECTORIES: [&str; 3] = ["", "maps", "links"];

/// What the directories of pins looked like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Look([Option<(u64, u64, SystemTime)>; DIRECTORIES.len()]);

impl Look {
    pub(super) fn at(bpffs: &Path) -> Self {
        Self(DIRECTORIES.map(|directory| {
            let found = fs::metadata(bpffs.join(directory)).ok()?;
            Some((found.dev(), found.ino(), found.modified().ok()?))
        }))
    }
}

/// Returns when pins have come or gone since a round has looked.
pub(super) async fn moved(bpffs: &Path, seen: &Look) {
    // At once: the loop that asks may turn more often than this waits.
    while Look::at(bpffs) == *seen {
        sleep(LOOK).await;
    }
}

impl Agent {
    /// Makes pins anew that are gone. Links that have ended with theirs are attached anew in the same round.
    pub(super) fn mend_pins(&mut self, round: &mut RoundLog) {
        if !round.may(&self.backoff, "pins") {
            return;
        }
        let mended = block_in_place(|| self.shared.dataplane().mend_pins());
        let Some(mended) = round.note(&mut self.backoff, "pins", mended) else { return };
        if mended.any() {
            let at = self.args.bpffs.display();
            let mounted = if mended.mounted { "a BPF file system was mounted again, and " } else { "" };
            tracing::warn!(
                "pins below {at} were gone: {mounted}{} maps and {} links were pinned anew; what else was attached is \
                 attached anew",
                mended.maps,
                mended.links
            );
            round.changes += mended.maps + mended.links;
            self.last.pins_gone = Some(PinsGone::again(self.last.pins_gone, mended.mounted));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_directory_counts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let mut looks = vec![Look::at(path)];
        for name in ["maps", "links"] {
            fs::create_dir(path.join(name)).unwrap();
            looks.push(Look::at(path));
            // File systems count coarse ticks.
            std::thread::sleep(Duration::from_millis(20));
            fs::write(path.join(name).join("pin"), "").unwrap();
            looks.push(Look::at(path));
        }
        fs::remove_dir_all(path).unwrap();
        looks.push(Look::at(path));
        assert_eq!(looks.last(), Some(&Look::default()));
        assert!(looks.windows(2).all(|two| two[0] != two[1]), "{looks:?}");
    }
}
