//! The firewall with another version's `nft`: a test program of its own, because it changes its own `PATH`. Needs root
//! and `nft`.

mod support;

use std::collections::BTreeSet;

use control::nft::{self, Firewall, Foreign, HostRules};
use support::{in_fresh_netns, run};

fn firewall() -> Firewall {
    let host = HostRules {
        ip: [169, 254, 72, 1].into(),
        vtep: [192, 0, 2, 1].into(),
        bridges: BTreeSet::from(["hw-gwbridge".into()]),
        ports: BTreeSet::from([(6, 8080)]),
        bound: Vec::new(),
        engine: false,
        mss: 1410,
    };
    Firewall {
        vxlan_port: 4789,
        vteps: BTreeSet::from([[192, 0, 2, 9].into()]),
        vtep: Some([192, 0, 2, 1].into()),
        bridges: ["hw-gwbridge".into()].into(),
        overlays: ["hwb4097".into()].into(),
        vnis: BTreeSet::from([4097, 16_777_214]),
        foreign: Foreign::Vnis(BTreeSet::from([7])),
        masquerade: None,
        published: BTreeSet::from([8080]),
        published_udp: BTreeSet::from([8080]),
        listed: Vec::new(),
        engine_bridge: None,
        sandbox: BTreeSet::new(),
        host: Some(host),
    }
}

/// `nft` 1.1.4 and enterprise distributions' leave the array around a single flag away.
#[test]
fn how_a_version_of_nft_prints_our_rules_does_not_matter() {
    let scratch = tempfile::tempdir().unwrap();
    let wrapper = scratch.path().join("nft");
    let real = run("which nft");
    let sed = r#"sed 's/\["daddr"\]/"daddr"/g'"#;
    let script = format!("#!/bin/sh\nsaid=$({} \"$@\") || exit\nprintf '%s\\n' \"$said\" | {sed}\n", real.trim());
    std::fs::write(&wrapper, script).unwrap();
    run(&format!("chmod +x {}", wrapper.display()));
    let path = format!("{}:{}", scratch.path().display(), std::env::var("PATH").unwrap());
    // SAFETY: the only test of its program, before it starts a thread.
    unsafe { std::env::set_var("PATH", path) };
    in_fresh_netns(|| async {
        assert!(nft::ensure(&firewall()).unwrap());
        assert!(run("nft -j list ruleset").contains(r#""flags": "daddr""#), "the wrapper rewrites nothing");
        for _ in 0..3 {
            assert!(!nft::ensure(&firewall()).unwrap(), "replaced though nothing has changed");
        }
        run("nft add rule inet hiveway forward accept");
        assert!(nft::ensure(&firewall()).unwrap(), "damage went unnoticed");
        let listing = run("nft -a list chain inet hiveway host_output");
        let rule = listing.lines().find(|line| line.contains("dnat")).unwrap();
        let handle = rule.rsplit(' ').next().unwrap();
        run(&format!("nft replace rule inet hiveway host_output handle {handle} accept"));
        assert!(nft::ensure(&firewall()).unwrap(), "a rule in the place of another went unnoticed");
        assert!(!nft::ensure(&firewall()).unwrap());
        assert_eq!(nft::drops().unwrap().forged.packets, 0);
    });
}
