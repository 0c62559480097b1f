//! How far a connection has come.

use dataplane_common::{flow::flag, headers::ipproto};

use super::Stage;

/// State of a connection, as its entries show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// TCP whose handshake is not complete; otherwise nothing has come back yet.
    Opening,
    /// In use.
    Established,
    /// TCP with a FIN of the backend's: the client may go on. (One of the client's is only its word.)
    HalfClosed,
    /// TCP that has ended, see [`flag::ENDED`].
    Closing,
}

impl State {
    /// The name to show, for a connection of protocol `proto`.
    pub fn name(self, proto: u8) -> &'static str {
        match (self, proto == ipproto::TCP) {
            (Self::Opening, true) => "half-open",
            (Self::Opening, false) => "unreplied",
            (Self::Established, true) => "established",
            (Self::Established, false) => "replied",
            (Self::HalfClosed, _) => "half-closed",
            (Self::Closing, _) => "closing",
        }
    }
}

/// What is known of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Evidence {
    pub(super) proto: u8,
    /// The best of its entries' tables; of what has proved itself and was kept pending, the established one.
    pub(super) stage: Stage,
    /// `flag` bits of the direction from client to backend; zero if there is no such entry.
    pub(super) forward: u8,
    /// `flag` bits of the other direction.
    pub(super) reply: u8,
}

impl Evidence {
    pub(super) fn state(self) -> State {
        let either = self.forward | self.reply;
        let replied = self.reply & flag::SEEN != 0 || self.forward & flag::REPLIED != 0;
        if self.proto != ipproto::TCP {
            let answered = replied || self.stage == Stage::Established;
            return if answered { State::Established } else { State::Opening };
        }
        if either & flag::ENDED != 0 {
            State::Closing
        } else if self.reply & flag::FIN != 0 {
            State::HalfClosed
        } else if self.stage == Stage::Established {
            State::Established
        } else {
            State::Opening
        }
    }
}
