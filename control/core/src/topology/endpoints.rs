//! All endpoints of a swarm, found by task and by service: a look-up must not walk a large table.

use std::collections::HashMap;

use super::Placed;

/// Endpoints, by task id.
pub(crate) struct Endpoints<'a> {
    /// In order of ids.
    all: Vec<Placed<'a>>,
    /// By service, where they are in `all`.
    by_service: HashMap<&'a str, Vec<u32>>,
}

impl<'a> Endpoints<'a> {
    /// `all` in order of their tasks' ids.
    pub(super) fn new(all: Vec<Placed<'a>>) -> Self {
        debug_assert!(all.is_sorted_by_key(|placed| placed.task.id.as_str()));
        let mut by_service: HashMap<&str, Vec<u32>> = HashMap::new();
        for (index, placed) in (0..).zip(&all) {
            if let Some(service) = &placed.task.service {
                by_service.entry(service).or_default().push(index);
            }
        }
        Self { all, by_service }
    }

    /// That of a task.
    pub(crate) fn get(&self, task: &str) -> Option<&Placed<'a>> {
        let place = self.all.binary_search_by_key(&task, |placed| &placed.task.id).ok()?;
        self.all.get(place)
    }

    /// All of them.
    pub(crate) fn values(&self) -> impl Iterator<Item = &Placed<'a>> {
        self.all.iter()
    }

    /// Those of a service.
    pub(super) fn of_service(&self, service: &str) -> impl Iterator<Item = &Placed<'a>> {
        let places = self.by_service.get(service).into_iter().flatten();
        places.filter_map(|place| self.all.get(*place as usize))
    }
}
