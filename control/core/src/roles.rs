//! Which tasks get networking and which get new flows.

use crate::model::{Model, NodeState, Task, TaskState};

/// A task's part in the data plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TaskRole {
    /// Not networked, whatever addresses it still carries.
    Absent,
    /// Networked, but gets no flows: starting, a job of a table file, no service, or on a node that is down.
    Endpoint,
    /// Networked; keeps its flows and gets no new ones.
    Draining,
    /// Networked, and gets new flows on networks where it has an address.
    Backend,
}

impl TaskRole {
    /// Whether the task is networked.
    pub fn is_endpoint(self) -> bool {
        self != Self::Absent
    }
}

impl Model {
    /// The part that `task` plays.
    pub fn role(&self, task: &Task) -> TaskRole {
        let Some(node) = task.node.as_ref().and_then(|id| self.nodes.get(id)) else { return TaskRole::Absent };
        // See also `is_endpoint`.
        if !task.state.is_networked() || task.addresses.is_empty() {
            return TaskRole::Absent;
        }
        let Some(service_id) = &task.service else { return TaskRole::Endpoint };
        if task.state != TaskState::Running || node.state == NodeState::Down {
            return TaskRole::Endpoint;
        }
        let vanished = self.services.get(service_id).is_none_or(|s| s.vanished);
        match task.desired_state {
            TaskState::Complete if !self.jobs_serve => TaskRole::Endpoint,
            // An engine puts every task with an endpoint into its balancer when the task has started, jobs too.
            TaskState::Running | TaskState::Complete if !vanished && !task.unhealthy => TaskRole::Backend,
            TaskState::Running | TaskState::Complete => TaskRole::Draining,
            past if past > TaskState::Running => TaskRole::Draining,
            // The manager does not want it to run yet (`ready`: waits until its predecessor has stopped).
            _ => TaskRole::Endpoint,
        }
    }
}
