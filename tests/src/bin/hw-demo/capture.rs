//! The engine's captures: `nodes.json`, `services.json`, `tasks.json` and `networks.json` of a real swarm.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use hiveway_tests::table::write_atomically;
use serde_json::{Value, json};

/// In the order in which they are replaced: tasks last, because they name the others.
const FILES: [&str; 4] = ["networks.json", "nodes.json", "services.json", "tasks.json"];

/// One capture, or a moment between two.
#[derive(Clone, Debug)]
pub(crate) struct Capture {
    files: [(&'static str, Value); 4],
}

/// A task that gets networking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) id: String,
    /// `web.1.5kjv`.
    pub(crate) name: String,
    /// Host name of its node.
    pub(crate) node: String,
    /// Its address on the application's network.
    pub(crate) address: String,
    /// Desired and actual state are running.
    pub(crate) backend: bool,
    running: bool,
}

impl Capture {
    pub(crate) fn read(name: &str) -> Result<Self> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/swarm").join(name);
        let read = |file: &'static str| -> Result<(&'static str, Value)> {
            let path: PathBuf = directory.join(file);
            let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            Ok((file, serde_json::from_str(&text).with_context(|| format!("{}", path.display()))?))
        };
        Ok(Self { files: [read(FILES[0])?, read(FILES[1])?, read(FILES[2])?, read(FILES[3])?] })
    }

    /// Replaces the files that the agents watch, each in one step.
    pub(crate) fn write(&self, directory: &Path) -> Result<()> {
        for (file, value) in &self.files {
            write_atomically(&directory.join(file), &serde_json::to_string_pretty(value)?)?;
        }
        Ok(())
    }

    /// Nodes' host names and addresses, by host name.
    pub(crate) fn nodes(&self) -> Vec<(String, String)> {
        let mut nodes: Vec<_> = items(&self.files[1].1)
            .map(|node| (text(&node["Description"]["Hostname"]), text(&node["Status"]["Addr"])))
            .collect();
        nodes.sort();
        nodes
    }

    /// The service's virtual address on the application's network (not the ingress network's).
    pub(crate) fn vip(&self) -> Result<String> {
        let service = items(&self.files[2].1).next().context("no service in the capture")?;
        let vips = service["Endpoint"]["VirtualIPs"].as_array().context("no virtual addresses")?;
        let ingress =
            items(&self.files[0].1).find(|network| network["Ingress"] == true).map(|network| text(&network["Id"]));
        let vip = vips.iter().find(|vip| Some(text(&vip["NetworkID"])) != ingress).context("no application network")?;
        Ok(without_prefix_length(&text(&vip["Addr"])))
    }

    /// Tasks with a node and an address, assigned to running.
    pub(crate) fn endpoints(&self) -> Vec<Endpoint> {
        let alive = ["assigned", "accepted", "preparing", "ready", "starting", "running"];
        let mut endpoints: Vec<_> = items(&self.files[3].1)
            .filter(|task| alive.iter().any(|&state| task["Status"]["State"] == state))
            .filter_map(|task| {
                let id = task["ID"].as_str()?;
                let application =
                    items(&task["NetworksAttachments"]).find(|item| item["Network"]["Spec"]["Ingress"] != true)?;
                let address = without_prefix_length(application["Addresses"][0].as_str()?);
                let node = items(&self.files[1].1).find(|node| node["ID"] == task["NodeID"])?;
                let service = items(&self.files[2].1).find(|service| service["ID"] == task["ServiceID"])?;
                let running = task["Status"]["State"] == "running";
                Some(Endpoint {
                    id: id.to_owned(),
                    name: format!("{}.{}.{}", text(&service["Spec"]["Name"]), task["Slot"], &id[..4]),
                    node: text(&node["Description"]["Hostname"]),
                    address,
                    backend: running && task["DesiredState"] == "running",
                    running,
                })
            })
            .collect();
        endpoints.sort_by(|one, other| (&one.node, &one.name).cmp(&(&other.node, &other.name)));
        endpoints
    }

    /// Running tasks that no new flow goes to.
    pub(crate) fn draining(&self) -> BTreeSet<String> {
        self.endpoints().into_iter().filter(|task| task.running && !task.backend).map(|task| task.id).collect()
    }

    /// Tasks that new flows go to.
    pub(crate) fn backends(&self) -> BTreeSet<String> {
        self.endpoints().into_iter().filter(|task| task.backend).map(|task| task.id).collect()
    }

    /// What the engine publishes on the way from `before` to this capture, before the new tasks run: they are starting,
    /// the old ones run as before.
    pub(crate) fn with_new_tasks_starting(&self, before: &Capture) -> Self {
        let mut moment = self.with_old_tasks(before, "running");
        let old = before.backends();
        for task in moment.tasks_mut() {
            let id = text(&task["ID"]);
            if task["Status"]["State"] == "running" && task["DesiredState"] == "running" && !old.contains(&id) {
                task["Status"]["State"] = json!("starting");
            }
        }
        moment
    }

    /// And then: the new tasks run, and the old ones that this capture no longer has running drain.
    pub(crate) fn with_old_tasks_draining(&self, before: &Capture) -> Self {
        self.with_old_tasks(before, "shutdown")
    }

    /// This capture with all running tasks of `before` still running; those that do not belong here get this desired
    /// state.
    fn with_old_tasks(&self, before: &Capture, desired: &str) -> Self {
        let mut moment = self.clone();
        let running: BTreeSet<String> =
            before.endpoints().into_iter().filter(|task| task.running).map(|task| task.id).collect();
        let still: BTreeSet<String> =
            self.endpoints().into_iter().filter(|task| task.running).map(|task| task.id).collect();
        let was_draining = before.draining();
        for old in items(&before.files[3].1).filter(|task| running.contains(&text(&task["ID"]))) {
            let id = text(&old["ID"]);
            if still.contains(&id) {
                continue;
            }
            let mut task = old.clone();
            if !was_draining.contains(&id) {
                task["DesiredState"] = json!(desired);
            }
            let tasks = moment.tasks_mut();
            tasks.retain(|other| other["ID"] != old["ID"]);
            tasks.push(task);
        }
        moment
    }

    fn tasks_mut(&mut self) -> &mut Vec<Value> {
        self.files[3].1.as_array_mut().expect("tasks.json is a list")
    }
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn without_prefix_length(address: &str) -> String {
    address.split('/').next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_captures_have_the_tasks_that_the_demo_speaks_of() -> Result<()> {
        let count = |name: &str| -> Result<usize> { Ok(Capture::read(name)?.backends().len()) };
        assert_eq!(count("02b-web3-running")?, 3);
        assert_eq!(count("03b-scale-6-done")?, 6);
        assert_eq!(count("05b-drain-n3-done")?, 4);
        assert_eq!(count("06b-scale-2-done")?, 2);
        let drain = Capture::read("05b-drain-n3-done")?;
        assert!(drain.endpoints().iter().all(|task| task.node != "n3" || !task.backend));
        assert_eq!(drain.vip()?, "10.0.1.2");
        Ok(())
    }

    #[test]
    fn between_two_captures_nobody_loses_a_backend_before_another_runs() -> Result<()> {
        let (before, after) = (Capture::read("03b-scale-6-done")?, Capture::read("06b-scale-2-done")?);
        let starting = after.with_new_tasks_starting(&before);
        assert_eq!(starting.backends(), before.backends());
        let draining = after.with_old_tasks_draining(&before);
        assert_eq!(draining.backends(), after.backends());
        assert_eq!(draining.draining(), before.backends());
        Ok(())
    }
}
