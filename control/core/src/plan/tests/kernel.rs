//! Applies steps to plain data the way the kernel would, refusing what it would refuse.

use super::*;
use crate::{
    names,
    observed::{HostEnd, InnerLink},
};
use dataplane_common::addr::{HOST_MAC, HOST_PEER_MAC};
use ipnet::Ipv4Net;

pub(super) struct Kernel {
    pub(super) observed: Observed,
    next_index: u32,
}

impl Kernel {
    pub(super) fn with_namespaces(desired: &Desired) -> Self {
        let mut kernel = Self { observed: Observed::default(), next_index: 10 };
        for task in &desired.tasks {
            kernel.observed.namespaces.insert(task.id.clone(), Namespace::Present(Inside::default()));
        }
        kernel
    }

    pub(super) fn foreign(&mut self, name: &str, kind: Kind, alias: Option<&str>) {
        let index = self.index();
        let link = Link { up: true, ..bare(index, kind, alias.map(str::to_owned), 1500) };
        self.observed.links.insert(name.into(), link);
    }

    pub(super) fn inside(&mut self, task: &str) -> &mut Inside {
        match self.observed.namespaces.get_mut(task) {
            Some(Namespace::Present(inside)) => inside,
            other => panic!("namespace of {task} is {other:?}"),
        }
    }

    pub(super) fn run(&mut self, plan: &Plan) {
        for step in &plan.steps {
            self.apply(&step.action);
        }
    }

    fn index(&mut self) -> u32 {
        self.next_index += 1;
        self.next_index
    }

    fn create(&mut self, name: &str, link: Link) {
        assert!(name.len() <= 15, "{name}");
        assert!(self.observed.links.insert(name.into(), link).is_none(), "{name} exists");
    }

    fn link(&mut self, name: &str) -> &mut Link {
        self.observed.links.get_mut(name).unwrap_or_else(|| panic!("no {name}"))
    }

    fn delete(&mut self, name: &str) {
        let link = self.observed.links.remove(name).unwrap_or_else(|| panic!("no {name}"));
        if [names::HOST, names::HOST_FAR].contains(&name) {
            self.observed.host = HostEnd::default();
            self.observed.links.retain(|_, other| link.kind != Kind::Veth { peer: other.index });
        }
        if let Kind::Veth { peer } = link.kind {
            for namespace in self.observed.namespaces.values_mut() {
                if let Namespace::Present(inside) = namespace {
                    inside.links.retain(|_, inner| !(inner.index == peer && inner.peer == Some(link.index)));
                }
            }
        }
        for other in self.observed.links.values_mut() {
            if other.master.as_deref() == Some(name) {
                other.master = None;
                other.isolated = false;
            }
        }
    }

    fn apply(&mut self, action: &Action) {
        match action {
            Action::CreateBridge { name, alias, mtu } => {
                let link = bare(self.index(), Kind::Bridge, Some(alias.clone()), mtu.unwrap_or(1500));
                self.create(name, link);
            }
            Action::CreateVxlan { name, alias, vxlan, mtu } => {
                let link = bare(self.index(), Kind::Vxlan(*vxlan), Some(alias.clone()), *mtu);
                self.create(name, link);
            }
            Action::CreateVeth { task, host, alias, container, mac, mtu } => {
                let (near, far) = (self.index(), self.index());
                self.create(host, bare(near, Kind::Veth { peer: far }, Some(alias.clone()), *mtu));
                let inner = InnerLink { index: far, peer: Some(near), mac: *mac, mtu: *mtu, ..InnerLink::default() };
                assert!(self.inside(task).links.insert(container.clone(), inner).is_none(), "{container} exists");
            }
            Action::CreateHostLink { mtu } => {
                let (near, far) = (self.index(), self.index());
                let end = |name: &str, index, peer, mac| Link {
                    mac,
                    ..bare(index, Kind::Veth { peer }, Some(host::alias(name)), *mtu)
                };
                self.create(names::HOST, end(names::HOST, near, far, HOST_MAC));
                self.create(names::HOST_FAR, end(names::HOST_FAR, far, near, HOST_PEER_MAC));
            }
            Action::HostRoute { to, mtu } => {
                assert!(self.link(names::HOST).up);
                self.observed.host.routes.insert(Ipv4Net::from(*to), *mtu);
            }
            Action::AddNeighbour { name, ip, mac } if name == names::HOST => {
                assert!(self.link(name).up);
                self.observed.host.neighbours.insert(*ip, *mac);
            }
            Action::DeleteLink { name } => self.delete(name),
            Action::Set { name, setting } => self.set(name, setting),
            Action::AddFdb { name, mac, vtep } => {
                let fdb = &mut self.link(name).fdb;
                if *mac != network::FLOOD {
                    fdb.retain(|(there, _)| there != mac);
                }
                fdb.insert((*mac, *vtep));
            }
            Action::RemoveFdb { name, mac, vtep } => assert!(self.link(name).fdb.remove(&(*mac, *vtep))),
            Action::AddNeighbour { name, ip, mac } => {
                let link = self.link(name);
                assert!(link.up);
                link.neighbours.insert(*ip, *mac);
            }
            Action::RemoveNeighbour { name, ip } => assert!(self.link(name).neighbours.remove(ip).is_some()),
            Action::Inside { task, container, inner } => self.enter(task, container, inner),
        }
    }

    fn set(&mut self, name: &str, setting: &Setting) {
        if let Setting::Master(master) = setting {
            assert_eq!(self.link(master).kind, Kind::Bridge);
        }
        if *setting == Setting::RouteLocalnet {
            assert_eq!(name, names::HOST);
            self.observed.host.route_localnet = true;
            return;
        }
        let link = self.link(name);
        match setting {
            Setting::RouteLocalnet => {}
            Setting::Alias(alias) => link.alias = Some(alias.clone()),
            Setting::Mtu(mtu) => link.mtu = *mtu,
            Setting::Master(master) => {
                link.master = Some(master.clone());
                link.isolated = false;
            }
            Setting::NoMaster => link.master = None,
            Setting::Isolated => {
                assert!(link.master.is_some());
                link.isolated = true;
            }
            Setting::AddAddress(address) => assert!(link.addresses.insert(*address)),
            Setting::Up => link.up = true,
        }
    }

    fn enter(&mut self, task: &str, container: &str, inner: &Inner) {
        let inside = self.inside(task);
        if *inner == Inner::LoopbackUp {
            inside.loopback_up = true;
            return;
        }
        let link = inside.links.get_mut(container).unwrap_or_else(|| panic!("no {container} in {task}"));
        match inner {
            Inner::LoopbackUp => unreachable!(),
            Inner::Mtu(mtu) => link.mtu = *mtu,
            Inner::AddAddress(address) => assert!(link.addresses.insert(*address)),
            Inner::RemoveAddress(address) => {
                assert!(link.addresses.remove(address));
                link.routes.retain(|(_, via), _| !address.contains(via));
            }
            Inner::Up => link.up = true,
            Inner::AddRoute(to, via) => {
                assert!(link.up, "routes need a link that is up");
                assert!(link.addresses.iter().any(|address| address.contains(via)), "{via} is not reachable");
                link.routes.retain(|(there, _), _| there != to);
                link.routes.insert((*to, *via), true);
            }
            Inner::RemoveRoute(to, via) => assert!(link.routes.remove(&(*to, *via)).is_some()),
        }
    }
}
