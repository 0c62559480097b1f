//! One client's connection as two nodes keep it: [`Backend`]'s translated entries (a VIP's node, or the backend's node
//! of the mesh), [`Ingress`]'s client entry. The steps are those of `follow.rs`, `pending.rs` and `affinity.rs`; a
//! table is whether there is an entry, and where.

use dataplane_common::{
    flow::{Affinity, Flow, FlowKey, flag},
    headers::{IPV4_LEN, TCP_LEN, UDP_LEN, ipproto},
};
use dataplane_core::{age, connection, ending, notes, parse::Packet, proof, succession};

const ZONE: [u8; 4] = [1; 4];
const CLIENT: [u8; 4] = [192, 0, 2, 1];
const VIP: [u8; 4] = [10, 0, 0, 2];
const TASK: [u8; 4] = [10, 0, 0, 3];

/// A packet from client to VIP; `payload` bytes behind the header.
pub(crate) fn packet(proto: u8, flags: u8, sequence: u32, acknowledgement: u32, payload: u16) -> Packet {
    let (tcp_len, header) = if proto == ipproto::TCP { (TCP_LEN as u8, TCP_LEN) } else { (0, UDP_LEN) };
    let (total_len, l4) = ((IPV4_LEN + header) as u16 + payload, IPV4_LEN);
    let (src, dst, sport, dport) = (CLIENT, VIP, [0x80, 1], [0, 80]);
    let ends = Packet { src, dst, sport, dport, proto, ..Packet::default() };
    Packet { flags, sequence, acknowledgement, total_len, l4, tcp_len, ..ends }
}

/// A connection's entries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entries {
    pub(crate) forward: Flow,
    pub(crate) reply: Flow,
    pub(crate) established: bool,
}

/// A node that translates.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Backend {
    pub(crate) entries: Option<Entries>,
    /// How often a connection was opened.
    pub(crate) opened: u32,
    pub(crate) now: u64,
}

impl Backend {
    pub(crate) fn of_client(&mut self, packet: &Packet) {
        if let Some(known) = &mut self.entries {
            let proved = !known.established && proof::client_proves_flow(packet, &known.reply);
            if proved {
                known.establish(packet.sequence);
            }
        }
        let now = self.now;
        match &mut self.entries {
            Some(known) if !succession::replaces(packet, &known.forward) => {
                if ending::client_ends(packet) && known.established {
                    ending::of_client(&mut known.forward, &mut known.reply, packet, || now);
                }
                age::note_at(&mut known.forward.last_seen, &mut known.forward.flags, flag::SEEN, now);
            }
            None if !connection::may_open(packet) => {}
            _ => self.open(packet),
        }
    }

    fn open(&mut self, packet: &Packet) {
        let (tag, mesh) = ([7; 8], [[0; 4]; 2]);
        let ends = ((packet.src, packet.sport), (packet.dst, packet.dport));
        let forward = Flow::new(self.now, tag, ends.0, (TASK, packet.dport), mesh, flag::SEEN);
        let reply = Flow::new(self.now, tag, ends.1, ends.0, mesh, flag::REPLY);
        assert!(connection::answers(&reply, &connection::flow_key(ZONE, packet)));
        self.entries = Some(Entries { forward, reply, established: false });
        self.opened += 1;
    }

    /// `packet` stands as one of the client's would; only its ends are the other way round.
    pub(crate) fn of_backend(&mut self, packet: &Packet) {
        let now = self.now;
        let Some(known) = &mut self.entries else { return };
        let mut proved = known.established;
        if !known.established {
            proof::note_syn_ack(&mut known.reply.tcp_number, packet);
            if proof::server_proves(packet) {
                known.establish(packet.acknowledgement);
                proved = true;
            }
        }
        if ending::backend_speaks(&mut known.reply, packet, proved) {
            let key = FlowKey::new(ZONE, (TASK, packet.dport), (CLIENT, packet.sport), packet.proto);
            let forward = Some(&mut known.forward).filter(|forward| connection::leads_to(forward, &key));
            assert!(forward.is_some());
            ending::of_backend(&mut known.reply, forward, packet, || now);
        }
        age::note_at(&mut known.reply.last_seen, &mut known.reply.flags, flag::SEEN, now);
    }

    pub(crate) fn is_established(&self) -> bool {
        self.entries.is_some_and(|known| known.established)
    }

    pub(crate) fn has_ended(&self) -> bool {
        let bits = self.entries.map(|known| (ending::ended(&known.forward), ending::ended(&known.reply)));
        assert!(bits.is_none_or(|(forward, reply)| forward == reply), "one direction alone has ended: {self:?}");
        bits.is_some_and(|(ended, _)| ended)
    }
}

impl Entries {
    fn establish(&mut self, acknowledged: u32) {
        proof::establish_reply(&mut self.reply, acknowledged);
        proof::establish_forward(&mut self.forward);
        self.established = true;
    }
}

/// An ingress node.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ingress {
    /// And whether it is established.
    pub(crate) entry: Option<(Affinity, bool)>,
    /// How often a backend was chosen.
    pub(crate) opened: u32,
    pub(crate) now: u64,
}

impl Ingress {
    pub(crate) fn of_client(&mut self, packet: &Packet) {
        let now = self.now;
        match &mut self.entry {
            Some((known, established)) if !succession::makes_room(known, packet, || now) => {
                if notes::of_client(known, !*established, packet, now) {
                    proof::establish_at_ingress(known, packet.proto);
                    *established = true;
                }
                if let (true, Some(end)) = (*established, ending::client_ends_at_ingress(packet)) {
                    ending::note_client_fin(known, end);
                }
            }
            None if !connection::may_open(packet) => {}
            _ => {
                let known = Affinity { last_seen: now, created: now, flags: flag::SEEN, ..Affinity::default() };
                self.entry = Some((known, false));
                self.opened += 1;
            }
        }
    }

    pub(crate) fn of_backend(&mut self, packet: &Packet) {
        let Some((known, established)) = &mut self.entry else { return };
        if notes::of_backend(known, !*established, packet, self.now) {
            proof::establish_at_ingress(known, packet.proto);
            *established = true;
        }
    }

    pub(crate) fn is_established(&self) -> bool {
        self.entry.is_some_and(|(_, established)| established)
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.entry.is_some_and(|(known, _)| known.flags & flag::ENDED != 0)
    }
}
