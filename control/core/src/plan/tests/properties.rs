//! From any state that damage or an older table left behind, one plan leads to the desired state.

use proptest::prelude::*;

use super::*;

/// What a foreign hand may do to one link.
#[derive(Clone, Copy, Debug)]
enum Damage {
    Delete,
    Down,
    Mtu,
    Alias,
    Master,
    Fdb,
    InnerAddress,
    InnerRoutes,
    InnerDown,
    InnerMac,
}

fn damages() -> impl Strategy<Value = Damage> {
    use Damage::*;
    prop::sample::select(vec![Delete, Down, Mtu, Alias, Master, Fdb, InnerAddress, InnerRoutes, InnerDown, InnerMac])
}

/// A node with some of three networks and up to four tasks.
fn nodes() -> impl Strategy<Value = Desired> {
    (prop::collection::btree_set(4097u32..4100, 1..3), prop::collection::btree_set(2u8..6, 0..4), 0u8..3).prop_map(
        |(vnis, hosts, flood)| {
            let first = *vnis.first().unwrap();
            let mut networks: Vec<_> = vnis.into_iter().map(network).collect();
            for node in 0..flood {
                networks[0].subnets[0].flood.insert([192, 168, 77, 20 + node].into());
            }
            let tasks: Vec<_> = hosts.into_iter().map(|host| task(&format!("t{host}"), first, host)).collect();
            let gateway = (!tasks.is_empty()).then(|| desired().gateway.unwrap());
            Desired { networks, tasks, gateway, ..Desired::default() }
        },
    )
}

fn damage(kernel: &mut Kernel, victim: usize, damage: Damage) {
    let names: Vec<_> = kernel.observed.links.keys().cloned().collect();
    let Some(name) = names.get(victim % names.len().max(1)) else { return };
    let inner = |kernel: &mut Kernel, change: fn(&mut crate::observed::InnerLink)| {
        let namespaces = kernel.observed.namespaces.values_mut();
        let links = namespaces.filter_map(|namespace| match namespace {
            Namespace::Present(inside) => Some(inside.links.values_mut()),
            _ => None,
        });
        let mut links: Vec<_> = links.flatten().collect();
        let count = links.len();
        if count > 0 {
            change(links[victim % count]);
        }
    };
    match damage {
        Damage::Delete => kernel.run(&Plan {
            steps: vec![Step {
                item: Item::Gateway,
                stage: Stage::Finish,
                action: Action::DeleteLink { name: name.clone() },
            }],
            blocked: vec![],
        }),
        Damage::Down => {
            let link = kernel.observed.links.get_mut(name).unwrap();
            link.up = false;
            link.neighbours.clear();
        }
        Damage::Mtu => kernel.observed.links.get_mut(name).unwrap().mtu = 1280,
        Damage::Alias => {
            let link = kernel.observed.links.get_mut(name).unwrap();
            // A veth without alias that is no longer wanted is not provably ours, and stays in the way.
            if !matches!(link.kind, Kind::Veth { .. }) {
                link.alias = None;
            }
        }
        Damage::Master => kernel.observed.links.get_mut(name).unwrap().master = None,
        Damage::Fdb => {
            let link = kernel.observed.links.get_mut(name).unwrap();
            if matches!(link.kind, Kind::Vxlan(_)) {
                link.fdb = BTreeSet::from([([2, 0x42, 1, 2, 3, 4], [9, 9, 9, 9].into())]);
            }
        }
        Damage::InnerAddress => inner(kernel, |link| link.addresses = BTreeSet::from(["10.9.9.9/8".parse().unwrap()])),
        Damage::InnerRoutes => inner(kernel, |link| link.routes.clear()),
        Damage::InnerDown => inner(kernel, |link| {
            link.up = false;
            link.routes.clear();
        }),
        Damage::InnerMac => inner(kernel, |link| link.mac = [2, 9, 9, 9, 9, 9]),
    }
}

proptest! {
    /// Whatever was there before, and whatever was done to it, one plan settles.
    #[test]
    fn one_plan_settles(
        before in nodes(),
        after in nodes(),
        damaged in prop::collection::vec((any::<usize>(), damages()), 0..4),
    ) {
        let mut kernel = settled(&before);
        for (victim, what) in damaged {
            damage(&mut kernel, victim, what);
        }
        for task in &after.tasks {
            kernel.observed.namespaces.entry(task.id.clone()).or_insert_with(|| Namespace::Present(Inside::default()));
        }
        let plan = again(&kernel, &after);
        prop_assert_eq!(&plan.blocked, &[]);
        kernel.run(&plan);
        prop_assert_eq!(again(&kernel, &after), Plan::default());
    }

    /// Planning for nothing removes everything of ours and nothing else.
    #[test]
    fn nothing_of_ours_stays(before in nodes()) {
        let mut kernel = settled(&before);
        kernel.foreign("eth0", Kind::Other(String::new()), None);
        kernel.foreign("docker_gwbridge", Kind::Bridge, None);
        let plan = again(&kernel, &Desired::default());
        kernel.run(&plan);
        prop_assert_eq!(kernel.observed.links.keys().collect::<Vec<_>>(), ["docker_gwbridge", "eth0"]);
    }
}
