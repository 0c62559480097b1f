//! The table and reports as messages, and back.
//!
//! What a message does not carry: network namespaces of tasks (each node knows its own) and labels of services that are
//! not ours ([`carried`]). Everything else arrives as it was sent.

mod decode;
mod encode;
mod names;
mod paths;
mod report;

use std::sync::Arc;

use hiveway_core::{Model, model::is_meant_for_us};

pub use decode::decode;
pub use encode::encode;
pub use paths::{decode_paths, encode_paths};
pub use report::{decode_report, encode_report, port_number, port_of, text};

/// `model` without what a message does not carry.
pub fn carried(mut model: Model) -> Model {
    for task in model.tasks.values_mut() {
        Arc::make_mut(task).netns = None;
    }
    for service in model.services.values_mut() {
        Arc::make_mut(service).labels.retain(|name, _| is_meant_for_us(name));
    }
    model
}
