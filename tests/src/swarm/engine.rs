//! Which Docker Engine a lab's nodes run.
//!
//! It is the machine's own, or one that `cargo xtask` has unpacked: a directory with programs in usr/bin and usr/sbin
//! and a file `version`. A lab keeps which one in a link in its directory, so that a node that comes back runs the
//! same.

use std::{
    env, fmt, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    str::FromStr,
};

use anyhow::{Context as _, Error, Result, ensure};

use super::{Place, output, program};

/// Names the directory of an unpacked engine.
const VARIABLE: &str = "HIVEWAY_LAB_ENGINE";
/// The link in a lab's directory.
const LINK: &str = "engine";

/// An engine's version, without what a distribution adds to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub [u16; 3]);

/// An engine and its command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Engine {
    /// Where it was unpacked; `None` for the machine's own.
    root: Option<PathBuf>,
    version: Version,
}

impl Engine {
    /// The one that the environment names, or the machine's own.
    pub fn from_environment() -> Result<Self> {
        match env::var_os(VARIABLE) {
            Some(root) => Self::unpacked(Path::new(&root)),
            None => Self::installed(),
        }
    }

    /// The one that a lab was made with.
    pub fn of(place: &Place) -> Result<Self> {
        match Self::root_of(place) {
            Some(root) => Self::unpacked(&root),
            None => Self::installed(),
        }
    }

    fn unpacked(root: &Path) -> Result<Self> {
        let file = root.join("version");
        let text = fs::read_to_string(&file).with_context(|| format!("no engine: {}", file.display()))?;
        Ok(Self { root: Some(root.canonicalize()?), version: text.parse()? })
    }

    fn installed() -> Result<Self> {
        let said = output(Command::new(program("dockerd")?).arg("--version"))?;
        let version = said.split_whitespace().find_map(|word| word.parse().ok());
        Ok(Self { root: None, version: version.with_context(|| format!("dockerd --version says {said:?}"))? })
    }

    /// Its version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Makes it the one of a lab, whose directory is there.
    pub(super) fn keep(&self, place: &Place) -> Result<()> {
        let link = place.directory().join(LINK);
        self.root.as_ref().map_or(Ok(()), |root| symlink(root, &link)).with_context(|| link.display().to_string())
    }

    /// Where the engine of a lab was unpacked; `None` for the machine's own.
    pub(super) fn root_of(place: &Place) -> Option<PathBuf> {
        place.directory().join(LINK).canonicalize().ok()
    }

    /// The command `docker` that belongs to the engine of a lab.
    pub(super) fn command_of(place: &Place) -> PathBuf {
        Self::root_of(place).unwrap_or_else(|| "/".into()).join("usr/bin/docker")
    }

    /// Fails unless a running engine says that it is this one.
    pub(super) fn ensure_is(&self, said: &str) -> Result<()> {
        let other = || format!("the engine that answers is {said:?}, not {}", self.version);
        ensure!(said.parse::<Version>().is_ok_and(|version| version == self.version), "{}", other());
        Ok(())
    }
}

impl FromStr for Version {
    type Err = Error;

    /// Of texts such as `28.5.2` and `20.10.24+dfsg1,`.
    fn from_str(text: &str) -> Result<Self, Error> {
        let text = text.trim();
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let numbers: Result<Vec<u16>, _> = text[..end].split('.').map(str::parse).collect();
        let numbers = numbers.ok().and_then(|numbers| numbers.try_into().ok());
        Ok(Self(numbers.with_context(|| format!("no version of an engine: {text:?}"))?))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.0;
        write!(f, "{major}.{minor}.{patch}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_engine_than_the_one_asked_for_is_refused() {
        let engine = Engine { root: None, version: "28.5.2\n".parse().unwrap() };
        engine.ensure_is("28.5.2+dfsg4").unwrap();
        for other in ["20.10.24+dfsg1", "28.5.20", "28.5", ""] {
            assert!(engine.ensure_is(other).is_err(), "{other:?}");
        }
    }

    #[test]
    fn versions_are_compared_by_number() {
        let version = |text: &str| text.parse::<Version>().unwrap();
        assert!(version("20.10.24+dfsg1,") < version("28.0.0"));
        assert!(version("9.0.0") < version("28.0.0"));
        assert!("version".parse::<Version>().is_err());
    }
}
