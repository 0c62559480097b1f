//! How the relay does, for `hiveway status`.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use rustls::pki_types::UnixTime;
use serde::Serialize;
use tokio::sync::watch;

use super::{
    PROTOCOL, VERSION,
    client::{LinkView, Trust, Views},
    server::{Registry, SessionView, Sessions},
};
use crate::certs::Credentials;

/// A certificate that ends within this time should have been renewed, in seconds.
const RENEWAL: i64 = 86_400;

/// Where the relay's parts put what is to be shown.
#[derive(Debug, Default)]
pub struct RelayParts(Mutex<Parts>);

#[derive(Debug, Default)]
pub(super) struct Parts {
    pub(super) credentials: Option<watch::Receiver<Arc<Credentials>>>,
    pub(super) certificate_error: Option<String>,
    pub(super) listening: Option<SocketAddr>,
    pub(super) listen_error: Option<String>,
    pub(super) sessions: Arc<Sessions>,
    pub(super) registry: Option<Arc<Registry>>,
    pub(super) links: Arc<Views>,
    pub(super) trust: Option<watch::Receiver<Trust>>,
}

/// `relay` in `hiveway status --json`.
#[derive(Clone, Debug, Serialize)]
pub struct RelayStatus {
    certificate: Option<Certificate>,
    /// Where tables are served (managers).
    listening: Option<String>,
    /// Agents that are connected (managers).
    agents: Vec<AgentView>,
    /// Links to managers' agents.
    managers: Vec<LinkView>,
    /// What somebody should look at.
    warnings: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
struct Certificate {
    node: String,
    role: String,
    cluster: String,
    expires_in_seconds: i64,
}

#[derive(Clone, Debug, Serialize)]
struct AgentView {
    node: String,
    address: String,
    version: String,
    protocol: u32,
    connected_seconds: u64,
    reported_seconds_ago: Option<u64>,
    /// It takes its tables from here.
    tables: bool,
    tables_sent: u64,
}

impl RelayParts {
    pub(super) fn set(&self, change: impl FnOnce(&mut Parts)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Where other nodes' agents report, while this node is a manager that serves tables.
    pub fn registry(&self) -> Option<Arc<Registry>> {
        let parts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        parts.registry.clone().filter(|_| parts.listening.is_some())
    }

    /// As it is now.
    pub fn status(&self) -> RelayStatus {
        let parts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let certificate = parts.credentials.as_ref().map(|credentials| {
            let me = credentials.borrow().me.clone();
            Certificate {
                node: me.node,
                role: me.role.to_string(),
                cluster: me.cluster,
                expires_in_seconds: me.expires - UnixTime::now().as_secs() as i64,
            }
        });
        let agents = parts.sessions.list();
        let managers = parts.links.list();
        let mut warnings: Vec<_> = parts.certificate_error.iter().chain(&parts.listen_error).cloned().collect();
        if let Some(certificate) = certificate.as_ref().filter(|certificate| certificate.expires_in_seconds < RENEWAL) {
            let left = certificate.expires_in_seconds / 60;
            warnings.push(format!(
                "this node's certificate ends in {left} minutes and was not renewed; look at its engine"
            ));
        }
        warnings.extend(agents.iter().filter_map(|agent| skew(&agent.node, &agent.version, agent.protocol)));
        warnings.extend(
            managers.iter().filter_map(|link| skew(link.node.as_ref()?, link.version.as_ref()?, link.protocol?)),
        );
        if let Some(trust) = parts.trust.as_ref().map(watch::Receiver::borrow) {
            let connected = managers.iter().filter(|link| link.state == "connected");
            warnings.extend(connected.filter_map(|link| trust.doubt(&link.address, link.node.as_ref()?)));
        }
        RelayStatus {
            certificate,
            listening: parts.listening.map(|address| address.to_string()),
            agents: agents.into_iter().map(view).collect(),
            managers,
            warnings,
        }
    }
}

/// What to say of an agent of another version.
fn skew(node: &str, version: &str, protocol: u32) -> Option<String> {
    if version.is_empty() && protocol == 0 {
        // It has not said yet.
        return None;
    }
    if protocol != PROTOCOL {
        let which = if protocol > PROTOCOL { "this agent" } else { "that one" };
        return Some(format!(
            "the agent on node {node} ({version}) speaks version {protocol} of the relay's protocol, this one {PROTOCOL}; \
             upgrade {which}"
        ));
    }
    (version != VERSION).then(|| format!("the agent on node {node} has version {version}, this one {VERSION}"))
}

fn view(session: SessionView) -> AgentView {
    let ago = |at: Instant| at.elapsed().as_secs();
    AgentView {
        node: session.node,
        address: session.address.to_string(),
        version: session.version,
        protocol: session.protocol,
        connected_seconds: ago(session.since),
        reported_seconds_ago: session.reported.map(ago),
        tables: session.tables,
        tables_sent: session.sent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_versions_are_named() {
        assert_eq!(skew("n", VERSION, PROTOCOL), None);
        assert_eq!(skew("n", "", 0), None);
        assert!(skew("n", "9.9.9", PROTOCOL).unwrap().contains("9.9.9"));
        assert!(skew("n", VERSION, PROTOCOL + 1).unwrap().contains("upgrade this agent"));
        assert!(skew("n", VERSION, 0).unwrap().contains("upgrade that one"));
    }
}
