//! Where the task table comes from.

pub mod live;
mod load;
mod merged;
mod supervisor;
mod watch;

use std::{fmt, path::PathBuf, str::FromStr};

pub use live::{Hub, Live, Lost, Own};
pub use load::{LoadError, Loaded, load};
pub use merged::{Base, Origin};
pub use supervisor::{Setup, Supervisor};
pub use watch::{Stamp, stamps, watch};

/// A `SOURCE` of the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// `file:PATH`: a table in YAML or JSON.
    File(PathBuf),
    /// `engine:DIR`: Docker Engine API captures.
    Engine(PathBuf),
    /// `swarm`: a manager's push stream, or on workers the relay.
    Swarm,
    /// `relay:HOST:PORT`: another agent.
    Relay(String),
}

impl Source {
    /// Whether it is followed as it changes, instead of read.
    pub fn is_live(&self) -> bool {
        matches!(self, Self::Swarm | Self::Relay(_))
    }
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            Some(("engine", path)) if !path.is_empty() => Ok(Self::Engine(path.into())),
            Some(("relay", address)) if !address.is_empty() => Ok(Self::Relay(address.to_owned())),
            None if text == "swarm" => Ok(Self::Swarm),
            _ if text.contains('/') && !text.contains(':') => {
                Err(format!("no kind of source given: did you mean file:{text}?"))
            }
            _ => Err("a source is file:PATH, engine:DIR, swarm or relay:HOST:PORT".to_owned()),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Engine(path) => write!(f, "engine:{}", path.display()),
            Self::Swarm => f.write_str("swarm"),
            Self::Relay(address) => write!(f, "relay:{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_round_trip() {
        for text in ["file:/a/b.yaml", "engine:/captures", "swarm", "relay:10.0.0.1:4788"] {
            assert_eq!(text.parse::<Source>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_bare_path_gets_a_hint() {
        assert!("/etc/table.yaml".parse::<Source>().unwrap_err().contains("file:/etc/table.yaml"));
        assert!("file:".parse::<Source>().is_err());
    }
}
