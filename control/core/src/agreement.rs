//! What all nodes must agree on for frames to pass between them.

use std::num::NonZeroU16;

use crate::model::{Dataplane, Model};

/// Where the UDP port of VXLAN that node `me` (an id or a host name) uses is not the swarm's or another node's, in
/// sentences with the remedy. Nodes that have not said which port they use are not named.
pub fn vxlan_ports(model: &Model, me: &str, port: u16, swarm: Option<NonZeroU16>) -> Vec<String> {
    let mut problems = Vec::new();
    if let Some(swarm) = swarm.filter(|swarm| swarm.get() != port) {
        problems.push(format!(
            "this node was told to use UDP port {port} for VXLAN, the swarm's data path port is {swarm}: nodes without \
             Hiveway are not reached; start the agent without --vxlan-port"
        ));
    }
    let me = model.find_node(me).map(|node| node.id.clone()).unwrap_or_default();
    let others = model.nodes.values().filter(|node| node.id != me && node.dataplane == Dataplane::Hiveway);
    problems.extend(others.filter_map(|node| {
        let other = node.vxlan_port.filter(|other| other.get() != port)?;
        Some(format!(
            "node {} ({}) uses UDP port {other} for VXLAN, this node {port}: nothing passes between them; start both agents \
             without --vxlan-port, or all with the same",
            node.hostname, node.id
        ))
    }));
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_and_the_swarm_are_named() {
        let text = "version: 1\nnodes: [{id: n1, hostname: one, address: 192.0.2.1}, {id: n2, hostname: two, address: \
                    192.0.2.2}, {id: n3, hostname: three, address: 192.0.2.3, dataplane: none}]\n";
        let mut model = crate::table::parse_file(text, std::path::Path::new("t.yaml")).unwrap().model;
        let port = NonZeroU16::new;
        assert!(vxlan_ports(&model, "n1", 4789, port(4789)).is_empty());
        assert!(vxlan_ports(&model, "n1", 7789, None).is_empty(), "nobody else has said");
        model.nodes.values_mut().for_each(|node| node.vxlan_port = port(7789));
        assert!(vxlan_ports(&model, "one", 7789, port(7789)).is_empty());
        let problems = vxlan_ports(&model, "one", 4789, port(7789));
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].contains("port 4789") && problems[0].contains("data path port is 7789"), "{}", problems[0]);
        assert!(problems[1].starts_with("node two (n2) uses UDP port 7789"), "{}", problems[1]);
    }
}
