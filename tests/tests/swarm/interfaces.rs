//! What containers' interfaces are like: their names, their MACs, their protocols.

use anyhow::{Context as _, Result, ensure};

use crate::support::{Stage, Task};

/// The driver option `endpoint.ifname`: an interface of a name that the user chooses.
pub(crate) fn names(stage: &mut Stage) -> Result<()> {
    const OPTION: &str = "driver-opt=com.docker.network.endpoint.ifname=lab7";
    stage.network("app", "--attachable")?;
    stage.create("web", &format!("--replicas 3 --network name=app,{OPTION} --publish 8080:80 demo/web:1"))?;
    for task in stage.serving("web")? {
        let seen = stage.in_task(&task, "ip -o -4 addr show dev lab7")?;
        ensure!(seen.contains(&format!("{}/", task.addresses["app"])), "{}: {seen}", task.name());
    }
    stage.wait_mesh("web", 8080)?;
    stage.agree()
}

/// MACs on docker_gwbridge that don't follow from addresses: replies to clients of published ports leave there.
pub(crate) fn random_macs(stage: &mut Stage) -> Result<()> {
    stage.network("app", "")?;
    stage.create("web", "--replicas 6 --network app --publish 8080:80 demo/web:1")?;
    for task in stage.serving("web")? {
        let mac = gateway_mac(stage, &task)?;
        ensure!(!mac.starts_with("02:42:"), "{}: the engine derives {mac} from the address", task.name());
    }
    stage.wait_mesh("web", 8080)?;
    stage.agree()?;
    // Other containers get the same addresses, with other MACs.
    stage.scale("web", 1)?;
    stage.scale("web", 9)?;
    stage.wait_mesh("web", 8080)
}

/// The MAC of a task's interface on docker_gwbridge.
fn gateway_mac(stage: &Stage, task: &Task) -> Result<String> {
    let script = "ip -o -4 addr show | while read -r n name f a rest; do case $a in 172.18.*) \
                  cat /sys/class/net/${name%@*}/address;; esac; done";
    let said = stage.in_task(task, script)?;
    let mac = said.lines().next().with_context(|| format!("{}: no interface on the gateway bridge", task.name()))?;
    Ok(mac.to_owned())
}

/// An overlay network with `--ipv6`, which engines start tasks on only where the node's kernel has IPv6 on: reached
/// over IPv4 as ever. Its interfaces speak IPv6 where the engine lets them.
pub(crate) fn ipv6(stage: &mut Stage) -> Result<()> {
    for node in stage.nodes() {
        let off = node.run("cat", &["/proc/sys/net/ipv6/conf/all/disable_ipv6"])?;
        ensure!(off.trim() == "0", "{} has IPv6 off", node.label());
    }
    stage.network("app", "--ipv6")?;
    stage.create("web", "--replicas 3 --network app --publish 8080:80 demo/web:1")?;
    stage.wait_mesh("web", 8080)?;
    stage.agree()
}
