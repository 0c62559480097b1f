//! The readers of whatever comes from outside the agent, each as one function of bytes: [`Target`].
//!
//! `fuzz/` runs them under libFuzzer (`cargo xtask fuzz`), the tests of this crate with damaged captures. An input
//! starts out as one of a target's [`seeds`] and is changed by [`damage`], or by libFuzzer.

pub mod damage;
mod packets;
pub mod seeds;
mod targets;
#[cfg(test)]
mod tests;

/// Stands between the texts of an input that consists of several.
pub const SEPARATOR: u8 = 0;

/// Inputs are not made longer than this, in bytes.
pub const MAX_LEN: usize = 64 * 1024;

/// A group of readers that takes the same kind of input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Target {
    /// A task table's file.
    Table,
    /// Answers of the Engine API.
    Engine,
    /// Messages of a manager's push stream.
    Stream,
    /// Messages between agents.
    Relay,
    /// A node's certificate.
    Certificates,
    /// Rules of the host's packet filters.
    Firewall,
    /// Requests and answers of the status socket.
    Protocol,
    /// Frames, read and rewritten as the programs do.
    Packets,
}

impl Target {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Table,
        Self::Engine,
        Self::Stream,
        Self::Relay,
        Self::Certificates,
        Self::Firewall,
        Self::Protocol,
        Self::Packets,
    ];

    /// Reads `data` as production code does, and goes on with the result as the agent would.
    ///
    /// # Panics
    /// On a defect of a reader: it panicked itself, or its result breaks an invariant.
    pub fn read(self, data: &[u8]) {
        match self {
            Self::Table => targets::table(data),
            Self::Engine => targets::engine(data),
            Self::Stream => targets::stream(data),
            Self::Relay => targets::relay(data),
            Self::Certificates => targets::certificates(data),
            Self::Firewall => targets::firewall(data),
            Self::Protocol => targets::protocol(data),
            Self::Packets => targets::packets(data),
        }
    }
}
