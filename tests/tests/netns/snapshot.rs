//! What a node's namespace looks like, as far as an agent could have changed it.

use anyhow::Result;
use hiveway_tests::lab::Netns;

const COMMANDS: [&str; 10] = [
    "ip -d link",
    "ip addr",
    "ip rule",
    "ip route show table all",
    "ip neigh show nud permanent",
    "bridge fdb show",
    "nft list ruleset",
    "sysctl -a -r net.ipv4.(ip_|conf|tcp_|neigh)",
    "tc filter show dev eth0 ingress",
    "tc qdisc show",
];

/// Command → its output without what changes by itself.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Snapshot(Vec<(&'static str, Vec<String>)>);

impl Snapshot {
    pub(crate) fn of(node: &Netns) -> Result<Self> {
        COMMANDS.iter().map(|&command| Ok((command, settled(&node.run(command)?)))).collect::<Result<_>>().map(Self)
    }

    /// Lines that are gone (`-`) and new (`+`), by command; empty if nothing is different.
    pub(crate) fn difference(&self, later: &Self) -> String {
        let mut text = Vec::new();
        for ((command, before), (_, after)) in self.0.iter().zip(&later.0) {
            if before == after {
                continue;
            }
            let lost = before.iter().filter(|&line| !after.contains(line)).map(|line| format!("- {line}"));
            let new = after.iter().filter(|&line| !before.contains(line)).map(|line| format!("+ {line}"));
            text.push(format!("{command}:\n{}", lost.chain(new).collect::<Vec<_>>().join("\n")));
        }
        text.join("\n")
    }
}

/// Lines without what is no configuration: carrier states, timers, counters; and without learned addresses.
fn settled(text: &str) -> Vec<String> {
    let learned = |line: &&str| line.contains(" dev ") && line.contains(" master ") && !line.contains("permanent");
    let mut kept: Vec<String> = text.lines().filter(|line| !learned(line)).map(settled_line).collect();
    kept.dedup();
    kept
}

fn settled_line(line: &str) -> String {
    let line = line.split_once("packets ").map_or(line, |(start, _)| start);
    let mut words = Vec::new();
    let mut rest = line.split_whitespace();
    while let Some(word) = rest.next() {
        match word {
            "state" | "linkdown" => {
                if word == "state" {
                    rest.next();
                }
            }
            // Of a veth whose other end has, or has had, an XDP program.
            "maxmtu" => drop(rest.next()),
            timer if timer.ends_with("_timer") => drop(rest.next()),
            flags if flags.starts_with('<') && flags.ends_with('>') => {
                let flags = flags.trim_matches(['<', '>']).split(',');
                words.push(
                    flags.filter(|&flag| flag != "NO-CARRIER" && flag != "LOWER_UP").collect::<Vec<_>>().join(","),
                );
            }
            word => words.push(word.to_owned()),
        }
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_carrier_is_no_change_and_an_address_is() {
        let down = "2: eth0@if5: <NO-CARRIER,BROADCAST,UP> mtu 1500 state DOWN mode DEFAULT\n  bridge hello_timer 0.00";
        let up = "2: eth0@if5: <BROADCAST,UP,LOWER_UP> mtu 1500 state UP mode DEFAULT\n  bridge hello_timer 1.27";
        assert_eq!(settled(down), settled(up));
        assert_ne!(settled(up), settled(&up.replace("1500", "1400")));
        assert_ne!(settled(up), settled(&up.replace("BROADCAST,UP", "BROADCAST")));
        assert!(settled("02:00:00:00:00:01 dev p1 master br0").is_empty());
        assert_eq!(settled("02:00:00:00:00:01 dev vx1 dst 10.0.0.1 self permanent").len(), 1);
    }
}
