//! The paths between all nodes as text, for `hiveway check` on managers.

use serde_json::Value;

use super::columns::{columns, text};

/// A swarm of so many nodes at most is shown as a matrix; a larger one with a line for each node.
const WIDE: usize = 12;

/// What comes below the node's own row; empty where agents do not report.
pub(super) fn render(check: &Value) -> String {
    match check["role"].as_str() {
        Some("manager") => {
            let nodes: Vec<_> = check["nodes"].as_array().into_iter().flatten().collect();
            let shown = if nodes.len() <= WIDE { matrix(&nodes) } else { lines(&nodes) };
            format!("\nAll nodes, as their agents have reported:\n{shown}")
        }
        Some(_) => "\nThis is this node's own row; `hiveway check` on a manager shows those of all nodes.\n".to_owned(),
        None => String::new(),
    }
}

fn age(node: &Value) -> String {
    match (&node["reported_seconds_ago"], node["own"] == true) {
        (_, true) => "now".to_owned(),
        (Value::Null, _) => "-".to_owned(),
        (seconds, _) => format!("{} s ago", text(seconds)),
    }
}

/// A line and a column for each node.
fn matrix(nodes: &[&Value]) -> String {
    let names: Vec<_> = nodes.iter().map(|node| text(&node["hostname"])).collect();
    let head: Vec<&str> =
        ["FROM \\ TO"].into_iter().chain(names.iter().map(String::as_str)).chain(["REPORTED"]).collect();
    let line = |from: &&Value| {
        let cells = nodes.iter().map(|to| cell(from, to));
        [text(&from["hostname"])].into_iter().chain(cells).chain([age(from)]).collect()
    };
    columns(&head, nodes.iter().map(line), "")
}

fn cell(from: &Value, to: &Value) -> String {
    if from["node"] == to["node"] {
        return "-".to_owned();
    }
    let mut paths = from["paths"].as_array().into_iter().flatten();
    let Some(path) = paths.find(|path| path["node"] == to["node"]) else { return "?".to_owned() };
    if let Some(port) = path["port"].as_u64() {
        return format!("PORT {port}");
    }
    let loss = path["loss"].as_f64().unwrap_or_default() * 100.0;
    match (path["state"].as_str(), path["rtt_microseconds"].as_u64()) {
        (Some("failing"), _) => "FAILING".to_owned(),
        (Some("passing"), Some(rtt)) if loss >= 5.0 => format!("{:.2} ms, {loss:.0} % lost", rtt as f64 / 1e3),
        (Some("passing"), Some(rtt)) => format!("{:.2} ms", rtt as f64 / 1e3),
        (state, _) => state.unwrap_or("?").to_owned(),
    }
}

/// How many paths of each node are in which state.
fn lines(nodes: &[&Value]) -> String {
    let line = |node: &&Value| {
        let count = |state: &str| match &node["counts"][state] {
            Value::Null => "?".to_owned(),
            count => text(count),
        };
        let counts = ["passing", "failing", "waiting"].map(count);
        [text(&node["hostname"]), text(&node["address"])].into_iter().chain(counts).chain([age(node)]).collect()
    };
    columns(&["FROM", "ADDRESS", "PASSING", "FAILING", "WAITING", "REPORTED"], nodes.iter().map(line), "")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn path(to: &str, state: &str) -> Value {
        json!({"node": to, "state": state, "rtt_microseconds": 120, "loss": 0.0, "port": null})
    }

    fn node(name: &str, paths: &[Value]) -> Value {
        json!({"node": name, "hostname": name, "address": "192.0.2.1", "own": name == "n1",
            "reported_seconds_ago": 7, "counts": {"passing": 1, "failing": 2, "waiting": 0}, "paths": paths})
    }

    #[test]
    fn a_small_swarm_is_a_matrix() {
        let mut lossy = path("n3", "passing");
        lossy["loss"] = json!(0.25);
        let mut port = path("n2", "failing");
        port["port"] = json!(7789);
        let mut silent = node("n4", &[]);
        silent["reported_seconds_ago"] = Value::Null;
        let nodes = [
            node("n1", &[path("n2", "passing"), lossy, path("n4", "waiting")]),
            node("n2", &[path("n1", "failing"), path("n3", "passing")]),
            node("n3", &[port, path("n1", "passing")]),
            silent,
        ];
        let want = "
All nodes, as their agents have reported:
FROM \\ TO  n1       n2         n3                n4       REPORTED
n1         -        0.12 ms    0.12 ms, 25 % lost  waiting  now
n2         FAILING  -          0.12 ms           ?        7 s ago
n3         0.12 ms  PORT 7789  -                 ?        7 s ago
n4         ?        ?          ?                 -        -
";
        let shown = render(&json!({"role": "manager", "nodes": nodes}));
        // Column by column: padding is another test's.
        let cells = |text: &str| -> Vec<String> {
            text.split("  ").map(|cell| cell.trim().to_owned()).filter(|c| !c.is_empty()).collect()
        };
        assert_eq!(cells(&shown), cells(want), "{shown}");
    }

    #[test]
    fn a_large_swarm_is_a_line_for_each_node() {
        let nodes: Vec<_> = (1..=WIDE + 1).map(|n| node(&format!("n{n}"), &[])).collect();
        let shown = render(&json!({"role": "manager", "nodes": nodes}));
        assert!(shown.contains("FROM  ADDRESS    PASSING  FAILING  WAITING  REPORTED\n"), "{shown}");
        assert!(shown.contains("n13   192.0.2.1  1        2        0        7 s ago\n"), "{shown}");
    }

    #[test]
    fn a_worker_says_where_there_is_more() {
        assert!(render(&json!({"role": "worker", "nodes": null})).contains("on a manager"));
        // Tables from files: nobody reports.
        assert_eq!(render(&json!({"role": null, "nodes": null})), "");
        assert_eq!(render(&json!({})), "");
    }
}
