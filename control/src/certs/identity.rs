//! Who a certificate is for.

use std::fmt;

use x509_parser::prelude::{FromDer, X509Certificate, X509Name};

/// A node of a swarm, as its certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Node id (CN).
    pub node: String,
    /// What it is (OU).
    pub role: Role,
    /// Cluster id (O); empty where the certificate has none.
    pub cluster: String,
    /// When the certificate ends, in seconds since the epoch.
    pub expires: i64,
}

/// What a node may do, as its certificate says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// OU = swarm-manager.
    Manager,
    /// OU = swarm-worker.
    Worker,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Manager => "manager",
            Self::Worker => "worker",
        })
    }
}

impl Identity {
    /// Of a certificate in DER.
    ///
    /// # Errors
    /// When it can't be parsed or is none of a swarm's nodes'.
    pub fn of(der: &[u8]) -> Result<Self, String> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|error| format!("unreadable: {error}"))?;
        let subject = certificate.subject();
        let node = only(subject, "CN", subject.iter_common_name().map(|name| name.as_str()))?;
        let role = match only(subject, "OU", subject.iter_organizational_unit().map(|name| name.as_str()))? {
            "swarm-manager" => Role::Manager,
            "swarm-worker" => Role::Worker,
            other => return Err(format!("it is no swarm node's: OU is {other:?}")),
        };
        let cluster = subject.iter_organization().next().and_then(|name| name.as_str().ok()).unwrap_or_default();
        let expires = certificate.validity().not_after.timestamp();
        Ok(Self { node: node.to_owned(), role, cluster: cluster.to_owned(), expires })
    }
}

/// The one value of an attribute: with several, two readers might disagree on who it is.
fn only<'n, E>(
    subject: &X509Name<'_>,
    what: &str,
    mut values: impl Iterator<Item = Result<&'n str, E>>,
) -> Result<&'n str, String> {
    match (values.next(), values.next()) {
        (Some(Ok(value)), None) if !value.is_empty() => Ok(value),
        _ => Err(format!(
            "it is no swarm node's: its subject {subject:?} has not exactly one {what}",
            subject = subject.to_string()
        )),
    }
}
