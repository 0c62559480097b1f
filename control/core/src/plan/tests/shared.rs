//! Tasks that lead to one network namespace.

use super::*;
use crate::desired::AttachedTask;

const ONE: (u64, u64) = (4, 4_026_532_281);

fn two() -> Desired {
    let base = desired();
    Desired { tasks: vec![task("web.1", 4097, 3), task("web.2", 4097, 4)], ..base }
}

/// Both tasks have the namespace of `from`.
fn merged(kernel: &mut Kernel, from: &str) {
    let inside = kernel.inside(from).clone();
    for task in ["web.1", "web.2"] {
        *kernel.inside(task) = Inside { identity: Some(ONE), ..inside.clone() };
    }
}

fn blocked(kernel: &Kernel, desired: &Desired) -> Vec<String> {
    let plan = plan(&kernel.observed, desired, TUNNEL);
    plan.blocked.iter().map(|blocked| blocked.item.to_string()).collect()
}

#[test]
fn the_first_one_gets_it_and_the_other_is_named() {
    let (mut kernel, desired) = (Kernel::with_namespaces(&two()), two());
    merged(&mut kernel, "web.1");
    let first = plan(&kernel.observed, &desired, TUNNEL);
    assert!(first.blocked.iter().any(|blocked| blocked.why.contains("is that of task web.1 too")), "{first:?}");
    kernel.run(&first);
    // Each of the paths leads to what the first one has now.
    merged(&mut kernel, "web.1");
    let second = plan(&kernel.observed, &desired, TUNNEL);
    assert_eq!((second.steps.as_slice(), blocked(&kernel, &desired)), ([].as_slice(), vec!["task web.2".to_owned()]));
}

#[test]
fn who_is_wired_keeps_it_against_a_lower_id() {
    let only = Desired { tasks: vec![task("web.2", 4097, 4)], ..desired() };
    let (mut kernel, desired) = (Kernel::with_namespaces(&two()), two());
    kernel.run(&plan(&kernel.observed, &only, TUNNEL));
    merged(&mut kernel, "web.2");
    let next = plan(&kernel.observed, &desired, TUNNEL);
    assert_eq!((next.steps.as_slice(), blocked(&kernel, &desired)), ([].as_slice(), vec!["task web.1".to_owned()]));
}

#[test]
fn an_engines_container_keeps_its_own_and_others_do_not_matter() {
    let mut desired = two();
    let mut kernel = Kernel::with_namespaces(&desired);
    assert_eq!(blocked(&kernel, &desired), Vec::<String>::new(), "unknown is not the same");
    merged(&mut kernel, "web.1");
    desired.attached = vec![attached("zz")];
    let zz = Namespace::Present(Inside { identity: Some(ONE), ..Inside::default() });
    kernel.observed.namespaces.insert("zz".into(), zz);
    assert_eq!(blocked(&kernel, &desired), ["task web.1", "task web.2"]);
    kernel.inside("web.2").identity = Some((4, 1));
    assert_eq!(blocked(&kernel, &desired), ["task web.1"]);
}

fn attached(id: &str) -> AttachedTask {
    AttachedTask {
        id: id.into(),
        tag: [9; 8],
        netns: None,
        ip: [10, 0, 1, 7].into(),
        overlay_ports: Vec::new(),
        running: true,
        unreachable: false,
        gateway: false,
    }
}
