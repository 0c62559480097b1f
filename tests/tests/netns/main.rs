//! Netns scenarios: real agents, real packets, named after what a user sees. Need root, and `hiveway` built.

mod agent_life;
mod allow;
mod bad_input;
mod collisions;
mod drain;
mod endings;
mod flood;
mod gateway;
mod host;
mod host_mode;
mod hostile;
mod icmp;
mod interop;
mod mesh;
mod mesh_edges;
mod mtu;
mod namespaces;
mod overlay;
mod plain_linux;
mod scaling;
mod snapshot;
mod sockets;
mod support;
mod translated_clients;
mod vip;
