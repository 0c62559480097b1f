//! Nodes that claim one tunnel address.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    desired::LeftOut,
    model::{Id, Model, Node, NodeState, Task},
};

/// Of several nodes with one tunnel address the one whose own address it is counts; then one that is not down, one
/// whose agent has said where its tunnels end; of those the one that said so first, as `since` orders them: no node
/// takes another's address from it. A node that has lost its managers is no longer first: a machine that has joined
/// anew has its former self's address. Then the one that joined last as `joined` orders them, and the smaller id. The
/// others go back to their own addresses if they can, and are left out otherwise.
pub(crate) fn one_per_vtep<J: Ord>(
    nodes: BTreeMap<Id, Node>,
    since: impl Fn(&Id) -> Option<u64>,
    joined: impl Fn(&Id) -> J,
    left_out: &mut Vec<LeftOut>,
) -> BTreeMap<Id, Node> {
    let mut order: Vec<Node> = nodes.into_values().collect();
    order.sort_by_cached_key(|n| {
        let said = since(&n.id);
        let there = !matches!(n.state, NodeState::Down | NodeState::Disconnected);
        let first = said.filter(|_| there).unwrap_or(u64::MAX);
        (n.vtep != n.address, n.state == NodeState::Down, said.is_none(), first, Reverse(joined(&n.id)), n.id.clone())
    });
    let mut taken = BTreeMap::new();
    let mut good = BTreeMap::new();
    for mut node in order {
        if let Some(other) = taken.get(&node.vtep).cloned() {
            let (claimed, own) = (node.vtep, node.address);
            let what = format!("node {} ({})", node.hostname, node.id);
            if let Some(other) = taken.get(&own) {
                left_out.push(LeftOut {
                    what,
                    why: format!(
                        "another node, {other}, has its address {own}; if this is its former self: docker node rm {}; if both \
                         are behind one NAT, an agent must run on it to say where its tunnels end",
                        node.id
                    ),
                });
                continue;
            }
            node.vtep = own;
            left_out.push(LeftOut {
                what: format!("tunnel address {claimed} that {what} reports"),
                why: format!("it is node {other}'s; {own} is used"),
            });
        }
        taken.insert(node.vtep, node.hostname.clone());
        good.insert(node.id.clone(), node);
    }
    good
}

/// Takes nodes out of the model that have no place of their own, and what runs there. Returns their ids.
pub(crate) fn settle<J: Ord>(
    model: &mut Model,
    since: impl Fn(&Id) -> Option<u64>,
    joined: impl Fn(&Id) -> J,
    left_out: &mut Vec<LeftOut>,
) -> BTreeSet<String> {
    let before: BTreeSet<Id> = model.nodes.keys().cloned().collect();
    model.nodes = one_per_vtep(std::mem::take(&mut model.nodes), since, joined, left_out);
    let gone: BTreeSet<Id> = before.into_iter().filter(|id| !model.nodes.contains_key(id)).collect();
    if !gone.is_empty() {
        let Model { tasks, services, .. } = model;
        tasks.retain(|_, task| {
            let Some(node) = task.node.as_ref().filter(|node| gone.contains(*node)) else { return true };
            if task.state.is_networked() {
                let service = task.service.as_ref().and_then(|id| services.get(id)).map(|s| s.name.as_str());
                left_out.push(LeftOut {
                    what: format!("task {} of {}", task.id, service.unwrap_or("no service")),
                    why: format!("its node {node} has no tunnel address of its own"),
                });
                return false;
            }
            *task = Arc::new(Task { node: None, addresses: Default::default(), ..Task::clone(task) });
            true
        });
    }
    gone.iter().map(ToString::to_string).collect()
}
