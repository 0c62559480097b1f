use super::{large::LEAST, *};

const A: Ip4 = [192, 0, 2, 2];
const STEP: u64 = SECOND / 5;

/// A swarm of nodes behind paths that take so many bytes; 0: nothing comes back.
struct World {
    prober: Prober,
    now: u64,
    paths: BTreeMap<Ip4, u16>,
    probed: BTreeMap<Ip4, Probed>,
    sent: Vec<Due>,
    /// What this node's interface takes.
    interface: u16,
    /// So many large probes get lost from now on, whatever the path takes.
    unlucky: u32,
}

impl World {
    fn new(paths: impl IntoIterator<Item = (Ip4, u16)>) -> Self {
        let paths: BTreeMap<_, _> = paths.into_iter().collect();
        let mut prober = Prober::default();
        prober.follow(&paths.keys().copied().collect(), SECOND);
        let probed = paths.keys().map(|vtep| (*vtep, Probed::default())).collect();
        Self { prober, now: SECOND, paths, probed, sent: Vec::new(), interface: 1500, unlucky: 0 }
    }

    fn run(&mut self, seconds: u64) {
        let end = self.now + seconds * SECOND;
        while self.now < end {
            self.prober.read(self.now, &self.probed);
            let limits = self.prober.limits();
            for due in self.prober.due(self.now, &limits, self.interface) {
                self.sent.push(due);
                let large = usize::from(due.size) != OUTER_LEN;
                if due.size > self.paths[&due.vtep] {
                    continue;
                }
                if large && self.unlucky > 0 {
                    self.unlucky -= 1;
                    continue;
                }
                let entry = self.probed.get_mut(&due.vtep).unwrap();
                entry.answered = self.now;
                if large {
                    (entry.large_sequence, entry.large_size) = (due.sequence, due.size);
                } else {
                    (entry.sequence, entry.rtt) = (due.sequence, 70);
                }
            }
            self.now += STEP;
        }
        self.prober.read(self.now, &self.probed);
    }

    fn view(&self) -> PathView {
        self.prober.views().remove(&A).unwrap()
    }
}

#[test]
fn a_path_passes_fails_and_passes_again() {
    let mut world = World::new([(A, 1500)]);
    assert_eq!(world.view().state, State::Waiting);
    world.run(5);
    let view = world.view();
    assert_eq!((view.state, view.loss, view.rtt), (State::Passing, 0.0, Some(Duration::from_micros(70))));
    world.run(40);
    assert_eq!((world.view().passed, world.view().limit), (Some(1500), None));
    world.paths.insert(A, 0);
    world.run(1);
    assert_eq!(world.view().state, State::Passing);
    world.run(5);
    assert_eq!(world.view().state, State::Failing);
    assert!(world.view().loss > 0.0);
    world.paths.insert(A, 1500);
    world.run(4);
    assert_eq!(world.view().state, State::Passing);
}

#[test]
fn a_node_is_given_a_moment_only_if_it_joins_while_others_pass() {
    const B: Ip4 = [192, 0, 2, 3];
    let mut world = World::new([(A, 1500)]);
    assert_eq!((world.view().state, world.view().joining), (State::Waiting, false));
    world.run(1);
    assert_eq!(world.view().state, State::Passing);
    world.paths.insert(B, 0);
    world.probed.insert(B, Probed::default());
    world.prober.follow(&BTreeSet::from([A, B]), world.now);
    let b = |world: &World| (world.prober.views()[&B].state, world.prober.views()[&B].joining);
    assert_eq!(b(&world), (State::Waiting, true));
    world.run(2);
    assert_eq!(b(&world), (State::Waiting, true));
    world.run(2);
    assert_eq!(b(&world), (State::Waiting, false));
    // After all paths have failed there is nothing to go by.
    world.paths.insert(A, 0);
    world.run(10);
    world.prober.follow(&BTreeSet::from([A]), world.now);
    world.prober.follow(&BTreeSet::from([A, B]), world.now);
    assert_eq!(b(&world), (State::Waiting, false));
    // Nor is there after a moment without any: the table may have been away.
    world.prober.follow(&BTreeSet::new(), world.now);
    world.run(5);
    world.prober.follow(&BTreeSet::from([B]), world.now);
    assert_eq!(b(&world), (State::Waiting, false));
    // One that has been alone is joined.
    world.prober.follow(&BTreeSet::new(), world.now);
    world.run(5);
    world.prober.follow(&BTreeSet::new(), world.now);
    world.run(6);
    world.prober.follow(&BTreeSet::from([B]), world.now);
    assert_eq!(b(&world), (State::Waiting, true));
    world.run(4);
    assert_eq!(b(&world), (State::Waiting, false));
}

#[test]
fn a_first_probe_that_is_lost_is_followed_by_others_at_once() {
    // Of a thousand paths each is probed every 20 seconds.
    let mut world = World::new((0..1000u32).map(|n| (n.to_be_bytes(), 1500)));
    let vtep = 7u32.to_be_bytes();
    world.paths.insert(vtep, 0);
    world.run(30);
    assert_eq!(world.prober.views()[&vtep].state, State::Failing);
}

#[test]
fn a_single_loss_changes_nothing() {
    let mut world = World::new([(A, 1500)]);
    for _ in 0..20 {
        world.run(4);
        world.paths.insert(A, 0);
        world.run(1);
        world.paths.insert(A, 1500);
        assert_eq!(world.view().state, State::Passing);
    }
    let loss = world.view().loss;
    assert!((0.1..0.4).contains(&loss), "{loss}");
}

#[test]
fn a_node_that_never_answers_fails_after_a_while() {
    let mut world = World::new([(A, 0)]);
    world.run(8);
    assert_eq!(world.view().state, State::Waiting);
    world.run(10);
    assert_eq!((world.view().state, world.view().loss), (State::Failing, 1.0));
    // Only small ones.
    assert!(world.sent.iter().all(|due| usize::from(due.size) == OUTER_LEN));
    // When it answers at last, what was lost before is no loss of the path.
    world.paths.insert(A, 1500);
    world.run(5);
    assert_eq!((world.view().state, world.view().loss), (State::Passing, 0.0));
    assert!((2..8).contains(&world.view().counted));
}

#[test]
fn a_black_hole_is_measured_and_tried_again() {
    let mut world = World::new([(A, 1500)]);
    world.run(40);
    world.paths.insert(A, 1400);
    world.run(90);
    assert_eq!((world.view().limit, world.view().passed), (Some(1400), Some(1400)));
    assert_eq!(world.prober.limits(), BTreeMap::from([(A, 1400)]));
    assert_eq!(world.view().state, State::Passing);
    world.sent.clear();
    world.run(650);
    assert_eq!(world.view().limit, Some(1400));
    let more = world.sent.iter().filter(|due| due.size > 1400).count();
    assert!((1..=4).contains(&more), "{more}");
    world.paths.insert(A, 1500);
    world.run(650);
    assert_eq!(world.view().limit, None);
}

#[test]
fn lost_probes_alone_limit_nothing() {
    let mut world = World::new([(A, 1500)]);
    world.run(40);
    // Three begin a search, more of them lead it astray.
    for unlucky in [3, 5, 8] {
        world.unlucky = unlucky;
        world.run(120);
        assert_eq!((world.unlucky, world.view().limit, world.view().passed), (0, None, Some(1500)), "{unlucky}");
    }
}

#[test]
fn a_lost_probe_does_not_make_a_narrow_path_narrower() {
    let mut world = World::new([(A, 1500)]);
    world.run(40);
    world.paths.insert(A, 1400);
    while world.prober.paths[&A].large.search.is_none() {
        world.run(1);
    }
    world.unlucky = 2;
    world.run(120);
    assert_eq!((world.unlucky, world.view().limit), (0, Some(1400)));
}

#[test]
fn between_interfaces_of_other_sizes_the_smaller_one_is_found() {
    let mut world = World::new([(A, 1500)]);
    world.interface = 8896;
    world.run(120);
    assert_eq!((world.view().limit, world.view().passed), (Some(1500), Some(1500)));
}

#[test]
fn a_narrow_path_that_takes_a_little_more_is_used() {
    let mut world = World::new([(A, 1400)]);
    world.run(120);
    assert_eq!(world.view().limit, Some(1400));
    world.paths.insert(A, 1450);
    world.run(700);
    assert_eq!((world.view().limit, world.view().passed), (Some(1450), Some(1450)));
    // And one that takes less than it did is measured anew.
    world.paths.insert(A, 1300);
    world.run(120);
    assert_eq!(world.view().limit, Some(1300));
}

#[test]
fn what_no_probe_has_shown_to_pass_is_not_said_to() {
    let mut world = World::new([(A, 400)]);
    world.run(120);
    assert_eq!((world.view().state, world.view().passed), (State::Passing, None));
    assert!(world.sent.iter().any(|due| due.size == LEAST));
}

#[test]
fn loss_of_everything_is_no_black_hole() {
    let mut world = World::new([(A, 1500)]);
    world.run(40);
    world.paths.insert(A, 0);
    world.run(60);
    world.paths.insert(A, 1500);
    world.run(60);
    assert_eq!(world.view().limit, None);
}

#[test]
fn a_large_swarm_is_probed_at_a_bounded_rate() {
    let nodes = (0..1000u32).map(|n| (n.to_be_bytes(), 1500));
    let mut world = World::new(nodes);
    world.run(60);
    let small = world.sent.iter().filter(|due| usize::from(due.size) == OUTER_LEN).count() as u64;
    let large = world.sent.len() as u64 - small;
    assert!(small <= 60 * SMALL_PER_SECOND + 60, "{small}");
    assert!(large <= 60 * LARGE_PER_SECOND + 60, "{large}");
    let probed: BTreeSet<_> = world.sent.iter().map(|due| due.vtep).collect();
    assert_eq!(probed.len(), 1000);
}

#[test]
fn paths_in_trouble_do_not_keep_the_others_from_being_probed() {
    // The first hundred answer nothing, the next fifty take no large packets.
    let size = |n: u32| if n < 100 { 0 } else { 1500 - 100 * u16::from(n < 150) };
    let mut world = World::new((0..250u32).map(|n| (n.to_be_bytes(), size(n))));
    world.run(10);
    let tried = |world: &World, large: bool| {
        let sent = world.sent.iter().filter(|due| (usize::from(due.size) != OUTER_LEN) == large);
        sent.map(|due| due.vtep).collect::<BTreeSet<_>>()
    };
    assert_eq!(tried(&world, false).len(), 250);
    world.run(60);
    assert_eq!(tried(&world, true).len(), 150);
}

#[test]
fn in_a_swarm_whose_probes_are_rare_they_are_not_forgotten_in_between() {
    let mut world = World::new((0..2000u32).map(|n| (n.to_be_bytes(), 1500)));
    let vtep = 7u32.to_be_bytes();
    let entry = world.probed.get_mut(&vtep).unwrap();
    (entry.heard, entry.stray, entry.stray_port) = (world.now, world.now, 7789u16.to_be_bytes());
    let mut view_at = |later: u64| {
        world.prober.read(world.now + later * SECOND, &world.probed);
        world.prober.views().remove(&vtep).unwrap()
    };
    let view = view_at(100);
    assert!(view.is_heard(), "{view:?}");
    assert_eq!(view.port, Some(7789));
    let view = view_at(130);
    assert!(!view.is_heard() && view.port.is_none(), "{view:?}");
}

#[test]
fn a_stray_probe_is_forgotten_when_several_have_come_in_as_they_should() {
    let mut world = World::new([(A, 1500)]);
    world.run(5);
    let start = world.now;
    let mut view_at = |stray: u64, heard: u64, now: u64| {
        let entry = world.probed.get_mut(&A).unwrap();
        (entry.stray, entry.heard) = (start + stray * SECOND, start + heard * SECOND);
        entry.stray_port = 4789u16.to_be_bytes();
        world.prober.read(start + now * SECOND, &world.probed);
        world.view().port
    };
    // Every other one takes the wrong way.
    assert_eq!(view_at(2, 3, 3), Some(4789));
    assert_eq!(view_at(4, 7, 7), Some(4789));
    // No longer; and where nothing comes in any more it is remembered as all that was heard.
    assert_eq!(view_at(4, 10, 10), None);
    assert_eq!(view_at(4, 3, 30), Some(4789));
    assert_eq!(view_at(4, 3, 35), None);
}

#[test]
fn nodes_that_are_gone_are_forgotten() {
    let mut world = World::new([(A, 1500)]);
    world.run(5);
    world.prober.follow(&BTreeSet::new(), world.now);
    assert!(world.prober.views().is_empty() && world.prober.limits().is_empty());
}
