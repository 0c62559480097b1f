//! What stories are made of.

pub(crate) mod agree;
pub(crate) mod api;
pub(crate) mod harness;
mod maps;
pub(crate) mod measure;
pub(crate) mod recorder;
pub(crate) mod stage;
mod tidy;
pub(crate) mod timings;
pub(crate) mod traffic;

pub(crate) use api::{Service, Task};
pub(crate) use harness::{Needs, Story};
pub(crate) use recorder::Recorder;
pub(crate) use stage::Stage;
