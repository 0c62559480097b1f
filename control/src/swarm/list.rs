//! All objects, as lists.

use std::time::Duration;

use hiveway_proto::swarm::{
    ListNetworksRequest, ListNodesRequest, ListServicesRequest, ListTasksRequest, Object,
    control_client::ControlClient, list_tasks_request::Filters, object::Kind,
};
use tonic::{Code, Request, Status, transport::Channel};

use super::state::{List, State};

/// How long an answer may take. The leader answers, by way of this manager.
const PATIENCE: Duration = Duration::from_secs(30);
/// Ids are made of these.
const ID_CHARACTERS: &str = "0123456789abcdefghijklmnopqrstuvwxyz";

/// Lists come in one message.
const MAX_MESSAGE: usize = 1 << 30;

fn client(channel: &Channel) -> ControlClient<Channel> {
    ControlClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE)
}

fn patiently<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(PATIENCE);
    request
}

/// Everything that the leader knows now.
pub(super) async fn everything(channel: &Channel) -> Result<State, Status> {
    let mut state = State::default();
    let mut take = |list, kinds: Vec<Kind>| {
        for kind in kinds {
            state.apply(0, Object { kind: Some(kind) });
        }
        state.complete(list);
    };
    // One after the other: each list then says what of the swarm's history the next one has left behind.
    let nodes = client(channel).list_nodes(patiently(ListNodesRequest {})).await?.into_inner().nodes;
    take(List::Nodes, nodes.into_iter().map(Kind::Node).collect());
    let networks = client(channel).list_networks(patiently(ListNetworksRequest {})).await?.into_inner().networks;
    take(List::Networks, networks.into_iter().map(Kind::Network).collect());
    let services = client(channel).list_services(patiently(ListServicesRequest {})).await?.into_inner().services;
    take(List::Services, services.into_iter().map(Kind::Service).collect());
    take(List::Tasks, tasks(channel).await?);
    Ok(state)
}

/// All tasks. If they do not fit one message (a manager that is not the leader takes 4 MB from it), by the first letter
/// of their ids.
async fn tasks(channel: &Channel) -> Result<Vec<Kind>, Status> {
    let mut client = client(channel);
    let all = match client.list_tasks(patiently(ListTasksRequest::default())).await {
        Ok(answer) => answer.into_inner().tasks,
        Err(status) if status.code() == Code::ResourceExhausted => {
            let mut all = Vec::new();
            for letter in ID_CHARACTERS.chars() {
                let filters = Some(Filters { id_prefixes: vec![letter.into()] });
                all.extend(client.list_tasks(patiently(ListTasksRequest { filters })).await?.into_inner().tasks);
            }
            all
        }
        Err(status) => return Err(status),
    };
    Ok(all.into_iter().map(Kind::Task).collect())
}

/// Asks for something small: whether the manager answers, and has a leader.
pub(super) async fn probe(channel: &Channel) -> Result<(), Status> {
    client(channel).list_nodes(patiently(ListNodesRequest {})).await.map(drop)
}
