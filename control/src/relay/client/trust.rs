//! Which nodes are believed to be managers. A certificate alone does not say: a manager that was demoted or removed
//! keeps one that is valid for weeks.

use std::collections::BTreeSet;

use crate::engine::EngineView;

/// Whose tables are believed, besides what certificates say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// These nodes': the managers, as this node's engine says.
    Only {
        /// Node ids.
        managers: BTreeSet<String>,
        /// Why the engine cannot be asked now; the managers are those that it named last.
        silent: Option<String>,
    },
    /// Every manager's certificate: the engine has never said which nodes are managers.
    Anyone {
        /// Why not.
        why: String,
    },
    /// Every manager's certificate: the addresses, and which node must be at each, are the engine's own.
    Listed,
}

impl Trust {
    /// By what the engine says, for an address that it did not name. Without its word the certificate counts: a node
    /// whose engine is down keeps its tables. An engine that names none for a while, or falls silent, is believed what
    /// it said last; one that has never named any since the agent began leaves it to the certificates, and that is
    /// said.
    pub fn of(view: &EngineView) -> Self {
        let silent = view.lost.as_ref().map(|lost| lost.why.clone());
        match &view.manager_ids {
            Some(managers) if !managers.is_empty() => Self::Only { managers: managers.clone(), silent },
            _ => Self::Anyone { why: silent.unwrap_or_else(|| "it does not name the swarm's managers yet".into()) },
        }
    }

    /// # Errors
    /// When this node is not believed to be a manager: why, and what to do.
    pub(super) fn check(&self, node: &str) -> Result<(), String> {
        let Self::Only { managers, silent } = self else { return Ok(()) };
        if managers.contains(node) {
            return Ok(());
        }
        let says = match silent {
            None => "says this node's engine".to_owned(),
            Some(why) => format!("said this node's engine before it fell silent ({why})"),
        };
        let others: Vec<_> = managers.iter().map(String::as_str).collect();
        Err(format!(
            "node {node} is there with a manager's certificate, but is no manager (any more), {says}: the managers are \
             {}. Name the address of one of them, or use --table swarm",
            others.join(", ")
        ))
    }

    /// What to say of a manager that is believed by its certificate alone.
    pub(crate) fn doubt(&self, address: &str, node: &str) -> Option<String> {
        let Self::Anyone { why } = self else { return None };
        Some(format!(
            "node {node} at {address} is believed to be a manager by its certificate alone, which a demoted or removed \
             one keeps: this node's engine cannot be asked ({why})"
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::source::Lost;

    fn view(managers: Option<&[&str]>, lost: Option<&str>) -> EngineView {
        let lost = lost.map(|why| Lost { since: Instant::now(), why: why.into() });
        let manager_ids = managers.map(|ids| ids.iter().map(|id| (*id).to_owned()).collect());
        EngineView { manager_ids, lost, ..EngineView::default() }
    }

    #[test]
    fn the_engine_says_who_is_a_manager_and_its_last_word_stays() {
        let known = Trust::of(&view(Some(&["m1", "m2"]), None));
        assert_eq!((known.check("m2"), known.doubt("a:1", "m2")), (Ok(()), None));
        let why = known.check("old").unwrap_err();
        assert!(why.contains("node old") && why.contains("the managers are m1, m2"), "{why}");

        let silent = Trust::of(&view(Some(&["m1"]), Some("connection refused")));
        assert_eq!(silent.check("m1"), Ok(()));
        let why = silent.check("old").unwrap_err();
        assert!(why.contains("before it fell silent (connection refused)"), "{why}");
    }

    #[test]
    fn without_its_word_a_certificate_is_enough_and_that_is_said() {
        for (lost, expected) in [(Some("no such file"), "(no such file)"), (None, "does not name")] {
            let trust = Trust::of(&view(None, lost));
            assert_eq!(trust, Trust::of(&view(Some(&[]), lost)), "nobody is no list");
            assert_eq!(trust.check("anyone"), Ok(()));
            let doubt = trust.doubt("192.0.2.1:4788", "anyone").unwrap();
            assert!(doubt.contains("node anyone at 192.0.2.1:4788") && doubt.contains(expected), "{doubt}");
        }
        assert_eq!((Trust::Listed.check("m"), Trust::Listed.doubt("a:1", "m")), (Ok(()), None));
    }
}
