//! The swarm's own certificates: who this node is, whom it trusts, and TLS made of both.
//!
//! Swarm gives every node a certificate (`swarm-node.crt`: O = cluster id, OU = role, CN = node id) that serves as
//! client and server certificate, renews it every few weeks and can rotate its root CA. So files are looked at again
//! and again ([`Reloading`]), and whoever holds a connection asks whether the peer would still be let in
//! ([`Credentials::still_trusts`]).

mod files;
mod identity;
mod reload;
mod tls;

pub use files::{CertError, Files};
pub use identity::{Identity, Role};
pub use reload::Reloading;
pub use tls::{Credentials, root_store, server_name};
