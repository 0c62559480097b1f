//! What each node's agent has said last of the paths from its node: in memory only, since it is about now.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use hiveway_core::{path_matrix::Said, path_report::PathReport};

/// How long what a connected agent has said counts: it says it anew every minute.
const OLD: Duration = Duration::from_secs(180);
/// How long it counts once the agent is not connected: it may only have changed its connection.
const AWAY: Duration = Duration::from_secs(15);

/// What an agent's report says of paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// This.
    Rows(Arc<PathReport>),
    /// Nothing: it is of a version that does not.
    Nothing,
    /// What makes no sense, and why.
    Nonsense(String),
}

#[derive(Debug)]
struct Entry {
    word: Word,
    version: String,
    /// When it was so.
    at: Instant,
    session: u64,
    /// When that session has ended.
    ended: Option<Instant>,
}

/// The last word of each node.
#[derive(Debug)]
pub struct PathReports {
    entries: Mutex<BTreeMap<String, Entry>>,
    since: Instant,
}

impl Default for PathReports {
    fn default() -> Self {
        Self { entries: Mutex::default(), since: Instant::now() }
    }
}

impl PathReports {
    fn entries(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of the paths from the node with this id.
    pub fn of(&self, node: &str) -> Said {
        let entries = self.entries();
        let Some(entry) = entries.get(node) else { return Said::Silence { lasts: self.since.elapsed() } };
        let age = entry.at.elapsed();
        if entry.ended.is_some_and(|ended| ended.elapsed() > AWAY) {
            return Said::Silence { lasts: age };
        }
        match &entry.word {
            // Agents that send no rows report only when something changes.
            Word::Rows(_) if age > OLD => Said::Silence { lasts: age },
            Word::Rows(report) => Said::Rows { age, report: report.clone() },
            Word::Nothing => Said::Nothing { version: entry.version.clone() },
            Word::Nonsense(why) => Said::Nonsense { why: why.clone() },
        }
    }

    /// The node's agent has said this in this session; it was so `age` ago.
    pub(super) fn says(&self, node: &str, session: u64, version: &str, word: Word, age: Duration) {
        let now = Instant::now();
        // The clock may have begun later than that.
        let at = now.checked_sub(age).unwrap_or(now);
        let entry = Entry { word, version: version.to_owned(), at, session, ended: None };
        self.entries().insert(node.to_owned(), entry);
    }

    /// The session is over.
    pub(super) fn closed(&self, node: &str, session: u64) {
        if let Some(entry) = self.entries().get_mut(node).filter(|entry| entry.session == session) {
            entry.ended = Some(Instant::now());
        }
    }

    /// The node has no Hiveway any more.
    pub(super) fn forget(&self, node: &str) {
        self.entries().remove(node);
    }

    /// Only nodes of the table are remembered.
    pub(super) fn retain(&self, is_node: impl Fn(&str) -> bool) {
        self.entries().retain(|node, _| is_node(node));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_counts_while_it_is_fresh() {
        let heard = PathReports::default();
        assert!(matches!(heard.of("n"), Said::Silence { lasts } if lasts < Duration::from_secs(60)));
        let rows = || Word::Rows(Arc::default());
        heard.says("n", 1, "1", rows(), Duration::from_secs(60));
        assert!(matches!(heard.of("n"), Said::Rows { age, .. } if age >= Duration::from_secs(60)));
        // An agent that has not been heard of for long, though it is connected.
        heard.says("n", 1, "1", rows(), OLD + Duration::from_secs(1));
        assert!(matches!(heard.of("n"), Said::Silence { lasts } if lasts > OLD));
        heard.says("n", 1, "1", Word::Nothing, OLD + Duration::from_secs(1));
        assert_eq!(heard.of("n"), Said::Nothing { version: "1".into() });
        heard.says("n", 2, "1", Word::Nonsense("x".into()), Duration::MAX);
        assert_eq!(heard.of("n"), Said::Nonsense { why: "x".into() });
    }

    #[test]
    fn a_session_that_is_over_counts_a_little_longer() {
        let heard = PathReports::default();
        heard.says("n", 2, "1", Word::Rows(Arc::default()), Duration::ZERO);
        heard.closed("n", 1);
        assert_eq!(heard.entries()["n"].ended, None, "another one's end");
        heard.closed("n", 2);
        assert!(matches!(heard.of("n"), Said::Rows { .. }));
        heard.entries().get_mut("n").unwrap().ended = Instant::now().checked_sub(AWAY + Duration::from_secs(1));
        assert!(matches!(heard.of("n"), Said::Silence { .. }));
        heard.says("n", 3, "1", Word::Rows(Arc::default()), Duration::ZERO);
        assert!(matches!(heard.of("n"), Said::Rows { .. }));
        heard.retain(|node| node != "n");
        assert!(heard.entries().is_empty());
    }
}
