//! Generated gRPC messages and services; see the files in `proto/` for what they mean.

/// The part of swarmkit's API that the agent reads.
pub mod swarm {
    tonic::include_proto!("docker.swarmkit.v1");
}

/// Between agents: the table from managers to workers, reports the other way.
pub mod relay {
    tonic::include_proto!("hiveway.relay.v1");
}
