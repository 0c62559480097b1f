use std::{collections::HashMap, convert::Infallible};

use dataplane_common::headers::ipproto::{TCP, UDP};

use super::*;

type Snapshot<K, V> = HashMap<K, (Stage, V)>;

const NET: NetId = [0, 0, 16, 1];
const CLIENT: [u8; 4] = [10, 0, 1, 3];
const VIP: [u8; 4] = [10, 0, 1, 2];
const TASK: [u8; 4] = [10, 0, 1, 9];
const SHOWN: u16 = 40000;

fn key(zone: NetId, src: ([u8; 4], u16), dst: ([u8; 4], u16)) -> FlowKey {
    let (sport, dport) = (src.1.to_be_bytes(), dst.1.to_be_bytes());
    FlowKey { zone, src: src.0, dst: dst.0, sport, dport, proto: TCP, _pad: [0; 3] }
}

fn flow(src: ([u8; 4], u16), dst: ([u8; 4], u16), flags: u8, created: u64) -> Flow {
    Flow {
        src: src.0,
        dst: dst.0,
        sport: src.1.to_be_bytes(),
        dport: dst.1.to_be_bytes(),
        flags,
        created,
        last_seen: created + 10,
        tag: [7; 8],
        ..Flow::default()
    }
}

/// A client talks to 10.0.1.2:80; the backend at 10.0.1.9:80 sees it with another port.
fn vip_connection(zone: NetId) -> [(FlowKey, Flow); 2] {
    [
        (key(zone, (CLIENT, 1000), (VIP, 80)), flow((CLIENT, SHOWN), (TASK, 80), flag::SEEN, 100)),
        (key(zone, (TASK, 80), (CLIENT, SHOWN)), flow((VIP, 80), (CLIENT, 1000), flag::REPLY | flag::SEEN, 120)),
    ]
}

fn snapshot(entries: &[(FlowKey, Flow)], stage: Stage) -> Snapshot<FlowKey, Flow> {
    entries.iter().map(|(key, flow)| (*key, (stage, *flow))).collect()
}

fn rows(flows: &Snapshot<FlowKey, Flow>, affinity: &Snapshot<AffinityKey, Affinity>) -> Vec<ConnectionRow> {
    let get = |key: &FlowKey| Ok::<_, Infallible>(flows.get(key).copied());
    let translated = flows.iter().filter_map(|(key, (stage, flow))| flow_row((*key, *stage, *flow), get).unwrap());
    let ingress =
        affinity.iter().filter_map(|(key, (stage, entry))| affinity_row((*key, *stage, *entry), get).unwrap());
    let mut rows: Vec<_> = translated.chain(ingress).collect();
    rows.sort_by_key(|row| (row.kind, row.proto, row.client, row.address));
    rows
}

fn address(text: &str) -> SocketAddrV4 {
    text.parse().unwrap()
}

#[test]
fn a_connection_is_one_row_whichever_entries_it_has() {
    let entries = vip_connection(NET);
    let row = ConnectionRow {
        kind: Kind::Vip(NET),
        proto: TCP,
        client: address("10.0.1.3:1000"),
        address: address("10.0.1.2:80"),
        shown_as: Some(address("10.0.1.3:40000")),
        backend: Some(address("10.0.1.9:80")),
        peer: None,
        tag: [7; 8],
        state: State::Established,
        created: 100,
        last_seen: 130,
    };
    let all = |entries: &[(FlowKey, Flow)]| rows(&snapshot(entries, Stage::Established), &HashMap::new());
    assert_eq!(all(&entries), [row]);
    assert_eq!(all(&entries[..1]), [ConnectionRow { last_seen: 110, ..row }]);
    assert_eq!(all(&entries[1..]), [ConnectionRow { created: 120, ..row }]);
    let pending = rows(&snapshot(&entries, Stage::Pending), &HashMap::new());
    assert_eq!(pending, [ConnectionRow { state: State::Opening, ..row }]);
}

#[test]
fn a_direct_connection_and_one_of_the_nodes_own_say_so() {
    let noted = (key(NET, (TASK, 80), (CLIENT, 1000)), flow((TASK, 80), (CLIENT, 1000), flag::REPLY | flag::DIRECT, 5));
    let own = Affinity { flags: flag::OWN | flag::SEEN, last_seen: 9, created: 8, ..Affinity::default() };
    let own_key = AffinityKey {
        client: [198, 51, 100, 53],
        client_port: 53u16.to_be_bytes(),
        node: [192, 0, 2, 1],
        port: 8080u16.to_be_bytes(),
        proto: UDP,
        _pad: [0; 3],
    };
    let affinity = HashMap::from([(own_key, (Stage::Pending, own))]);
    let found = rows(&snapshot(&[noted], Stage::Established), &affinity);
    let [direct, own] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!(
        (direct.kind, direct.client, direct.address),
        (Kind::Direct(NET), address("10.0.1.3:1000"), address("10.0.1.9:80"))
    );
    assert_eq!((direct.shown_as, direct.backend), (Some(direct.client), Some(direct.address)));
    assert_eq!(
        (own.kind, own.client, own.address, own.backend),
        (Kind::Own, address("198.51.100.53:53"), address("192.0.2.1:8080"), None)
    );
}

#[test]
fn a_connection_that_is_served_at_its_ingress_node_is_one_row() {
    let entries = snapshot(&vip_connection(MESH_ZONE), Stage::Established);
    let at_ingress = |client_port: u16, tag| {
        let key = AffinityKey {
            client: CLIENT,
            node: VIP,
            client_port: client_port.to_be_bytes(),
            port: 80u16.to_be_bytes(),
            proto: TCP,
            _pad: [0; 3],
        };
        let entry = Affinity { tag, ip: [10, 0, 0, 6], vtep: [192, 0, 2, 2], ..Affinity::default() };
        HashMap::from([(key, (Stage::Established, entry))])
    };
    let kinds = |affinity| rows(&entries, &affinity).iter().map(|row| row.kind).collect::<Vec<_>>();
    assert_eq!(kinds(at_ingress(1000, [7; 8])), [Kind::Mesh]);
    assert_eq!(kinds(at_ingress(1001, [7; 8])), [Kind::Mesh, Kind::Ingress]);
    assert_eq!(kinds(at_ingress(1000, [8; 8])), [Kind::Mesh, Kind::Ingress]);
    let ingress = rows(&HashMap::new(), &at_ingress(1000, [7; 8]))[0];
    assert_eq!((ingress.backend, ingress.peer), (Some(address("10.0.0.6:0")), Some([192, 0, 2, 2].into())));
}
