//! Offload settings. Scenarios run with both: with offloads packets are large and their checksums partial until they
//! leave the machine, without them they are as on a wire.

use anyhow::Result;

use super::Netns;

/// Which offloads interfaces use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offloads {
    /// As created: TSO, GSO, GRO and transmit checksums on.
    On,
    /// All off.
    Off,
}

impl Offloads {
    /// Both settings, in the order in which scenarios run.
    pub const BOTH: [Self; 2] = [Self::On, Self::Off];

    /// Sets every interface of a namespace. Interfaces that lack a feature are left as they are.
    pub fn apply(self, netns: &Netns) -> Result<()> {
        let state = match self {
            Self::On => "on",
            Self::Off => "off",
        };
        for interface in netns.interfaces()? {
            // One call per group: a device that refuses one feature (fixed) must not keep the others from changing.
            for features in [&["tx", "tso", "gso"][..], &["gro"]] {
                let settings: Vec<_> = features.iter().map(|feature| format!("{feature} {state}")).collect();
                netns.output(&format!("ethtool -K {interface} {}", settings.join(" ")))?;
            }
        }
        Ok(())
    }
}
