//! The relay between agents.

use std::{net::SocketAddr, path::PathBuf};

use clap::Args;

use super::AgentArgs;
use crate::{certs::Files, relay::Options, source::Source};

/// Flags of the relay, for live sources.
#[derive(Clone, Debug, Args)]
pub struct RelayArgs {
    /// Where this agent serves tables to others while its node is a manager, and on which port other managers' agents
    /// do. Without the flag: at the node's address, port 4788.
    #[arg(long, value_name = "ADDR:PORT")]
    pub relay_listen: Option<SocketAddr>,
    /// The node's certificate (O: cluster, OU: role, CN: node id), if it is not to be the engine's own in --swarm-dir.
    #[arg(long, value_name = "PATH")]
    pub relay_cert: Option<PathBuf>,
    /// Its private key.
    #[arg(long, value_name = "PATH")]
    pub relay_key: Option<PathBuf>,
    /// The swarm's root CA certificates.
    #[arg(long, value_name = "PATH")]
    pub relay_ca: Option<PathBuf>,
}

impl AgentArgs {
    /// What the relay is to do.
    pub fn relay(&self) -> Options {
        let own = Files::of_swarm(&self.engine.swarm_dir);
        let flags = self.relay.clone();
        let files = Files {
            cert: flags.relay_cert.unwrap_or(own.cert),
            key: flags.relay_key.unwrap_or(own.key),
            ca: flags.relay_ca.unwrap_or(own.ca),
        };
        let fixed = match &self.table {
            Source::Relay(address) => Some(address.clone()),
            _ => None,
        };
        Options { files, listen: flags.relay_listen, state_dir: self.state_dir.clone(), fixed }
    }
}
