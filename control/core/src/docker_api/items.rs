//! Items of a capture, by their ids.

use std::collections::{BTreeMap, btree_map::Entry};

use crate::{desired::LeftOut, model::Id};

/// Takes `item` into `map` unless its id is empty, can't be a file name, or is there already.
pub(super) fn insert<T>(
    map: &mut BTreeMap<Id, T>,
    id: Id,
    item: T,
    what: impl FnOnce() -> String,
    left_out: &mut Vec<LeftOut>,
) {
    let why = if id.is_empty() {
        "has no id"
    } else if id == "." || id == ".." || id.contains(['/', '\0']) {
        "its id can't be a file name"
    } else if let Entry::Vacant(free) = map.entry(id) {
        free.insert(item);
        return;
    } else {
        "is listed twice; the first counts"
    };
    left_out.push(LeftOut { what: what(), why: why.into() });
}
