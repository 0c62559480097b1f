//! The live source against a manager's control socket that does what it is told.

#[path = "support/fake_manager.rs"]
mod fake_manager;
#[path = "support/swarm_ca.rs"]
mod swarm_ca;

use std::{collections::BTreeMap, num::NonZeroU16, sync::Arc};

use control::{source::Live, swarm::follow};
use fake_manager::{FakeManager, soon};
use hiveway_core::{
    Model, TaskRole,
    model::{Carrier, Vni},
};
use hiveway_proto::swarm::{object::Kind, *};
use swarm_ca::Ca;
use tokio::sync::watch;

const CREATE: u32 = 1;
const UPDATE: u32 = 2;
const REMOVE: u32 = 4;
const RUNNING: u32 = 512;

fn meta(version: u64) -> Option<Meta> {
    Some(Meta { version: Some(Version { index: version }), created_at: None })
}

fn named(name: &str) -> Option<Annotations> {
    Some(Annotations { name: name.into(), labels: BTreeMap::new() })
}

fn at(network: &str, address: &str) -> NetworkAttachment {
    NetworkAttachment { network: Some(NetworkId { id: network.into() }), addresses: vec![address.into()] }
}

fn node() -> Node {
    Node {
        id: "n1".into(),
        meta: meta(10),
        description: Some(NodeDescription { hostname: "one".into() }),
        status: Some(NodeStatus { state: 2, addr: "192.0.2.1".into() }),
        manager_status: None,
        attachments: vec![at("app", "10.0.1.9/24"), at("gone", "10.0.7.9/24")],
        vxlan_udp_port: 7789,
    }
}

fn network() -> Network {
    let option = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let asked = BTreeMap::from([option("encrypted", ""), option("com.docker.network.driver.mtu", "1400")]);
    let given = BTreeMap::from([option("com.docker.network.driver.overlay.vxlanid_list", "4097")]);
    Network {
        id: "app".into(),
        meta: meta(11),
        spec: Some(NetworkSpec {
            annotations: named("app"),
            driver_config: Some(Driver { name: "overlay".into(), options: asked }),
            ..NetworkSpec::default()
        }),
        driver_state: Some(Driver { name: "overlay".into(), options: given }),
        ipam: Some(IpamOptions {
            configs: vec![IpamConfig { subnet: "10.0.1.0/24".into(), gateway: "10.0.1.1".into() }],
        }),
    }
}

fn service() -> Service {
    Service {
        id: "web".into(),
        meta: meta(12),
        spec: Some(ServiceSpec { annotations: named("web"), endpoint: None }),
        endpoint: Some(Endpoint {
            ports: vec![PortConfig { protocol: 1, target_port: 53, published_port: 5353, publish_mode: 1 }],
            virtual_ips: vec![VirtualIp { network_id: "app".into(), addr: "10.0.1.2/24".into() }],
        }),
    }
}

fn task(id: &str, version: u64, state: u32, host: u32) -> Task {
    Task {
        id: id.into(),
        meta: meta(version),
        service_id: "web".into(),
        slot: 1,
        node_id: "n1".into(),
        status: Some(TaskStatus { state }),
        desired_state: RUNNING,
        networks: vec![at("app", &format!("10.0.{}.{}/16", 1 + host / 250, 3 + host % 250))],
        endpoint: Some(Endpoint::default()),
    }
}

fn swarm_with_one_task() -> FakeManager {
    let fake = FakeManager::start();
    fake.swarm.with(|objects| {
        (objects.nodes, objects.networks, objects.services) = (vec![node()], vec![network()], vec![service()]);
        objects.tasks = vec![task("t1", 13, RUNNING, 0)];
    });
    fake
}

/// Waits until the source says what is asked for.
async fn until(source: &mut watch::Receiver<Arc<Live>>, what: &str, wanted: impl Fn(&Live) -> bool) -> Arc<Live> {
    let live = soon(what, source.wait_for(|live| wanted(live))).await;
    live.unwrap().clone()
}

fn model(live: &Live) -> &Model {
    &live.table.as_ref().expect("a table").model
}

fn tasks(live: &Live) -> Vec<&str> {
    live.table.iter().flat_map(|table| table.model.tasks.keys().map(|id| id.as_str())).collect()
}

#[tokio::test]
async fn lists_then_events() {
    let fake = swarm_with_one_task();
    let (mut source, _task) = follow(fake.manager());
    let live = until(&mut source, "the first table", |live| live.table.is_some()).await;
    assert!(live.is_current() && live.from.contains("control.sock"));
    let table = live.table.clone().unwrap();
    assert_eq!(table.left_out, []);
    assert_eq!(table.data_path_port, NonZeroU16::new(7789), "workers' engines do not tell");
    let app = &table.model.networks["app"];
    assert_eq!(
        (app.carrier, app.encrypted, app.mtu, app.vni()),
        (Carrier::Engine, true, 1400, Vni::new(4097).unwrap())
    );
    assert!(table.model.nodes["n1"].addresses.iter().eq([(&"app".into(), &[10, 0, 1, 9].into())]));
    let web = &table.model.services["web"];
    assert_eq!((web.virtual_ips["app"], web.ports.len()), ([10, 0, 1, 2].into(), 1));
    // The task was made before the port was published.
    assert!(table.model.tasks["t1"].ports.is_empty());

    // A standalone container, and a task in a state of a later version.
    let mut attachment = task("a1", 20, RUNNING, 5);
    (attachment.service_id, attachment.slot) = (String::new(), 0);
    fake.swarm.push(vec![(CREATE, Kind::Task(attachment)), (UPDATE, Kind::Task(task("t1", 21, RUNNING + 1, 0)))]);
    let live = until(&mut source, "the events", |live| tasks(live) == ["a1", "t1"]).await;
    let role = |id: &str| model(&live).role(&model(&live).tasks[id]);
    assert_eq!((model(&live).tasks["a1"].service.clone(), role("a1")), (None, TaskRole::Endpoint));
    assert_eq!(role("t1"), TaskRole::Absent);

    // What is older than what is known is passed over, and what follows is not.
    fake.swarm.push(vec![(UPDATE, Kind::Task(task("t1", 20, RUNNING, 0)))]);
    fake.swarm.push(vec![(REMOVE, Kind::Task(task("a1", 20, RUNNING, 5)))]);
    let live = until(&mut source, "the removal", |live| tasks(live) == ["t1"]).await;
    assert_eq!(model(&live).role(&model(&live).tasks["t1"]), TaskRole::Absent);
    assert_eq!(fake.swarm.with(|objects| objects.listed), 1);
}

#[tokio::test]
async fn a_broken_stream_keeps_the_table_and_is_followed_by_new_lists() {
    let mut fake = swarm_with_one_task();
    let (mut source, _task) = follow(fake.manager());
    let first = until(&mut source, "the first table", Live::is_current).await;

    fake.die();
    let live = until(&mut source, "the break", |live| live.lost.is_some()).await;
    assert_eq!(live.table, first.table);
    assert!(!live.is_current());

    // Meanwhile a task has come and one has gone; nobody pushes that.
    fake.swarm.with(|objects| objects.tasks = vec![task("t2", 30, RUNNING, 1)]);
    let ca = Ca::new();
    fake.trust(&ca);
    fake.serve(&ca);
    until(&mut source, "the new list", |live| live.is_current() && tasks(live) == ["t2"]).await;

    // A manager that is demoted ends the stream in good order.
    fake.swarm.with(|objects| objects.tasks = vec![task("t3", 31, RUNNING, 2)]);
    fake.swarm.end_streams();
    until(&mut source, "another list", |live| live.is_current() && tasks(live) == ["t3"]).await;
}

#[tokio::test]
async fn a_manager_of_another_swarm_is_not_believed_until_its_root_is_there() {
    let mut fake = swarm_with_one_task();
    fake.die();
    let other = Ca::new();
    fake.serve(&other);
    let (mut source, _task) = follow(fake.manager());
    let live = until(&mut source, "the refusal", |live| live.lost.is_some()).await;
    let why = live.lost.clone().unwrap().why;
    assert!(why.contains("certificate") && why.contains("swarm-root-ca.crt"), "{why}");
    assert_eq!(live.table, None);
    fake.trust(&other);
    until(&mut source, "the table", Live::is_current).await;
}

#[tokio::test]
async fn large_swarms() {
    const TASKS: u32 = 55_000;
    let fake = swarm_with_one_task();
    fake.swarm.with(|objects| {
        let mut large = network();
        large.ipam.as_mut().unwrap().configs[0] =
            IpamConfig { subnet: "10.0.0.0/16".into(), gateway: "10.0.0.1".into() };
        objects.networks = vec![large];
        objects.nodes[0].attachments.clear();
        objects.services[0].endpoint = None;
        objects.tasks = (0..TASKS).map(|i| task(&format!("{}{i:024}", i % 10), 13, RUNNING, i)).collect();
        let bytes: usize = objects.tasks.iter().map(prost::Message::encoded_len).sum();
        assert!(bytes > 4 << 20, "{bytes}: the usual limit");
    });
    let (mut source, _task) = follow(fake.manager());
    let live = until(&mut source, "the table", Live::is_current).await;
    assert_eq!(tasks(&live).len(), TASKS as usize);

    // A manager that can't get so long a list from its leader.
    fake.swarm.with(|objects| {
        objects.too_many = true;
        objects.tasks.truncate(1000);
    });
    fake.swarm.end_streams();
    until(&mut source, "the list in parts", |live| live.is_current() && tasks(live).len() == 1000).await;
}
