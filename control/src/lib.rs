//! The agent `hiveway` and its command line: table sources, netlink, nftables, reconciliation, status.

pub mod agent;
pub mod certs;
pub mod child;
pub mod cli;
pub mod engine;
pub mod host_firewall;
pub mod instance;
pub mod ipv6;
pub mod listeners;
pub mod local_address;
pub mod mesh;
pub mod metrics;
pub mod netlink;
pub mod nft;
pub mod preflight;
pub mod relay;
pub mod shadowed;
pub mod source;
pub mod state_dir;
pub mod status;
pub mod swarm;
pub mod sysctl;
pub mod teardown;
pub mod uplinks;
pub mod validate;
pub mod warnings;
