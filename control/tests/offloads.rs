//! Segmentation offloads of real interfaces: turned off, remembered, and given back. Needs root and `ethtool`.

mod support;

use std::collections::BTreeSet;

use control::{netlink::open_space, offloads, state_dir::StateDir};
use support::{Netns, in_fresh_netns};

/// As ethtool says: which of those that the agent turns off are on.
fn on(container: &Netns) -> usize {
    let listed = container.run("ethtool -k eth1");
    let ours = ["tx-udp-segmentation: ", "tx-sctp-segmentation: "];
    listed.lines().filter(|line| ours.iter().any(|name| line.trim().starts_with(name)) && line.contains(": on")).count()
}

#[test]
fn offloads_are_off_while_their_task_serves_and_then_as_they_were() {
    let scratch = tempfile::tempdir().unwrap();
    let containers = [Netns::new("a"), Netns::new("b")];
    for container in &containers {
        container.run("ip link add eth1 type veth peer name eth1x");
        assert_eq!(on(container), 2, "a veth has them on");
    }
    // Somebody has turned it off before: it stays so.
    containers[1].run("ethtool -K eth1 tx-sctp-segmentation off");
    in_fresh_netns(|| async {
        let state = StateDir::open(scratch.path()).unwrap();
        let spaces = containers.each_ref().map(|container| open_space(&container.path()).unwrap().0);
        let found =
            ["ta", "tb"].iter().zip(&spaces).map(|(task, space)| offloads::still_on(task, space, "eth1").unwrap());
        let found: Vec<_> = found.collect();
        assert_eq!(found.iter().map(BTreeSet::len).collect::<Vec<_>>(), [2, 1]);
        offloads::remember(&state, &found.iter().flatten().cloned().collect()).unwrap();
        for (space, on) in spaces.iter().zip(&found) {
            offloads::turn_off(space, on).unwrap();
        }
        assert_eq!(containers.each_ref().map(on), [0, 0]);
        // A second look finds nothing to do and forgets nothing.
        assert!(offloads::still_on("ta", &spaces[0], "eth1").unwrap().is_empty());
        offloads::remember(&state, &BTreeSet::new()).unwrap();
        assert_eq!(state.offloads().unwrap().len(), 3);

        // A task that is only not seen for a moment keeps its setting.
        let (given_back, failures) = offloads::give_back(&state, |offload| offload.task == "ta");
        assert_eq!((given_back, failures.len()), (1, 0));
        assert_eq!(containers.each_ref().map(on), [0, 1]);
        // Teardown.
        assert_eq!(offloads::give_back(&state, |_| false).0, 2);
        assert_eq!(containers.each_ref().map(on), [2, 1]);
        assert!(state.offloads().unwrap().is_empty());
    });
}

#[test]
fn what_an_older_version_has_turned_off_is_given_back() {
    let scratch = tempfile::tempdir().unwrap();
    let container = Netns::new("a");
    container.run("ip link add eth1 type veth peer name eth1x");
    container.run("ethtool -K eth1 tx-udp-segmentation off");
    in_fresh_netns(|| async {
        use std::os::unix::fs::MetadataExt as _;
        let state = StateDir::open(scratch.path()).unwrap();
        let inode = std::fs::metadata(container.path()).unwrap().ino();
        let offload = serde_json::json!([{"netns": container.path(), "inode": inode, "interface": "eth1",
                                          "feature": "tx-udp-segmentation"}]);
        std::fs::write(scratch.path().join("offloads.json"), offload.to_string()).unwrap();
        assert_eq!(offloads::give_back(&state, |offload| !offload.task.is_empty()).0, 1);
        assert_eq!(on(&container), 2);
    });
}
