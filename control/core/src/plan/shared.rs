//! Tasks that lead to one network namespace. Served in turn they would take each other's interfaces away for ever, so
//! one keeps it and the others wait until the table is right.

use std::collections::BTreeMap;

use super::task::is_wired;
use crate::{
    desired::{Desired, LocalTask},
    observed::{Inside, Namespace, Observed},
};

/// Tasks whose namespace another one keeps, with that one. An engine's container keeps its own; of ours it is the task
/// whose interfaces are there, or else the first one.
pub(super) fn losers<'d>(observed: &Observed, desired: &'d Desired) -> BTreeMap<&'d str, &'d str> {
    let mut keepers = BTreeMap::new();
    for task in &desired.attached {
        if let Some(identity) = inside(observed, &task.id).and_then(|inside| inside.identity) {
            keepers.entry(identity).or_insert(task.id.as_str());
        }
    }
    let mut ours: BTreeMap<_, Vec<(&LocalTask, &Inside)>> = BTreeMap::new();
    for task in &desired.tasks {
        if let Some(inside) = inside(observed, &task.id)
            && let Some(identity) = inside.identity
        {
            ours.entry(identity).or_default().push((task, inside));
        }
    }
    let mut losers = BTreeMap::new();
    for (identity, tasks) in ours {
        let wired = || tasks.iter().find(|(task, inside)| is_wired(observed, inside, task));
        let keeper = keepers.get(&identity).copied().or_else(|| {
            let (task, _) = wired().or_else(|| tasks.iter().min_by_key(|(task, _)| &task.id))?;
            Some(task.id.as_str())
        });
        let Some(keeper) = keeper else { continue };
        losers.extend(tasks.iter().filter(|(task, _)| task.id != keeper).map(|(task, _)| (task.id.as_str(), keeper)));
    }
    losers
}

fn inside<'o>(observed: &'o Observed, task: &str) -> Option<&'o Inside> {
    match observed.namespaces.get(task)? {
        Namespace::Present(inside) => Some(inside),
        Namespace::Missing { .. } | Namespace::Unusable { .. } | Namespace::Unread { .. } => None,
    }
}

/// What to say of a task that `keeper` keeps out.
pub(super) fn why(task: &LocalTask, keeper: &str) -> String {
    let path = task.netns.as_ref().map(|path| format!(" {}", path.display())).unwrap_or_default();
    format!(
        "its network namespace{path} is that of task {keeper} too, which keeps it: each task has one of its own; correct the \
         table"
    )
}
