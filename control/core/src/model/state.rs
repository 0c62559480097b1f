//! Task and node states, with the engine's names.

use std::{fmt, str::FromStr};

/// Declares an enum whose variants have stable names.
macro_rules! named {
    ($(#[$meta:meta])* $ty:ident, $what:literal { $($(#[$doc:meta])* $variant:ident = $name:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $ty { $($(#[$doc])* $variant,)+ }

        impl $ty {
            /// All of them, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// As the engine writes it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }

        impl fmt::Display for $ty {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }

        impl FromStr for $ty {
            /// A message that lists what there is.
            type Err = String;

            fn from_str(s: &str) -> Result<Self, String> {
                Self::ALL.iter().copied().find(|v| v.name() == s).ok_or_else(|| {
                    let all: Vec<_> = Self::ALL.iter().map(|v| v.name()).collect();
                    format!("unknown {} {s:?}; one of: {}", $what, all.join(", "))
                })
            }
        }

        impl serde::Serialize for $ty {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.name())
            }
        }
    };
}
pub(super) use named;

named! {
    /// A task's state, in swarm's order.
    TaskState, "task state" {
        /// Just made.
        New = "new",
        /// Waits for a node.
        Pending = "pending",
        /// Has a node; from here on it is networked.
        Assigned = "assigned",
        /// The node has agreed.
        Accepted = "accepted",
        /// The image is being pulled.
        Preparing = "preparing",
        /// Could start.
        Ready = "ready",
        /// Starting, or not healthy yet.
        Starting = "starting",
        /// Running (and healthy, if it has a health check).
        Running = "running",
        /// Ended by itself, successfully. As desired state: a job.
        Complete = "complete",
        /// Stopped on request.
        Shutdown = "shutdown",
        /// Ended with an error.
        Failed = "failed",
        /// The node could not run it.
        Rejected = "rejected",
        /// To be removed (desired state only).
        Remove = "remove",
        /// Its node has been gone for too long.
        Orphaned = "orphaned",
    }
}

impl TaskState {
    /// Not ended: up to and including running.
    pub fn is_live(self) -> bool {
        self <= Self::Running
    }

    /// Assigned to running: with a node and an address the task gets networking.
    pub fn is_networked(self) -> bool {
        (Self::Assigned..=Self::Running).contains(&self)
    }
}

named! {
    /// What the manager thinks of a node.
    NodeState, "node state" {
        /// Heartbeats arrive.
        Ready = "ready",
        /// They do not: its tasks get no new flows.
        Down = "down",
        /// Left in good order; counts as ready.
        Disconnected = "disconnected",
        /// The manager does not know yet (after every change of leader); counts as ready.
        Unknown = "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for state in TaskState::ALL {
            assert_eq!(state.name().parse(), Ok(*state));
        }
        let error = "runing".parse::<TaskState>().unwrap_err();
        assert!(error.contains("\"runing\"") && error.contains("running, complete"), "{error}");
    }

    #[test]
    fn networked_is_assigned_to_running() {
        use TaskState::*;
        let networked: Vec<_> = TaskState::ALL.iter().filter(|s| s.is_networked()).copied().collect();
        assert_eq!(networked, [Assigned, Accepted, Preparing, Ready, Starting, Running]);
    }
}
