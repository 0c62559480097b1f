//! How programs are attached to devices, and what happens to them afterwards. Needs root.

mod support;

use std::collections::BTreeSet;

use anyhow::Result;
use aya::programs::{
    SchedClassifier, TcAttachType,
    tc::{NlOptions, TcAttachOptions},
};
use dataplane::{Attached, Dataplane, Options, Program, TcHook, XdpMode, teardown, testing::Harness};
use support::{
    attached::{attached, filters, options, refuses_links},
    sandbox::{run, sandbox, veth},
};

#[test]
fn tcx_links_outlive_the_agent_and_are_replaced_in_place() -> Result<()> {
    sandbox(|bpffs| {
        veth("hwv0.1", "peer0")?;
        let options = Options { tc_hook: TcHook::Tcx, ..options(bpffs) };
        if refuses_links(&options)? {
            return Ok(());
        }
        let mut dataplane = Dataplane::open(&options)?;
        assert_eq!(dataplane.attach(Program::FromContainer, "hwv0.1")?, Attached::New);
        assert_eq!(dataplane.attach(Program::FromContainer, "hwv0.1")?, Attached::Unchanged);
        drop(dataplane);
        assert_eq!(attached("hwv0.1")?, ["from_container"]);

        let mut next = Dataplane::open(&options)?;
        assert_eq!(next.attach(Program::FromContainer, "hwv0.1")?, Attached::Replaced);
        assert_eq!(next.attach(Program::FromContainer, "hwv0.1")?, Attached::Unchanged);
        assert_eq!(attached("hwv0.1")?, ["from_container"]);

        // Another device of the same name.
        run("ip link del hwv0.1")?;
        assert!(next.attach(Program::FromContainer, "hwv0.1").is_err_and(|error| error.no_interface()));
        veth("hwv0.1", "peer0")?;
        assert_eq!(next.attach(Program::FromContainer, "hwv0.1")?, Attached::New);
        assert_eq!(attached("hwv0.1")?, ["from_container"]);

        veth("hwv1", "peer1")?;
        next.attach(Program::FromGateway, "hwv1")?;
        let keep = BTreeSet::from([(Program::FromGateway, "hwv1".to_owned())]);
        let detached = next.detach_all_except(&keep);
        assert_eq!(detached.detached, [(Program::FromContainer, "hwv0.1".to_owned())]);
        assert_eq!(detached.failures, [""; 0]);
        assert_eq!((attached("hwv0.1")?.len(), attached("hwv1")?.len()), (0, 1));
        assert_eq!(next.attachments()?, keep);
        Ok(())
    })
}

#[test]
fn clsact_filters_outlive_the_agent_and_are_replaced_in_place() -> Result<()> {
    sandbox(|bpffs| {
        veth("hwv0", "peer0")?;
        let options = Options { tc_hook: TcHook::Clsact, ..options(bpffs) };
        let mut dataplane = Dataplane::open(&options)?;
        assert_eq!(dataplane.attach(Program::FromContainer, "hwv0")?, Attached::New);
        assert_eq!(dataplane.attach(Program::FromContainer, "hwv0")?, Attached::Unchanged);
        drop(dataplane);
        assert_eq!(filters("hwv0")?, 1);

        let mut next = Dataplane::open(&options)?;
        assert_eq!(next.attach(Program::FromContainer, "hwv0")?, Attached::Replaced);
        assert_eq!(filters("hwv0")?, 1);
        run("ip link del hwv0")?;
        veth("hwv0", "peer0")?;
        assert_eq!(next.attach(Program::FromContainer, "hwv0")?, Attached::New);
        // Somebody has removed it.
        run("tc qdisc del dev hwv0 clsact")?;
        assert_eq!(next.attach(Program::FromContainer, "hwv0")?, Attached::New);
        assert_eq!(filters("hwv0")?, 1);
        Ok(())
    })
}

#[test]
fn filters_go_when_a_newer_kernel_has_links() -> Result<()> {
    sandbox(|bpffs| {
        veth("hwv0", "peer0")?;
        let options = Options { tc_hook: TcHook::Clsact, ..options(bpffs) };
        if refuses_links(&options)? {
            return Ok(());
        }
        Dataplane::open(&options)?.attach(Program::FromContainer, "hwv0")?;
        assert_eq!(filters("hwv0")?, 1);
        let mut tcx = Dataplane::open(&Options { tc_hook: TcHook::Tcx, ..options.clone() })?;
        tcx.attach(Program::FromContainer, "hwv0")?;
        let keep = BTreeSet::from([(Program::FromContainer, "hwv0".to_owned())]);
        assert_eq!(tcx.detach_all_except(&keep).detached.len(), 1);
        assert_eq!((filters("hwv0")?, attached("hwv0")?.len()), (0, 1));
        assert!(!run("tc qdisc show dev hwv0")?.contains("clsact"), "our qdisc was left behind");
        Ok(())
    })
}

#[test]
fn a_device_changes_its_part_without_a_gap() -> Result<()> {
    sandbox(|bpffs| {
        veth("eth1", "peer1")?;
        // The best that this kernel has comes last.
        for tc_hook in [TcHook::Clsact, TcHook::Auto] {
            let mut dataplane = Dataplane::open(&Options { tc_hook, ..options(bpffs) })?;
            if tc_hook == TcHook::Auto && !dataplane.uses_tcx() {
                break;
            }
            dataplane.attach(Program::FromClient, "eth1")?;
            assert_eq!(dataplane.attach(Program::FromUnderlay, "eth1")?, Attached::New);
            let keep = BTreeSet::from([(Program::FromUnderlay, "eth1".to_owned())]);
            dataplane.detach_all_except(&keep);
            if dataplane.uses_tcx() {
                assert_eq!((attached("eth1")?, filters("eth1")?), (vec!["from_underlay".to_owned()], 0));
            } else {
                assert!(run("tc filter show dev eth1 ingress")?.contains("from_underlay direct-action"));
                assert_eq!(filters("eth1")?, 1);
            }
            assert_eq!(dataplane.attach(Program::FromUnderlay, "eth1")?, Attached::Unchanged);
        }
        Ok(())
    })
}

#[test]
fn a_qdisc_that_others_use_stays() -> Result<()> {
    sandbox(|bpffs| {
        let options = Options { tc_hook: TcHook::Clsact, ..options(bpffs) };
        let mut dataplane = Dataplane::open(&options)?;
        let none = BTreeSet::new();
        // Not added by us.
        veth("hwv0", "peer0")?;
        run("tc qdisc add dev hwv0 clsact")?;
        dataplane.attach(Program::FromContainer, "hwv0")?;
        assert_eq!(dataplane.detach_all_except(&none).failures, [""; 0]);
        assert!(run("tc qdisc show dev hwv0")?.contains("clsact"));
        // Added by us, but somebody has put a filter there since.
        veth("hwv1", "peer1")?;
        dataplane.attach(Program::FromContainer, "hwv1")?;
        dataplane.attach(Program::FromClient, "hwv1")?;
        assert_eq!(filters("hwv1")?, 2);
        let mut theirs = SchedClassifier::from_pin(bpffs.join("hiveway/filters/from_client@hwv1"))?;
        let place = TcAttachOptions::Netlink(NlOptions { priority: 5, ..NlOptions::default() });
        let link = theirs.attach_with_options("hwv1", TcAttachType::Egress, place)?;
        assert_eq!(dataplane.detach_all_except(&none).failures, [""; 0]);
        assert_eq!(filters("hwv1")?, 0);
        assert!(run("tc filter show dev hwv1 egress")?.contains("direct-action"));
        theirs.detach(link)?;
        Ok(())
    })
}

#[test]
fn the_way_out_is_another_hook_of_the_same_device() -> Result<()> {
    sandbox(|bpffs| {
        veth("eth1", "peer1")?;
        let both = [Program::FromClient, Program::ToOutside].map(|program| (program, "eth1".to_owned()));
        // The best that this kernel has comes last.
        for tc_hook in [TcHook::Clsact, TcHook::Auto] {
            let options = Options { tc_hook, ..options(bpffs) };
            let mut dataplane = Dataplane::open(&options)?;
            let out = |dataplane: &Dataplane| -> Result<usize> {
                Ok(match dataplane.uses_tcx() {
                    true => SchedClassifier::query_tcx("eth1", TcAttachType::Egress)?.1.len(),
                    false => run("tc filter show dev eth1 egress")?.matches("to_outside direct-action").count(),
                })
            };
            for (program, interface) in &both {
                assert_eq!(dataplane.attach(*program, interface)?, Attached::New);
                assert_eq!(dataplane.attach(*program, interface)?, Attached::Unchanged);
            }
            assert_eq!(dataplane.detach_all_except(&both.clone().into()).failures, [""; 0]);
            assert_eq!(out(&dataplane)?, 1);
            drop(dataplane);
            let mut next = Dataplane::open(&options)?;
            assert_eq!(next.attach(Program::ToOutside, "eth1")?, Attached::Replaced);
            assert_eq!(out(&next)?, 1);
            assert_eq!(next.attachments()?, both.clone().into());
            let keep = BTreeSet::from([both[0].clone()]);
            assert_eq!(next.detach_all_except(&keep).detached, [both[1].clone()]);
            assert_eq!(out(&next)?, 0);
            assert_eq!(if next.uses_tcx() { attached("eth1")?.len() } else { filters("eth1")? }, 1);
            next.detach_all_except(&BTreeSet::new());
        }
        Ok(())
    })
}

#[test]
fn xdp_outlives_the_agent_is_replaced_in_place_and_taken_down() -> Result<()> {
    sandbox(|bpffs| {
        veth("eth0", "peer0")?;
        let mode = || -> Result<Option<&str>> {
            let shown = run("ip -d link show eth0")?;
            Ok(["xdpgeneric", "xdp"].into_iter().find(|mode| shown.contains(&format!(" {mode}"))))
        };
        // The best that this kernel has comes last.
        for tc_hook in [TcHook::Clsact, TcHook::Auto] {
            let options = Options { tc_hook, ..options(bpffs) };
            let mut dataplane = Dataplane::open(&options)?;
            assert_eq!(dataplane.attach_xdp("eth0", XdpMode::Native, [0; 6], false)?, Attached::New);
            assert_eq!(dataplane.attach_xdp("eth0", XdpMode::Native, [0; 6], false)?, Attached::Unchanged);
            assert_eq!(mode()?, Some("xdp"));
            drop(dataplane);
            assert_eq!(mode()?, Some("xdp"));

            let mut next = Dataplane::open(&options)?;
            assert_eq!(next.attach_xdp("eth0", XdpMode::Native, [0; 6], false)?, Attached::Replaced);
            assert_eq!(next.attach_xdp("eth0", XdpMode::Native, [0; 6], false)?, Attached::Unchanged);
            next.attach(Program::FromClient, "eth0")?;
            let both = [Program::FromClient, Program::XdpMesh].map(|program| (program, "eth0".to_owned()));
            assert_eq!(next.attachments()?, both.clone().into());
            assert_eq!(next.detach_all_except(&both.clone().into()).detached, []);
            assert_eq!(mode()?, Some("xdp"));
            assert_eq!(next.attach_xdp("eth0", XdpMode::Generic, [0; 6], false)?, Attached::New);
            assert_eq!(mode()?, Some("xdpgeneric"));

            let keep = BTreeSet::from([both[0].clone()]);
            assert_eq!(next.detach_all_except(&keep).detached, [both[1].clone()]);
            assert_eq!(mode()?, None);
            next.attach_xdp("eth0", XdpMode::Generic, [0; 6], false)?;
            drop(next);
            assert_eq!(teardown(&options.bpffs)?.failures, [""; 0]);
            assert_eq!(mode()?, None);
        }
        Ok(())
    })
}

/// Versions before attached `xdp_mesh` itself in drivers.
#[test]
fn the_native_program_of_a_version_before_is_replaced_in_place() -> Result<()> {
    sandbox(|bpffs| {
        veth("eth0", "peer0")?;
        let name = || -> Result<bool> { Ok(run("ip -d link show eth0")?.contains("name xdp_mesh_frags")) };
        let options = options(bpffs);
        let mut dataplane = Dataplane::open(&options)?;
        dataplane.attach_xdp("eth0", XdpMode::Native, [0; 6], false)?;
        assert!(name()?);
        drop(dataplane);
        Harness::new()?.put_on_link(Program::XdpMesh, &options.bpffs.join("links/xdp_mesh@eth0"))?;
        assert!(!name()? && run("ip -d link show eth0")?.contains("name xdp_mesh"));
        let mut next = Dataplane::open(&options)?;
        assert_eq!(next.attach_xdp("eth0", XdpMode::Native, [0; 6], false)?, Attached::Replaced);
        assert!(name()?);
        drop(next);
        assert_eq!(teardown(&options.bpffs)?.failures, [""; 0]);
        Ok(())
    })
}

#[test]
fn a_driver_without_xdp_refuses_and_another_one_is_noticed() -> Result<()> {
    sandbox(|bpffs| {
        let mut dataplane = Dataplane::open(&options(bpffs))?;
        let error = dataplane.attach_xdp("lo", XdpMode::Native, [0; 6], false).err().map(|error| error.to_string());
        assert!(error.as_ref().is_some_and(|error| error.contains("in the driver")), "{error:?}");
        assert_eq!(dataplane.attach_xdp("lo", XdpMode::Generic, [0; 6], false)?, Attached::New);
        // Another device of the same name.
        veth("eth0", "peer0")?;
        assert_eq!(dataplane.attach_xdp("eth0", XdpMode::Generic, [0; 6], false)?, Attached::New);
        run("ip link del eth0")?;
        assert!(dataplane.attach_xdp("eth0", XdpMode::Generic, [0; 6], false).is_err_and(|error| error.no_interface()));
        veth("eth0", "peer0")?;
        assert_eq!(dataplane.attach_xdp("eth0", XdpMode::Generic, [0; 6], false)?, Attached::New);
        Ok(())
    })
}

/// Renames an interface; it is down for a moment.
fn rename(from: &str, to: &str) -> Result<()> {
    for line in [format!("ip link set {from} down"), format!("ip link set {from} name {to} up")] {
        run(&line)?;
    }
    Ok(())
}

#[test]
fn a_renamed_interface_keeps_its_links() -> Result<()> {
    sandbox(|bpffs| {
        veth("eth0", "peer0")?;
        let options = Options { tc_hook: TcHook::Tcx, ..options(bpffs) };
        if refuses_links(&options)? {
            return Ok(());
        }
        let mut dataplane = Dataplane::open(&options)?;
        dataplane.attach(Program::FromClient, "eth0")?;
        dataplane.attach_xdp("eth0", XdpMode::Generic, [0; 6], false)?;
        rename("eth0", "uplink0")?;
        assert_eq!(dataplane.attach(Program::FromClient, "uplink0")?, Attached::Unchanged);
        // Refused as busy, if it were another one.
        assert_eq!(dataplane.attach_xdp("uplink0", XdpMode::Generic, [0; 6], false)?, Attached::Unchanged);
        let keep: BTreeSet<_> =
            [Program::FromClient, Program::XdpMesh].map(|program| (program, "uplink0".to_owned())).into();
        assert_eq!(dataplane.detach_all_except(&keep).detached, []);
        assert_eq!(dataplane.attachments()?, keep);
        Ok(())
    })
}

#[test]
fn a_renamed_interface_loses_its_filter_at_teardown() -> Result<()> {
    sandbox(|bpffs| {
        let options = Options { tc_hook: TcHook::Clsact, ..options(bpffs) };
        // Renamed while nobody looks, and while an agent does.
        for looks in [false, true] {
            veth("eth0", "peer0")?;
            let mut dataplane = Dataplane::open(&options)?;
            dataplane.attach(Program::FromClient, "eth0")?;
            rename("eth0", "uplink0")?;
            if looks {
                dataplane.attach(Program::FromClient, "uplink0")?;
                let keep = BTreeSet::from([(Program::FromClient, "uplink0".to_owned())]);
                assert_eq!(dataplane.detach_all_except(&keep).failures, [""; 0]);
                assert_eq!((filters("uplink0")?, dataplane.attachments()?), (1, keep));
            }
            drop(dataplane);
            let report = teardown(&options.bpffs)?;
            assert_eq!((report.failures, report.foreign), (vec![], vec![]), "looks: {looks}");
            assert_eq!(filters("uplink0")?, 0, "looks: {looks}");
            assert!(!run("tc qdisc show dev uplink0")?.contains("clsact"), "looks: {looks}");
            run("ip link del uplink0")?;
        }
        Ok(())
    })
}
