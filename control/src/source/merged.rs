//! Which of the live sources counts, and the table that follows from all of them. No I/O, for tests.

use std::sync::Arc;

use hiveway_core::{
    Model,
    docker_api::Loaded,
    merge::{LocalView, Reports, merge},
    model::{Dataplane, Node, NodeState},
};

use super::{Live, Lost, Own};
use crate::engine::{EngineView, Membership};

/// Where a table came from, which says what is in it already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The manager itself: without anybody's reports.
    Swarm,
    /// A manager's agent.
    Relay,
}

/// A table as it came, before anything was put in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// It.
    pub table: Arc<Loaded>,
    /// Where it came from.
    pub origin: Origin,
    /// This node's id then.
    pub node: Option<String>,
}

/// What the sources say at a moment.
#[derive(Clone, Debug)]
pub(super) struct Inputs {
    pub(super) engine: Arc<EngineView>,
    /// Only where the control socket is to be used.
    pub(super) swarm: Option<Arc<Live>>,
    pub(super) relayed: Arc<Live>,
    pub(super) reports: Arc<Reports>,
    /// What the agent itself says of this node.
    pub(super) own: Arc<Own>,
}

/// Remembers what counted last.
#[derive(Debug, Default)]
pub(super) struct Merged {
    /// `--node`, where it was given: id or host name.
    pub(super) node: Option<String>,
    pub(super) base: Option<Base>,
    /// Where the base is from, for display.
    from: String,
    lost: Option<Lost>,
    expelled: Option<String>,
    /// This node's own entry, as it was last seen.
    own: Option<Node>,
    merged: Option<Arc<Loaded>>,
    /// Some source has said something.
    pub(super) heard: bool,
}

impl Merged {
    /// Begins with what an earlier agent has kept.
    pub(super) fn new(node: Option<String>, last: Option<Base>) -> Self {
        Self { node, base: last, from: "what an earlier agent has kept".into(), ..Self::default() }
    }

    /// What the agent is told; `table` is `None` as long as nobody has said anything.
    pub(super) fn mix(&mut self, inputs: &Inputs) -> Live {
        self.choose(inputs);
        let table = match (&self.expelled, &self.base) {
            (Some(_), _) => self.own.clone().map(emptied),
            (None, Some(base)) => Some(self.merge(&base.clone(), inputs)),
            (None, None) => None,
        };
        if let Some(table) = table
            && self.merged.as_ref().is_none_or(|merged| **merged != table)
        {
            self.merged = Some(Arc::new(table));
        }
        let (lost, expelled) = (self.lost.clone(), self.expelled.clone());
        let node = self.own.as_ref().map(|own| own.id.to_string());
        let absent = inputs.engine.local.node.as_deref().and_then(|id| absent(self.merged.as_deref()?, id));
        Live { table: self.merged.clone(), from: self.from.clone(), lost, expelled, absent, node, unkept: None }
    }

    fn choose(&mut self, inputs: &Inputs) {
        let engine = &inputs.engine;
        if engine.membership == Membership::None && engine.lost.is_none() {
            return self.expel("this node's engine says that it is in no swarm".into());
        }
        let swarm = inputs.swarm.as_ref().filter(|live| live.is_current()).map(|live| (live, Origin::Swarm));
        let relayed = inputs.relayed.is_current().then_some((&inputs.relayed, Origin::Relay));
        let Some((live, origin)) = swarm.or(relayed) else { return self.lose(inputs) };
        if let Some(why) = &live.expelled {
            return self.expel(why.clone());
        }
        self.heard = true;
        let Some(table) = live.table.clone() else { return };
        let node = engine.local.node.clone();
        let table = if origin == Origin::Relay { self.with_port(table, node.as_deref()) } else { table };
        self.base = Some(Base { table, origin, node });
        (self.lost, self.expelled, self.from) = (None, None, live.from.clone());
    }

    fn expel(&mut self, why: String) {
        // What it said of the swarm that the node was in is of no use in the next one.
        (self.base, self.lost, self.expelled) = (None, None, Some(why));
        self.heard = true;
    }

    /// Nobody says anything now. What was said last stays.
    fn lose(&mut self, inputs: &Inputs) {
        if self.expelled.is_some() {
            return;
        }
        self.take_old(inputs);
        let source = match &inputs.swarm {
            Some(swarm) if inputs.engine.manager || inputs.relayed.lost.is_none() => swarm,
            _ => &inputs.relayed,
        };
        let lost = source.lost.as_ref();
        let engine = inputs.engine.lost.as_ref();
        let why = lost.or(engine).map_or("no manager has been reached yet", |lost| lost.why.as_str());
        self.lost = Some(Lost::again(self.lost.as_ref().or(lost), why));
    }

    /// A manager's agent whose own source is gone has still the last table that it got, which may be younger than ours.
    /// One that does not know this node is of another swarm.
    fn take_old(&mut self, inputs: &Inputs) {
        let ours = self.base.as_ref().is_none_or(|base| base.origin == Origin::Relay);
        let (Some(table), Some(node)) = (&inputs.relayed.table, &inputs.engine.local.node) else { return };
        if !inputs.engine.manager && ours && table.model.nodes.contains_key(node.as_str()) {
            let table = self.with_port(table.clone(), Some(node));
            self.base = Some(Base { table, origin: Origin::Relay, node: Some(node.clone()) });
            self.from.clone_from(&inputs.relayed.from);
            self.heard = true;
        }
    }

    /// A manager's agent of an earlier version does not say the swarm's data path port. It never changes: what this
    /// node has known of it as a member of the swarm stays.
    fn with_port(&self, table: Arc<Loaded>, node: Option<&str>) -> Arc<Loaded> {
        let same = self.base.as_ref().filter(|base| base.node.as_deref() == node);
        let known = same.and_then(|base| self.merged.as_ref().unwrap_or(&base.table).data_path_port);
        match known {
            Some(port) if table.data_path_port.is_none() => {
                Arc::new(Loaded { data_path_port: Some(port), ..Loaded::clone(&table) })
            }
            _ => table,
        }
    }

    fn merge(&mut self, base: &Base, inputs: &Inputs) -> Loaded {
        let model = &base.table.model;
        let local = &inputs.engine.local;
        let named = || self.node.as_ref().and_then(|node| model.find_node(node).ok()).map(|node| node.id.to_string());
        let node = local.node.clone().or_else(named).or_else(|| base.node.clone());
        let local = LocalView { node, ..inputs.own.complete(local) };
        let reports = (base.origin == Origin::Swarm).then_some(&*inputs.reports);
        let mut merged = merge(&base.table, &local, reports);
        if base.origin == Origin::Swarm {
            // The nodes of a swarm that was made by an old engine do not carry it.
            merged.data_path_port = merged.data_path_port.or(inputs.engine.data_path_port);
        }
        if let Some(own) = local.node.as_deref().and_then(|id| merged.model.nodes.get(id)) {
            self.own = Some(own.clone());
        }
        merged
    }
}

/// Why this node is not in a table of its swarm.
fn absent(table: &Loaded, id: &str) -> Option<String> {
    (!table.model.nodes.contains_key(id)).then(|| match table.why_unplaced(id) {
        Some(why) => format!("this node ({id}) is left out of it: {why}"),
        None => format!("this node ({id}) is not in it"),
    })
}

/// A table with nothing but this node.
fn emptied(own: Node) -> Loaded {
    let own = Node { state: NodeState::Down, dataplane: Dataplane::Hiveway, addresses: Default::default(), ..own };
    Loaded { model: Model { nodes: [(own.id.clone(), own)].into(), ..Model::default() }, ..Loaded::default() }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use hiveway_core::{LeftOut, merge::Report};

    use super::*;

    fn table(service: &str) -> Arc<Loaded> {
        let text = format!(
            "version: 1\nnodes: [{{id: n1, hostname: one, address: 192.0.2.1}}, {{id: n2, hostname: two, address: \
             192.0.2.2}}]\nservices: [{{id: {service}, name: {service}}}]\n"
        );
        let model = hiveway_core::table::parse_file(&text, std::path::Path::new("t.yaml")).unwrap().model;
        Arc::new(Loaded { model, ..Loaded::default() })
    }

    fn inputs() -> Inputs {
        let local = LocalView { node: Some("n1".into()), ..LocalView::default() };
        let engine = EngineView { local, membership: Membership::Member, manager: true, ..EngineView::default() };
        let reports = Reports::from([("n2".to_owned(), Report::default())]);
        let nothing = Arc::new(Live::default());
        Inputs {
            engine: engine.into(),
            swarm: Some(nothing.clone()),
            relayed: nothing,
            reports: reports.into(),
            own: Arc::default(),
        }
    }

    fn current(service: &str) -> Arc<Live> {
        Arc::new(Live::current(table(service), service))
    }

    fn lost(live: &Arc<Live>) -> Arc<Live> {
        let mut live = (**live).clone();
        live.lose("gone");
        Arc::new(live)
    }

    fn services(live: &Live) -> Vec<&str> {
        let table = live.table.iter();
        table.flat_map(|table| table.model.services.keys().map(|id| id.as_str())).collect()
    }

    #[test]
    fn a_manager_that_is_demoted_gets_its_table_from_another() {
        let (mut merged, mut inputs) = (Merged::default(), inputs());
        assert_eq!(merged.mix(&inputs).table, None);
        inputs.swarm = Some(current("own"));
        let live = merged.mix(&inputs);
        assert_eq!((services(&live), live.is_current(), live.node.as_deref()), (vec!["own"], true, Some("n1")));
        // Reports are put into a manager's table.
        assert_eq!(live.table.as_ref().unwrap().model.nodes["n2"].dataplane, Dataplane::Hiveway);
        inputs.reports = Arc::default();
        assert_eq!(merged.mix(&inputs).table.unwrap().model.nodes["n2"].dataplane, Dataplane::None);

        inputs.swarm = Some(lost(&current("own")));
        let live = merged.mix(&inputs);
        assert_eq!((services(&live), live.lost.clone().map(|lost| lost.why)), (vec!["own"], Some("gone".into())));
        inputs.relayed = current("relayed");
        let live = merged.mix(&inputs);
        assert_eq!((services(&live), live.is_current()), (vec!["relayed"], true));
        // Without reports of its own it takes the other manager's word.
        assert_eq!(live.table.unwrap().model.nodes["n2"].dataplane, Dataplane::Hiveway);
        inputs.relayed = lost(&inputs.relayed);
        let since = merged.mix(&inputs).lost.unwrap().since;
        inputs.swarm = Some(lost(&Arc::new(Live::default())));
        let live = merged.mix(&inputs);
        assert_eq!((services(&live), live.lost.clone().unwrap().since), (vec!["relayed"], since));
    }

    #[test]
    fn a_port_that_an_older_managers_table_does_not_carry_stays_known() {
        let with_port = |service: &str, port: u16| {
            let loaded = Loaded { data_path_port: std::num::NonZeroU16::new(port), ..(*table(service)).clone() };
            Arc::new(Live::current(Arc::new(loaded), service))
        };
        let port = |live: Live| live.table.and_then(|table| table.data_path_port).map(std::num::NonZeroU16::get);
        let (mut merged, mut inputs) = (Merged::default(), inputs());
        let engine = EngineView { manager: false, ..(*inputs.engine).clone() };
        (inputs.engine, inputs.swarm) = (engine.into(), None);
        inputs.relayed = with_port("new", 7789);
        assert_eq!(port(merged.mix(&inputs)), Some(7789));
        // Another manager's agent is older; then it is lost as well.
        inputs.relayed = current("old");
        assert_eq!(port(merged.mix(&inputs)), Some(7789));
        inputs.relayed = lost(&current("older"));
        let live = merged.mix(&inputs);
        assert_eq!(services(&live), ["older"]);
        assert_eq!(port(live), Some(7789));
        // What is said counts, and nothing of the swarm that the node was in before.
        inputs.relayed = with_port("new", 7790);
        assert_eq!(port(merged.mix(&inputs)), Some(7790));
        let local = LocalView { node: Some("n2".into()), ..LocalView::default() };
        inputs.engine = EngineView { local, ..(*inputs.engine).clone() }.into();
        inputs.relayed = current("another");
        assert_eq!(port(merged.mix(&inputs)), None);
    }

    #[test]
    fn who_has_left_has_an_empty_table_until_it_joins_again() {
        let (mut merged, mut inputs) = (Merged::default(), inputs());
        inputs.swarm = Some(current("old"));
        merged.mix(&inputs);
        let mut left = EngineView { membership: Membership::None, ..EngineView::default() };
        (inputs.engine, inputs.swarm) = (Arc::new(left.clone()), Some(lost(&current("old"))));
        let live = merged.mix(&inputs);
        assert!(services(&live).is_empty() && live.expelled.is_some());
        assert_eq!(live.table.unwrap().model.nodes.keys().collect::<Vec<_>>(), ["n1"]);

        // While it joins there is nothing new, and the old swarm's table does not come back.
        left.membership = Membership::Unknown;
        inputs.engine = left.into();
        assert!(services(&merged.mix(&inputs)).is_empty());
        let local = LocalView { node: Some("n2".into()), ..LocalView::default() };
        inputs.engine = EngineView { local, membership: Membership::Member, ..EngineView::default() }.into();
        inputs.relayed = current("new");
        let live = merged.mix(&inputs);
        assert_eq!((services(&live), live.expelled.clone(), live.node.as_deref()), (vec!["new"], None, Some("n2")));

        // Refused by a manager's agent: the same.
        let mut refused = Live::default();
        refused.expel("no member");
        inputs.relayed = refused.into();
        assert_eq!(merged.mix(&inputs).expelled.as_deref(), Some("no member"));
    }

    #[test]
    fn a_node_that_is_left_out_of_its_swarm_s_table_hears_why() {
        let (mut merged, mut inputs) = (Merged::default(), inputs());
        let mut loaded = (*table("web")).clone();
        loaded.model.nodes.remove("n1");
        let why = "its address fd00::1 is IPv6, which is not supported yet";
        loaded.left_out = vec![LeftOut { what: "node one (n1)".into(), why: why.into() }];
        inputs.swarm = Some(Arc::new(Live::current(Arc::new(loaded), "x")));
        let live = merged.mix(&inputs);
        assert_eq!(live.waits_for_what(), Some(format!("this node (n1) is left out of it: {why}")));
        assert_eq!(live.node, None);
        inputs.swarm = Some(current("web"));
        assert_eq!(merged.mix(&inputs).waits_for_what(), None);
    }

    #[test]
    fn what_an_earlier_agent_has_kept_is_better_than_nothing() {
        let base = Base { table: table("kept"), origin: Origin::Relay, node: Some("n1".into()) };
        let (mut merged, mut inputs) = (Merged::new(None, Some(base)), inputs());
        inputs.engine =
            EngineView { lost: Some(Lost { since: Instant::now(), why: "down".into() }), ..Default::default() }.into();
        let live = merged.mix(&inputs);
        assert_eq!((services(&live), live.node.as_deref()), (vec!["kept"], Some("n1")));
        assert!(!live.is_current() && !merged.heard);
        // The same table is the same.
        assert!(Arc::ptr_eq(&live.table.unwrap(), &merged.mix(&inputs).table.unwrap()));
    }

    #[test]
    fn an_old_relayed_table_is_better_than_none_but_not_another_swarms_nor_on_managers() {
        let mix = |node: &str, manager| {
            let local = LocalView { node: Some(node.into()), ..LocalView::default() };
            let engine = EngineView { local, membership: Membership::Member, manager, ..EngineView::default() };
            let relayed = lost(&current("old"));
            let inputs =
                Inputs { engine: engine.into(), swarm: None, relayed, reports: Arc::default(), own: Arc::default() };
            Merged::default().mix(&inputs)
        };
        let live = mix("n1", false);
        assert_eq!((services(&live), live.from.as_str()), (vec!["old"], "old"));
        assert_eq!(live.lost.unwrap().why, "gone");
        assert_eq!(mix("n1", true).table, None);
        assert_eq!(mix("n9", false).table, None);
    }
}
