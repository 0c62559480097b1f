//! Rules as several programs, and several versions of them, print them.

use super::*;

/// The same rules as two versions of `nft` print them: JSON, words, and elements of sets, one set a line.
#[test]
fn versions_of_nft_are_read_alike() {
    let old = (
        include_str!("../fixtures/nft-1.0.6.json"),
        include_str!("../fixtures/nft-1.0.6.txt"),
        include_str!("../fixtures/nft-1.0.6.sets"),
    );
    let new = (
        include_str!("../fixtures/nft-1.1.7.json"),
        include_str!("../fixtures/nft-1.1.7.txt"),
        include_str!("../fixtures/nft-1.1.7.sets"),
    );
    let read = |(listing, words, sets): (&str, &str, &str)| {
        let listing: Value = serde_json::from_str(listing).unwrap();
        let mut elements = Elements::new();
        for line in sets.lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            let objects = line["nftables"].as_array().unwrap().iter();
            for set in objects.filter_map(|object| object.get("set").or_else(|| object.get("map"))) {
                let word = |key: &str| set[key].as_str().unwrap().to_owned();
                let all = set["elem"].as_array().cloned().unwrap_or_default();
                elements.insert((word("family"), word("table"), word("name")), all);
            }
        }
        let tables = nftables::tables(&listing, &elements, &nftables::texts(words), &[]);
        let ingress = tables.iter().find(|table| table.family == "netdev").unwrap().chains["ing"].base.clone().unwrap();
        assert_eq!(ingress.devices, Some(vec!["eth0".to_owned(), "eth1".to_owned()]));
        let judgement = judged(tables, &path());
        let mut reasons: Vec<_> = judgement
            .reasons
            .iter()
            .map(|reason| {
                (reason.chain.clone(), prefixes(&reason.sources), reason.ports.clone(), reason.interfaces.clone())
            })
            .collect();
        reasons.sort();
        (said(&judgement), reasons)
    };
    let (old, new) = (read(old), read(new));
    assert_eq!(old, new);
    assert_eq!(old.0[0], "1.2.3.0/24 9.9.9.9/32 203.0.113.77/32");
    assert!(old.0[1].starts_with("8080: ") && old.0.len() == 2, "{:?}", old.0);
}

/// `ip filter` with rules of `iptables-nft` and of `nft`, as both print them.
fn mixed() -> (Value, Elements, nftables::Texts, Vec<Table>) {
    let set: Value = serde_json::from_str(include_str!("../fixtures/iptables-nft-1.8.9.sets")).unwrap();
    let good = set["nftables"][1]["set"]["elem"].as_array().unwrap().clone();
    let office = Addresses::exactly(Ranges::net("198.51.100.9/32".parse().unwrap()));
    let sets = Sets::from([("office".to_owned(), office)]);
    (
        serde_json::from_str(include_str!("../fixtures/iptables-nft-1.8.9.json")).unwrap(),
        Elements::from([(("ip".into(), "filter".into(), "good".into()), good)]),
        nftables::texts(include_str!("../fixtures/iptables-nft-1.8.9.txt")),
        iptables::tables(include_str!("../fixtures/iptables-nft-1.8.9.save"), &sets),
    )
}

/// To which clients a port is closed at an interface.
fn closed(tables: Vec<Table>, interface: &str, port: Port) -> Ranges {
    let closed = judge(&Ruleset { tables, ..Ruleset::default() }, &path(), &Ignored::None);
    let found = closed.clients.into_iter().find(|(ports, name, _)| ports.contains(&port) && name == interface);
    found.map_or(Ranges::NONE, |(_, _, clients)| clients)
}

/// `iptables-nft-save` prints rules that `nft` has written without their sets, ranges and verdict maps: an allow list
/// in a set would open a port to everybody, a ban on a set would close it to everybody.
#[test]
fn rules_of_nft_in_a_table_of_iptables_are_read_as_nft_prints_them() {
    let (listing, elements, texts, lines) = mixed();
    let tables = nftables::tables(&listing, &elements, &texts, &lines);
    let allowed = Ranges::of([(0x0a00_0001, 0x0a00_0004), (0x0a00_0008, 0x0a00_000f), (0xc633_6409, 0xc633_6409)]);
    let banned = "10.0.0.1/32 10.0.0.2/32 198.51.100.9/32 203.0.113.7/32 203.0.113.8/32";
    assert_eq!(prefixes(&closed(tables.clone(), "eth0", (6, 8080))), prefixes(&allowed.complement()));
    assert_eq!(prefixes(&closed(tables.clone(), "eth0", (17, 53))), "");
    for port in [(6, 8080), (17, 53)] {
        assert_eq!(prefixes(&closed(tables.clone(), "eth1", port)), banned);
    }
    let mut rules: Vec<_> = judged(tables, &path()).reasons.into_iter().map(|reason| reason.rule).collect();
    rules.sort();
    assert_eq!(
        rules,
        [
            "-A allowed -p tcp -m conntrack --ctorigdstport 8080 -j DROP",
            "-A banned -m set --match-set office src -j DROP",
            "-A banned -s 203.0.113.8/32 -m comment --comment \"-j ACCEPT\" -j DROP",
            "ip saddr @good drop",
            "ip saddr vmap { 203.0.113.7 : drop }",
        ]
    );
}

/// Without its line a rule may match or not: it closes what else it names, and lets nothing pass for sure.
#[test]
fn rules_that_cannot_be_told_apart_are_unsure() {
    let (listing, elements, texts, mut lines) = mixed();
    let filter = lines.iter_mut().find(|table| table.name == "filter").unwrap();
    for chain in ["allowed", "banned"] {
        filter.chains.get_mut(chain).unwrap().rules.remove(0);
    }
    let tables = nftables::tables(&listing, &elements, &texts, &lines);
    let allowed = Ranges::of([(0x0a00_0001, 0x0a00_0004), (0x0a00_0008, 0x0a00_000f)]);
    assert_eq!(prefixes(&closed(tables.clone(), "eth0", (6, 8080))), prefixes(&allowed.complement()));
    assert!(closed(tables.clone(), "eth1", (17, 53)).is_all(), "the set may hold everybody");
    let judgement = judged(tables, &path());
    let comment = judgement.reasons.iter().find(|reason| reason.rule.contains("203.0.113.8")).unwrap();
    assert_eq!(prefixes(&comment.sources), "203.0.113.8/32", "a comment hides nothing");
}

/// Base chains of `nft` in iptables' tables have names that iptables does not know.
#[test]
fn a_base_chain_beside_iptables_own_is_asked() {
    let listing = json!({"nftables": [
        {"chain": {"family": "ip", "table": "raw", "name": "bans", "type": "filter", "hook": "prerouting", "prio": -310, "policy": "accept"}},
        {"rule": {"family": "ip", "table": "raw", "chain": "bans", "expr": [field("ip", "saddr", json!("203.0.113.7")), {"drop": null}]}},
    ]});
    let lines = iptables::tables(
        "*raw\n:PREROUTING ACCEPT [0:0]\n:bans - [0:0]\n-A bans -s 203.0.113.7/32 -j DROP\n",
        &Sets::new(),
    );
    let tables = nftables::tables(&listing, &Elements::new(), &BTreeMap::new(), &lines);
    assert_eq!(said(&judged(tables, &path())), ["203.0.113.7/32"]);
}

/// `nft` before 1.0.3 does not say which extension of iptables' a rule has.
#[test]
fn extensions_without_a_name_may_drop() {
    let listing = json!({"nftables": [
        {"chain": {"family": "ip", "table": "raw", "name": "PREROUTING", "type": "filter", "hook": "prerouting", "prio": -300, "policy": "accept"}},
        {"rule": {"family": "ip", "table": "raw", "chain": "PREROUTING", "expr": [field("ip", "saddr", json!("203.0.113.7")), {"xt": null}]}},
    ]});
    let with = |line: &str| {
        let lines = iptables::tables(&format!("*raw\n:PREROUTING ACCEPT [0:0]\n{line}COMMIT\n"), &Sets::new());
        said(&judged(nftables::tables(&listing, &Elements::new(), &BTreeMap::new(), &lines), &path()))
    };
    assert_eq!(with(""), ["203.0.113.7/32"]);
    assert_eq!(with("-A PREROUTING -s 203.0.113.7/32 -j TARPIT\n"), ["203.0.113.7/32"]);
    assert_eq!(with("-A PREROUTING -s 203.0.113.7/32 -j LOG\n"), Vec::<String>::new());
}
