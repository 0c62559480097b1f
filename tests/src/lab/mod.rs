//! A lab of network namespaces: a switch, nodes, clients and tasks, all with a prefix of this process, all gone at the
//! end, after a panic, and after ctrl-c.

mod capture;
mod cleanup;
mod frames;
mod netns;
mod offload;
mod process;
mod topology;
mod tun;
mod wait;
mod xdp;

pub use capture::{BAD_CHECKSUM, Capture, DISCARD_PORT, MESH_VNI, tshark};
pub use cleanup::{AtLeast, register_ctrl_c, sweep_dead_labs};
pub(crate) use cleanup::{has_ended, register_directory, remove_directory};
pub use netns::Netns;
pub use offload::Offloads;
pub use process::Process;
pub use topology::{Lab, scenario, scenario_alone, with_and_without_offloads};
pub use tun::{Tunnels, tap};
pub use wait::{PATIENCE, slowness, wait_for, wait_until};
pub(crate) use xdp::mode as xdp_mode;
