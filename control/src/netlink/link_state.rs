//! What changes at an interface when its driver resets it, and whether an XDP program is attached.

use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage, LinkXdp, XdpAttached};

use super::{Error, Socket};

/// The state of one interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkState {
    /// Administratively up, and with a carrier.
    pub running: bool,
    /// As `ip link` names it, in small letters.
    pub operstate: String,
    /// How often the carrier has come and gone.
    pub carrier_changes: u32,
    /// An XDP program is attached, in whichever mode.
    pub xdp: bool,
}

impl Socket {
    /// The state of an interface.
    ///
    /// # Errors
    /// [`Error::NoLink`] when there is none.
    pub async fn link_state(&self, name: &str) -> Result<LinkState, Error> {
        Ok(parse(&self.link(name).await?))
    }
}

fn parse(message: &LinkMessage) -> LinkState {
    let mut state = LinkState {
        running: message.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
        ..LinkState::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::OperState(operstate) => state.operstate = format!("{operstate:?}").to_lowercase(),
            LinkAttribute::CarrierChanges(changes) => state.carrier_changes = *changes,
            LinkAttribute::Xdp(xdp) => state.xdp = xdp.iter().any(is_attached),
            _ => {}
        }
    }
    state
}

fn is_attached(xdp: &LinkXdp) -> bool {
    matches!(xdp, LinkXdp::Attached(mode) if *mode != XdpAttached::None)
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::State;

    use super::*;

    #[test]
    fn a_program_counts_in_whichever_mode_it_is_attached() {
        let with = |mode| {
            let mut message = LinkMessage::default();
            message.header.flags = LinkFlags::Up | LinkFlags::LowerUp;
            message.attributes = vec![
                LinkAttribute::OperState(State::LowerLayerDown),
                LinkAttribute::CarrierChanges(3),
                LinkAttribute::Xdp(vec![LinkXdp::Attached(mode)]),
            ];
            parse(&message)
        };
        let none = with(XdpAttached::None);
        let operstate = "lowerlayerdown".to_owned();
        assert_eq!(none, LinkState { running: true, operstate, carrier_changes: 3, xdp: false });
        for mode in [XdpAttached::Driver, XdpAttached::SocketBuffer, XdpAttached::Hardware, XdpAttached::Multiple] {
            assert!(with(mode).xdp, "{mode:?}");
        }
        assert!(!parse(&LinkMessage::default()).running);
    }
}
