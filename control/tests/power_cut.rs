//! The power goes in a whole swarm, and comes back to the workers first. Needs root and `nft`.

#[path = "support/relay.rs"]
mod relay;
#[path = "support/mod.rs"]
mod support;
#[path = "support/swarm_ca.rs"]
mod swarm_ca;

use std::{
    net::SocketAddr,
    num::NonZeroU16,
    path::{Path, PathBuf},
    sync::Arc,
};

use relay::{Server, eventually, m};
use support::{
    Netns, in_fresh_netns,
    node::{Agent, Node},
    run,
};
use swarm_ca::{Ca, worker};

/// Where the manager's agent serves, in the namespace that stands for the link between the nodes.
const MANAGER: &str = "192.0.2.1:4788";

/// A worker of `relay::TABLE` from one power cut to the next. What it has on its disk is elsewhere.
struct Worker {
    id: &'static str,
    node: Node,
    /// Of its task.
    space: Netns,
    agent: Agent,
}

impl Worker {
    /// Starts a machine with nothing but its disk, and the task on it; then the agent. To be called in the namespace
    /// that is the link.
    fn boot(id: &'static str, host: u8, task: &str, disk: &Path) -> Self {
        let (netns, space) = (Netns::new(id), Netns::new(task));
        // The one before may not be gone yet: a namespace is taken down after its last process.
        run(&format!("ip link delete {id} 2>/dev/null; true"));
        run(&format!("ip link add {id} type veth peer name eth0 netns {}", netns.0));
        run(&format!("ip link set {id} master br0 up && ip -n {} link set eth0 up", netns.0));
        run(&format!("ip -n {} addr add 192.0.2.{host}/24 dev eth0", netns.0));
        let scratch = tempfile::tempdir().unwrap();
        let spaces = scratch.path().join("netns");
        std::fs::create_dir(&spaces).unwrap();
        std::os::unix::fs::symlink(space.path(), spaces.join(task)).unwrap();
        let bpffs = Path::new("/sys/fs/bpf").join(&netns.0);
        let node = Node { netns, far: Netns::new("none"), scratch, bpffs };
        let show = |path: PathBuf| path.display().to_string();
        let agent = node.launch(&[
            ("--node", id),
            ("--table", &format!("relay:{MANAGER}")),
            ("--swarm-dir", &show(disk.join(id))),
            ("--state-dir", &show(disk.join(id).join("state"))),
            ("--netns-dir", &show(spaces)),
            ("--docker-socket", "/nonexistent/docker.sock"),
        ]);
        Self { id, node, space, agent }
    }

    /// Whether the agent has programmed a table. It answers before that.
    fn is_ready(&mut self) -> bool {
        self.agent.is_ready()
    }

    /// Without a word to anybody: the agent, all pins and interfaces are gone.
    fn cut(self) {
        let Self { node, space, agent, .. } = self;
        agent.kill();
        std::fs::remove_dir_all(&node.bpffs).unwrap();
        drop((node, space));
    }

    fn services(&self) -> String {
        self.node.ask(&["service", "ls"]).to_string()
    }

    fn reaches(&self, address: &str) -> bool {
        self.space.try_run(&format!("ping -c 1 -W 1 {address}")).status.success()
    }
}

fn boot(disk: &Path) -> [Worker; 2] {
    [Worker::boot("w1", 2, "t1", disk), Worker::boot("w2", 3, "t2", disk)]
}

async fn all_ready(workers: &mut [Worker]) {
    for worker in workers {
        let ready = std::cell::Cell::new(false);
        let worker = std::cell::RefCell::new(worker);
        eventually("an agent is ready", || {
            ready.set(worker.borrow_mut().is_ready());
            ready.get()
        })
        .await;
    }
}

#[test]
fn after_a_power_cut_of_all_nodes_they_work_together_without_a_manager_and_take_its_next_table() {
    in_fresh_netns(|| async {
        let (directory, ca) = (tempfile::tempdir().unwrap(), Ca::new());
        let disk = directory.path();
        run("ip link add br0 type bridge forward_delay 0 && ip link set br0 up && ip addr add 192.0.2.1/24 dev br0");
        for id in ["w1", "w2"] {
            ca.issue(&disk.join(id), &worker(id));
        }
        let at: SocketAddr = MANAGER.parse().unwrap();
        let manager = Server::start_at(&ca, &m(), disk.join("m"), at).await;
        let mut workers = boot(disk);
        all_ready(&mut workers).await;
        // Each knows that the other has Hiveway, and so do the tables that they keep.
        eventually("both are reached", || workers[0].reaches("10.0.1.4") && workers[1].reaches("10.0.1.3")).await;
        for worker in &workers {
            assert!(worker.services().contains("8080"), "{}", worker.services());
            assert!(worker.node.ask(&["status"])["table"]["unreachable"].is_null());
        }
        drop(manager);
        workers.into_iter().for_each(Worker::cut);

        let mut workers = boot(disk);
        all_ready(&mut workers).await;
        eventually("both are reached", || workers[0].reaches("10.0.1.4") && workers[1].reaches("10.0.1.3")).await;
        for worker in &workers {
            let status = worker.node.ask(&["status"]);
            assert!(status["table"]["unreachable"]["why"].is_string(), "{} says nothing: {status:#}", worker.id);
            assert_eq!(status["healthy"], false);
            assert_eq!(status["local_tasks"], 1, "{status:#}");
            assert!(worker.services().contains("8080"), "{}", worker.services());
        }

        // The manager's agent comes back with what has changed meanwhile: a port, and a task that is gone.
        let manager = Server::start_at(&ca, &m(), disk.join("m"), at).await;
        manager.change(|model| {
            let web = model.services.get_mut("web").expect("a service");
            Arc::make_mut(web).ports.change(|port| port.published_port = NonZeroU16::new(8081));
            model.tasks.remove("t2");
        });
        for worker in &workers {
            eventually("the newer table is in force", || {
                let services = worker.services();
                services.contains("8081") && !services.contains("8080") && !services.contains("t2")
            })
            .await;
            eventually("the manager is reached", || worker.node.ask(&["status"])["table"]["unreachable"].is_null())
                .await;
        }
        eventually("the task that is gone is let go", || !workers[0].reaches("10.0.1.4")).await;
        for worker in workers {
            worker.agent.stop();
        }
    });
}
