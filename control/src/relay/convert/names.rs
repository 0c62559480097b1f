//! Numbers in messages for the model's enums. Numbers that this version does not know are told apart here.

use hiveway_core::model::{Carrier, Dataplane, EndpointMode, NodeState, Protocol, PublishMode, TaskState};
use hiveway_proto::relay as wire;

/// Swarm's own numbers, whatever becomes of our enum.
pub(super) fn task_state(state: TaskState) -> u32 {
    match state {
        TaskState::New => 0,
        TaskState::Pending => 64,
        TaskState::Assigned => 192,
        TaskState::Accepted => 256,
        TaskState::Preparing => 320,
        TaskState::Ready => 384,
        TaskState::Starting => 448,
        TaskState::Running => 512,
        TaskState::Complete => 576,
        TaskState::Shutdown => 640,
        TaskState::Failed => 704,
        TaskState::Rejected => 768,
        TaskState::Remove => 800,
        TaskState::Orphaned => 832,
    }
}

/// A state that we do not know is one that is not running: the last one that we know before it, or an ended one.
pub(super) fn task_state_of(number: u32) -> TaskState {
    let known = TaskState::ALL.iter().copied();
    match known.clone().find(|state| task_state(*state) == number) {
        Some(state) => state,
        None if number > task_state(TaskState::Running) => TaskState::Shutdown,
        None => known.filter(|state| task_state(*state) < number).max().unwrap_or(TaskState::New),
    }
}

pub(super) fn node_state(state: NodeState) -> wire::NodeState {
    match state {
        NodeState::Ready => wire::NodeState::Ready,
        NodeState::Down => wire::NodeState::Down,
        NodeState::Disconnected => wire::NodeState::Disconnected,
        NodeState::Unknown => wire::NodeState::Unknown,
    }
}

pub(super) fn node_state_of(number: i32) -> NodeState {
    match wire::NodeState::try_from(number) {
        Ok(wire::NodeState::Ready) => NodeState::Ready,
        Ok(wire::NodeState::Down) => NodeState::Down,
        Ok(wire::NodeState::Disconnected) => NodeState::Disconnected,
        Ok(wire::NodeState::Unknown) | Err(_) => NodeState::Unknown,
    }
}

pub(super) fn dataplane(dataplane: Dataplane) -> wire::Dataplane {
    match dataplane {
        Dataplane::Hiveway => wire::Dataplane::Hiveway,
        // Who gets the table sees for itself who has left.
        Dataplane::None | Dataplane::Left => wire::Dataplane::None,
    }
}

/// One that we do not know takes no mesh frames of ours.
pub(super) fn dataplane_of(number: i32) -> Dataplane {
    match wire::Dataplane::try_from(number) {
        Ok(wire::Dataplane::Hiveway) => Dataplane::Hiveway,
        Ok(wire::Dataplane::None) | Err(_) => Dataplane::None,
    }
}

pub(super) fn carrier(carrier: Carrier) -> wire::Carrier {
    match carrier {
        Carrier::Hiveway => wire::Carrier::Hiveway,
        Carrier::Engine => wire::Carrier::Engine,
    }
}

pub(super) fn carrier_of(number: i32) -> Result<Carrier, String> {
    match wire::Carrier::try_from(number) {
        Ok(wire::Carrier::Hiveway) => Ok(Carrier::Hiveway),
        Ok(wire::Carrier::Engine) => Ok(Carrier::Engine),
        Ok(wire::Carrier::Unspecified) | Err(_) => Err(unknown("carrier", number)),
    }
}

pub(super) fn endpoint_mode(mode: EndpointMode) -> wire::EndpointMode {
    match mode {
        EndpointMode::Vip => wire::EndpointMode::Vip,
        EndpointMode::Dnsrr => wire::EndpointMode::Dnsrr,
    }
}

pub(super) fn endpoint_mode_of(number: i32) -> Result<EndpointMode, String> {
    match wire::EndpointMode::try_from(number) {
        Ok(wire::EndpointMode::Vip) => Ok(EndpointMode::Vip),
        Ok(wire::EndpointMode::Dnsrr) => Ok(EndpointMode::Dnsrr),
        Ok(wire::EndpointMode::Unspecified) | Err(_) => Err(unknown("endpoint mode", number)),
    }
}

pub(super) fn protocol(protocol: Protocol) -> wire::Protocol {
    match protocol {
        Protocol::Tcp => wire::Protocol::Tcp,
        Protocol::Udp => wire::Protocol::Udp,
        Protocol::Sctp => wire::Protocol::Sctp,
    }
}

pub(super) fn protocol_of(number: i32) -> Result<Protocol, String> {
    match wire::Protocol::try_from(number) {
        Ok(wire::Protocol::Tcp) => Ok(Protocol::Tcp),
        Ok(wire::Protocol::Udp) => Ok(Protocol::Udp),
        Ok(wire::Protocol::Sctp) => Ok(Protocol::Sctp),
        Ok(wire::Protocol::Unspecified) | Err(_) => Err(unknown("protocol", number)),
    }
}

pub(super) fn publish_mode(mode: PublishMode) -> wire::PublishMode {
    match mode {
        PublishMode::Ingress => wire::PublishMode::Ingress,
        PublishMode::Host => wire::PublishMode::Host,
    }
}

pub(super) fn publish_mode_of(number: i32) -> Result<PublishMode, String> {
    match wire::PublishMode::try_from(number) {
        Ok(wire::PublishMode::Ingress) => Ok(PublishMode::Ingress),
        Ok(wire::PublishMode::Host) => Ok(PublishMode::Host),
        Ok(wire::PublishMode::Unspecified) | Err(_) => Err(unknown("publish mode", number)),
    }
}

fn unknown(what: &str, number: i32) -> String {
    format!("its {what} {number} is unknown to this version")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_that_we_do_not_know_are_not_running() {
        for state in TaskState::ALL {
            assert_eq!(task_state_of(task_state(*state)), *state);
        }
        assert_eq!((task_state(TaskState::Running), task_state(TaskState::Orphaned)), (512, 832));
        assert_eq!(task_state_of(500), TaskState::Starting);
        assert_eq!(task_state_of(128), TaskState::Pending);
        for ended in [513, 900, u32::MAX] {
            assert_eq!(task_state_of(ended), TaskState::Shutdown, "{ended}");
        }
        assert_eq!(node_state_of(77), NodeState::Unknown);
        assert_eq!(dataplane_of(77), Dataplane::None);
    }
}
