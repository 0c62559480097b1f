//! `cargo xtask swarm status`.

use hiveway_tests::swarm::{Hiveway, Node, Swarm};

/// A line per node.
pub(crate) fn print(swarm: &Swarm) {
    println!("{:<5} {:<15} {:<10} {:<20} HIVEWAY", "NODE", "ADDRESS", "ENGINE", "SWARM");
    for node in swarm.nodes() {
        let agent = if Hiveway::on(&node).runs() { "runs" } else { "-" };
        let (engine, swarm) = engine(&node);
        println!("{:<5} {:<15} {engine:<10} {swarm:<20} {agent}", node.label(), node.address().to_string());
    }
    println!("logs and sockets: {}", swarm.place().directory().display());
}

fn engine(node: &Node) -> (String, String) {
    if node.engine().pid().is_none() {
        return ("down".to_owned(), "-".to_owned());
    }
    let format = "{{.ServerVersion}} {{.Swarm.LocalNodeState}} {{.Swarm.ControlAvailable}}";
    let Ok(said) = node.docker(&["info", "--format", format]) else { return ("silent".to_owned(), "-".to_owned()) };
    let mut words = said.split_whitespace().map(str::to_owned);
    let (version, state) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let role = if words.next().as_deref() == Some("true") { "manager" } else { "worker" };
    (version, format!("{state} {role}"))
}
