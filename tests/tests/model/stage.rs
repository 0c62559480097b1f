//! Three real nodes with an agent each, clients, and places for tasks.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::Arc,
};

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::{
    agent::{Agent, AgentOptions},
    lab::{Lab, Netns, PATIENCE, wait_for},
};
use serde_json::{Value, json};

use crate::{
    client::Client,
    place::Place,
    reference::{NODES, Reference, batch_name},
};

/// More than tasks at once: a place is free again only when its interfaces have gone.
const PLACES: usize = 14;

pub(crate) struct Stage {
    agents: Vec<Arc<Agent>>,
    /// Containers on n1 and n2.
    pub(crate) users: Vec<Client>,
    /// Outside of the swarm.
    pub(crate) outside: Client,
    pub(crate) places: Vec<Place>,
    file: PathBuf,
    batch: u64,
}

impl Stage {
    /// Everything but the agents, which want a table first.
    pub(crate) fn new(lab: &Lab) -> Result<Self> {
        let outside = Client::new(lab.client()?, "192.168.77.100");
        let user = |label: &str, address| Ok::<_, anyhow::Error>(Client::new(lab.namespace(label)?, address));
        let users = vec![user("user.1", "10.0.1.250")?, user("user.2", "10.0.1.251")?];
        let places = (0..PLACES).map(|n| Place::new(lab, &format!("place{n}"))).collect::<Result<_>>()?;
        Ok(Self { agents: Vec::new(), users, outside, places, file: lab.directory().join("table.json"), batch: 0 })
    }

    /// Starts an agent on each node.
    pub(crate) fn start(&mut self, lab: &Lab, reference: &Reference) -> Result<()> {
        self.write(reference)?;
        let nodes: Vec<Netns> = (1..=NODES as u8).map(|n| lab.node(&format!("n{n}"), 10 + n)).collect::<Result<_>>()?;
        for node in &nodes {
            let options = AgentOptions {
                node: node.label().to_owned(),
                table: format!("file:{}", self.file.display()),
                netns_dir: None,
                extra: Vec::new(),
            };
            let agent = Agent::prepare(lab, node, options)?;
            agent.launch()?;
            self.agents.push(agent);
        }
        self.agents.iter().try_for_each(|agent| agent.wait_ready())?;
        self.settle()
    }

    /// Puts a new table in force on every node.
    pub(crate) fn apply(&mut self, reference: &Reference) -> Result<()> {
        self.write(reference)?;
        self.settle()
    }

    fn write(&mut self, reference: &Reference) -> Result<()> {
        self.batch += 1;
        reference.table(self.batch).write(&self.file)
    }

    fn settle(&self) -> Result<()> {
        let name = batch_name(self.batch);
        for agent in &self.agents {
            wait_for(&format!("{} to have {name} in force", agent.netns().label()), PATIENCE, || {
                let services = ask(agent, "services")?;
                let has_it = services.as_array().into_iter().flatten().any(|service| service["name"] == *name);
                ensure!(has_it, "it has another one");
                let status = ask(agent, "status")?;
                let waiting = status["waiting"].as_array().is_none_or(|items| !items.is_empty());
                ensure!(status["healthy"] == true && !waiting, "{status:#}");
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// Asks an agent over its socket; starting the command for it would take longer than all else in a step.
fn ask(agent: &Agent, what: &str) -> Result<Value> {
    let mut stream = UnixStream::connect(agent.socket())?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("{}\n", json!({"request": what})).as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    let mut answer: Value = serde_json::from_str(&line)?;
    let value = answer.get_mut("ok").map(Value::take);
    value.with_context(|| format!("{what}: {line}"))
}
