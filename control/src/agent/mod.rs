//! The agent: reads the table, makes the node what the table says, and keeps it so.

mod apply;
mod backoff;
mod change;
mod facts;
mod firewall;
pub mod host_rules;
mod memory;
mod newcomer;
mod next_hops;
mod opened;
mod own_port;
mod own_uplinks;
mod pace;
mod path_news;
mod pins;
pub mod probes;
mod programs;
mod ready;
mod reconcile;
mod rest;
mod reverse;
mod room;
mod run;
pub mod shared;
mod spaces;
mod startup;
mod sweep;
mod table;
pub mod tags;
pub mod takeover;
pub mod xdp;

pub use facts::MAX_ANSWERING;
pub use run::run;
