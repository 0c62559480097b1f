//! The entries of translated connections in twos.

use dataplane_common::{
    flow::{Flow, FlowKey, flag},
    line::Translated,
};

use super::{
    Stage,
    state::{Evidence, State},
    table::Found,
};

/// An entry: its key, how far it has come, and its value.
pub(super) type Half = Found<Translated>;

/// A connection's entries: both, or one of them.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pair {
    /// Both directions.
    Whole(Half, Half),
    /// From client to backend only: the other was displaced and will be made anew.
    Forward(Half),
    /// From backend to client only: as above, or a direct connection that needs no more, or a leftover.
    Reply(Half),
}

/// The connection that an entry tells of; `None` if its other entry does. `get` finds what is in force under a key.
pub(super) fn pair<E>(
    here: Half,
    get: impl FnOnce(&FlowKey) -> Result<Option<(Stage, Flow)>, E>,
) -> Result<Option<Pair>, E> {
    let (key, _, flow) = here;
    let other_key = if is_reply(&flow) { forward_key(&key, &flow) } else { reply_key(&key, &flow) };
    let other = get(&other_key)?
        .map(|(stage, flow)| (other_key, stage, flow))
        .filter(|(other_key, _, other)| belong_together((&key, &flow), (other_key, other)));
    Ok(match (is_reply(&flow), other) {
        (false, Some(reply)) => Some(Pair::Whole(here, reply)),
        (false, None) => Some(Pair::Forward(here)),
        // Its forward entry tells of it.
        (true, Some(_)) => None,
        (true, None) => Some(Pair::Reply(here)),
    })
}

pub(super) fn is_reply(flow: &Flow) -> bool {
    flow.flags & flag::REPLY != 0
}

/// Whether two entries are a connection's: another connection may have taken one's key over.
fn belong_together(a: (&FlowKey, &Flow), b: (&FlowKey, &Flow)) -> bool {
    let (forward, reply) = if is_reply(a.1) { (b, a) } else { (a, b) };
    !is_reply(forward.1)
        && is_reply(reply.1)
        && reply_key(forward.0, forward.1) == *reply.0
        && forward_key(reply.0, reply.1) == *forward.0
}

/// Key of the reply entry that belongs to a forward entry: the translated packet, turned round.
pub(super) fn reply_key(key: &FlowKey, forward: &Flow) -> FlowKey {
    turned(key, forward)
}

/// Key of the forward entry that belongs to a reply entry.
fn forward_key(key: &FlowKey, reply: &Flow) -> FlowKey {
    turned(key, reply)
}

fn turned(key: &FlowKey, flow: &Flow) -> FlowKey {
    FlowKey::new(key.zone, (flow.dst, flow.dport), (flow.src, flow.sport), key.proto)
}

impl Pair {
    /// The entries, the forward entry first.
    pub(super) fn halves(self) -> impl Iterator<Item = Half> {
        let (first, second) = match self {
            Self::Whole(forward, reply) => (forward, Some(reply)),
            Self::Forward(one) | Self::Reply(one) => (one, None),
        };
        std::iter::once(first).chain(second)
    }

    /// The forward entry, or the only one.
    pub(super) fn first(self) -> Half {
        match self {
            Self::Whole(forward, _) => forward,
            Self::Forward(one) | Self::Reply(one) => one,
        }
    }

    /// The key of the connection's packets from the client, whether there is an entry for them or not.
    pub(super) fn forward_key(self) -> FlowKey {
        match self {
            Self::Whole((key, ..), _) | Self::Forward((key, ..)) => key,
            Self::Reply((key, _, flow)) => forward_key(&key, &flow),
        }
    }

    /// Whether it has proved itself and found no share of the established table, or no room.
    pub(super) fn is_kept(self) -> bool {
        self.halves().any(|(_, stage, flow)| stage == Stage::Pending && flow.flags & flag::KEPT != 0)
    }

    pub(super) fn state(self) -> State {
        let proved = |stage, flow: Flow| stage == Stage::Established || flow.flags & flag::KEPT != 0;
        let established = self.halves().any(|(_, stage, flow)| proved(stage, flow));
        let flags =
            |reply| self.halves().filter(move |(_, _, f)| is_reply(f) == reply).fold(0, |all, (_, _, f)| all | f.flags);
        Evidence {
            proto: self.first().0.proto,
            stage: if established { Stage::Established } else { Stage::Pending },
            forward: flags(false),
            reply: flags(true),
        }
        .state()
    }

    /// When a packet of either direction was last seen.
    pub(super) fn last_seen(self) -> u64 {
        self.halves().map(|(_, _, flow)| flow.last_seen).max().unwrap_or(0)
    }

    /// When the first of its entries was made.
    pub(super) fn created(self) -> u64 {
        self.halves().map(|(_, _, flow)| flow.created).min().unwrap_or(0)
    }
}

/// Whether packets with that key are changed.
fn translates(key: &FlowKey, flow: &Flow) -> bool {
    (key.src, key.dst, key.sport, key.dport) != (flow.src, flow.dst, flow.sport, flow.dport)
}

/// Whether the entry is of a direct connection whose source port is translated: while there is one, map `DIRECT_GATE`
/// stays open. One that was only noted changes nothing.
pub(super) fn holds_the_gate(key: &FlowKey, flow: &Flow) -> bool {
    flow.flags & flag::DIRECT != 0 && translates(key, flow)
}
