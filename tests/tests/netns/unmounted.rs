//! The BPF file system goes away under a running agent, as when `/sys` is mounted anew or somebody cleans up mounts.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::{
    agent::Agent,
    lab::{PATIENCE, scenario, wait_for},
    peer::{self, LoadLoop},
};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns},
};

use crate::support::{Cluster, web_table};

/// What runs an agent in a mount namespace of its own, where the only BPF file system is one of its own.
const OWN_BPFFS: [&str; 7] = [
    "unshare",
    "--mount",
    "--propagation=slave",
    "sh",
    "-ec",
    "umount -l /sys/fs/bpf; mount -t bpf bpf /sys/fs/bpf; exec \"$@\"",
    "sh",
];
const BPFFS: &str = "/sys/fs/bpf";

/// Does something to the file systems that an agent sees.
fn among_mounts(agent: &Agent, work: impl FnOnce() -> nix::Result<()> + Send) -> Result<()> {
    let space = std::fs::File::open(format!("/proc/{}/ns/mnt", agent.pid().context("no agent")?))?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || -> Result<()> {
            // A thread that shares its working directory with others may not change mount namespaces.
            nix::sched::unshare(CloneFlags::CLONE_FS)?;
            setns(&space, CloneFlags::CLONE_NEWNS)?;
            Ok(work()?)
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A pin as the agent sees it.
fn pin(agent: &Agent, name: &str) -> Result<PathBuf> {
    let seen = agent.bpffs().strip_prefix("/")?.join(name);
    Ok(PathBuf::from(format!("/proc/{}/root", agent.pid().context("no agent")?)).join(seen))
}

fn pins_are_there(agent: &Agent) -> Result<()> {
    ensure!(pin(agent, "maps/FLOWS")?.exists(), "no pin of a map");
    let links = std::fs::read_dir(pin(agent, "links")?)?.count();
    ensure!(links > 0, "no pins of links");
    Ok(())
}

#[test]
fn a_bpf_file_system_that_is_unmounted_costs_no_connection_and_is_told_of() {
    scenario(|lab| {
        let client = lab.client()?;
        let mut cluster = Cluster::start(lab, 2, web_table(&["n2"], &[("tcp", 8080, 80)], "n1"))?;
        let agent = cluster.agents[0].clone();
        agent.terminate()?;
        agent.teardown()?;
        agent.wrapped_by(&OWN_BPFFS);
        agent.restart()?;
        cluster.settle()?;
        cluster.serve(&["web.1"])?;
        let kept = LoadLoop::tcp(lab, &client, "192.168.77.11:8080", 1, true)?;
        kept.wait_answers(20)?;
        let pid = agent.pid();
        ensure!(!agent.cli(&["status"])?.contains("were gone"), "it speaks too soon");

        // Another one is mounted in its place: pins are made there, and `status` tells of it afterwards.
        among_mounts(&agent, || umount2(BPFFS, MntFlags::MNT_DETACH))?;
        wait_for("the pins to be there again", PATIENCE, || pins_are_there(&agent))?;
        wait_for("status to tell of it", PATIENCE, || {
            let status = agent.cli(&["status"])?;
            ensure!(status.contains("were gone") && status.contains("the agent has mounted"), "{status}");
            ensure!(agent.json(&["status"])?["failing"].as_array().is_some_and(Vec::is_empty), "{status}");
            Ok(())
        })?;
        kept.wait_answers(20)?;

        // Nothing can be pinned on what is there now: that is a failing item with its remedy, until something can.
        among_mounts(&agent, || {
            umount2(BPFFS, MntFlags::MNT_DETACH)?;
            mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>)?;
            let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
            mount(None::<&str>, BPFFS, None::<&str>, flags, None::<&str>)
        })?;
        wait_for("status to name what is wrong", PATIENCE, || {
            let failing = agent.json(&["status"])?["failing"].take();
            let named = failing.as_array().into_iter().flatten().any(|item| {
                item["item"] == "pins" && item["why"].as_str().is_some_and(|why| why.contains("remount,rw"))
            });
            ensure!(named, "{failing}");
            Ok(())
        })?;
        kept.wait_answers(20)?;
        let tally = peer::tcp_load(&client, "192.168.77.11:8080", 10, 2)?;
        ensure!(tally.ok == 10, "new connections meanwhile: {tally:?}");
        among_mounts(&agent, || {
            let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
            mount(None::<&str>, BPFFS, None::<&str>, flags, None::<&str>)
        })?;
        wait_for("the pins to be there again", PATIENCE, || pins_are_there(&agent))?;
        wait_for("nothing to fail any more", PATIENCE, || {
            let failing = agent.json(&["status"])?["failing"].take();
            ensure!(failing.as_array().is_some_and(Vec::is_empty), "{failing}");
            Ok(())
        })?;
        kept.wait_answers(20)?;
        let tally = kept.stop()?;
        ensure!(tally.failed == 0, "connections ended: {tally:?}");
        ensure!(agent.pid() == pid, "it was started again");
        let tally = peer::tcp_load(&client, "192.168.77.11:8080", 10, 2)?;
        ensure!(tally.ok == 10, "{tally:?}");
        Ok(())
    });
}
