//! Where something is in the file. The text of it is made when it is needed, which in a good table it never is.

use std::fmt;

use crate::model::Id;

/// An item, like `tasks[3]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) section: &'static str,
    pub(super) index: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.section, self.index)
    }
}

/// An entry of an item's map, like `tasks[3].addresses.app`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) item: Place,
    pub(super) field: &'static str,
    pub(super) key: Id,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.item, self.field, self.key)
    }
}

/// An element of an item's list, like `services[3].ports[0]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Element {
    pub(super) item: Place,
    pub(super) field: &'static str,
    pub(super) index: usize,
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}[{}]", self.item, self.field, self.index)
    }
}

/// The file itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Top;

impl fmt::Display for Top {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}
