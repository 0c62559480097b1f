//! Hiveway's test tools: a lab of network namespaces, agents in it, task tables, and load with a tally.
//!
//! Everything needs root and fails without it, on purpose: a skipped test proves nothing.

pub mod agent;
pub mod lab;
pub mod load;
pub mod peer;
pub mod plain;
pub mod stock;
pub mod swarm;
pub mod table;
