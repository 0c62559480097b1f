//! From a change of the table to its effect on every node.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use hiveway_tests::{
    lab::{slowness, wait_for},
    swarm::Hiveway,
};

use super::Stage;

/// What the change is to have made of a service's backends.
pub(crate) type Backends = BTreeSet<String>;

impl Stage {
    /// Watches while `change` takes effect: when the API first had another set of serving tasks than before with so
    /// many members, and when the last agent had the same one. Notes the difference as `what`.
    pub(crate) fn time_backends(
        &mut self,
        what: &str,
        service: &str,
        count: usize,
        change: impl FnOnce(&Self) -> Result<()>,
    ) -> Result<()> {
        let id = self.service(service)?.id;
        let agents = self.agents();
        let (api, seen) = std::thread::scope(|scope| -> Result<_> {
            let stage = &*self;
            let watch_api = scope.spawn(|| {
                wait_for("the API to have the change", LIMIT, || {
                    let tasks: Backends = stage.serving(service)?.into_iter().map(|task| task.id).collect();
                    anyhow::ensure!(tasks.len() == count, "{} tasks serve", tasks.len());
                    Ok((Instant::now(), tasks))
                })
            });
            let watches: Vec<_> = agents.iter().map(|agent| scope.spawn(|| watch(agent, &id, count))).collect();
            change(stage)?;
            let api = watch_api.join().ok().context("a watch panicked")??;
            let seen: Result<Vec<_>> =
                watches.into_iter().map(|watch| watch.join().ok().context("a watch panicked")?).collect();
            Ok((api, seen?))
        })?;
        if let Some(last) = seen.into_iter().max() {
            self.timing(what, api.0, last);
        }
        Ok(())
    }
}

const LIMIT: Duration = Duration::from_secs(60);

/// When this agent first had so many active backends.
fn watch(agent: &Hiveway, service: &str, count: usize) -> Result<Instant> {
    let deadline = Instant::now() + LIMIT * slowness();
    loop {
        let services = agent.ask("services")?;
        let row = services.as_array().into_iter().flatten().find(|row| row["id"] == service);
        let backends = row.and_then(|row| row["backends"].as_array());
        let active = backends.into_iter().flatten().filter(|backend| backend["state"] == "active").count();
        if active == count {
            return Ok(Instant::now());
        }
        anyhow::ensure!(Instant::now() < deadline, "{} has {active} backends, not {count}", agent.node().label());
        std::thread::sleep(Duration::from_millis(3));
    }
}
