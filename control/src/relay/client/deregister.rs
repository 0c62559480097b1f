//! `hiveway teardown` tells the managers that Hiveway is gone from this node.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use futures::future::join_all;
use hiveway_proto::relay::{FromAgent, relay_client::RelayClient};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use tokio_stream::StreamExt;

use super::{
    Manager,
    connect::{NoConnection, connect},
};
use crate::{
    bounded,
    certs::{Credentials, Files},
    relay::{PROTOCOL, VERSION},
};

/// For each manager; all are told at the same time.
const PATIENCE: Duration = Duration::from_secs(4);

/// Whom to tell, and with which certificate: what the agent leaves in the state directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contacts {
    /// All managers that the agent knew.
    pub managers: Vec<Manager>,
    /// The node's certificate, its key and the root CA.
    pub certificates: [PathBuf; 3],
    /// Where the agent has served tables, if it did.
    #[serde(default)]
    pub serving: Option<SocketAddr>,
}

impl Contacts {
    /// To be kept.
    pub fn new(managers: Vec<Manager>, serving: Option<SocketAddr>, files: &Files) -> Self {
        Self { managers, certificates: [files.cert.clone(), files.key.clone(), files.ca.clone()], serving }
    }

    /// # Errors
    /// When this node's certificates can't be used.
    pub fn credentials(&self) -> Result<Credentials, String> {
        let [cert, key, ca] = self.certificates.clone();
        Credentials::load(&Files { cert, key, ca }).map_err(|error| error.to_string())
    }

    /// What an agent has left; `None` where there was none with a relay.
    pub fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&bounded::read(path, bounded::STATE).ok()?).ok()
    }

    /// What is left of it.
    ///
    /// # Errors
    /// When it can't be said in JSON.
    pub fn encode(&self) -> io::Result<Vec<u8>> {
        Ok(serde_json::to_vec_pretty(self)?)
    }
}

/// Tells all managers. Returns, per address, whether it knows now (`Ok`: the node id) or why not.
pub async fn deregister(contacts: &Contacts, credentials: &Credentials) -> Vec<(String, Result<String, String>)> {
    let told = contacts.managers.iter().map(|manager| async {
        let told = match timeout(PATIENCE, tell(manager, credentials)).await {
            Ok(told) => told?,
            Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
        };
        Some((manager.address.clone(), told))
    });
    join_all(told).await.into_iter().flatten().collect()
}

/// `None` if the manager is this node itself.
async fn tell(manager: &Manager, credentials: &Credentials) -> Option<Result<String, String>> {
    let (channel, identity) = match connect(&manager.address, manager.node.as_deref(), credentials).await {
        Ok(connected) => connected,
        Err(NoConnection::Myself) => return None,
        Err(NoConnection::Failed(why)) => return Some(Err(why)),
    };
    let message =
        FromAgent { protocol: PROTOCOL, version: VERSION.to_owned(), deregister: true, ..FromAgent::default() };
    // The stream stays open: its end is the manager's to make, and means that it has heard.
    let messages = tokio_stream::once(message).chain(tokio_stream::pending());
    let mut client = RelayClient::new(channel);
    let heard = async {
        let mut answers = client.sync(messages).await?.into_inner();
        while answers.message().await?.is_some() {}
        Ok::<_, tonic::Status>(identity.node)
    };
    Some(heard.await.map_err(|status| status.message().to_owned()))
}
