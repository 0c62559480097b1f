//! The two settings of the underlay's interfaces that the bench compares.

use anyhow::Result;
use clap::ValueEnum;
use hiveway_tests::lab::Netns;
use serde::Serialize;

/// How the underlay treats large packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Setting {
    /// As veth pairs are made: packets of 64 kB travel whole from end to end.
    On,
    /// As with a network card without tunnel offloads: cut before they leave, put together again where they arrive.
    NicLike,
}

impl Setting {
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::On => "offloads on",
            Self::NicLike => "NIC-like offloads (tso, gso off; gro on)",
        }
    }

    /// Sets a node's `eth0` and its port on the switch. A switch never aggregates: its ports keep GRO off.
    pub(crate) fn apply(self, node: &Netns, switch: &Netns) -> Result<()> {
        let (segmentation, receive) = match self {
            Self::On => ("on", "off"),
            Self::NicLike => ("off", "on"),
        };
        node.run(&format!("ethtool -K eth0 tso {segmentation} gso {segmentation} gro {receive}"))?;
        switch.run(&format!("ethtool -K {} tso {segmentation} gso {segmentation} gro off", node.label()))?;
        Ok(())
    }
}
