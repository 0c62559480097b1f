//! Which containers are to be inspected, and how many at a time.
//!
//! A question that does not come back within [`SLOW`] no longer takes the place of others: one container with a hanging
//! mount, or eight of them, must not keep the rest waiting.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::time::Instant;

/// Questions at a time, but for slow ones.
const AT_ONCE: usize = 8;
/// Questions at a time, slow ones included: then the engine as a whole does not answer.
const AT_MOST: usize = 64;
/// An answer that takes longer is slow.
const SLOW: Duration = Duration::from_secs(1);

/// Containers by id.
#[derive(Debug, Default)]
pub(super) struct Questions {
    /// Something has happened to them.
    urgent: BTreeSet<String>,
    /// They were listed.
    listed: BTreeSet<String>,
    /// Asked about, not answered yet.
    asked: BTreeMap<String, Instant>,
}

impl Questions {
    pub(super) fn ask_now(&mut self, id: String) {
        self.listed.remove(&id);
        self.urgent.insert(id);
    }

    /// Of one that is being asked about already an answer is on its way.
    pub(super) fn ask_some_time(&mut self, id: String) {
        if !self.urgent.contains(&id) && !self.asked.contains_key(&id) {
            self.listed.insert(id);
        }
    }

    /// It need not be asked about any more.
    pub(super) fn forget(&mut self, id: &str) {
        self.urgent.remove(id);
        self.listed.remove(id);
    }

    /// The answer has come, or never will.
    pub(super) fn answered(&mut self, id: &str) {
        self.asked.remove(id);
    }

    pub(super) fn any_wait(&self) -> bool {
        !self.urgent.is_empty() || !self.listed.is_empty()
    }

    /// The next one to ask about, if there is room. One container is asked about once at a time.
    pub(super) fn next(&mut self, now: Instant) -> Option<String> {
        let quick = self.asked.values().filter(|asked| now.duration_since(**asked) < SLOW).count();
        if quick >= AT_ONCE || self.asked.len() >= AT_MOST {
            return None;
        }
        let asked = &self.asked;
        let waiting = self.urgent.iter().find(|id| !asked.contains_key(*id)).or_else(|| self.listed.first());
        let id = waiting?.clone();
        self.forget(&id);
        self.asked.insert(id.clone(), now);
        Some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(questions: &mut Questions, now: Instant) -> Vec<String> {
        std::iter::from_fn(|| questions.next(now)).collect()
    }

    #[test]
    fn slow_answers_make_room_and_events_come_first() {
        let (mut questions, start) = (Questions::default(), Instant::now());
        (0..100).for_each(|i| questions.ask_some_time(format!("{i:03}")));
        questions.ask_now("new".into());
        let first = all(&mut questions, start);
        assert_eq!((first.len(), first[0].as_str()), (AT_ONCE, "new"));
        questions.answered("new");
        // Another event while it is asked about: again afterwards, not beside.
        questions.ask_now("000".into());
        assert_eq!(all(&mut questions, start), ["007"]);
        questions.answered("000");
        assert_eq!(all(&mut questions, start), ["000"]);

        // None of them ever answers.
        let mut now = start;
        let mut asked = AT_ONCE;
        while questions.any_wait() && now < start + SLOW * 20 {
            now += SLOW;
            asked += all(&mut questions, now).len();
        }
        assert_eq!(asked, AT_MOST);
    }

    #[test]
    fn what_has_ended_is_not_asked_about() {
        let (mut questions, now) = (Questions::default(), Instant::now());
        questions.ask_now("a".into());
        questions.ask_some_time("b".into());
        questions.forget("a");
        questions.forget("b");
        assert!(!questions.any_wait() && questions.next(now).is_none());
    }
}
