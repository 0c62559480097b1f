//! Lines of the log that others cause: one for each cause and minute. Who connects, or says something else, again and
//! again must not fill the log, and push out of it what others have said.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// At most one line in this time, for each who causes it.
const EVERY: Duration = Duration::from_secs(60);
/// That many are told apart; what others cause meanwhile is not said.
const MOST: usize = 256;

/// Who has caused a line lately.
#[derive(Debug, Default)]
pub(crate) struct Seldom(Mutex<BTreeMap<String, Said>>);

#[derive(Debug)]
struct Said {
    at: Instant,
    /// Not said since.
    more: u64,
}

impl Seldom {
    /// Whether to say now that `who` is the cause of something; with what to add, about what was not said.
    pub(crate) fn say(&self, who: &str) -> Option<String> {
        self.say_at(who, Instant::now())
    }

    fn say_at(&self, who: &str, now: Instant) -> Option<String> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(said) = all.get_mut(who)
            && now.duration_since(said.at) < EVERY
        {
            said.more += 1;
            return None;
        }
        if all.len() >= MOST && !all.contains_key(who) {
            all.retain(|_, said| now.duration_since(said.at) < EVERY);
            if all.len() >= MOST {
                return None;
            }
        }
        let before = all.insert(who.to_owned(), Said { at: now, more: 0 });
        let more = before.map_or(0, |said| said.more);
        Some(if more == 0 { String::new() } else { format!(" (and {more} times more since this was said last)") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_named_once_a_minute_and_not_too_many_are() {
        let seldom = Seldom::default();
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(seldom.say_at("a", start), Some(String::new()));
        for second in 0..59 {
            assert_eq!(seldom.say_at("a", after(second)), None);
        }
        assert_eq!(seldom.say_at("b", after(59)), Some(String::new()));
        let more = seldom.say_at("a", after(60));
        assert_eq!(more.as_deref(), Some(" (and 59 times more since this was said last)"));
        let said = (0..10_000).filter(|n| seldom.say_at(&format!("stranger {n}"), after(60)).is_some()).count();
        assert!(said < MOST, "{said} lines");
        assert_eq!(seldom.0.lock().unwrap().len(), MOST);
        // Those that have been quiet make room.
        assert_eq!(seldom.say_at("c", after(121)), Some(String::new()));
        assert_eq!(seldom.0.lock().unwrap().len(), 1);
    }
}
