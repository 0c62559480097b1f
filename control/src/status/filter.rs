//! Which connections `flow ls` shows.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// What a connection must have to be shown; what is left out leaves all in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FlowFilter {
    /// Name or id of its service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Where its client is: an address or a prefix.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// Its state, as it is shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// No more than this many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// The names of all states.
pub const STATES: [&str; 6] = ["half-open", "established", "half-closed", "closing", "unreplied", "replied"];

impl FlowFilter {
    /// The clients that are meant; everybody without the filter.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn clients(&self) -> Result<Ipv4Net, String> {
        self.client.as_deref().map_or(Ok(Ipv4Net::default()), prefix)
    }
}

/// An address or a prefix.
///
/// # Errors
/// That it is neither.
pub fn prefix(text: &str) -> Result<Ipv4Net, String> {
    let net = text.parse::<Ipv4Net>().or_else(|_| text.parse::<Ipv4Addr>().map(Ipv4Net::from));
    net.map(|net| net.trunc()).map_err(|_| format!("`{text}` is neither an IPv4 address nor a prefix like 10.0.0.0/8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_an_address_or_a_prefix() {
        assert_eq!(prefix("10.1.2.3").unwrap().to_string(), "10.1.2.3/32");
        assert_eq!(prefix("10.1.2.3/8").unwrap().to_string(), "10.0.0.0/8");
        assert!(prefix("fd00::1").is_err() && prefix("host").is_err());
        assert_eq!(FlowFilter::default().clients().unwrap().to_string(), "0.0.0.0/0");
    }
}
