//! The engine's containers, as far as they take part in the swarm.

use std::path::PathBuf;

use bollard::models::{
    ContainerInspectResponse, ContainerStateStatusEnum as Status, ContainerSummary, ContainerSummaryStateEnum as State,
    HealthStatusEnum,
};
use hiveway_core::merge::{Container, Health};

/// Label with the id of the task that a container is for. Events carry it too.
pub(super) const TASK: &str = "com.docker.swarm.task.id";
/// The engine's own networks have ids of 64 digits.
const SWARM_ID: usize = 25;

/// What a list says of a container that has ended; `None` for all others, `Some(None)` if it had nothing to do with the
/// swarm.
pub(super) fn ended(summary: &ContainerSummary) -> Option<Option<Container>> {
    matches!(summary.state, Some(State::EXITED | State::DEAD | State::REMOVING)).then(|| {
        let task = summary.labels.as_ref().and_then(|labels| labels.get(TASK)).cloned();
        task.map(|task| Container { task: Some(task), health: Health::Dead, ..Container::default() })
    })
}

/// Whether a network of this id is the swarm's.
pub(super) fn is_swarms(network: &str) -> bool {
    network.len() == SWARM_ID
}

/// `None`: it has nothing to do with the swarm.
pub(super) fn container(raw: &ContainerInspectResponse) -> Option<Container> {
    let labels = raw.config.as_ref().and_then(|config| config.labels.as_ref());
    let task = labels.and_then(|labels| labels.get(TASK)).cloned();
    let settings = raw.network_settings.as_ref();
    let networks = settings.and_then(|settings| settings.networks.as_ref());
    let addresses = networks.into_iter().flatten().filter_map(|(_, endpoint)| {
        let id = endpoint.network_id.as_ref().filter(|id| is_swarms(id))?;
        Some((id.clone(), endpoint.ip_address.as_ref()?.parse().ok()?))
    });
    let addresses: std::collections::BTreeMap<_, _> = addresses.collect();
    if task.is_none() && addresses.is_empty() {
        return None;
    }
    let state = raw.state.as_ref();
    let running = state.is_some_and(|state| state.running == Some(true));
    let ended =
        state.is_some_and(|state| matches!(state.status, Some(Status::EXITED | Status::DEAD | Status::REMOVING)));
    let unhealthy = state.and_then(|state| state.health.as_ref()?.status) == Some(HealthStatusEnum::UNHEALTHY);
    let health = match (running, ended, unhealthy) {
        (true, _, true) => Health::Unhealthy,
        (false, true, _) => Health::Dead,
        _ => Health::Fine,
    };
    let sandbox = settings.and_then(|settings| settings.sandbox_key.clone());
    let netns = sandbox.filter(|path| running && !path.is_empty()).map(PathBuf::from);
    Some(Container { task, netns, addresses, health })
}
