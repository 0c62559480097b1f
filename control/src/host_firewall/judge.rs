//! What a table's rules mean for published ports.

use std::collections::BTreeSet;

use super::chains::{Chain, Chains, Verdict};

/// How deep chains may ask chains: more than the kernel's limit would be a loop.
const DEEPEST: usize = 16;

/// What a chain does with clients' packets to a port.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fate {
    /// Lets all of them pass.
    Passes,
    /// Drops some of them: this chain does.
    Drops(String),
    /// Does not decide about all of them.
    Undecided,
}

impl Chains {
    /// One sentence per chain that drops what some client sends to some published port.
    pub(super) fn restrictions(&self, published: &BTreeSet<(u8, u16)>, clients: &BTreeSet<String>) -> Vec<String> {
        let asked = self.chains.iter().filter(|(_, chain)| chain.asked);
        let mut found = Vec::new();
        for (name, chain) in asked {
            let dropped = published.iter().find_map(|key| {
                let at = match self.fate(name, chain, *key, clients, 0) {
                    Fate::Drops(at) => at,
                    Fate::Undecided if chain.drops => format!("the policy of {name}"),
                    _ => return None,
                };
                Some((key.1, at))
            });
            if let Some((port, at)) = dropped {
                found.push(format!("{}: {at} keeps clients from published port {port}", self.table));
            }
        }
        found
    }

    fn fate(&self, name: &str, chain: &Chain, key: (u8, u16), clients: &BTreeSet<String>, depth: usize) -> Fate {
        if depth > DEEPEST {
            return Fate::Drops(format!("chain {name}, which asks itself,"));
        }
        for rule in chain.rules.iter().filter(|rule| rule.may_match(key, clients)) {
            let fate = match &rule.verdict {
                Verdict::Continue => continue,
                Verdict::Drop => return Fate::Drops(format!("chain {name}")),
                Verdict::Accept => Fate::Passes,
                Verdict::Return => Fate::Undecided,
                Verdict::Jump(to) | Verdict::Goto(to) => match self.chains.get(to) {
                    Some(chain) => self.fate(to, chain, key, clients, depth + 1),
                    None => continue,
                },
            };
            let ends = matches!(rule.verdict, Verdict::Return | Verdict::Goto(_));
            match fate {
                Fate::Drops(at) => return Fate::Drops(at),
                Fate::Passes if rule.always(clients) => return Fate::Passes,
                Fate::Undecided if ends && rule.always(clients) => return Fate::Undecided,
                _ => {}
            }
        }
        Fate::Undecided
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::host_firewall::{legacy, native};

    fn judged(all: &[Chains]) -> Vec<String> {
        let published = BTreeSet::from([(6, 8080), (17, 53)]);
        let clients = BTreeSet::from(["eth0".to_owned(), "eth1".to_owned()]);
        all.iter().flat_map(|chains| chains.restrictions(&published, &clients)).collect()
    }

    /// With these rules in DOCKER-USER.
    fn docker_user(rules: &str) -> Vec<String> {
        let rules: String = rules.lines().map(|rule| format!("-A DOCKER-USER {}\n", rule.trim())).collect();
        judged(&[legacy::chains(&format!(
            "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:DOCKER-USER - [0:0]\n:office - [0:0]\n\
             -A FORWARD -j DOCKER-USER\n-A office -s 198.51.100.0/24 -j RETURN\n-A office -j DROP\n{rules}COMMIT\n"
        ))])
    }

    #[test]
    fn rules_that_keep_no_client_from_a_published_port_are_fine() {
        for fine in [
            "-j RETURN",
            "-p tcp -m tcp --dport 22 -j DROP\n-j RETURN",
            "-p tcp -m multiport --dports 22,9000:9010 -j DROP",
            "-p icmp -j DROP",
            "-i docker0 -j DROP",
            "-m conntrack --ctstate INVALID -j DROP",
            "-p udp -m udp --dport 8080 -j DROP",
            "-j RETURN\n-j DROP",
            "-i eth0 -j LOG --log-prefix \"a -b \"",
            "-p tcp -m tcp --dport 22 -j office",
        ] {
            assert_eq!(docker_user(fine), Vec::<String>::new(), "{fine}");
        }
    }

    #[test]
    fn rules_that_keep_some_clients_out_are_named() {
        for bad in [
            "-j DROP",
            "-i eth0 -s 203.0.113.0/24 -j DROP",
            "-i eth+ -j REJECT --reject-with icmp-port-unreachable",
            "! -s 10.0.0.0/8 -i eth1 -j DROP",
            "-p tcp -m tcp --dport 8000:8100 -j DROP",
            "-p tcp -m multiport --dports 22,8080 -j DROP",
            "-p udp -j DROP",
            "-m conntrack --ctorigdstport 8080 -j DROP",
            "-j office",
            "-s 10.0.0.0/8 -j RETURN\n-j DROP",
            "-g office",
        ] {
            let said = docker_user(bad);
            assert!(
                said.len() == 1 && said[0].contains("iptables") && said[0].contains("published port"),
                "{bad}: {said:?}"
            );
        }
    }

    fn input(policy: &str, rules: &[Value]) -> Vec<String> {
        let chain = |name: &str, rest: Value| {
            let mut chain = json!({"family": "inet", "table": "filter", "name": name});
            chain.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
            json!({"chain": chain})
        };
        let mut objects = vec![
            chain("input", json!({"type": "filter", "hook": "input", "policy": policy})),
            chain("web", json!({})),
            json!({"rule": {"family": "inet", "table": "filter", "chain": "web",
                            "expr": [dport("tcp", json!(8080)), {"accept": null}]}}),
            json!({"rule": {"family": "inet", "table": "filter", "chain": "web",
                            "expr": [dport("udp", json!({"set": [53, {"range": [60, 70]}]})), {"accept": null}]}}),
            // An engine's own, and ours.
            json!({"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "hook": "forward", "policy": "drop"}}),
            json!({"chain": {"family": "ip", "table": "docker-bridges", "name": "f", "hook": "forward", "policy": "drop"}}),
            json!({"chain": {"family": "inet", "table": "hiveway", "name": "forward", "hook": "forward", "policy": "drop"}}),
            json!({"chain": {"family": "ip6", "table": "filter", "name": "i", "hook": "input", "policy": "drop"}}),
        ];
        objects.extend(
            rules
                .iter()
                .map(|expr| json!({"rule": {"family": "inet", "table": "filter", "chain": "input", "expr": expr}})),
        );
        judged(&native::chains(&json!({"nftables": objects})))
    }

    fn dport(protocol: &str, right: Value) -> Value {
        json!({"match": {"op": "==", "left": {"payload": {"protocol": protocol, "field": "dport"}}, "right": right}})
    }

    fn meta(key: &str, right: Value) -> Value {
        json!({"match": {"op": "==", "left": {"meta": {"key": key}}, "right": right}})
    }

    #[test]
    fn an_input_policy_counts_unless_published_ports_are_accepted() {
        let established = json!([{"match": {"op": "in", "left": {"ct": {"key": "state"}},
                                            "right": ["established", "related"]}}, {"accept": null}]);
        let states = json!([{"vmap": {"key": {"ct": {"key": "state"}},
                                      "data": {"set": [["invalid", {"drop": null}], ["established", {"accept": null}]]}}}]);
        let v6 = json!([meta("nfproto", json!("ipv6")), {"drop": null}]);
        let all = json!([{"jump": {"target": "web"}}]);
        assert_eq!(input("accept", &[established.clone(), states.clone(), v6]), Vec::<String>::new());
        assert_eq!(input("drop", &[established.clone(), states, all.clone()]), Vec::<String>::new());
        let said = input("drop", &[established]);
        assert_eq!(said, ["nftables table inet filter: the policy of input keeps clients from published port 8080"]);
        let tcp_only = json!([meta("l4proto", json!("tcp")), {"accept": null}]);
        assert!(input("drop", &[tcp_only])[0].contains("port 53"));
        let one_interface = json!([meta("iifname", json!("eth0")), {"jump": {"target": "web"}}]);
        assert_eq!(input("drop", &[one_interface]).len(), 1);
        let both = json!([meta("iifname", json!({"set": ["eth0", "eth1"]})), {"jump": {"target": "web"}}]);
        assert_eq!(input("drop", &[both]), Vec::<String>::new());
        assert_eq!(input("accept", &[json!([{"reject": {"type": "icmpx"}}])]).len(), 1, "as firewalld ends");
        let unknown = json!([{"match": {"op": "==", "left": {"exthdr": {}}, "right": true}}, {"drop": null}]);
        assert_eq!(input("accept", &[unknown]).len(), 1);
    }
}
