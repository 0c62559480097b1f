//! The agent: reads the table, makes the node what the table says, and keeps it so.

mod apply;
mod backoff;
mod cooldown;
mod facts;
mod firewall;
pub mod host_rules;
mod join_grace;
mod local_tasks;
mod maps;
mod memory;
mod next_hops;
mod observe;
mod opened;
mod own_port;
mod own_uplinks;
mod pace;
mod path_news;
mod pins;
mod preview;
pub mod probes;
mod programs;
mod publish;
mod ready;
mod reconcile;
mod reverse;
mod room;
mod run;
pub mod shared;
mod startup;
mod sweep;
mod table;
pub mod tags;
pub mod takeover;
pub mod xdp;

pub use facts::MAX_ANSWERING;
pub use run::run;
