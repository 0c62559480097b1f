//! Answers as text for people: columns padded to their widest cell.

use std::time::Duration;

use serde_json::Value;

use super::{
    check,
    columns::{columns, text},
};
use crate::{plain, status::protocol::Request};

/// An answer as text. Names in it are others': nothing of them does anything to a terminal.
pub(super) fn render(request: &Request, value: &Value) -> String {
    let value = &plain::value(value);
    let rows = || value.as_array().into_iter().flatten();
    match request {
        Request::Status => status(value),
        Request::Networks => columns(
            &["NAME", "ID", "SUBNETS", "VNI", "MTU", "ENDPOINTS", "JOINED", "KIND"],
            rows().map(|row| {
                let subnets = |key: &str| {
                    let cells: Vec<_> =
                        row["subnets"].as_array().into_iter().flatten().map(|s| text(&s[key])).collect();
                    cells.join(",")
                };
                let kind = match (row["ingress"] == true, row["internal"] == true) {
                    (true, _) => "ingress",
                    (_, true) => "internal",
                    _ => "",
                };
                vec![
                    text(&row["name"]),
                    short(&row["id"]),
                    subnets("subnet"),
                    subnets("vni"),
                    text(&row["mtu"]),
                    text(&row["endpoints"]),
                    yes(&row["joined"]),
                    kind.to_owned(),
                ]
            }),
            "no networks",
        ),
        Request::Services => services(value),
        Request::Endpoints => columns(
            &["NETWORK", "ADDRESS", "TASK", "SERVICE", "NODE", "STATE", "BACKEND"],
            rows().map(|row| {
                let here = if row["local"] == true { " (here)" } else { "" };
                vec![
                    text(&row["network"]),
                    text(&row["address"]),
                    short(&row["task"]),
                    text(&row["service"]),
                    format!("{}{here}", text(&row["hostname"])),
                    text(&row["state"]),
                    text(&row["backend"]),
                ]
            }),
            "no endpoints",
        ),
        Request::Flows(_) => columns(
            &["KIND", "PROTO", "CLIENT", "ADDRESS", "BACKEND", "TASK", "STATE", "AGE", "IDLE"],
            rows().map(|row| {
                let shown = match (&row["shown_as"], &row["client"]) {
                    (Value::Null, client) => text(client),
                    (shown, client) if shown == client => text(client),
                    (shown, client) => format!("{} (as {})", text(client), text(shown)),
                };
                vec![
                    text(&row["kind"]),
                    text(&row["protocol"]),
                    shown,
                    text(&row["address"]),
                    text(&row["backend"]),
                    short(&row["task"]),
                    text(&row["state"]),
                    format!("{}s", text(&row["age_seconds"])),
                    format!("{}s", text(&row["idle_seconds"])),
                ]
            }),
            "no flows",
        ),
        Request::Drops => columns(
            &["REASON", "PACKETS", "BYTES"],
            rows()
                .filter(|row| row["packets"] != 0)
                .map(|row| vec![text(&row["reason"]), text(&row["packets"]), text(&row["bytes"])]),
            "no drops",
        ),
        Request::Plan => columns(
            &["KIND", "ITEM", "CHANGE"],
            rows().map(|row| ["kind", "item", "change"].map(|key| text(&row[key])).into()),
            "nothing to change",
        ),
        Request::Check => check::render(value),
    }
}

fn services(value: &Value) -> String {
    let rows = value.as_array().into_iter().flatten().flat_map(|row| {
        let vips: Vec<_> = row["vips"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|vip| format!("{}={}", text(&vip["network"]), text(&vip["address"])))
            .collect();
        let ports: Vec<_> = row["ports"].as_array().into_iter().flatten().map(port).collect();
        let head = vec![text(&row["name"]), short(&row["id"]), vips.join(","), ports.join(","), allow(row)];
        let blank = vec![String::new(); head.len()];
        let backends = row["backends"].as_array().cloned().unwrap_or_default();
        let mut lines: Vec<Vec<String>> = backends
            .iter()
            .enumerate()
            .map(|(index, backend)| {
                let mut line = if index == 0 { head.clone() } else { blank.clone() };
                line.extend([
                    format!("{} on {}", short(&backend["task"]), text(&backend["hostname"])),
                    text(&backend["address"]),
                    text(&backend["state"]),
                ]);
                line
            })
            .collect();
        if lines.is_empty() {
            let mut line = head;
            line.extend(["-".to_owned(), "-".to_owned(), "no backend".to_owned()]);
            lines.push(line);
        }
        lines
    });
    columns(&["NAME", "ID", "VIPS", "PORTS", "ALLOW", "BACKEND", "ADDRESS", "STATE"], rows, "no services")
}

/// Who may use a service's published ports; nothing where nothing is published.
fn allow(service: &Value) -> String {
    let published = service["ports"].as_array().into_iter().flatten().any(|port| !port["published_port"].is_null());
    match service["allow"].as_array().map(Vec::as_slice) {
        _ if !published => String::new(),
        None => format!("all{}", denied(service)),
        Some([]) => "nobody".to_owned(),
        Some(nets) => nets.iter().map(text).collect::<Vec<_>>().join(",") + &denied(service),
    }
}

/// A deny list may be long.
fn denied(service: &Value) -> String {
    match service["deny"].as_array().map(Vec::as_slice) {
        None | Some([]) => String::new(),
        Some([one]) => format!(" but {}", text(one)),
        Some([first, more @ ..]) => format!(" but {} and {} more", text(first), more.len()),
    }
}

fn port(port: &Value) -> String {
    let (target, protocol) = (text(&port["target_port"]), text(&port["protocol"]));
    match &port["published_port"] {
        Value::Null => format!("{target}/{protocol}"),
        published => {
            let mode = if port["publish_mode"] == "host" { " (host)" } else { "" };
            format!("{}->{target}/{protocol}{mode}", text(published))
        }
    }
}

/// Where tunnels end.
fn tunnel(node: &Value) -> String {
    let port = match &node["vxlan_port"] {
        Value::Null => String::new(),
        port => format!(", UDP port {}", text(port)),
    };
    let own = match &node["underlay_address"] {
        Value::Null => String::new(),
        own => format!(" (NAT, here {})", text(own)),
    };
    format!("{}{own} on {}{port}", text(&node["vtep"]), text(&node["underlay"]))
}

/// The node's engine, where there is one.
fn engine(engine: &Value) -> Option<String> {
    if engine.is_null() {
        return None;
    }
    let version = match (&engine["version"], &engine["newest_api"]) {
        (Value::Null, _) => "has not answered yet".to_owned(),
        (version, newest) if *newest == engine["api"] => format!("{}, API {}", text(version), text(newest)),
        (version, newest) => format!("{}, API {} (of up to {})", text(version), text(&engine["api"]), text(newest)),
    };
    let unreachable = match &engine["unreachable"] {
        Value::Null => String::new(),
        lost => format!(", of no use for {} s: {}", text(&lost["since_seconds"]), text(&lost["why"])),
    };
    Some(version + &unreachable)
}

/// Before the first table.
fn starting(value: &Value) -> String {
    let waiting = value["waiting"].as_array().and_then(|items| items.first());
    let lines = [
        (
            "agent",
            format!(
                "starting for {} s, version {}, pid {}",
                text(&value["uptime_seconds"]),
                text(&value["version"]),
                text(&value["pid"])
            ),
        ),
        ("waiting", waiting.map_or_else(String::new, |item| format!("for {}", text(&item["why"])))),
    ];
    let lines = lines.into_iter().chain(engine(&value["engine"]).map(|line| ("engine", line)));
    let lines = lines.chain(relay(&value["relay"]).map(|line| ("relay", line)));
    lines.map(|(name, line)| format!("{name:<10}{line}\n")).collect()
}

fn status(value: &Value) -> String {
    if value["node"].is_null() {
        return starting(value);
    }
    let node = &value["node"];
    let table = &value["table"];
    let health = match (value["ready"] == true, value["healthy"] == true) {
        (true, true) => "healthy",
        (true, false) => "degraded",
        (false, _) => "starting",
    };
    let gateway = match &node["gateway_bridge"] {
        Value::Null => "none needed".to_owned(),
        bridge if bridge["adopted"] == true => format!("{} (adopted)", text(&bridge["name"])),
        bridge => text(&bridge["name"]),
    };
    let lines = [
        ("agent", format!("{health}, version {}, pid {}", text(&value["version"]), text(&value["pid"]))),
        ("node", format!("{} ({}), {}", text(&node["hostname"]), text(&node["id"]), text(&node["state"]))),
        ("tunnel", tunnel(node)),
        ("mesh", format!("{} on {}{}", list(&node["addresses"]), list(&node["mesh_interfaces"]), replies(node))),
        ("paths", check::summary(value)),
        ("xdp", xdp(&node["xdp"])),
        ("gateway", gateway),
        (
            "table",
            format!(
                "{}, read {} s ago: {} nodes, {} networks, {} services, {} tasks ({} here)",
                text(&table["source"]),
                text(&table["age_seconds"]),
                text(&table["nodes"]),
                text(&table["networks"]),
                text(&table["services"]),
                text(&table["tasks"]),
                text(&value["local_tasks"]),
            ),
        ),
        ("flows", tables(&value["dataplane"])),
        ("timeouts", timeouts(&value["dataplane"]["timeouts"])),
    ];
    let lines = lines.into_iter().chain(takeover(value).map(|line| ("takeover", line)));
    let lines = lines.chain(ipv6(&value["ipv6"]).map(|line| ("ipv6", line)));
    let lines = lines.chain(engine(&value["engine"]).map(|line| ("engine", line)));
    let lines = lines.chain(firewall(&value["firewall"]).map(|line| ("firewall", line)));
    let lines = lines.chain(relay(&value["relay"]).map(|line| ("relay", line)));
    let mut out: String = lines.map(|(name, line)| format!("{name:<10}{line}\n")).collect();
    let warnings = [&value["warnings"], &value["dataplane"]["warnings"], &value["relay"]["warnings"]];
    let warnings: Vec<_> = warnings.iter().filter_map(|list| list.as_array()).flatten().map(text).collect();
    let unanswered = value["engine"]["unanswered"].as_array().into_iter().flatten().map(|item| {
        let (container, why) = (short(&item["container"]), text(&item["why"]));
        format!("the engine does not say what container {container} is: {why}; what was known of it stays")
    });
    let warnings: Vec<_> = warnings.into_iter().chain(unanswered).collect();
    if !warnings.is_empty() {
        out += &format!("\nWarnings:\n  {}\n", warnings.join("\n  "));
    }
    out += &path_problems(&value["path_problems"]);
    let shadowed = value["shadowed"].as_array().filter(|sockets| !sockets.is_empty());
    if let Some(sockets) = shadowed {
        out += "\nLocal processes on published ports (the service answers instead):\n";
        sockets.iter().for_each(|socket| {
            let who = match (&socket["process"], &socket["pid"]) {
                (Value::Null, _) => "unknown process".to_owned(),
                (name, pid) => format!("{}, pid {}", text(name), text(pid)),
            };
            let (port, protocol, address) = (&socket["port"], &socket["protocol"], &socket["address"]);
            out += &format!("  {}/{} at {}: {who}\n", text(port), text(protocol), text(address));
        });
    }
    if let Some(why) = table["unreachable"]["why"].as_str() {
        let since = text(&table["unreachable"]["since_seconds"]);
        out += &format!("\nTable source unreachable for {since} s, the last table stays in force:\n  {why}\n");
    }
    if let Some(why) = table["expelled"].as_str() {
        out += &format!("\nThe table is empty, because this node is no member of a swarm:\n  {why}\n");
    }
    if let Some(problems) = table["refused"]["problems"].as_array() {
        out += "\nA newer table was refused:\n";
        problems.iter().for_each(|problem| out += &format!("  {}\n", text(problem)));
    }
    for (title, key, what) in
        [("Failing", "failing", "item"), ("Waiting", "waiting", "item"), ("Left out", "left_out", "what")]
    {
        let items = value[key].as_array().filter(|items| !items.is_empty());
        if let Some(items) = items {
            out += &format!("\n{title}:\n");
            items.iter().for_each(|item| out += &format!("  {}: {}\n", text(&item[what]), text(&item["why"])));
        }
    }
    out
}

/// The first of them, the worst: `status` is about all of the node.
fn path_problems(problems: &Value) -> String {
    const SHOWN: usize = 5;
    let all = problems.as_array().map(Vec::as_slice).unwrap_or_default();
    let (shown, others) = all.split_at(all.len().min(SHOWN));
    let more = match others.len() {
        0 => String::new(),
        more => format!("\n{more} more problems with paths to other nodes: `hiveway check`\n"),
    };
    check::problems(&Value::from(shown)) + &more
}

/// Who gives us tables, and whom we give them to.
fn relay(value: &Value) -> Option<String> {
    let managers = value["managers"].as_array()?;
    let manager = |link: &Value| {
        let tables = if link["tables"] == true { ", gives the table" } else { "" };
        let why = link["why"].as_str().map(|why| format!(": {why}")).unwrap_or_default();
        format!("{} {}{tables}{why}", text(&link["address"]), text(&link["state"]))
    };
    let mut parts: Vec<_> = managers.iter().map(|link| format!("manager {}", manager(link))).collect();
    if let Some(address) = value["listening"].as_str() {
        let agents = value["agents"].as_array().map_or(0, Vec::len);
        parts.insert(0, format!("serves {agents} agents at {address}"));
    }
    Some(if parts.is_empty() { "no manager known".to_owned() } else { parts.join("; ") })
}

/// Beside a Docker engine: what is taken over from it.
fn takeover(value: &Value) -> Option<String> {
    let (takeover, dead) = (&value["takeover"], &value["dead_ports"]);
    takeover.as_object()?;
    let mesh = match (&takeover["mesh"], &takeover["mesh_why"]) {
        (Value::Null, _) => "no routing mesh".to_owned(),
        (Value::Bool(true), _) => format!("routing mesh ({} tasks here)", text(&takeover["mesh_tasks"])),
        (_, why) => format!("NOT the routing mesh: {}", text(why)),
    };
    let (found, all) = (text(&takeover["found"]), text(&takeover["interfaces"]));
    let vips = format!("VIPs on {found} of {all} interfaces ({})", list(&takeover["networks"]));
    let dead = dead
        .as_object()
        .map(|_| format!("; published ports are dead: {}: {}", list(&dead["ports"]), text(&dead["why"])));
    Some(format!("{mesh}{}; {vips}", dead.unwrap_or_default()))
}

/// What is left to the host's packet filters, and what was not asked of them.
fn firewall(firewall: &Value) -> Option<String> {
    const SHOWN: usize = 3;
    let rules = firewall["left"].as_array()?;
    let named = |list: &Value, all: &str| match list.as_array() {
        Some(names) if !names.is_empty() => self::list(list),
        _ => all.to_owned(),
    };
    let rule = |rule: &Value| {
        let prefixes = rule["prefixes"].as_u64().unwrap_or(0);
        let shown = rule["sources"].as_array().map_or(0, Vec::len) as u64;
        let more = if prefixes > shown { format!(" and {} more", prefixes - shown) } else { String::new() };
        format!(
            "{}{more} to {} at {} ({}: {})",
            list(&rule["sources"]),
            named(&rule["ports"], "all ports"),
            named(&rule["interfaces"], "all interfaces"),
            text(&rule["chain"]),
            text(&rule["rule"]),
        )
    };
    let mut parts: Vec<String> = rules.iter().take(SHOWN).map(rule).collect();
    let more = firewall["rules"].as_u64().unwrap_or(0).saturating_sub(parts.len() as u64);
    if more > 0 {
        parts.push(format!("{more} more rules (status --json)"));
    }
    let asked = firewall["ignored"].as_array().is_some_and(|chains| !chains.is_empty());
    let ignored = if asked { list(&firewall["ignored"]) } else { String::new() };
    let unread = firewall["unread"] == true;
    let mut out = match (parts.is_empty(), ignored.as_str()) {
        _ if unread => "not read yet: what held before holds, all else is left to the host".to_owned(),
        (true, "all") => "not asked (--ignore-firewall); closes no published port".to_owned(),
        (true, _) => "closes no published port".to_owned(),
        (false, "all") => format!("ignored as asked: {}", parts.join("; ")),
        (false, _) => format!("left to the host: {}", parts.join("; ")),
    };
    if !ignored.is_empty() && ignored != "all" {
        out += &format!("; ignored as asked: {ignored}");
    }
    if firewall["for_all_ports"] == true {
        out += "; too many prefixes, so clients of several ports are left at all of them";
    }
    if let Some(length) = firewall["widened_to"].as_u64() {
        out += &format!("; too many prefixes, so everything that shares a /{length} with one of them");
    }
    if firewall["unread_sets"].as_array().is_some_and(|sets| !sets.is_empty()) {
        out += &format!("; unread sets count for every source: {}", list(&firewall["unread_sets"]));
    }
    if let Some(error) = firewall["error"].as_str() {
        let holds = if unread { "" } else { ", what it said before holds" };
        out += &format!("; CANNOT BE READ{holds}: {error}");
    }
    Some(out)
}

/// Where IPv6 clients are not served.
fn ipv6(value: &Value) -> Option<String> {
    let engine = value["engine"].as_array()?;
    let mut parts = vec!["NOT served: published ports answer at IPv4 addresses only".to_owned()];
    if value["addresses"].as_array().is_some_and(|addresses| !addresses.is_empty()) {
        parts.push(format!("not at {}", list(&value["addresses"])));
    }
    if !engine.is_empty() {
        let mut ports: Vec<_> =
            engine.iter().map(|socket| format!("{}/{}", text(&socket["port"]), text(&socket["protocol"]))).collect();
        ports.dedup();
        parts.push(format!("{} may be accepted there (::1 too) by the engine and never answered", ports.join(", ")));
    }
    Some(parts.join("; "))
}

/// How replies to clients of other nodes leave, where that is not as usual.
fn replies(node: &Value) -> &'static str {
    if node["mesh_return"] == "dsr" { ", replies leave directly (dsr)" } else { "" }
}

/// One entry per interface, with the reason where it is off though it was not asked to be.
fn xdp(interfaces: &Value) -> String {
    let entry = |on: &Value| match &on["why"] {
        Value::Null => format!("{} on {}", text(&on["mode"]), text(&on["interface"])),
        why => format!("{} on {} ({})", text(&on["mode"]), text(&on["interface"]), text(why)),
    };
    interfaces.as_array().into_iter().flatten().map(entry).collect::<Vec<_>>().join(", ")
}

/// Fill of the connection tables, like `flows 12 of 1048576 (0 %), ...; counted 3 s ago`.
fn tables(dataplane: &Value) -> String {
    let fill = |table: &Value| {
        let percent = table["pressure"].as_f64().unwrap_or(0.0) * 100.0;
        format!("{} {} of {} ({percent:.0} %)", text(&table["name"]), text(&table["entries"]), text(&table["capacity"]))
    };
    let tables: Vec<_> = dataplane["tables"].as_array().into_iter().flatten().map(fill).collect();
    format!("{}; counted {} s ago", tables.join(", "), text(&dataplane["counted_seconds_ago"]))
}

fn timeouts(timeouts: &Value) -> String {
    let time = |(state, seconds): (&String, &Value)| {
        let time = Duration::try_from_secs_f64(seconds.as_f64().unwrap_or(0.0)).unwrap_or_default();
        format!("{state} {}", humantime::format_duration(time))
    };
    timeouts.as_object().into_iter().flatten().map(time).collect::<Vec<_>>().join(", ")
}

/// Engine ids are 25 characters; 12 tell them apart.
fn short(value: &Value) -> String {
    let full = text(value);
    let id = full.len() == 25 && full.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if id { full[..12].to_owned() } else { full }
}

fn list(value: &Value) -> String {
    let items: Vec<_> = value.as_array().into_iter().flatten().map(text).collect();
    if items.is_empty() { "-".to_owned() } else { items.join(", ") }
}

fn yes(value: &Value) -> String {
    if value == true { "yes".to_owned() } else { "no".to_owned() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_line_up() {
        let drops = json!([
            {"reason": "spoofed_mac", "packets": 3, "bytes": 180},
            {"reason": "truncated", "packets": 0, "bytes": 0},
            {"reason": "no_flow", "packets": 12, "bytes": 720},
        ]);
        let want = "REASON       PACKETS  BYTES\nspoofed_mac  3        180\nno_flow      12       720\n";
        assert_eq!(render(&Request::Drops, &drops), want);
        assert_eq!(render(&Request::Drops, &json!([])), "no drops\n");
    }

    #[test]
    fn few_problems_of_paths_are_shown() {
        let problems: Vec<_> = (0..300)
            .map(|n| json!({"severity": "error", "problem": format!("n{n} is silent"), "remedy": "talk"}))
            .collect();
        let shown = path_problems(&json!(problems));
        assert_eq!(shown.matches("is silent").count(), 5, "{shown}");
        assert!(shown.starts_with("\nerror: n0 is silent\n") && shown.contains("\n295 more problems"), "{shown}");
        assert_eq!(path_problems(&json!(problems[..1])), "\nerror: n0 is silent\n  remedy: talk\n");
        assert_eq!(path_problems(&json!([])), "");
    }

    #[test]
    fn a_service_without_backends_says_so() {
        let services = json!([{"name": "web", "id": "web", "vips": [{"network": "app", "address": "10.0.1.2"}],
            "ports": [{"protocol": "tcp", "target_port": 80, "published_port": 8080}], "backends": []}]);
        let text = render(&Request::Services, &services);
        assert!(
            text.contains("app=10.0.1.2") && text.contains("8080->80/tcp") && text.contains("no backend"),
            "{text}"
        );
    }

    #[test]
    fn a_service_shows_where_and_to_whom_it_answers() {
        let shown = |mode: &str, allow: Value| {
            let port = json!({"protocol": "tcp", "target_port": 80, "published_port": 8080, "publish_mode": mode});
            render(&Request::Services, &json!([{"name": "web", "id": "web", "ports": [port], "allow": allow}]))
        };
        for (mode, allow, part) in [
            ("host", Value::Null, "8080->80/tcp (host)  all"),
            ("ingress", json!([]), "8080->80/tcp  nobody"),
            ("ingress", json!(["10.0.0.0/8", "192.0.2.7/32"]), "8080->80/tcp  10.0.0.0/8,192.0.2.7/32"),
        ] {
            let text = shown(mode, allow);
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn status_shows_what_is_wrong() {
        let status = json!({"ready": true, "healthy": false, "node": {"mesh_return": "dsr"}, "dataplane": {
                "tables": [{"name": "flows", "entries": 512, "capacity": 1024, "pressure": 0.5}],
                "counted_seconds_ago": 3, "timeouts": {"icmp": 90.0}, "warnings": ["too small"]},
            "warnings": ["drops our bridge"],
            "shadowed": [{"protocol": "tcp", "port": 80, "address": "0.0.0.0", "pid": 7, "process": "nginx"}],
            "ipv6": {"addresses": ["2001:db8::1"], "engine": [{"protocol": "tcp", "port": 80, "address": "::"}]},
            "failing": [{"item": "task a", "why": "no"}],
            "table": {"refused": {"problems": ["error: tasks[0]: bad"]}}});
        let text = render(&Request::Status, &status);
        for part in [
            "degraded",
            "replies leave directly (dsr)",
            "flows 512 of 1024 (50 %); counted 3 s ago",
            "icmp 1m 30s",
            "  too small\n",
            "  drops our bridge\n",
            "  80/tcp at 0.0.0.0: nginx, pid 7\n",
            "ipv6      NOT served: published ports answer at IPv4 addresses only; not at 2001:db8::1; 80/tcp may be accepted",
            "task a: no",
            "error: tasks[0]: bad",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }

    const NAME: &str = "\u{1b}]0;x\u{7}\nHost is\r\u{9b}2J fine\u{202e}\u{2066}ü";

    #[test]
    fn what_a_process_is_called_is_shown_and_nothing_else_happens() {
        let status = json!({"ready": true, "healthy": true, "node": {"hostname": NAME},
            "shadowed": [{"protocol": "tcp", "port": 80, "address": "0.0.0.0", "pid": 7, "process": NAME}],
            "failing": [{"item": NAME, "why": NAME}], "warnings": [NAME]});
        let endpoints = json!([{"network": NAME, "task": NAME, "hostname": NAME}]);
        let paths = json!({"hostname": NAME, "paths": [{"hostname": NAME}], "role": "manager",
            "nodes": [{"node": "a", "hostname": NAME}], "problems": [{"problem": NAME}]});
        for (request, answer) in [(Request::Status, status), (Request::Endpoints, endpoints), (Request::Check, paths)] {
            let shown = render(&request, &answer);
            assert!(shown.contains("?]0;x??Host is??2J fine??ü"), "{shown:?}");
            assert!(
                !shown.contains(|c: char| c.is_control() && c != '\n') && !shown.contains("\nHost is"),
                "{shown:?}"
            );
        }
    }
}
