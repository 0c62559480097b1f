//! Rules of real hosts, and what they leave to the host.

mod chains;
mod printed;

use std::{collections::BTreeMap, sync::Arc};

use serde_json::{Value, json};

use super::{iptables::Sets, nftables::Elements, *};

fn path() -> Path {
    let net = |text: &str| Ranges::net(text.parse().unwrap());
    Path {
        engine: true,
        ports: BTreeSet::from([(6, 8080), (17, 53)]),
        interfaces: BTreeSet::from(["eth0".to_owned(), "eth1".to_owned()]),
        addresses: net("192.0.2.1/32").or(&net("198.51.100.1/32")),
        bridge: "docker_gwbridge".into(),
        bridge_subnet: net("172.18.0.0/16"),
        containers: BTreeMap::from([
            ("docker0".to_owned(), net("172.17.0.0/16")),
            ("docker_gwbridge".to_owned(), net("172.18.0.0/16")),
        ]),
    }
}

fn prefixes(ranges: &Ranges) -> String {
    ranges.prefixes().map(|net| net.to_string()).collect::<Vec<_>>().join(" ")
}

/// What is left, in words: `203.0.113.0/24`, `8080: …`, `eth0: …`, `eth0 8080: …`.
fn said(judgement: &Judgement) -> Vec<String> {
    let left = &judgement.left;
    let mut all = Vec::new();
    if !left.everywhere.is_empty() {
        all.push(prefixes(&left.everywhere));
    }
    all.extend(left.by_interface.iter().map(|(name, ranges)| format!("{name}: {}", prefixes(ranges))));
    all.extend(left.by_port.iter().map(|((_, port), ranges)| format!("{port}: {}", prefixes(ranges))));
    all.extend(left.by_both.iter().map(|((name, (_, port)), ranges)| format!("{name} {port}: {}", prefixes(ranges))));
    all
}

fn judged(tables: Vec<Table>, path: &Path) -> Judgement {
    judgement(&Ruleset { tables, ..Ruleset::default() }, path, &Ignored::None)
}

fn saved(text: &str) -> Vec<String> {
    said(&judged(iptables::tables(text, &Sets::new()), &path()))
}

/// With these rules in DOCKER-USER, beside an engine.
fn docker_user(rules: &str) -> Vec<String> {
    let rules: String = rules.lines().map(|rule| format!("-A DOCKER-USER {}\n", rule.trim())).collect();
    saved(&format!(
        "*filter\n:INPUT DROP [0:0]\n:FORWARD DROP [0:0]\n:DOCKER-USER - [0:0]\n:DOCKER-FORWARD - [0:0]\n:office - [0:0]\n\
         -A FORWARD -j DOCKER-USER\n-A FORWARD -j DOCKER-FORWARD\n-A office -s 198.51.100.0/24 -j RETURN\n\
         -A office -j DROP\n{rules}COMMIT\n"
    ))
}

#[test]
fn rules_that_keep_no_client_from_a_published_port_leave_nothing() {
    for fine in [
        "-j RETURN",
        "-p tcp -m tcp --dport 22 -j DROP\n-j RETURN",
        "-p tcp -m multiport --dports 22,9000:9010 -j DROP",
        "-p icmp -j DROP",
        "-i docker0 -j DROP",
        "-o docker0 -j DROP",
        "-i docker_gwbridge -o eth0 -d 10.0.0.0/8 -m conntrack --ctstate NEW -j DROP",
        "-m conntrack --ctstate INVALID -j DROP",
        "-p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -m conntrack --ctstate NEW -j DROP",
        "-p tcp -m tcp --tcp-flags FIN,SYN FIN,SYN -j DROP",
        "-p udp -m udp --dport 8080 -j DROP",
        "-j RETURN\n-j DROP",
        "-i eth0 -j LOG --log-prefix \"a -j DROP\"",
        "-p tcp -m tcp --dport 22 -j office",
        "-m conntrack --ctorigdst 203.0.113.99 -j DROP",
        "-m rpfilter --invert -j DROP",
    ] {
        assert_eq!(docker_user(fine), Vec::<String>::new(), "{fine}");
    }
}

#[test]
fn what_a_rule_may_close_is_left_and_nothing_else() {
    for (rules, left) in [
        ("-s 203.0.113.0/24 -j DROP", "203.0.113.0/24"),
        ("-s 203.0.113.0/24 -m limit --limit 5/min -j DROP", "203.0.113.0/24"),
        ("-i eth0 -s 203.0.113.0/24 -j DROP", "eth0: 203.0.113.0/24"),
        ("-i eth+ -s 203.0.113.7 -j REJECT --reject-with icmp-port-unreachable", "203.0.113.7/32"),
        ("! -s 128.0.0.0/1 -i eth1 -j DROP", "eth1: 0.0.0.0/1"),
        ("-p tcp -m tcp --dport 8000:8100 -j DROP", "8080: 0.0.0.0/0"),
        ("-p tcp -m multiport --dports 22,8080 -s 10.0.0.0/8 -j DROP", "8080: 10.0.0.0/8"),
        ("-p udp -j DROP", "53: 0.0.0.0/0"),
        ("-p tcp -m conntrack --ctorigdstport 8080 --ctdir ORIGINAL -j DROP", "8080: 0.0.0.0/0"),
        ("-m iprange --src-range 10.0.0.4-10.0.0.7 -j DROP", "10.0.0.4/30"),
        (
            "-p tcp --dport 8080 -j office",
            "8080: 0.0.0.0/1 128.0.0.0/2 192.0.0.0/6 196.0.0.0/7 198.0.0.0/11 \
          198.32.0.0/12 198.48.0.0/15 198.50.0.0/16 198.51.0.0/18 198.51.64.0/19 198.51.96.0/22 198.51.101.0/24 \
          198.51.102.0/23 198.51.104.0/21 198.51.112.0/20 198.51.128.0/17 198.52.0.0/14 198.56.0.0/13 198.64.0.0/10 \
          198.128.0.0/9 199.0.0.0/8 200.0.0.0/5 208.0.0.0/4 224.0.0.0/3",
        ),
        ("-i eth+ -s 0.0.0.0/1 -j RETURN\n-i eth+ -p tcp -j DROP", "8080: 128.0.0.0/1"),
        // So are answers, which the first rule does not let pass.
        ("-s 0.0.0.0/1 -j RETURN\n-p tcp -j DROP", "8080: 0.0.0.0/0"),
        // Whether it is accepted cannot be told: nothing is taken out of what is dropped later.
        ("-s 0.0.0.0/1 -m recent --rcheck --name x --rsource -j RETURN\n-s 64.0.0.0/2 -j DROP", "64.0.0.0/2"),
        // Answers count as well.
        ("-o eth0 -d 203.0.113.5 -j DROP", "eth0: 203.0.113.5/32"),
        ("-d 10.9.9.9/32 -j DROP", "10.9.9.9/32"),
        ("-i docker_gwbridge -d 10.0.0.0/8 -j DROP", "10.0.0.0/8"),
        ("-m conntrack --ctstate RELATED,ESTABLISHED -j RETURN\n-s 203.0.113.7/32 -j DROP", "203.0.113.7/32"),
        ("-s 203.0.113.7/32 -j NFQUEUE --queue-num 1", "203.0.113.7/32"),
        ("-s 203.0.113.7/32 -j SOME-EXTENSION --x", "203.0.113.7/32"),
    ] {
        assert_eq!(docker_user(rules), [left], "{rules}");
    }
    let one = docker_user("-i eth0 -p tcp --dport 8080 -s 203.0.113.0/24 -j DROP\n-s 198.51.100.7 -j DROP");
    assert_eq!(one, ["198.51.100.7/32", "eth0 8080: 203.0.113.0/24"]);
}

#[test]
fn what_closes_everything_is_named() {
    for (rules, rule) in [
        ("-j DROP", "-A DOCKER-USER -j DROP"),
        ("-m mark --mark 0x1 -j DROP", "-A DOCKER-USER -m mark --mark 0x1 -j DROP"),
        ("-m set --match-set gone src -j DROP", "-A DOCKER-USER -m set --match-set gone src -j DROP"),
    ] {
        let text = format!(
            "*filter\n:FORWARD DROP [0:0]\n:DOCKER-USER - [0:0]\n-A FORWARD -j DOCKER-USER\n-A DOCKER-USER {rules}\nCOMMIT\n"
        );
        let tables = iptables::tables(&text, &Sets::new());
        let reason = judged(tables.clone(), &path()).unbounded.expect(rules);
        assert_eq!((reason.chain.as_str(), reason.rule.as_str()), ("ip:filter:DOCKER-USER", rule));
        let rules = Ruleset { tables, ..Ruleset::default() };
        let ignored =
            Ignored::Chains(BTreeSet::from(["ip:filter:DOCKER-USER".to_owned(), "ip:filter:FORWARD".to_owned()]));
        assert_eq!(judgement(&rules, &path(), &ignored), Judgement::default());
        let ignored = judgement(&rules, &path(), &Ignored::All);
        assert!(ignored.left.is_empty() && ignored.unbounded.is_none() && !ignored.reasons.is_empty());
    }
}

/// A rule about the only published port, or the only interface, is about that port or interface: it is left to the
/// host.
#[test]
fn what_a_port_or_an_interface_bounds_does_not_end_the_takeover() {
    let judged = |rules: &str, ports: &[Port], interfaces: &[&str]| {
        let text = format!(
            "*filter\n:FORWARD ACCEPT [0:0]\n:DOCKER-USER - [0:0]\n:web - [0:0]\n-A FORWARD -j DOCKER-USER\n\
             -A web -m limit --limit 10/sec -j RETURN\n-A web -j DROP\n{rules}\nCOMMIT\n"
        );
        let interfaces = interfaces.iter().map(|name| (*name).to_owned()).collect();
        let path = Path { ports: ports.iter().copied().collect(), interfaces, ..path() };
        let judgement = judged(iptables::tables(&text, &Sets::new()), &path);
        assert!(judgement.left.everywhere.is_all(), "{rules}: {:?}", judgement.left);
        judgement.unbounded.map(|reason| reason.rule)
    };
    let (web, dns) = ((6, 8080), (17, 53));
    let port = "-A DOCKER-USER -p tcp -m conntrack --ctorigdstport 8080 -m limit --limit 10/sec -j DROP";
    let jump = "-A DOCKER-USER -p tcp -m conntrack --ctorigdstport 8080 -j web";
    let ports = "-A DOCKER-USER -p tcp -m conntrack --ctorigdstport 1:60000 -j DROP";
    for rule in [port, jump, ports] {
        assert_eq!(judged(rule, &[web], &["eth0", "eth1"]), None, "{rule}");
    }
    assert_eq!(judged("-A DOCKER-USER -i eth0 -j DROP", &[web, dns], &["eth0"]), None);
    let both = format!("{port}\n-A DOCKER-USER -p udp -m udp --dport 53 -j DROP");
    assert_eq!(judged(&both, &[web, dns], &["eth0"]), None);
    for all in [
        "-A DOCKER-USER -m mark --mark 0x1 -j DROP",
        "-A DOCKER-USER -p tcp -j DROP",
        "-A DOCKER-USER -p tcp -m conntrack --ctorigdstport 1:65535 -j DROP",
        "-A DOCKER-USER -p tcp -m conntrack ! --ctorigdstport 22 -j DROP",
        "-A DOCKER-USER -i eth+ -j DROP",
    ] {
        let named = judged(&format!("{port}\n{all}"), &[web], &["eth0"]);
        match all.contains("eth+") {
            true => assert_eq!(named, None, "{all}"),
            false => assert_eq!(named.as_deref(), Some(all)),
        }
    }
}

/// Each layout of iptables' FORWARD that an engine makes, with a ban of the administrator's in front.
#[test]
fn an_engines_own_rules_are_known() {
    // 20.10, without and with the routing mesh, and 28.
    let layouts = [
        "-A FORWARD -j DOCKER-USER\n-A FORWARD -j DOCKER-ISOLATION-STAGE-1\n\
         -A FORWARD -o docker_gwbridge -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
         -A FORWARD -o docker_gwbridge -j DOCKER\n-A FORWARD -i docker_gwbridge ! -o docker_gwbridge -j ACCEPT\n\
         -A FORWARD -i docker_gwbridge -o docker_gwbridge -j DROP\n",
        "-A FORWARD -j DOCKER-USER\n-A FORWARD -j DOCKER-INGRESS\n-A FORWARD -j DOCKER-ISOLATION-STAGE-1\n\
         -A FORWARD -o docker_gwbridge -j DOCKER\n-A FORWARD -i docker_gwbridge -o docker_gwbridge -j DROP\n\
         -A FORWARD -j ufw-reject-forward\n",
        "-A FORWARD -j DOCKER-USER\n-A FORWARD -j DOCKER-FORWARD\n",
    ];
    for layout in layouts {
        let text = |first: &str| {
            format!(
                "*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -d 172.18.0.5/32 ! -i docker_gwbridge -j DROP\n\
                 -A PREROUTING -d 172.17.0.2/32 ! -i docker0 -j DROP\nCOMMIT\n\
                 *nat\n:PREROUTING ACCEPT [0:0]\n:DOCKER-INGRESS - [0:0]\n:DOCKER - [0:0]\n\
                 -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER-INGRESS\n\
                 -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n\
                 -A DOCKER-INGRESS -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.18.0.2:8080\n\
                 -A DOCKER-INGRESS -j RETURN\nCOMMIT\n\
                 *filter\n:FORWARD DROP [0:0]\n:DOCKER - [0:0]\n:DOCKER-USER - [0:0]\n:DOCKER-INGRESS - [0:0]\n\
                 :DOCKER-ISOLATION-STAGE-1 - [0:0]\n:DOCKER-ISOLATION-STAGE-2 - [0:0]\n:DOCKER-FORWARD - [0:0]\n\
                 :DOCKER-CT - [0:0]\n:ufw-reject-forward - [0:0]\n{first}{layout}\
                 -A DOCKER-FORWARD -j DOCKER-CT\n-A DOCKER ! -i docker0 -o docker0 -j DROP\n\
                 -A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2\n\
                 -A DOCKER-ISOLATION-STAGE-2 -o docker_gwbridge -j DROP\n-A ufw-reject-forward -j REJECT\nCOMMIT\n"
            )
        };
        assert_eq!(saved(&text("")), Vec::<String>::new(), "{layout}");
        assert_eq!(saved(&text("-A FORWARD -s 203.0.113.9/32 -j DROP\n")), ["203.0.113.9/32"], "{layout}");
        assert_eq!(prefixes(&iptables::ingress_sandbox(&text(""))), "172.18.0.2/32");
    }
    // Where the engine uses nftables, nothing in there is its own.
    assert_eq!(saved("*filter\n:FORWARD DROP [0:0]\nCOMMIT\n"), ["0.0.0.0/0"]);
}

#[test]
fn every_hook_on_the_way_is_asked_and_input_is_not() {
    for (table, chain) in [
        ("raw", "PREROUTING"),
        ("mangle", "PREROUTING"),
        ("nat", "PREROUTING"),
        ("mangle", "FORWARD"),
        ("filter", "FORWARD"),
        ("mangle", "POSTROUTING"),
    ] {
        let text = format!(
            "*{table}\n:{chain} ACCEPT [0:0]\n-A {chain} -s 203.0.113.9/32 -p tcp -m tcp --dport 8080 -j DROP\nCOMMIT\n"
        );
        assert_eq!(saved(&text), ["8080: 203.0.113.9/32"], "{table} {chain}");
    }
    assert_eq!(saved("*filter\n:INPUT DROP [0:0]\n-A INPUT -s 203.0.113.9/32 -j DROP\nCOMMIT\n"), Vec::<String>::new());
    // Before its translation the destination is the node, and no container.
    let raw =
        |to: &str| saved(&format!("*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -d {to} -i eth+ -j DROP\nCOMMIT\n"));
    assert_eq!(raw("172.18.0.5/32"), Vec::<String>::new());
    assert_eq!(raw("192.0.2.1/32"), ["0.0.0.0/0"], "one address of the node");
    assert_eq!(raw("192.0.2.9/32"), Vec::<String>::new());
}

#[test]
fn without_an_engine_a_forward_chain_closes_only_what_it_names() {
    let path = Path { engine: false, ..path() };
    let saved = |rules: &str| {
        let text = format!("*filter\n:FORWARD DROP [0:0]\n-A FORWARD -s 10.0.0.0/8 -j ACCEPT\n{rules}COMMIT\n");
        said(&judged(iptables::tables(&text, &Sets::new()), &path))
    };
    assert_eq!(saved("-A FORWARD -j REJECT\n"), Vec::<String>::new());
    assert_eq!(saved("-A FORWARD -s 203.0.113.9/32 -j DROP\n"), ["203.0.113.9/32"]);
    assert_eq!(saved("-A FORWARD -p tcp -m tcp --dport 8080 -s 203.0.113.9 -j DROP\n"), ["8080: 203.0.113.9/32"]);
}

#[test]
fn sets_become_sources() {
    let net = |text: &str| Ranges::net(text.parse().unwrap());
    let most = net("198.51.100.7/32").or(&net("203.0.113.0/24"));
    let found = Addresses { least: Arc::new(most.minus(&net("203.0.113.128/25"))), most: Arc::new(most) };
    let pairs = Addresses::some_of(net("203.0.113.7/32"));
    let sets = Sets::from([("bad".into(), found), ("p".into(), pairs)]);
    for (rule, left) in [
        ("-m set --match-set bad src -j DROP", "198.51.100.7/32 203.0.113.0/24"),
        ("-m set --match-set p src,dst -j DROP", "203.0.113.7/32"),
        // Its exceptions match, which are not known one by one.
        ("-m set --match-set bad src --return-nomatch -j DROP", "198.51.100.7/32 203.0.113.0/24"),
        ("-i eth+ -m set ! --match-set bad src --return-nomatch -j DROP", "0.0.0.0/0"),
        // The set `a b`, and not a set `bad` with a dimension `b`.
        ("-m set --match-set bad b src -j DROP", "0.0.0.0/0"),
    ] {
        let text = format!("*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING {rule}\nCOMMIT\n");
        assert_eq!(iptables::set_names(&text).count(), 1);
        assert_eq!(said(&judged(iptables::tables(&text, &sets), &path())), [left]);
    }
    // Who is on a list with exceptions is surely in it only if he is none.
    let text = "*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -m set --match-set bad src -j RETURN\n\
                -A PREROUTING -s 203.0.113.0/24 -j DROP\nCOMMIT\n";
    assert_eq!(said(&judged(iptables::tables(text, &sets), &path())), ["203.0.113.128/25"]);
    let reversed = text.replace("bad src", "bad src --return-nomatch");
    assert_eq!(
        said(&judged(iptables::tables(&reversed, &sets), &path())),
        ["203.0.113.0/24"],
        "none is surely let pass"
    );
}

fn native(family: &str, hook: &Value, rules: &[Value], sets: &Elements) -> Vec<String> {
    let mut chain =
        json!({"family": family, "table": "t", "name": "c", "type": "filter", "prio": -300, "policy": "accept"});
    chain.as_object_mut().unwrap().extend(hook.as_object().unwrap().clone());
    let rule =
        |name: &str, expr: &Value| json!({"rule": {"family": family, "table": "t", "chain": name, "expr": expr}});
    let mut objects = vec![
        json!({"chain": chain}),
        json!({"chain": {"family": family, "table": "t", "name": "web"}}),
        rule("web", &json!([dport(json!(8080)), {"accept": null}])),
        // Not asked: ours, an engine's, IPv6's.
        json!({"chain": {"family": "ip", "table": "docker-bridges", "name": "f", "type": "filter", "hook": "forward", "prio": 0, "policy": "drop"}}),
        json!({"chain": {"family": "inet", "table": "hiveway", "name": "f", "type": "filter", "hook": "forward", "prio": 0, "policy": "drop"}}),
        json!({"chain": {"family": "ip6", "table": "filter", "name": "f", "type": "filter", "hook": "forward", "prio": 0, "policy": "drop"}}),
    ];
    objects.extend(rules.iter().map(|expr| rule("c", expr)));
    let ruleset = json!({"nftables": objects});
    said(&judged(nftables::tables(&ruleset, sets, &BTreeMap::new(), &[]), &path()))
}

#[test]
fn a_table_that_is_only_called_like_an_engines_is_asked() {
    let drops = |table: &str| {
        let chain = json!({"chain": {"family": "ip", "table": table, "name": "f", "type": "filter", "hook": "forward",
                                     "prio": 0, "policy": "drop"}});
        let ruleset = json!({"nftables": [chain]});
        said(&judged(nftables::tables(&ruleset, &Elements::new(), &BTreeMap::new(), &[]), &path()))
    };
    for engines in ["docker-bridges", "docker-overlay", "hiveway"] {
        assert_eq!(drops(engines), Vec::<String>::new(), "{engines}");
    }
    for administrators in ["docker-user", "docker-filter", "docker-bridges2", "docker-"] {
        assert_eq!(drops(administrators), ["0.0.0.0/0"], "{administrators}");
    }
}

fn field(protocol: &str, field: &str, right: Value) -> Value {
    json!({"match": {"op": "==", "left": {"payload": {"protocol": protocol, "field": field}}, "right": right}})
}

fn dport(right: Value) -> Value {
    field("tcp", "dport", right)
}

fn meta(key: &str, right: Value) -> Value {
    json!({"match": {"op": "==", "left": {"meta": {"key": key}}, "right": right}})
}

fn ct(key: &str, op: &str, right: Value) -> Value {
    json!({"match": {"op": op, "left": {"ct": {"key": key}}, "right": right}})
}

#[test]
fn native_rules_are_read() {
    let pre = json!({"hook": "prerouting"});
    let drop = json!({"drop": null});
    let concat = json!({"match": {"op": "==", "left": {"concat": [{"payload": {"protocol": "ip", "field": "saddr"}},
        {"payload": {"protocol": "tcp", "field": "dport"}}]}, "right": "@pairs"}});
    let meter = json!({"meter": {"key": {}, "stmt": {"limit": {}}, "name": "m"}});
    let map = json!({"vmap": {"key": {"payload": {"protocol": "ip", "field": "saddr"}}, "data": "@verdicts"}});
    let rpfilter = json!({"match": {"op": "==", "left": {"fib": {"result": "oif", "flags": ["saddr", "mark", "iif"]}}, "right": false}});
    let sets = Elements::from([
        (
            ("inet".into(), "t".into(), "bad".into()),
            vec![
                json!({"prefix": {"addr": "10.0.0.0", "len": 8}}),
                json!({"elem": {"val": "203.0.113.7", "timeout": 3600, "expires": 3599}}),
                json!({"range": ["1.0.0.0", "1.0.0.1"]}),
            ],
        ),
        (
            ("inet".into(), "t".into(), "pairs".into()),
            vec![
                json!({"concat": [{"prefix": {"addr": "10.0.0.0", "len": 8}}, {"range": [80, 90]}]}),
                json!({"concat": ["1.2.3.4", 8080]}),
            ],
        ),
        (
            ("inet".into(), "t".into(), "verdicts".into()),
            vec![json!(["9.9.9.9", {"drop": null}]), json!(["9.9.9.8", {"accept": null}])],
        ),
    ]);
    for (rule, left) in [
        (
            json!([field("ip", "saddr", json!("@bad")), {"counter": {"packets": 0, "bytes": 0}}, drop]),
            "1.0.0.0/31 10.0.0.0/8 203.0.113.7/32",
        ),
        (json!([field("ip", "saddr", json!("@unread")), dport(json!(8080)), drop]), "8080: 0.0.0.0/0"),
        (
            json!([
                field("ip", "saddr", json!({"set": ["1.1.1.1", {"prefix": {"addr": "2.2.2.0", "len": 24}}]})),
                drop
            ]),
            "1.1.1.1/32 2.2.2.0/24",
        ),
        (
            json!([meta("iifname", json!("eth1*")), dport(json!({"set": [80, {"range": [8000, 8100]}]})), field("ip", "saddr", json!("1.1.1.1")), {"reject": {"type": "icmp"}}]),
            "eth1 8080: 1.1.1.1/32",
        ),
        (json!([concat, drop]), "8080: 1.2.3.4/32 10.0.0.0/8"),
        (json!([dport(json!(8080)), meter, drop]), "8080: 0.0.0.0/0"),
        (json!([map]), "9.9.9.9/32"),
        (json!([meta("l4proto", json!("udp")), drop]), "53: 0.0.0.0/0"),
        // `nft` prints no match on the protocol beside these. A rule about UDP says nothing about TCP at its port.
        (json!([field("udp", "dport", json!({"set": [53, 8080]})), drop]), "53: 0.0.0.0/0"),
    ] {
        assert_eq!(native("inet", &pre, std::slice::from_ref(&rule), &sets), [left], "{rule}");
    }
    for fine in [
        json!([meta("nfproto", json!("ipv6")), drop]),
        json!([ct("state", "in", json!("invalid")), drop]),
        json!([{"vmap": {"key": {"ct": {"key": "state"}}, "data": {"set": [["invalid", {"drop": null}], ["established", {"accept": null}]]}}}]),
        json!([field("ip6", "saddr", json!("fd00::1")), drop]),
        json!([meta("iif", json!("lo")), drop]),
        json!([rpfilter, drop]),
        json!([field("icmp", "type", json!("echo-request")), drop]),
        json!([field("udp", "dport", json!(8080)), drop]),
        json!([field("tcp", "dport", json!(53)), drop]),
    ] {
        assert_eq!(native("inet", &pre, std::slice::from_ref(&fine), &sets), Vec::<String>::new(), "{fine}");
    }
}

/// A full set, or a limit in its elements, ends the rule: what stands behind an update is not surely reached.
#[test]
fn updates_of_sets_and_maps_make_a_rule_unsure() {
    let pre = json!({"hook": "prerouting"});
    let saddr = json!({"payload": {"protocol": "ip", "field": "saddr"}});
    let limit = json!([{"limit": {"rate": 10, "burst": 5, "per": "second"}}]);
    let opening = json!([ct("state", "in", json!("new")), {"drop": null}]);
    for update in [
        json!({"set": {"op": "add", "elem": saddr, "set": "@s", "stmt": limit}}),
        json!({"set": {"op": "update", "elem": {"elem": {"val": saddr, "timeout": 60}}, "set": "@s"}}),
        json!({"map": {"op": "update", "elem": saddr, "data": 5, "map": "@m"}}),
        // As 1.0.6 prints updates of maps: it has no JSON for them.
        json!("add @m { ip saddr : 0x00000005 }"),
    ] {
        let rules = [json!([dport(json!(8080)), update, {"accept": null}]), opening.clone()];
        assert_eq!(native("inet", &pre, &rules, &Elements::new()), ["0.0.0.0/0"], "{update}");
    }
    let rules = [json!([dport(json!(8080)), {"counter": null}, {"accept": null}]), opening.clone()];
    assert_eq!(native("inet", &pre, &rules, &Elements::new()), ["53: 0.0.0.0/0"]);
}

#[test]
fn firewalld_and_its_like_leave_published_ports_alone() {
    let forward = json!({"hook": "forward", "prio": 10});
    let reject = json!([{"reject": {"type": "icmpx", "expr": "admin-prohibited"}}]);
    let rules = [
        json!([ct("state", "in", json!(["established", "related"])), {"accept": null}]),
        json!([ct("status", "in", json!("dnat")), {"accept": null}]),
        json!([ct("state", "in", json!("invalid")), {"drop": null}]),
        reject.clone(),
    ];
    assert_eq!(native("inet", &forward, &rules, &Elements::new()), Vec::<String>::new());
    assert_eq!(native("inet", &forward, &[reject], &Elements::new()), ["0.0.0.0/0"]);
    let input = json!({"hook": "input", "policy": "drop"});
    assert_eq!(native("inet", &input, &[], &Elements::new()), Vec::<String>::new());
    let established = json!([ct("state", "in", json!(["established", "related"])), {"accept": null}]);
    let allowed = [established, json!([{"jump": {"target": "web"}}])];
    let drops = json!({"hook": "forward", "policy": "drop", "prio": 0});
    assert_eq!(native("inet", &drops, &allowed, &Elements::new()), ["53: 0.0.0.0/0"]);
}

#[test]
fn chains_of_interfaces_are_asked_about_theirs() {
    let ban = [json!([field("ip", "saddr", json!("203.0.113.7")), {"drop": null}])];
    let at = |dev: Value| native("netdev", &json!({"hook": "ingress", "dev": dev}), &ban, &Elements::new());
    assert_eq!(at(json!("eth1")), ["eth1: 203.0.113.7/32"]);
    assert_eq!(at(json!(["eth0", "eth1"])), ["203.0.113.7/32"]);
    assert_eq!(at(json!("eth7")), Vec::<String>::new());
    assert_eq!(at(Value::Null), ["203.0.113.7/32"], "not known where");

    let texts = nftables::texts(
        "table netdev t { # handle 2\n\tset s { # handle 9\n\t\ttype ipv4_addr\n\t}\n\n\tchain c { # handle 1\n\
         \t\ttype filter hook ingress devices = { \"eth1\", \"eth2\" } priority -500; policy accept;\n\
         \t\tip saddr 1.2.3.4 drop # handle 3\n\t}\n}\n",
    );
    let listing = json!({"nftables": [
        {"chain": {"family": "netdev", "table": "t", "name": "c", "handle": 1, "type": "filter", "hook": "ingress", "prio": -500, "policy": "accept"}},
        {"rule": {"family": "netdev", "table": "t", "chain": "c", "handle": 3, "expr": [field("ip", "saddr", json!("1.2.3.4")), {"drop": null}]}},
    ]});
    let judged = judged(nftables::tables(&listing, &Elements::new(), &texts, &[]), &path());
    assert_eq!(said(&judged), ["eth1: 1.2.3.4/32"]);
    assert_eq!(
        (judged.reasons[0].chain.as_str(), judged.reasons[0].rule.as_str()),
        ("netdev:t:c", "ip saddr 1.2.3.4 drop")
    );
}

#[test]
fn too_many_prefixes_are_made_shorter() {
    let every_other = Ranges::of((0..MOST_PREFIXES as u32 + 10).map(|n| (n * 2, n * 2)));
    let closed =
        Closed { clients: vec![(vec![(6, 8080), (17, 53)], "eth0".into(), every_other.clone())], reasons: vec![] };
    let left = Left::of(&closed, 1, 2);
    assert_eq!(left.widened, Some(28));
    assert!(left.prefixes() <= MOST_PREFIXES && every_other.is_within(&left.everywhere), "{}", left.prefixes());
}

/// A blocklist in a rule about one protocol is in the map once, not once per port, and no client beside it is left.
#[test]
fn clients_of_many_ports_are_kept_once_where_they_would_be_too_many() {
    let bad = Ranges::of((0..50_000).map(|n| (0x0b00_0000 + n * 2, 0x0b00_0000 + n * 2)));
    let office = Ranges::net("198.51.100.0/24".parse().unwrap()).complement();
    let tcp: Vec<Port> = (0..100).map(|n| (6, 8000 + n)).collect();
    let clients = |bad: &Ranges| {
        vec![
            (tcp.clone(), "eth0".to_owned(), bad.clone()),
            (tcp.clone(), "eth1".to_owned(), bad.clone()),
            (vec![(6, 9000)], "eth0".to_owned(), office.clone()),
        ]
    };
    let left = Left::of(&Closed { clients: clients(&bad), reasons: vec![] }, 2, 102);
    assert_eq!((left.for_all_ports, left.widened), (true, None));
    assert_eq!(
        (&left.everywhere, left.by_port.len(), left.by_both.len()),
        (&bad, 0, 1),
        "and the office's port stays its own"
    );
    assert!(left.prefixes() < MOST_PREFIXES);
    // What fits is exact.
    let few = Ranges::of([(5, 5), (9, 9)]);
    let left = Left::of(&Closed { clients: clients(&few), reasons: vec![] }, 2, 102);
    assert_eq!((left.for_all_ports, left.widened, left.by_port.len()), (false, None, 100));
    assert!(left.everywhere.is_empty());
    // Most of the world is not closed for the sake of one port.
    let all_but_some = bad.complement();
    let left = Left::of(&Closed { clients: clients(&all_but_some), reasons: vec![] }, 2, 102);
    assert!(!left.for_all_ports && left.widened.is_some() && left.everywhere.is_empty());
}

/// Engines' rules about their containers' addresses are known by the bridge and its subnet. Those of others count.
#[test]
fn a_rule_about_answers_is_no_engines() {
    let raw = |rule: &str| saved(&format!("*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING {rule} -j DROP\nCOMMIT\n"));
    for engines in ["-d 172.17.0.2/32 ! -i docker0", "-d 172.18.0.5/32 ! -i docker_gwbridge"] {
        assert_eq!(raw(engines), Vec::<String>::new(), "{engines}");
    }
    // Answers come from the gateway bridge: to these clients they are dropped.
    assert_eq!(raw("-d 203.0.113.0/24 ! -i eth1"), ["203.0.113.0/24"]);
    assert_eq!(raw("-d 203.0.113.0/24 ! -i docker0"), ["203.0.113.0/24"], "not an address of that bridge");
}

/// Fail2ban without sets: a rule per client. What it takes grows with the rules, and not with their square.
#[test]
fn tens_of_thousands_of_rules_are_judged_soon() {
    let last = "-A PREROUTING -i eth0 -s 11.0.0.0/8 -j DROP\n";
    for (verdict, last, n) in
        [("DROP", "", 20_000), ("ACCEPT", last, 3_000), ("RETURN", last, 3_000), ("office", "", 3_000)]
    {
        let rules: String = (0..n)
            .map(|n| {
                format!("-A PREROUTING -s {}/32 -j {verdict}\n", std::net::Ipv4Addr::from_bits(0x0b00_0000 + n * 2))
            })
            .collect();
        let office = ":office - [0:0]\n-A office -j DROP\n";
        let text = format!("*raw\n:PREROUTING ACCEPT [0:0]\n{office}{rules}{last}COMMIT\n");
        let tables = iptables::tables(&text, &Sets::new());
        let before = super::ranges::work::done();
        let judgement = judged(tables, &path());
        let work = super::ranges::work::done() - before;
        // Three questions, two kinds of ports, two interfaces, and what they have in common.
        assert!(work < 100 * u64::from(n), "{verdict}: {work} ranges looked at");
        assert!(judgement.left.prefixes() >= n as usize, "{verdict}: {}", judgement.left.prefixes());
    }
}
