//! A node's part of the table as a message.

use std::{
    collections::hash_map::RandomState,
    hash::BuildHasher,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use hiveway_core::filter;
use hiveway_proto::relay as wire;
use prost::Message;
use tokio::sync::{Semaphore, watch};

use crate::{
    relay::convert::{encode, port_number},
    source::Live,
};

/// Makes messages, one at a time: in a large swarm a change means one for each of a thousand nodes, and the agent has
/// other things to do.
#[derive(Debug)]
pub(super) struct Tables {
    table: watch::Receiver<Arc<Live>>,
    one: Arc<Semaphore>,
    revision: AtomicU64,
    hasher: RandomState,
}

/// A message, and what tells it from another (but for its revision and age).
pub(super) struct Made {
    pub(super) table: wire::Table,
    pub(super) digest: u64,
}

impl Tables {
    pub(super) fn new(table: watch::Receiver<Arc<Live>>) -> Self {
        Self { table, one: Arc::new(Semaphore::new(1)), revision: AtomicU64::new(0), hasher: RandomState::new() }
    }

    /// The newest table of `node`; `None` if there is none.
    pub(super) async fn of(&self, node: &str) -> Option<Made> {
        let turn = self.one.clone().acquire_owned().await;
        let live = self.table.borrow().clone();
        let node = node.to_owned();
        let table = tokio::task::spawn_blocking(move || {
            // Until it is made, whoever has gone meanwhile.
            let _turn = turn;
            message(&live, &node)
        });
        let mut table = table.await.ok()??;
        let stale_ms = std::mem::take(&mut table.stale_ms);
        let digest = self.hasher.hash_one(table.encode_to_vec());
        table.stale_ms = stale_ms;
        table.revision = self.revision.fetch_add(1, Ordering::Relaxed) + 1;
        Some(Made { table, digest })
    }
}

fn message(live: &Live, node: &str) -> Option<wire::Table> {
    let part = filter(live.table.as_deref()?, node);
    let mut table = encode(&part.model, &part.left_out);
    table.live = live.lost.is_none();
    table.data_path_port = port_number(part.data_path_port);
    if let Some(lost) = &live.lost {
        table.stale_ms = lost.since.elapsed().as_millis() as u64;
        table.stale_why.clone_from(&lost.why);
    }
    Some(table)
}
