//! The agent as a process in a node's namespace: starts that are refused, its life, teardown. Needs root and `nft`.

mod support;

use std::{
    io::BufRead as _,
    os::unix::net::{UnixDatagram, UnixListener, UnixStream},
    process::Stdio,
    sync::Arc,
};

use control::{
    source::{Base, Origin},
    state_dir::StateDir,
};
use support::{
    HIVEWAY, Netns,
    node::{Node, eventually},
    run, stderr, stdout,
};

const NODES: &str = "version: 1\n\
    nodes: [{id: n1, hostname: one, address: 192.0.2.1}, {id: n2, hostname: two, address: 192.0.2.2}]\n\
    networks:\n\
    - {id: ingress, name: ingress, subnets: [{subnet: 10.0.0.0/24, gateway: 10.0.0.1, vni: 4096}], ingress: true}\n\
    - {id: app, name: app, subnets: [{subnet: 10.0.1.0/24, gateway: 10.0.1.1, vni: 4097}]}\n\
    services:\n\
    - id: web\n\
    \x20 name: web\n\
    \x20 virtual_ips: {app: 10.0.1.2, ingress: 10.0.0.5}\n\
    \x20 ports: [{protocol: tcp, target_port: 80, published_port: 8080, publish_mode: ingress}]\n\
    tasks:\n\
    - {id: web.2, service_id: web, slot: 2, node_id: n2, desired_state: running, state: running, \
       addresses: {app: 10.0.1.4, ingress: 10.0.0.7}}\n";

/// A local task with that host number, whose namespace is `netns`.
fn task(host: u8, netns: &str) -> String {
    format!(
        "- {{id: web.x{host}, service_id: web, slot: {host}, node_id: n1, desired_state: running, state: running, \
         addresses: {{app: 10.0.1.{host}, ingress: 10.0.0.{host}}}, netns: /run/netns/{netns}}}\n"
    )
}

/// All keys in a value, except names that are data.
fn keys(value: &serde_json::Value) -> Vec<String> {
    match value {
        serde_json::Value::Object(object) => object
            .iter()
            .flat_map(|(key, value)| {
                let data = (key == "counters" || key == "addresses") && value.is_object();
                let inner = if data { Vec::new() } else { keys(value) };
                [key.clone()].into_iter().chain(inner)
            })
            .collect(),
        serde_json::Value::Array(items) => items.iter().flat_map(keys).collect(),
        _ => Vec::new(),
    }
}

#[test]
fn without_a_table_the_agent_says_what_it_waits_for() {
    let node = Node::new();
    let notified = UnixDatagram::bind(node.path("notify")).unwrap();
    notified.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
    let log = std::fs::File::create(node.path("agent.log")).unwrap();
    let mut command = node.command(&[
        ("--table", "relay:127.0.0.1:1"),
        ("--docker-socket", "/nonexistent/docker.sock"),
        ("--swarm-dir", "/nonexistent"),
    ]);
    let command = command
        .env("NOTIFY_SOCKET", node.path("notify"))
        .env("WATCHDOG_USEC", "4000000")
        .stdin(Stdio::null())
        .stderr(log);
    let mut child = command.spawn().unwrap();
    let socket = node.path("agent.sock");
    eventually("the agent answers", || UnixStream::connect(&socket).is_ok());
    let status = || node.ask(&["status"]);
    eventually("it has a reason", || status()["waiting"][0]["why"].to_string().contains("no certificate"));
    let status = status();
    assert_eq!((&status["ready"], &status["healthy"]), (&false.into(), &false.into()));
    assert_eq!(status["waiting"][0]["item"], "first table");
    let said = |arguments: &[&str]| {
        std::process::Command::new(HIVEWAY).args(arguments).arg("--socket").arg(&socket).output().unwrap()
    };
    let text = stdout(&said(&["status"]));
    assert!(text.contains("starting for") && text.contains("waiting   for a table from relay:127.0.0.1:1: "), "{text}");
    let services = said(&["service", "ls"]);
    assert_eq!(services.status.code(), Some(1));
    assert!(stderr(&services).contains("it waits for a table from relay:127.0.0.1:1"), "{}", stderr(&services));
    // systemd would end it after 90 s without `READY=1`, and within four without its watchdog's food.
    let mut heard = String::new();
    let mut buffer = [0; 1024];
    while !["READY=1", "STATUS=waiting for a table", "WATCHDOG=1"].iter().all(|word| heard.contains(word)) {
        let length = notified.recv(&mut buffer).unwrap_or_else(|error| panic!("{error} after {heard}"));
        heard += &String::from_utf8_lossy(&buffer[..length]);
    }
    run(&format!("kill {}", child.id()));
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(!socket.exists());
    node.assert_untouched();
}

/// Nothing answers: no engine, no manager's agent, and what was pinned is gone.
const NOBODY: [(&str, &str); 3] = [
    ("--table", "relay:127.0.0.1:1"),
    ("--docker-socket", "/nonexistent/docker.sock"),
    ("--swarm-dir", "/nonexistent"),
];

#[test]
fn after_a_power_cut_a_node_comes_up_from_its_last_table() {
    for origin in [Origin::Relay, Origin::Swarm] {
        let node = Node::new();
        let model = hiveway_core::table::parse_file(NODES, std::path::Path::new("t.yaml")).unwrap().model;
        let loaded = hiveway_core::docker_api::Loaded { model, ..Default::default() };
        let base = Base { table: Arc::new(loaded), origin, node: Some("n1".into()) };
        StateDir::open(&node.path("state")).unwrap().set_last_table(Some(&base)).unwrap();
        let agent = node.start(&[&NOBODY[..], &[("--node", "")]].concat());
        let status = node.ask(&["status"]);
        assert_eq!((&status["ready"], &status["healthy"]), (&true.into(), &false.into()), "{status}");
        assert_eq!((&status["node"]["id"], &status["table"]["services"]), (&"n1".into(), &1.into()), "{status}");
        assert!(status["table"]["unreachable"]["why"].is_string(), "it says that nobody answers: {status}");
        assert!(!node.ask(&["service", "ls"])[0]["backends"].as_array().unwrap().is_empty());
        assert!(node.bpffs.join("maps/PORTS").exists(), "the data plane is there");
        drop(agent);
    }
}

#[test]
fn bad_starts_are_refused_with_a_remedy_and_change_nothing() {
    let node = Node::new();
    node.write_table(NODES);
    run(&format!("ip -n {} link add bare type bridge", node.netns.0));
    let file = node.path("a-file").display().to_string();
    std::fs::write(&file, "").unwrap();
    let broken = node.path("broken.yaml");
    std::fs::write(&broken, NODES.replace("vni: 4097", "vni: 4096").replace("10.0.1.4", "10.9.9.9")).unwrap();
    let broken = format!("file:{}", broken.display());
    let scratch = node.path("not-bpf").display().to_string();
    let socket = node.path("taken.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    let socket = socket.display().to_string();
    let held = node.path("held");
    let other = control::state_dir::StateDir::take(&held).unwrap();
    let held = held.display().to_string();

    for (change, parts) in [
        (("--node", "n9"), &["n9", "n1 (one)", "n2 (two)"][..]),
        (("--underlay", "eth9"), &["eth9", "there are: bare, eth0"]),
        (("--underlay", "bare"), &["bare", "no IPv4 address", "192.0.2.1"]),
        (("--node", "n2"), &["eth0", "192.0.2.2", "it has 192.0.2.1"]),
        (("--mesh-interfaces", "eth0,eth7"), &["--mesh-interfaces", "eth7"]),
        (("--table", "file:/nonexistent.yaml"), &["/nonexistent.yaml", "No such file"]),
        (("--table", &broken), &["networks[1].subnets[0].vni", "tasks[0].addresses.app"]),
        (("--bpffs", &scratch), &["mount -t bpf bpf /sys/fs/bpf", "--bpffs"]),
        (("--socket", &file), &["a-file", "not a socket"]),
        (("--socket", &socket), &["taken.sock", "listening"]),
        (("--state-dir", &file), &["--state-dir", "a-file"]),
        (
            ("--state-dir", &held),
            &["--state-dir", "held is the state directory of another agent (pid ", "each agent its own"],
        ),
        (("--metrics", "203.0.113.1:9000"), &["--metrics", "203.0.113.1:9000"]),
    ] {
        let said = node.refused(&[change]);
        for part in parts {
            assert!(said.contains(part), "{change:?}: no {part:?} in {said}");
        }
        assert_eq!(node.links(), ["bare", "eth0", "lo"], "after {change:?}");
        assert_eq!(node.netns.run("nft list tables"), "");
    }
    let teardown = node.netns.command(HIVEWAY).args(["teardown", "--state-dir", &held]).output().unwrap();
    let said = stderr(&teardown);
    assert!(
        teardown.status.code() == Some(1)
            && said.contains("of another agent")
            && said.contains("stop that agent first; nothing was removed"),
        "{said}"
    );
    drop(other);
    let agent = node.command(&[]);
    let mut unprivileged = node.netns.command("setpriv");
    unprivileged.args(["--bounding-set=-all", "--inh-caps=-all"]).args(agent.get_args().skip(1));
    let said = stderr(&unprivileged.output().unwrap());
    assert!(said.contains("CAP_NET_ADMIN") && said.contains("run as root"), "{said}");
    node.netns.run("ip link del bare");
    node.assert_untouched();
}

/// Nothing on this node is wrong. The other node of the table does not exist, so the path to it fails before long.
fn sound(status: &serde_json::Value) -> bool {
    let none = |list: &str| status[list] == serde_json::json!([]);
    status["ready"] == true && none("failing") && status["table"]["refused"].is_null()
}

#[test]
fn an_agents_life() {
    let (node, first, second) = (Node::new(), Netns::new("c1"), Netns::new("c2"));
    node.write_table(&format!("{NODES}{}", task(11, &first.0)));
    let agent = node.start(&[]);

    let status = node.ask(&["status"]);
    assert!(sound(&status), "{status:#}");
    assert_eq!(status["node"]["id"], "n1");
    assert_eq!(status["node"]["addresses"], serde_json::json!(["192.0.2.1"]));
    assert_eq!(status["local_tasks"], 1);
    assert_eq!(node.ask(&["service", "ls"])[0]["backends"].as_array().unwrap().len(), 2);
    assert_eq!(node.ask(&["network", "ls"])[0]["joined"], true);
    assert_eq!(node.ask(&["endpoint", "ls"]).as_array().unwrap().len(), 4);
    assert_eq!(node.ask(&["flow", "ls"]), serde_json::json!([]));
    assert!(node.ask(&["drops"]).as_array().unwrap().iter().any(|row| row["reason"] == "spoofed_ip"));
    assert!(first.run("ip -4 addr").contains("10.0.1.11/24"));
    assert_eq!(node.netns.run("sysctl -n net.ipv4.ip_local_reserved_ports").trim(), "8080");

    let page = include_str!("../../docs/cli.md");
    for command in [&["status"][..], &["network", "ls"], &["service", "ls"], &["endpoint", "ls"], &["drops"]] {
        for key in keys(&node.ask(command)) {
            assert!(page.contains(&format!("`{key}`")), "docs/cli.md does not document {key} of {command:?}");
        }
    }

    // A second one, and teardown, are refused while it runs; both name it.
    let pid = format!("pid {}", agent.pid());
    assert!(node.refused(&[("--socket", "/run/hiveway-test-other.sock")]).contains(&pid));
    let output = node.teardown();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains(&pid) && stderr(&output).contains("nothing was removed"), "{}", stderr(&output));

    // An invalid table is refused whole and visible; the last good one stays.
    node.write_table(&format!("{NODES}{}{}", task(12, &second.0), task(12, &second.0)));
    eventually("the table is refused", || !node.ask(&["status"])["table"]["refused"].is_null());
    let status = node.ask(&["status"]);
    assert!(status["table"]["refused"]["problems"].to_string().contains("tasks[2]"), "{status:#}");
    assert_eq!((&status["healthy"], &status["local_tasks"]), (&false.into(), &1.into()));
    assert!(!second.run("ip -4 addr").contains("10.0.1.12"));

    // Another task comes, the first one goes.
    node.write_table(&format!("{NODES}{}", task(12, &second.0)));
    eventually("the second task has its address", || second.run("ip -4 addr").contains("10.0.1.12/24"));
    eventually("the first task's interfaces are gone", || first.run("ip -br link").lines().count() == 1);
    eventually("the agent is healthy", || sound(&node.ask(&["status"])));

    // Somebody else takes the gateway's subnet: two routes lead there.
    node.netns.run("ip link add br-taken type bridge");
    node.netns.run("ip addr add 172.18.0.1/16 dev br-taken");
    node.netns.run("ip link set br-taken up");
    let named = |status: &serde_json::Value| status["failing"].to_string().contains("br-taken has 172.18.0.1/16");
    eventually("the agent says so", || named(&node.ask(&["status"])));
    node.netns.run("ip link del br-taken");
    eventually("the agent is healthy again", || sound(&node.ask(&["status"])));

    // A terminal is closed.
    run(&format!("kill -HUP {}", agent.pid()));
    eventually("the agent has heard it", || agent.log().contains("SIGHUP"));

    // Neither SIGTERM nor SIGKILL touches anything, and the next agent adopts it all.
    let before = node.netns.run("ip -o link");
    agent.stop();
    assert_eq!(node.netns.run("ip -o link"), before);
    assert!(!node.path("agent.sock").exists());
    node.start(&[]).kill();
    assert_eq!(node.netns.run("ip -o link"), before);
    let agent = node.start(&[]);
    assert_eq!(node.netns.run("ip -o link"), before);
    assert!(!agent.log().contains("ERROR"), "{}", agent.log());
    agent.stop();

    let output = node.teardown();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    node.assert_untouched();
    assert!(!node.path("state").exists());
    assert_eq!(second.run("ip -br link").lines().count(), 1);
    let output = node.teardown();
    assert_eq!((output.status.code(), stdout(&output).trim()), (Some(0), "nothing of ours is here"));
    let said = stderr(&output);
    let no_state = format!("there is no {}", node.path("state").display());
    assert!(said.contains(&no_state) && said.contains("another --state-dir"), "{said}");
    assert!(said.contains("another --bpffs"), "{said}");
}

/// As when journald is restarted, or `hiveway agent 2>&1 | less` is quit.
#[test]
fn an_agent_whose_log_nobody_reads_goes_on() {
    let node = Node::new();
    node.write_table(NODES);
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = node.command(&[]);
    let mut child = command.stdin(Stdio::null()).stdout(writer.try_clone().unwrap()).stderr(writer).spawn().unwrap();
    // The command holds the writer's ends.
    drop(command);
    let mut lines = std::io::BufReader::new(reader).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.starts_with("ready: ")));
    drop(lines);
    node.write_table("version: 7\n");
    eventually("the table is refused, and logged nowhere", || node.ask(&["status"])["table"]["refused"].is_object());
    node.write_table(&NODES.replace("8080", "8081"));
    eventually("the next table is in force", || node.ask(&["service", "ls"]).to_string().contains("8081"));
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", child.id())).unwrap();
    let files: Vec<_> =
        limits.lines().find(|line| line.starts_with("Max open files")).unwrap().split_whitespace().collect();
    assert_eq!(files[3], files[4], "as many open files as may be: {limits}");
    assert!(child.try_wait().unwrap().is_none());
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id().cast_signed()), nix::sys::signal::Signal::SIGTERM)
        .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(node.teardown().status.code(), Some(0));
}

/// As when journald is stopped (SIGSTOP), or `hiveway agent 2>&1 | less` waits for a key.
#[test]
fn an_agent_whose_log_is_open_and_not_read_goes_on() {
    let node = Node::new();
    node.write_table(NODES);
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut command = node.command(&[]);
    command
        .env("HIVEWAY_LOG", "trace,netlink_proto=trace")
        .stdin(Stdio::null())
        .stdout(writer.try_clone().unwrap())
        .stderr(writer);
    let mut child = command.spawn().unwrap();
    drop(command);
    let asked = || {
        let socket = node.path("agent.sock");
        let mut status = std::process::Command::new("timeout");
        let status = status.args(["5", HIVEWAY, "status", "--json", "--socket"]).arg(socket).output().unwrap();
        serde_json::from_slice::<serde_json::Value>(&status.stdout).unwrap_or_default()
    };
    // At this level a start takes its time.
    let started = std::time::Instant::now();
    while asked()["ready"] != true {
        assert!(started.elapsed() < std::time::Duration::from_secs(180), "it hangs");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    // More than the pipe and the agent's own room hold: a line of some kB for each, on both ways to the log.
    let runs = || asked()["reconcile"]["runs"].as_u64().unwrap_or(0);
    let mut before = runs();
    for port in 0..60 {
        node.write_table(&NODES.replace("8080", &(9000 + port).to_string()));
        eventually("the next table is in force", || runs() > before);
        before = runs();
    }
    assert_eq!(asked()["failing"], serde_json::json!([]));
    let text = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let read = std::thread::spawn({
        let text = text.clone();
        move || {
            let mut piece = [0; 65536];
            while let Ok(length @ 1..) = std::io::Read::read(&mut reader, &mut piece) {
                text.lock().unwrap().extend(&piece[..length]);
            }
        }
    });
    let said = |what: &str| String::from_utf8_lossy(&text.lock().unwrap()).contains(what);
    // There is room again once it is said: before, the last lines would be dropped, too.
    eventually("what was dropped is said", || said("lines of the log were dropped"));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id().cast_signed()), nix::sys::signal::Signal::SIGTERM)
        .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    read.join().unwrap();
    assert!(said("stopping; the data plane goes on"), "the end is missing");
    assert_eq!(node.teardown().status.code(), Some(0));
}

#[test]
fn connections_are_swept_while_rounds_end_early() {
    let node = Node::new();
    let name = &node.netns.0;
    run(&format!("ip -n {name} link add docker_gwbridge type bridge && ip -n {name} link set docker_gwbridge up"));
    run(&format!("ip -n {name} addr add 172.30.255.1/16 dev docker_gwbridge"));
    node.write_table(NODES);
    let agent = node.start(&[]);
    node.netns.run("ip addr flush dev docker_gwbridge");
    let fails = || node.ask(&["status"])["failing"].to_string().contains("\"reconciliation\"");
    eventually("rounds end early", fails);
    std::thread::sleep(std::time::Duration::from_secs(20));
    let status = node.ask(&["status"]);
    let counted = status["dataplane"]["counted_seconds_ago"].as_u64();
    assert!(fails() && counted.is_some_and(|ago| ago <= 12), "{status:#}");
    node.netns.run("ip addr add 172.30.255.1/16 dev docker_gwbridge");
    eventually("rounds are whole again", || !fails());
    agent.stop();
    assert_eq!(node.teardown().status.code(), Some(0));
}

#[test]
fn an_adopted_gateway_bridge_is_used_and_left_alone() {
    let (node, space) = (Node::new(), Netns::new("c1"));
    let name = &node.netns.0;
    run(&format!("ip -n {name} link add docker_gwbridge type bridge && ip -n {name} link set docker_gwbridge up"));
    run(&format!("ip -n {name} addr add 172.30.255.1/16 dev docker_gwbridge"));
    run(&format!(
        "ip -n {name} link add hwbforeign type bridge && nsenter --net=/run/netns/{name} nft add table ip mine"
    ));
    node.write_table(&format!("{NODES}{}", task(11, &space.0)));
    let agent = node.start(&[]);
    let bridge = &node.ask(&["status"])["node"]["gateway_bridge"];
    assert_eq!((&bridge["name"], &bridge["adopted"]), (&"docker_gwbridge".into(), &true.into()));
    assert!(space.run("ip route").contains("default via 172.30.255.1"), "{}", space.run("ip route"));
    // From above: the owner hands out addresses from below.
    assert!(space.run("ip -4 addr").contains("172.30.255.254/16"), "{}", space.run("ip -4 addr"));
    assert!(!node.netns.run("nft list table inet hiveway").contains("masquerade"));
    agent.stop();
    assert_eq!(node.teardown().status.code(), Some(0));
    assert_eq!(node.links(), ["docker_gwbridge", "eth0", "hwbforeign", "lo"]);
    assert!(node.netns.run("ip addr show docker_gwbridge").contains("172.30.255.1/16"));
    assert_eq!(node.netns.run("nft list tables").trim(), "table ip mine");
}

#[test]
fn what_fails_or_waits_does_not_stop_the_rest() {
    let (node, space) = (Node::new(), Netns::new("c1"));
    let late = format!("{}-late", space.0);
    // Somebody else's interface under the name of the ingress network's bridge.
    run(&format!("ip -n {} link add hwb4096 type bridge", node.netns.0));
    run(&format!("ip -n {} link set hwb4096 alias theirs", node.netns.0));
    node.write_table(&format!("{NODES}{}{}", task(11, &space.0), task(12, &late)));
    let agent = node.start(&[]);
    let status = node.ask(&["status"]);
    assert!(status["failing"].to_string().contains("hwb4096"), "{status:#}");
    assert!(status["waiting"][0]["why"].as_str().unwrap().contains(&late), "{status:#}");
    assert_eq!(status["healthy"], false);
    assert!(space.run("ip -4 addr").contains("10.0.1.11/24"));

    run(&format!("ip netns add {late}"));
    let late = Netns(late);
    eventually("the late task has its address", || late.run("ip -4 addr").contains("10.0.1.12/24"));
    run(&format!("ip -n {} link del hwb4096", node.netns.0));
    eventually("the agent is healthy", || sound(&node.ask(&["status"])));
    agent.stop();
    assert_eq!(node.teardown().status.code(), Some(0));
    node.assert_untouched();
}

#[test]
fn damage_by_a_foreign_hand_is_repaired_within_seconds() {
    let (node, space) = (Node::new(), Netns::new("c1"));
    node.write_table(&format!("{NODES}{}", task(11, &space.0)));
    let agent = node.start(&[]);
    node.netns.run("ip link del hwx4097");
    node.netns.run("nft delete table inet hiveway");
    node.netns.run("sysctl -qw net.ipv4.ip_forward=0");
    space.run("ip addr flush dev eth0");
    eventually("the vxlan device is back", || node.links().contains(&"hwx4097".to_owned()));
    eventually("the address is back", || space.run("ip -4 addr").contains("10.0.1.11/24"));
    eventually("the firewall is back", || node.netns.run("nft list tables").contains("hiveway"));
    eventually("forwarding is back", || node.netns.run("sysctl -n net.ipv4.ip_forward").trim() == "1");
    assert!(sound(&node.ask(&["status"])));

    node.netns.run("ip addr del 192.0.2.1/24 dev eth0");
    eventually("the lost tunnel address is noticed", || {
        node.ask(&["status"])["failing"].to_string().contains("tunnel address 192.0.2.1")
    });
    node.netns.run("ip addr add 192.0.2.1/24 dev eth0");
    eventually("the agent is healthy", || sound(&node.ask(&["status"])));
    agent.stop();
    assert_eq!(node.teardown().status.code(), Some(0));
    node.assert_untouched();
}

#[test]
fn teardown_carries_on_after_an_error_and_says_so() {
    let (node, space) = (Node::new(), Netns::new("c1"));
    node.write_table(&format!("{NODES}{}", task(11, &space.0)));
    node.start(&[]).stop();
    let mut command = node.netns.command(support::HIVEWAY);
    let output =
        command.args(["teardown", "--state-dir"]).arg(node.path("state")).arg("--bpffs").arg("/tmp").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("/tmp is not on a BPF file system"), "{}", stderr(&output));
    assert_eq!(node.links(), ["eth0", "lo"], "the rest went");
    assert_eq!(node.teardown().status.code(), Some(0));
    node.assert_untouched();
}

#[test]
fn metrics_are_served() {
    let (node, space) = (Node::new(), Netns::new("c1"));
    node.write_table(&format!("{NODES}{}", task(11, &space.0)));
    let sizes = [("--max-flows", "4096"), ("--max-pending", "2048")];
    let agent = node.start(&[[("--metrics", "127.0.0.1:9464")].as_slice(), &sizes].concat());
    let script =
        "exec 3<>/dev/tcp/127.0.0.1/9464; printf 'GET /metrics HTTP/1.0\\r\\nHost: x\\r\\n\\r\\n' >&3; cat <&3";
    let mut text = String::new();
    // Entries are counted by the first sweep, which begins when the agent is ready.
    eventually("connections are counted", || {
        let output = node.netns.command("bash").args(["-c", script]).stderr(Stdio::inherit()).output().unwrap();
        text = stdout(&output);
        text.contains("hiveway_flow_entries{")
    });
    for metric in [
        "hiveway_build_info{version=",
        "hiveway_ready 1",
        "hiveway_table_age_seconds",
        "hiveway_reconcile_errors_total 0",
        "hiveway_dropped_packets_total{reason=\"spoofed_ip\"} 0",
        "hiveway_handled_packets_total{action=\"delivered\"}",
        "hiveway_flow_entries{map=\"flows\"} 0",
        "hiveway_flow_entries{map=\"affinity_pending\"} 0",
        "hiveway_flow_table_pressure{map=\"flows_pending\"} 0.0",
        "hiveway_flow_table_capacity{map=\"flows\"} 4096",
        "hiveway_flow_table_capacity{map=\"flows_pending\"} 2048",
        "hiveway_flow_entries_max 4096",
        "hiveway_flow_entries_removed_total{reason=\"expired\"} 0",
        "hiveway_flow_count_age_seconds",
        "# EOF",
    ] {
        assert!(text.contains(metric), "no {metric} in {text}");
    }
    agent.stop();
    assert_eq!(node.teardown().status.code(), Some(0));
}

#[test]
fn times_and_sizes_are_chosen_and_shown_and_tables_that_are_there_are_kept() {
    let (node, space) = (Node::new(), Netns::new("c1"));
    node.write_table(&format!("{NODES}{}", task(11, &space.0)));
    let small = [("--max-flows", "4096"), ("--max-pending", "2048"), ("--timeout", "tcp-established=90s,icmp=500ms")];
    let capacities = || {
        let status = node.ask(&["status"]);
        let tables = status["dataplane"]["tables"].as_array().unwrap().clone();
        let sizes: Vec<_> = tables.iter().map(|t| (t["name"].clone(), t["capacity"].as_u64().unwrap())).collect();
        (sizes.iter().map(|(_, size)| *size).collect::<Vec<_>>(), status["dataplane"].clone())
    };
    let agent = node.start(&small);
    let (sizes, shown) = capacities();
    assert_eq!(sizes, [4096, 4096, 2048, 2048, 2048, 2048], "{shown:#}");
    assert_eq!(shown["timeouts"]["tcp-established"], 90.0);
    assert_eq!(shown["timeouts"]["icmp"], 0.5);
    assert_eq!(shown["timeouts"]["udp-unreplied"], 30.0);
    assert_eq!(shown["warnings"], serde_json::json!([]));
    agent.stop();

    let agent = node.start(&[("--max-flows", "8192"), ("--max-pending", "2048")]);
    let (sizes, shown) = capacities();
    assert_eq!(sizes, [8192, 8192, 2048, 2048, 2048, 2048]);
    assert_eq!(shown["warnings"], serde_json::json!([]));
    assert_eq!(shown["timeouts"]["icmp"], 30.0);
    agent.stop();
    assert_eq!(node.teardown().status.code(), Some(0));
}
