//! Programs on containers' own interfaces: attached inside their namespaces, replaced, and gone without a trace.
//! Needs root.

mod support;

use std::collections::BTreeSet;
use std::os::fd::AsFd as _;

use anyhow::Result;
use aya::programs::{SchedClassifier, TcAttachType};
use dataplane::{Attached, Dataplane, Options, TcHook, teardown};
use support::{
    attached::options,
    netns::Netns,
    sandbox::{run, sandbox},
};

const ONE: u32 = 0x8000_0001;
const TWO: u32 = 0x8000_0002;

/// A namespace with an interface `eth0`, whose index is the same in all of them.
fn container() -> Result<Netns> {
    let netns = Netns::new()?;
    netns.run("ip link add eth0 index 77 type veth peer name peer0 index 78")?;
    netns.run("ip link set eth0 up")?;
    Ok(netns)
}

/// Names of the trampolines on `eth0`, in and out.
fn trampolines(netns: &Netns, tcx: bool) -> Result<[Vec<String>; 2]> {
    netns.inside(move || {
        if !tcx {
            let filters = |side| -> Result<_> {
                let shown = run(&format!("tc filter show dev eth0 {side}"))?;
                let words: Vec<_> = shown.split_whitespace().collect();
                let names = words.windows(2).filter(|pair| pair[1] == "direct-action");
                Ok(names.map(|pair| pair[0].to_owned()).collect())
            };
            return Ok([filters("ingress")?, filters("egress")?]);
        }
        let links = |side| -> Result<_> {
            let (_, programs) = SchedClassifier::query_tcx("eth0", side)?;
            Ok(programs.iter().filter_map(|program| program.name_as_str().map(str::to_owned)).collect())
        };
        Ok([links(TcAttachType::Ingress)?, links(TcAttachType::Egress)?])
    })
}

fn names(id: u32) -> [Vec<String>; 2] {
    [vec![format!("hwt_{id:08x}")], vec![format!("hwf_{id:08x}")]]
}

/// Runs `test` with both ways to attach that this kernel has.
fn each_hook(test: impl Fn(&Options) -> Result<()> + Send + Sync + Copy + 'static) -> Result<()> {
    for tc_hook in [TcHook::Clsact, TcHook::Auto] {
        sandbox(move |bpffs| test(&Options { tc_hook, ..options(bpffs) }))?;
    }
    Ok(())
}

#[test]
fn interfaces_of_one_index_in_two_namespaces_are_two() -> Result<()> {
    each_hook(|options| {
        let (one, two) = (container()?, container()?);
        // Without links, a namespace is found by a process in it.
        let mut tenant = two.tenant()?;
        let mut dataplane = Dataplane::open(options)?;
        let tcx = dataplane.uses_tcx();
        assert_eq!(dataplane.attach_sandbox(one.as_fd(), "eth0", ONE)?, Attached::New);
        assert_eq!(dataplane.attach_sandbox(two.as_fd(), "eth0", TWO)?, Attached::New);
        assert_eq!(dataplane.attach_sandbox(one.as_fd(), "eth0", ONE)?, Attached::Unchanged);
        assert_eq!((trampolines(&one, tcx)?, trampolines(&two, tcx)?), (names(ONE), names(TWO)));
        assert_eq!(dataplane.sandboxes()?, BTreeSet::from([ONE, TWO]));
        assert_eq!(dataplane.attachments()?, BTreeSet::new());
        // What is outside sandboxes is another matter.
        assert_eq!(dataplane.detach_all_except(&BTreeSet::new()).detached, []);

        // The next agent.
        drop(dataplane);
        let mut next = Dataplane::open(options)?;
        assert_eq!(next.sandboxes()?, BTreeSet::from([ONE, TWO]));
        assert_eq!(next.attach_sandbox(one.as_fd(), "eth0", ONE)?, Attached::Replaced);
        assert_eq!(next.attach_sandbox(one.as_fd(), "eth0", ONE)?, Attached::Unchanged);
        assert_eq!(trampolines(&one, tcx)?, names(ONE));

        // The id's namespace was replaced by another, with an interface of the same name and index.
        let three = container()?;
        assert_eq!(next.attach_sandbox(three.as_fd(), "eth0", ONE)?, Attached::New);
        assert_eq!(trampolines(&three, tcx)?, names(ONE));

        let detached = next.detach_sandboxes_except(&BTreeSet::from([ONE]));
        tenant.kill()?;
        tenant.wait()?;
        assert_eq!((detached.failures.len(), detached.detached.len()), (0, 2), "{detached:?}");
        assert_eq!((trampolines(&two, tcx)?, trampolines(&three, tcx)?), ([vec![], vec![]], names(ONE)));
        assert!(!two.run("tc qdisc show dev eth0")?.contains("clsact"), "our qdisc was left behind");
        assert_eq!(next.sandboxes()?, BTreeSet::from([ONE]));
        Ok(())
    })
}

/// A container with NET_ADMIN may do so; VIPs are gone for it until the next round.
#[test]
fn what_a_container_deletes_on_its_own_interface_is_put_back() -> Result<()> {
    each_hook(|options| {
        let one = container()?;
        let mut dataplane = Dataplane::open(options)?;
        let tcx = dataplane.uses_tcx();
        dataplane.attach_sandbox(one.as_fd(), "eth0", ONE)?;
        for delete in ["filter del dev eth0 ingress", "filter del dev eth0 egress", "qdisc del dev eth0 clsact"] {
            if tcx {
                // A link is out of its reach: there is nothing of ours that it could delete.
                assert!(one.run(&format!("tc {delete}")).is_err() || delete.starts_with("filter"));
                assert_eq!(trampolines(&one, tcx)?, names(ONE), "after {delete}");
                assert_eq!(dataplane.attach_sandbox(one.as_fd(), "eth0", ONE)?, Attached::Unchanged);
                continue;
            }
            one.run(&format!("tc {delete}"))?;
            assert_ne!(trampolines(&one, tcx)?, names(ONE), "{delete} has deleted nothing");
            assert_ne!(dataplane.attach_sandbox(one.as_fd(), "eth0", ONE)?, Attached::Unchanged, "after {delete}");
            assert_eq!(trampolines(&one, tcx)?, names(ONE), "after {delete}");
            assert_eq!(dataplane.attach_sandbox(one.as_fd(), "eth0", ONE)?, Attached::Unchanged);
        }
        Ok(())
    })
}

#[test]
fn what_was_in_a_namespace_that_is_gone_is_cleared_away() -> Result<()> {
    each_hook(|options| {
        let one = container()?;
        let mut dataplane = Dataplane::open(options)?;
        dataplane.attach_sandbox(one.as_fd(), "eth0", ONE)?;
        // The interface goes at once; a namespace takes its time.
        one.run("ip link del eth0")?;
        assert!(dataplane.attach_sandbox(one.as_fd(), "eth0", ONE).is_err_and(|error| error.no_interface()));
        drop(one);
        let detached = dataplane.detach_sandboxes_except(&BTreeSet::new());
        assert_eq!((detached.failures.len(), detached.detached.len()), (0, 2), "{detached:?}");
        assert_eq!(dataplane.sandboxes()?, BTreeSet::new());
        assert!(dataplane.attach_sandbox(container()?.as_fd(), "eth0", 5).is_err(), "an interface's index as an id");
        Ok(())
    })
}

#[test]
fn a_teardown_finds_the_namespaces_and_leaves_nothing() -> Result<()> {
    each_hook(|options| {
        let (one, two) = (container()?, container()?);
        let mut dataplane = Dataplane::open(options)?;
        let tcx = dataplane.uses_tcx();
        dataplane.attach_sandbox(one.as_fd(), "eth0", ONE)?;
        dataplane.attach_sandbox(two.as_fd(), "eth0", TWO)?;
        drop(dataplane);
        // Without links, a namespace is found by a process in it (or by where it is mounted).
        let mut tenants = [one.tenant()?, two.tenant()?];
        let report = teardown(&options.bpffs)?;
        for tenant in &mut tenants {
            tenant.kill()?;
            tenant.wait()?;
        }
        assert_eq!(report.failures, [""; 0]);
        assert!(report.foreign.is_empty(), "{:?}", report.foreign);
        assert!(!options.bpffs.exists());
        for netns in [&one, &two] {
            assert!(trampolines(netns, tcx)?.concat().is_empty(), "a trampoline was left behind");
            assert!(!netns.run("tc qdisc show dev eth0")?.contains("clsact"), "our qdisc was left behind");
        }
        Ok(())
    })
}

/// The kernel gives the inode of a namespace that is gone to the next one.
#[test]
fn a_namespace_with_a_used_inode_keeps_its_programs_when_the_former_one_is_cleared_away() -> Result<()> {
    sandbox(|bpffs| {
        let options = &Options { tc_hook: TcHook::Clsact, ..options(bpffs) };
        let one = container()?;
        let mut dataplane = Dataplane::open(options)?;
        dataplane.attach_sandbox(one.as_fd(), "eth0", ONE)?;
        let inode = one.inode()?;
        drop(one);
        let two = with_inode(inode)?;
        two.run("ip link add eth0 index 77 type veth peer name peer0 index 78")?;
        // In the order of an update: the new container is there before the old one is let go.
        let mut tenant = two.tenant()?;
        assert_eq!(dataplane.attach_sandbox(two.as_fd(), "eth0", TWO)?, Attached::New);
        let detached = dataplane.detach_sandboxes_except(&BTreeSet::from([TWO]));
        let kept = trampolines(&two, false)?;
        // What is really there goes.
        let last = dataplane.detach_sandboxes_except(&BTreeSet::new());
        let left = trampolines(&two, false)?;
        tenant.kill()?;
        tenant.wait()?;
        assert_eq!((detached.failures.len(), detached.detached.len()), (0, 2), "{detached:?}");
        assert_eq!(kept, names(TWO), "another container was disarmed");
        assert_eq!((last.failures.len(), left), (0, [vec![], vec![]]), "{last:?}");
        assert!(!two.run("tc qdisc show dev eth0")?.contains("clsact"), "the clsact qdisc was left behind");
        Ok(())
    })
}

/// A new namespace with that inode, which was another's: the lowest free number is given out next.
fn with_inode(inode: u64) -> Result<Netns> {
    // A namespace that nothing uses is destroyed in the background.
    for _ in 0..200 {
        let mut tried = Vec::new();
        for _ in 0..20 {
            let netns = Netns::new()?;
            if netns.inode()? == inode {
                return Ok(netns);
            }
            tried.push(netns);
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    anyhow::bail!("no new namespace has the inode {inode} again")
}
