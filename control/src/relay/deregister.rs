//! `hiveway teardown`, as far as other nodes' agents are to know of it.

use std::{collections::BTreeSet, path::Path, sync::Arc, time::Duration};

use tokio::{
    net::TcpListener,
    time::{sleep, timeout},
};

use super::{
    client::{self, Contacts},
    server,
};
use crate::{
    certs::Credentials,
    say::errln,
    state_dir::{RELAY_CONTACTS, RELAY_REPORTS},
};

/// How long agents of other nodes get to connect to where this one's agent has served tables. Longer than the longest
/// pause between two attempts of theirs.
const COMING: Duration = Duration::from_secs(8);
/// How long what was said gets to reach the other nodes' data planes.
const HEARD: Duration = Duration::from_secs(5);

/// Who was told, or why not.
pub type Told = Vec<Result<String, String>>;

/// Tells the managers' agents, and where this node's agent has served tables itself, those that had them from it: there
/// may be no other manager who could. Returns when they have had time to act upon it. `None`: there never was a relay.
pub fn deregister(state_dir: &Path) -> Option<Told> {
    let contacts = Contacts::read(&state_dir.join(RELAY_CONTACTS))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let told = match (runtime, contacts.credentials()) {
        (Ok(runtime), Ok(credentials)) => Ok(runtime.block_on(part(&contacts, Arc::new(credentials), state_dir))),
        (Err(error), _) => Err(error.to_string()),
        (_, Err(error)) => Err(error),
    };
    Some(told.unwrap_or_else(|why| vec![Err(format!("other nodes were not told: {why}"))]))
}

async fn part(contacts: &Contacts, credentials: Arc<Credentials>, state_dir: &Path) -> Told {
    // Everybody who has ever reported here, connected now or not.
    let mut nodes = match contacts.serving {
        Some(_) => server::reported(&state_dir.join(RELAY_REPORTS)),
        None => BTreeSet::new(),
    };
    nodes.remove(&credentials.me.node);
    let (leaving, mut said) = server::Leaving::new();
    let telling = async {
        let everybody = timeout(COMING, said.wait_for(|said| nodes.is_subset(said)));
        let (managers, _) = tokio::join!(client::deregister(contacts, &credentials), everybody);
        let told = outcome(managers, &nodes, &said.borrow());
        if told.iter().any(Result::is_ok) {
            // Served on meanwhile, for those who come late.
            sleep(HEARD).await;
        }
        told
    };
    let serving = async {
        if let Some(address) = contacts.serving.filter(|_| !nodes.is_empty()) {
            match TcpListener::bind(address).await {
                Ok(listener) => server::serve_leaving(listener, credentials.clone(), leaving).await,
                Err(error) => errln!("warning: cannot tell other nodes at {address}: {error}"),
            }
        }
        // Whoever was to come will not; the clock decides.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        told = telling => told,
        () = serving => Vec::new(),
    }
}

/// One line for each node.
fn outcome(managers: Vec<(String, Result<String, String>)>, nodes: &BTreeSet<String>, said: &BTreeSet<String>) -> Told {
    let heard: BTreeSet<String> = managers.iter().filter_map(|(_, told)| told.clone().ok()).collect();
    let managers = managers.into_iter().map(|(address, told)| match told {
        Ok(node) => Ok(format!("manager {node} at {address}")),
        Err(why) => Err(format!("manager at {address} was not told: {why}")),
    });
    let others = said.difference(&heard).map(|node| Ok(format!("node {node}")));
    let missed = nodes.iter().filter(|node| !heard.contains(*node) && !said.contains(*node));
    let missed = missed.map(|node| Err(format!("node {node} was not told: its agent has not connected")));
    managers.chain(others).chain(missed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_node_is_named_once() {
        let set = |nodes: &[&str]| nodes.iter().map(|node| (*node).to_owned()).collect::<BTreeSet<_>>();
        let managers = vec![("m2:1".to_owned(), Ok("m2".to_owned())), ("m3:1".to_owned(), Err("silent".to_owned()))];
        let told = outcome(managers, &set(&["m2", "m3", "w1", "w2"]), &set(&["m2", "m3", "w1"]));
        let expected = [
            Ok("manager m2 at m2:1".to_owned()),
            Err("manager at m3:1 was not told: silent".to_owned()),
            Ok("node m3".to_owned()),
            Ok("node w1".to_owned()),
            Err("node w2 was not told: its agent has not connected".to_owned()),
        ];
        assert_eq!(told, expected);
    }
}
