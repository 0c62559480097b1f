//! The command line: what is accepted, and what is refused with which exit code.

mod agent_args;
mod check;
mod columns;
mod connection_args;
mod engine_args;
pub mod exit;
mod matrix_text;
mod relay_args;
pub mod run;
mod show;
mod table_text;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, builder::PossibleValuesParser};
use ipnet::Ipv4Net;

pub use agent_args::{AgentArgs, MeshInterfaces, MeshReturn, XdpMode};
pub use connection_args::ConnectionArgs;
pub use engine_args::EngineArgs;
pub use relay_args::RelayArgs;

use crate::{
    source::Source,
    status::filter::{STATES, prefix},
};

/// Default of `--bpffs`.
pub const DEFAULT_BPFFS: &str = "/sys/fs/bpf/hiveway";
/// Default of `--state-dir`.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/hiveway";
/// Default of `--socket`.
pub const DEFAULT_SOCKET: &str = "/run/hiveway/agent.sock";

/// Hiveway: the data plane of a container swarm (overlay networks, service VIPs, the routing mesh) in eBPF.
#[derive(Debug, Parser)]
#[command(
    name = "hiveway",
    version,
    propagate_version = true,
    after_help = "Exit codes: 0 done, 1 failed or invalid, 2 wrong usage.\n\
                  Log verbosity: HIVEWAY_LOG=debug (tracing filter syntax); debug output of the programs: \
                  HIVEWAY_BPF_LOG=info|debug|trace."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs this node's agent in the node's network namespace.
    Agent(Box<AgentArgs>),
    /// Checks a task table and prints every problem with its place; exit code 1 if there is an error.
    Validate(ValidateArgs),
    /// Shows how the agent and its node are doing.
    Status(ShowArgs),
    /// Shows whether the paths to other nodes work, what is wrong with them and what to do; exit code 1 if one does
    /// not.
    Check(CheckArgs),
    /// Overlay networks.
    #[command(subcommand)]
    Network(List),
    /// Services with their backends.
    #[command(subcommand)]
    Service(List),
    /// Tasks that have networking, on all nodes.
    #[command(subcommand)]
    Endpoint(List),
    /// Connections that this node translates.
    #[command(subcommand)]
    Flow(Flows),
    /// Dropped packets by reason.
    Drops(ShowArgs),
    /// Shows what the agent would change on its node now, and changes nothing.
    Plan(ShowArgs),
    /// Tries what Hiveway needs of this machine and names what is missing, with the remedy. Changes nothing, but for a
    /// moment with --xdp.
    Preflight(PreflightArgs),
    /// Removes everything that the agent owns on this node, and nothing else. The agent must be stopped.
    Teardown(TeardownArgs),
}

/// What can be listed.
#[derive(Debug, Subcommand)]
pub enum List {
    /// Lists them.
    Ls(ShowArgs),
}

impl List {
    /// The arguments.
    pub fn args(&self) -> &ShowArgs {
        let Self::Ls(args) = self;
        args
    }
}

/// What can be done with connections.
#[derive(Debug, Subcommand)]
pub enum Flows {
    /// Lists them.
    Ls(FlowArgs),
}

/// `flow ls`.
#[derive(Debug, Args)]
pub struct FlowArgs {
    /// How the agent is asked.
    #[command(flatten)]
    pub show: ShowArgs,
    /// Only connections of this service, by name or id.
    #[arg(long, value_name = "SERVICE")]
    pub service: Option<String>,
    /// Only connections of this client, or of clients in this prefix.
    #[arg(long, value_name = "ADDR|CIDR", value_parser = prefix)]
    pub client: Option<Ipv4Net>,
    /// Only connections in this state.
    #[arg(long, value_name = "STATE", value_parser = PossibleValuesParser::new(STATES))]
    pub state: Option<String>,
    /// No more than so many.
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
}

/// `validate`.
#[derive(Debug, Args)]
pub struct ValidateArgs {
    /// The table: file:PATH (YAML or JSON), engine:DIR (Docker Engine API captures) or swarm (on a manager).
    #[arg(long, value_name = "SOURCE")]
    pub table: Source,
    /// This node's engine, for live sources.
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// Commands that ask a running agent.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Prints JSON with documented, stable keys (docs/cli.md).
    #[arg(long)]
    pub json: bool,
    /// The agent's status socket.
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
}

/// `preflight`.
#[derive(Debug, Args)]
pub struct PreflightArgs {
    /// Prints JSON with documented, stable keys (docs/cli.md).
    #[arg(long)]
    pub json: bool,
    /// Directory on a BPF file system where the agent is to pin its maps and links.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_BPFFS)]
    pub bpffs: PathBuf,
    /// Measures instead what XDP costs on this interface, and keeps the verdict for agents with --xdp auto; may be
    /// given several times. An XDP program that passes every frame is attached for about a second and detached again,
    /// which with some drivers interrupts the link for a moment or switches offloads off as long: that is why it is
    /// only done on request. An interface that has an XDP program is left alone.
    #[arg(long, value_name = "IFACE,...", value_delimiter = ',', value_parser = agent_args::interface_name)]
    pub xdp: Vec<String>,
    /// Where the agent keeps what it must remember; with --xdp the verdicts are written there.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE_DIR)]
    pub state_dir: PathBuf,
}

/// `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// How the agent is asked.
    #[command(flatten)]
    pub show: ShowArgs,
    /// How long to wait for paths that nothing is known of yet, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 15)]
    pub wait: u64,
}

/// `teardown`.
#[derive(Debug, Args)]
pub struct TeardownArgs {
    /// Directory on a BPF file system where the agent's maps and links are pinned.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_BPFFS)]
    pub bpffs: PathBuf,
    /// Where the agent keeps what it must remember.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE_DIR)]
    pub state_dir: PathBuf,
}
