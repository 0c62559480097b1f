//! Which manager's tables to take, and whether the swarm has refused this node. Pure, so that every case can be tried.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    time::{Duration, Instant},
};

use super::Manager;

/// How long others get to accept this node after one has refused it.
pub(super) const GRACE: Duration = Duration::from_secs(2);

/// A link as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Not known yet.
    Connecting,
    /// A member there. `avoid`: its tables are old or do not come; until then.
    Up { avoid: Option<Instant> },
    /// No member there.
    Refused { why: String },
    /// Not there.
    Down { why: String },
    /// A node that is not believed to be a manager.
    Distrusted { why: String },
    /// This node itself.
    Myself,
}

pub(super) type Links = BTreeMap<Manager, State>;

/// Whose tables to take: the one that they come from as long as it will do; else one that this node (`me`) prefers, so
/// that nodes spread over the managers.
pub(super) fn provider(links: &Links, current: Option<&Manager>, me: &str, now: Instant) -> Option<Manager> {
    let rank = |manager: &Manager| match links.get(manager) {
        Some(State::Up { avoid }) => Some(avoid.is_some_and(|until| now < until)),
        _ => None,
    };
    let best = links.keys().filter_map(&rank).min()?;
    if let Some(current) = current.filter(|current| rank(current) == Some(best)) {
        return Some(current.clone());
    }
    let preference = |manager: &&Manager| {
        let mut hasher = DefaultHasher::new();
        (me, &manager.address).hash(&mut hasher);
        hasher.finish()
    };
    links.keys().filter(|manager| rank(manager) == Some(best)).min_by_key(preference).cloned()
}

/// What to make of refusals.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// A member, or nobody knows.
    Fine,
    /// Refused, but others have not said yet; look again then.
    Wait(Instant),
    /// No member: so said one, and nobody else says otherwise.
    Refused(String),
}

/// Whether this node is refused. `since`: when the first refusal came.
pub(super) fn verdict(links: &Links, since: Option<Instant>, now: Instant) -> Verdict {
    let up = links.values().any(|state| matches!(state, State::Up { .. }));
    let why = links.values().find_map(|state| match state {
        State::Refused { why } => Some(why),
        _ => None,
    });
    let (Some(why), Some(since), false) = (why, since, up) else { return Verdict::Fine };
    let undecided = links.values().any(|state| matches!(state, State::Connecting));
    if undecided && now < since + GRACE { Verdict::Wait(since + GRACE) } else { Verdict::Refused(why.clone()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manager(name: &str) -> Manager {
        Manager { address: format!("{name}:4788"), node: None }
    }

    fn links(states: &[(&str, State)]) -> Links {
        states.iter().map(|(name, state)| (manager(name), state.clone())).collect()
    }

    const UP: State = State::Up { avoid: None };

    fn refused() -> State {
        State::Refused { why: "not a member".into() }
    }

    #[test]
    fn a_provider_is_kept_while_it_will_do() {
        let now = Instant::now();
        let old = State::Up { avoid: Some(now + GRACE) };
        let down = State::Down { why: "x".into() };
        let b = manager("b");
        let of = |states: &[(&str, State)], current| provider(&links(states), current, "me", now);
        assert_eq!(of(&[("a", UP), ("b", UP)], Some(&b)), Some(b.clone()));
        assert_eq!(of(&[("a", UP), ("b", old.clone())], Some(&b)), Some(manager("a")), "old tables");
        assert_eq!(of(&[("a", old.clone()), ("b", old.clone())], Some(&b)), Some(b.clone()), "no better one");
        assert_eq!(of(&[("a", UP), ("b", down.clone())], Some(&b)), Some(manager("a")));
        assert_eq!(of(&[("a", down), ("b", refused())], Some(&b)), None);
        assert_eq!(of(&[("a", old)], None), Some(manager("a")));
    }

    #[test]
    fn nodes_spread_over_managers() {
        let all = links(&[("a", UP), ("b", UP), ("c", UP)]);
        let mut counts: BTreeMap<_, usize> = BTreeMap::new();
        for i in 0..300 {
            *counts.entry(provider(&all, None, &format!("node{i}"), Instant::now())).or_default() += 1;
        }
        assert!(counts.len() == 3 && counts.values().all(|count| *count > 60), "{counts:?}");
    }

    #[test]
    fn refused_is_told_apart_from_unreachable() {
        let start = Instant::now();
        let down = || State::Down { why: "x".into() };
        let connecting = || State::Connecting;
        let of = |states: &[(&str, State)]| verdict(&links(states), Some(start), start);
        assert_eq!(of(&[("a", down()), ("b", down())]), Verdict::Fine);
        assert_eq!(of(&[("a", refused()), ("b", down())]), Verdict::Refused("not a member".into()));
        assert_eq!(of(&[("a", refused()), ("b", UP)]), Verdict::Fine, "another one knows better");
        let undecided = [("a", refused()), ("b", connecting())];
        assert_eq!(of(&undecided), Verdict::Wait(start + GRACE));
        assert_eq!(verdict(&links(&undecided), Some(start), start + GRACE), Verdict::Refused("not a member".into()));
        assert_eq!(of(&[("a", State::Myself), ("b", refused())]), Verdict::Refused("not a member".into()));
    }
}
