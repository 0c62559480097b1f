//! Where this node's engine is.

use std::path::PathBuf;

use clap::Args;

use crate::{engine::Engine, swarm::Manager};

/// Flags of live sources.
#[derive(Clone, Debug, Args)]
pub struct EngineArgs {
    /// The engine's API socket.
    #[arg(long, value_name = "PATH", default_value = "/var/run/docker.sock")]
    pub docker_socket: PathBuf,
    /// The engine's directory for the swarm: node certificates, root certificate, data-path address.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/docker/swarm")]
    pub swarm_dir: PathBuf,
    /// The manager's control socket; it is there on managers only.
    #[arg(long, value_name = "PATH", default_value = "/run/docker/swarm/control.sock")]
    pub control_socket: PathBuf,
}

impl EngineArgs {
    /// The engine.
    pub fn engine(&self) -> Engine {
        Engine { socket: self.docker_socket.clone(), swarm_dir: self.swarm_dir.clone() }
    }

    /// The manager on this node, if it is one.
    pub fn manager(&self) -> Manager {
        Manager::new(&self.control_socket, &self.swarm_dir)
    }
}
