//! Hiveway's pure heart: task table → validated model → desired state of one node → map contents.
//!
//! No I/O, no clock, no randomness: everything here is a function of its arguments, and `Cargo.toml` has no tokio, aya
//! or netlink so that the compiler enforces it.
//!
//! ```text
//! table::parse_file ─┐                    ┌─ derive ──▶ Desired (links, addresses, routes, firewall)
//!                    ├─▶ model::Model ────┼─ map_state ▶ MapState (everything in BPF maps that packets don't write)
//! docker_api::parse ─┘                    └─ views ───▶ what the CLI lists
//! docker_api::assemble ─ merge ─▶ the same, for live tables
//! ```

pub mod agreement;
pub mod binding;
pub mod change;
mod clashes;
pub mod derive;
pub mod desired;
pub mod docker_api;
// Firewalls.
pub mod drain_grace;
mod filter;
pub mod firewall;
mod joined;
pub mod merge;
pub mod model;
pub mod names;
pub mod near;
pub mod next_hop;
pub mod observed;
pub mod path_check;
pub mod path_matrix;
pub mod path_report;
pub mod plan;
pub mod probe;
mod problem;
mod roles;
pub mod sandbox;
mod sanitize;
mod settings;
pub mod table;
mod tag;
mod topology;
pub mod views;

pub use derive::{DeriveError, derive, map_state, peers};
pub use desired::{Desired, GatewayAddresses, LeftOut};
pub use filter::filter;
pub use model::Model;
pub use problem::{Problem, Severity};
pub use roles::TaskRole;
pub use sanitize::sanitize;
pub use settings::{DEFAULT_GATEWAY_MTU, DEFAULT_HOST_IP, DEFAULT_MESH_VNI, DEFAULT_VXLAN_PORT, Facts, Settings};
pub use tag::tag;
pub use topology::mesh_left_to_engine;
