//! Everything that can be wrong with how the agent was started, found out before anything is changed.

use std::{net::Ipv4Addr, os::unix::net::UnixStream, path::Path};

use anyhow::{Context, bail};
use dataplane::{Dataplane, LogLevel, Options};
use hiveway_core::{
    model::{AllowEntry, Place},
    table::Reserved,
};
use tokio::net::TcpListener;

use super::{join_grace::JoinGrace, ready, room, table::Table};
use crate::{
    cli::{AgentArgs, MeshInterfaces},
    instance::Instance,
    local_address, mesh, metrics,
    netlink::{Socket, observe_links},
    preflight,
    source::Supervisor,
    state_dir::{StateDir, StateError},
    status::{
        report::{Answers, Starting},
        server::Server,
    },
    uplinks::{self, Underlay},
};

/// What a start that is not refused has.
pub(super) struct Started {
    pub(super) table: Table,
    pub(super) socket: Socket,
    /// Where tunnels arrive, if that is not the address that other nodes know.
    pub(super) own_address: Option<Ipv4Addr>,
    pub(super) state: StateDir,
    pub(super) dataplane: Dataplane,
    pub(super) join_grace: JoinGrace,
    pub(super) status: Server,
    pub(super) metrics: Option<TcpListener>,
    pub(super) instance: Instance,
    /// Why full connection tables would be too much for the memory that the agent may use.
    pub(super) tight: Option<String>,
}

/// Checks and opens everything, what changes nothing first.
///
/// With a live source `args` gets the node if that was left out.
///
/// The status socket of a live source answers before the first table, which may be long in coming.
pub(super) async fn start(
    args: &mut AgentArgs,
    live: Option<&Supervisor>,
    starting: Option<Starting>,
) -> anyhow::Result<Started> {
    let early = match starting {
        Some(starting) => {
            free_socket(&args.socket)?;
            let mut status = Server::bind(&args.socket).context("--socket")?;
            status.serve(Answers::Starting(starting));
            Some(status)
        }
        None => None,
    };
    let reserved =
        Reserved { mesh_vni: args.mesh_vni, vxlan_port: args.vxlan_port.unwrap_or(Reserved::default().vxlan_port) };
    let (source, node) = (args.table.clone(), args.node.clone());
    let mut instance = None;
    if early.is_some() {
        // A live source may let us wait: whether the machine will do at all, and is this agent's, is known before.
        machine(&args.bpffs).await?;
        instance = Some(Instance::take()?);
        ready::answers();
    }
    let table = match live {
        Some(live) => Table::follow(source, live.hub.table.clone(), node).await?,
        None => Table::open(source, reserved, node)?,
    };
    args.node.clone_from(&table.node);
    let node = table.model.find_node(&args.node)?;
    let socket = Socket::open().context("cannot open a netlink socket")?;
    let args = &*args;
    let own_address = interfaces(args, node.vtep, live, &socket).await?;
    if early.is_none() {
        machine(&args.bpffs).await?;
    }
    let instance = match instance {
        Some(instance) => instance,
        None => Instance::take()?,
    };
    if early.is_none() {
        free_socket(&args.socket)?;
    }
    if !args.netns_dir.is_dir() && live.is_none() {
        tracing::warn!(
            "--netns-dir {} does not exist (yet); tasks need a netns in the table or a file there",
            args.netns_dir.display()
        );
    }
    for (flag, entries) in [("--mesh-allow", &args.mesh_allow), ("--mesh-deny", &args.mesh_deny)] {
        for entry in entries.iter().filter(|entry| matches!(entry, AllowEntry::V6(_))) {
            tracing::warn!("{flag}: {entry} is ignored: IPv6 is not supported yet");
        }
    }
    for place in args.mesh_addresses.iter().filter(|place| matches!(place, Place::V6(_))) {
        tracing::warn!("--mesh-addresses: {place} is ignored: IPv6 is not supported yet");
    }
    let options = options(args)?;
    let tight = room::fits(options.sizes, room::start(), room::limit()).map_err(anyhow::Error::msg)?;
    if let Some(warning) = &tight {
        tracing::warn!("{warning}");
    }
    let metrics = match args.metrics {
        Some(address) => Some(metrics::bind(address).await.context("--metrics")?),
        None => None,
    };
    let status = match early {
        Some(status) => status,
        None => Server::bind(&args.socket).context("--socket")?,
    };
    let new_state = !args.state_dir.exists();
    let state = match StateDir::take(&args.state_dir).context("--state-dir") {
        Err(error) if matches!(error.downcast_ref(), Some(StateError::InUse { .. })) => {
            bail!("{error:#}: give each agent its own --state-dir, or stop that one first")
        }
        taken => taken?,
    };
    // What is unreadable must be known before anything is done.
    state.gateway_addresses()?;
    state.sysctls()?;
    let join_grace = JoinGrace::at_start(live.is_some(), &args.bpffs);
    let dataplane = Dataplane::open(&options).inspect_err(|_| {
        if new_state {
            state.remove();
        }
    })?;
    Ok(Started { table, socket, own_address, state, dataplane, join_grace, status, metrics, instance, tight })
}

/// Checks that the machine has what the agent needs.
async fn machine(bpffs: &Path) -> anyhow::Result<()> {
    let bpffs = bpffs.to_owned();
    let checks = tokio::task::spawn_blocking(move || preflight::checks(&bpffs, false)).await.context("preflight")?;
    let missing: Vec<String> =
        checks.iter().filter_map(|check| Some(format!("{}: {}", check.name, check.result.as_ref().err()?))).collect();
    if !missing.is_empty() {
        bail!("this machine lacks what the agent needs (hiveway preflight shows all of it):\n{}", missing.join("\n"));
    }
    Ok(())
}

/// Checks those that were named. Returns the node's own address where tunnels arrive, if that is not `vtep`.
async fn interfaces(
    args: &AgentArgs,
    vtep: Ipv4Addr,
    live: Option<&Supervisor>,
    socket: &Socket,
) -> anyhow::Result<Option<Ipv4Addr>> {
    let links = observe_links(socket).await?;
    let known = || links.keys().filter(|name| *name != "lo").cloned().collect::<Vec<_>>().join(", ");
    let underlay = args.underlay();
    let own = live.map(|live| local_address::candidates(&live.hub.engine.borrow(), None));
    let found = local_address::find(args.underlay_address, &underlay, &links, vtep, own.as_deref())
        .map_err(anyhow::Error::msg)?;
    let local = found.unwrap_or(vtep);
    if local != vtep {
        tracing::warn!("{vtep}, as other nodes know this one, is taken to lead to {local} here: a NAT stands between");
    }
    uplinks::check(&underlay, &links, local).map_err(anyhow::Error::msg)?;
    if let Underlay::Named(names) = underlay {
        for name in names.iter().filter(|name| links.get(*name).is_some_and(|link| !link.up)) {
            tracing::warn!("underlay interface {name} is down; set it up");
        }
    }
    let named: &[String] = match &args.mesh_interfaces {
        MeshInterfaces::All => &[],
        MeshInterfaces::Named(names) => names,
    };
    if let Some(missing) = named.iter().find(|name| !links.contains_key(*name)) {
        bail!("--mesh-interfaces: there is no interface {missing} in this network namespace; there are: {}", known());
    }
    if named.iter().any(|name| name == mesh::LOOPBACK) {
        bail!(
            "--mesh-interfaces: nobody but this node itself arrives on lo, and its own connections to published ports are \
             served whatever is named; leave it out"
        );
    }
    let unsupported = |name: &String| Some((name.clone(), links.get(name)?.layer.unsupported()?));
    if let Some((name, why)) = named.iter().find_map(unsupported) {
        bail!("--mesh-interfaces: published ports cannot answer on {name}: {why}; leave it out");
    }
    Ok(found)
}

/// The socket's path must be free, or a dead agent's.
fn free_socket(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::FileTypeExt;
    let Ok(metadata) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        bail!("--socket: {} exists and is not a socket; remove it or choose another path", path.display());
    }
    if UnixStream::connect(path).is_ok() {
        bail!("--socket: something is listening at {} already; stop it or choose another path", path.display());
    }
    Ok(())
}

fn options(args: &AgentArgs) -> anyhow::Result<Options> {
    let mut options = Options { sizes: args.connections.sizes(), ..Options::new(&args.bpffs) };
    if let Ok(level) = std::env::var("HIVEWAY_BPF_LOG") {
        options.log_level = Some(level.parse::<LogLevel>().context("HIVEWAY_BPF_LOG")?);
    }
    Ok(options)
}
