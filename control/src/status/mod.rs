//! The status socket: how the other commands ask a running agent.

pub mod client;
pub mod filter;
pub mod protocol;
pub mod report;
pub mod server;
