//! What is around the agent and only running programs or many files can tell: asked for when somebody asks for the
//! status or the metrics, who get the last answer where a fresh one is long in coming.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ipnet::Ipv4Net;
use serde_json::Value;

use crate::{
    fresh::Fresh,
    ipv6::{NotServed, not_served},
    listeners::listeners,
    nft::{self, Dropped},
    shadowed::{Shadowed, shadowed},
    warnings::warnings,
};

/// How long a fresh answer is waited for: `status` answers within a second.
const PATIENCE: Duration = Duration::from_millis(400);

const NO_PTRACE: &str = "which processes listen on published ports cannot be told without CAP_SYS_PTRACE, so a Docker \
                         engine's own are taken for others': give it to the agent";

/// What an answer depends on.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    /// Published ports: (IP protocol number, port).
    pub(crate) published: BTreeSet<(u8, u16)>,
    /// The gateway bridge's subnet beside an engine.
    pub(crate) mesh: Option<Ipv4Net>,
    /// The gateway bridge, if it is the agent's own.
    pub(crate) bridge: Option<String>,
    /// What `nft` lists.
    pub(crate) listing: Arc<Value>,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Around {
    /// Local processes on published ports.
    pub(crate) shadowed: Vec<Shadowed>,
    /// Where IPv6 clients are not served.
    pub(crate) ipv6: Option<NotServed>,
    /// Settings of the node that are in the way, and what could not be found out.
    pub(crate) warnings: Vec<String>,
}

impl Around {
    fn find(question: &Question) -> Self {
        let published = !question.published.is_empty();
        let mut found =
            Self { warnings: warnings(&question.listing, question.bridge.as_deref(), published), ..Self::default() };
        match listeners(&question.published) {
            Ok(listeners) => {
                found.shadowed = shadowed(&listeners, question.mesh);
                if listeners.iter().any(|listener| listener.owner.is_none()) && !dataplane::sees_owners() {
                    found.warnings.push(NO_PTRACE.to_owned());
                }
                match not_served(published, &listeners) {
                    Ok(ipv6) => found.ipv6 = ipv6,
                    Err(error) => found.warnings.push(format!("the node's IPv6 addresses cannot be read: {error}")),
                }
            }
            Err(error) => found.warnings.push(format!("who listens on published ports cannot be read: {error}")),
        }
        found
    }
}

/// Who reads all this.
#[derive(Debug)]
pub(crate) struct Reads {
    around: Fresh<Question, Around>,
    firewall: Fresh<(), Dropped>,
}

impl Default for Reads {
    fn default() -> Self {
        let last = Mutex::new(Dropped::default());
        let dropped = move |()| {
            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
            // A counter that cannot be read has not gone back to nothing.
            *last = nft::drops().unwrap_or(*last);
            *last
        };
        Self { around: Fresh::new(|question| Around::find(&question)), firewall: Fresh::new(dropped) }
    }
}

impl Reads {
    /// What is around the agent.
    pub(crate) fn around(&self, question: &Question) -> Around {
        let Some(answer) = self.around.get(|| question.clone(), PATIENCE) else {
            let unknown = "who listens on published ports is not known yet: reading it takes long".to_owned();
            return Around { warnings: vec![unknown], ..Around::default() };
        };
        let mut around = (*answer.value).clone();
        let age = answer.at.elapsed();
        if age > 2 * PATIENCE {
            around.warnings.push(format!(
                "who listens on published ports was last read {} s ago: reading it again takes long",
                age.as_secs()
            ));
        }
        around
    }

    /// What the agent's own nftables table has dropped.
    pub(crate) fn firewall_drops(&self) -> Dropped {
        self.firewall.get(|| (), PATIENCE).map_or_else(Dropped::default, |answer| *answer.value)
    }
}
