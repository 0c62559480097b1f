//! What the host's packet filters close stays closed, and nothing else is given up.

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::{
    lab::{Lab, Netns, PATIENCE, scenario, wait_for},
    peer::{self, LoadLoop},
};

use crate::{
    support::{Cluster, METRICS, assert_even, assert_metrics, assert_peer},
    takeover::{WEB, nodes, web},
};

pub(crate) const BANNED: &str = "192.168.77.100";
const TARGET: &str = "192.168.77.11:8080";

/// Nodes of engines, the first with what an engine's iptables rules are: FORWARD asks DOCKER-USER first.
pub(crate) fn cluster<'l>(
    lab: &'l Lab,
    extra: &[&str],
    prepare: impl FnOnce(&Netns) -> Result<()>,
) -> Result<Cluster<'l>> {
    let nodes = nodes(lab)?;
    let engine = &nodes[0];
    for rule in ["-N DOCKER-USER", "-N DOCKER-FORWARD", "-A FORWARD -j DOCKER-USER", "-A FORWARD -j DOCKER-FORWARD"] {
        engine.run(&format!("iptables-nft {rule}"))?;
    }
    engine.run("iptables-nft -P FORWARD DROP")?;
    engine.run("iptables-nft -t raw -A PREROUTING -d 172.18.0.3/32 ! -i docker_gwbridge -j DROP")?;
    // Stands for the engine's own mesh: what is left to it arrives at the container here, without a port that is known.
    engine.run("iptables-nft -t nat -N DOCKER-INGRESS")?;
    engine.run("iptables-nft -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER-INGRESS")?;
    engine.run("iptables-nft -t nat -A DOCKER-INGRESS -p tcp --dport 8080 -j DNAT --to-destination 172.18.0.3:80")?;
    engine.run("iptables-nft -A DOCKER-FORWARD -j ACCEPT")?;
    prepare(engine)?;
    let mut cluster = Cluster::start_on(lab, nodes, web(), extra)?;
    cluster.serve(&WEB)?;
    Ok(cluster)
}

/// Served by the mesh, in turn and with its own address.
pub(crate) fn served(client: &Netns, address: &str) -> Result<()> {
    let tally = peer::attempts(client, "tcp", TARGET, 10)?;
    assert_even(&tally, &WEB, 5)?;
    assert_peer(&tally, address)
}

pub(crate) fn closed(client: &Netns) -> Result<()> {
    let tally = peer::attempts(client, "tcp", TARGET, 2)?;
    ensure!(tally.ok == 0, "{tally:?}");
    Ok(())
}

#[test]
fn a_ban_costs_its_client_and_nobody_else_at_every_hook() {
    scenario(|lab| {
        let (client, other) = (lab.client()?, lab.far_client()?);
        let cluster = cluster(lab, &METRICS, |_| Ok(()))?;
        let node = &cluster.nodes[0];
        let status = || cluster.agents[0].json(&["status"]);
        served(&client, BANNED)?;
        let others = LoadLoop::tcp(lab, &other, TARGET, 2, true)?;
        others.wait_answers(20)?;
        let set = "nft add table inet f2b && nft add set inet f2b bad '{ type ipv4_addr ; flags timeout,interval ; }' \
                   && nft add element inet f2b bad '{ 192.168.77.100 timeout 1h, 203.0.113.0/24 }' \
                   && nft add chain inet f2b pre '{ type filter hook prerouting priority -300 ; }' \
                   && nft add rule inet f2b pre tcp dport 8080 ip saddr @bad counter drop";
        let ingress = "nft add table netdev bans && \
                       nft add chain netdev bans in '{ type filter hook ingress device eth0 priority 0 ; }' && \
                       nft add rule netdev bans in ip saddr 192.168.77.100 tcp dport 8080 counter drop";
        for (ban, unban, chain) in [
            (
                "iptables-nft -t raw -A PREROUTING -s 192.168.77.100 -j DROP",
                "iptables-nft -t raw -D PREROUTING -s 192.168.77.100 -j DROP",
                "ip:raw:PREROUTING",
            ),
            (
                "iptables-nft -t mangle -A PREROUTING -s 192.168.77.100 -p tcp -j DROP",
                "iptables-nft -t mangle -F",
                "ip:mangle:PREROUTING",
            ),
            (
                "iptables-nft -t nat -I PREROUTING -s 192.168.77.100 -p tcp --dport 8080 -j LOG; iptables-nft -I FORWARD -i eth0 -s 192.168.77.100 -j DROP",
                "iptables-nft -D FORWARD 1",
                "ip:filter:FORWARD",
            ),
            (
                "iptables-nft -A DOCKER-USER -s 192.168.77.100 -m conntrack --ctorigdstport 8080 -j REJECT",
                "iptables-nft -F DOCKER-USER",
                "ip:filter:DOCKER-USER",
            ),
            (
                "iptables-legacy -t raw -A PREROUTING -s 192.168.77.100 -j DROP",
                "iptables-legacy -t raw -F",
                "ip:raw:PREROUTING",
            ),
            (set, "nft delete table inet f2b", "inet:f2b:pre"),
            (ingress, "nft delete table netdev bans", "netdev:bans:in"),
        ] {
            node.shell(ban)?;
            wait_for(&format!("the ban to hold: {ban}"), PATIENCE, || closed(&client))?;
            served(&other, "192.168.88.100")?;
            let status = status()?;
            let rule = &status["firewall"]["left"][0];
            ensure!(rule["chain"] == chain && rule["sources"].to_string().contains("192.168.77.100/32"), "{status:#}");
            ensure!(status["takeover"]["mesh"] == true, "{ban}: {status:#}");
            let of_chain =
                ["rules", "prefixes"].map(|what| format!("hiveway_left_to_host_chain_{what}{{chain=\"{chain}\"}}"));
            let [rules, prefixes] = of_chain.each_ref().map(String::as_str);
            let sources = if ban == set { 2.0 } else { 1.0 };
            let (left, unread) = ("hiveway_left_to_host{reason=\"rules\"}", "hiveway_left_to_host{reason=\"unread\"}");
            let seen = [(rules, Some(1.0)), (prefixes, Some(sources)), (left, Some(1.0)), (unread, Some(0.0))];
            assert_metrics(node, &seen).with_context(|| ban.to_owned())?;
            node.shell(unban)?;
            wait_for(&format!("the ban to end: {unban}"), PATIENCE, || served(&client, BANNED))?;
            wait_for("the metrics to say so", PATIENCE, || assert_metrics(node, &[(rules, None), (left, Some(0.0))]))?;
        }
        ensure!(cluster.agents[0].counter("left_to_host")? > 0, "nothing was counted");
        let text = cluster.agents[0].cli(&["status"])?;
        ensure!(text.contains("closes no published port"), "{text}");
        let others = others.stop()?;
        ensure!(others.failed == 0, "another client was reset: {others:?}");
        Ok(())
    });
}

#[test]
fn an_open_connection_is_banned_and_given_back() {
    scenario(|lab| {
        let client = lab.client()?;
        let cluster = cluster(lab, &[], |_| Ok(()))?;
        let node = &cluster.nodes[0];
        // Without a table of its own the engine's part of the path sees every packet of a banned client.
        node.run("nft add table inet ban")?;
        node.run("nft add chain inet ban pre { type filter hook prerouting priority -300 ; }")?;
        let open = LoadLoop::tcp(lab, &client, TARGET, 1, true)?;
        open.wait_answers(20)?;
        let dropped = || -> Result<u64> {
            let listing = node.run("nft list chain inet ban pre")?;
            let packets = listing.split("packets ").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok());
            Ok(packets.unwrap_or(0))
        };
        node.run("nft add rule inet ban pre ip saddr 192.168.77.100 tcp dport 8080 counter drop")?;
        wait_for("packets of the open connection to meet the rule", PATIENCE, || {
            ensure!(dropped()? > 0, "none yet");
            Ok(())
        })?;
        node.run("nft flush chain inet ban pre")?;
        open.wait_answers(20)?;
        let tally = open.stop()?;
        ensure!(tally.failed == 0 && tally.names.len() == 1, "it is another connection: {tally:?}");
        Ok(())
    });
}

#[test]
fn a_closed_input_chain_says_nothing_about_published_ports() {
    scenario(|lab| {
        let client = lab.client()?;
        // As ufw and firewalld have it, with what the nodes need of each other.
        let cluster = cluster(lab, &[], |node| {
            node.run("iptables-nft -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT")?;
            node.run("iptables-nft -A INPUT -p udp --dport 4789 -j ACCEPT")?;
            node.run("iptables-nft -P INPUT DROP")?;
            node.run("nft add table inet firewalld")?;
            node.run("nft add chain inet firewalld filter_FORWARD { type filter hook forward priority 10 ; }")?;
            for rule in
                ["ct state established,related accept", "ct status dnat accept", "ct state invalid drop", "reject"]
            {
                node.run(&format!("nft add rule inet firewalld filter_FORWARD {rule}"))?;
            }
            Ok(())
        })?;
        served(&client, BANNED)?;
        let status = cluster.agents[0].json(&["status"])?;
        ensure!(status["takeover"]["mesh"] == true && status["firewall"]["rules"] == 0, "{status:#}");
        Ok(())
    });
}

/// ufw with a configuration of its own, in the node's namespace and in a mount namespace.
fn ufw(lab: &Lab, node: &Netns, what: &str) -> Result<()> {
    let place = lab.directory().join(format!("ufw-{}", node.label()));
    let place = place.display();
    let script = format!(
        "test -d {place} || {{ mkdir -p {place} && cp -r /etc/ufw {place}/etc && \
         sed s/^IPV6=.*/IPV6=no/ /etc/default/ufw > {place}/default; }} && \
         mount --bind {place}/etc /etc/ufw && mount --bind {place}/default /etc/default/ufw && mount -t tmpfs none /run && \
         ufw {what}"
    );
    node.shell(&format!("unshare --mount sh -c '{script}'")).map(drop)
}

#[test]
fn ufw_as_it_comes_closes_no_published_port() {
    scenario(|lab| {
        let client = lab.client()?;
        // It is switched on beside an engine, whose rules come first.
        let cluster = cluster(lab, &[], |node| {
            ufw(lab, node, "allow proto udp from 192.168.77.0/24 to any port 4789")?;
            ufw(lab, node, "--force enable")
        })?;
        let node = &cluster.nodes[0];
        let listing = node.run("iptables-nft-save -t filter")?;
        ensure!(listing.contains(":INPUT DROP") && listing.contains("-A FORWARD -j ufw-before-forward"), "{listing}");
        wait_for("the client to be served", PATIENCE, || served(&client, BANNED))?;
        // Rules about the node itself, and about what no engine has let pass before: as with the engine alone.
        ufw(lab, node, "deny from 192.168.77.100")?;
        ufw(lab, node, "route deny from 192.168.77.100")?;
        std::thread::sleep(std::time::Duration::from_secs(2));
        wait_for("the client to be served", PATIENCE, || served(&client, BANNED))?;
        let status = cluster.agents[0].json(&["status"])?;
        ensure!(status["takeover"]["mesh"] == true && status["firewall"]["rules"] == 0, "{status:#}");
        // In front of the engine's chains it counts.
        node.run("iptables-nft -I DOCKER-USER -s 192.168.77.100 -j ufw-user-forward")?;
        wait_for("the ban to hold", PATIENCE, || closed(&client))?;
        ufw(lab, node, "disable")?;
        Ok(())
    });
}

/// What firewalld 1.3 (Debian 12, nftables backend) makes of its configuration as it comes, as `nft list ruleset` shows
/// it.
#[test]
fn firewalld_as_it_comes_closes_no_published_port() {
    scenario(|lab| {
        let (client, other) = (lab.client()?, lab.far_client()?);
        let cluster = cluster(lab, &[], |_| Ok(()))?;
        let node = &cluster.nodes[0];
        let rules = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/firewall/firewalld.nft");
        node.run("nft add table inet firewalld")?;
        node.run(&format!("nft -f {rules}"))?;
        node.run("nft insert rule inet firewalld filter_INPUT udp dport 4789 accept")?;
        std::thread::sleep(std::time::Duration::from_secs(2));
        wait_for("the client to be served", PATIENCE, || served(&client, BANNED))?;
        let status = cluster.agents[0].json(&["status"])?;
        ensure!(status["takeover"]["mesh"] == true && status["firewall"]["rules"] == 0, "{status:#}");
        // As a rich rule with a priority below zero, or a source in the zone `drop` with an engine's ports, would stand
        // there.
        node.run("nft insert rule inet firewalld filter_FORWARD ip saddr 192.168.77.100 drop")?;
        wait_for("the ban to hold", PATIENCE, || closed(&client))?;
        wait_for("others to be served", PATIENCE, || served(&other, "192.168.88.100"))
    });
}

/// Bans as fail2ban's `iptables-ipset` and CrowdSec's bouncer write them, with the real `ipset`, which notifies nobody.
#[test]
fn a_ban_in_an_ipset_costs_its_client_alone() {
    scenario(|lab| {
        let (client, other) = (lab.client()?, lab.far_client()?);
        let cluster = cluster(lab, &[], |node| {
            node.run("ipset create crowdsec-blacklists hash:ip family inet maxelem 131072 timeout 3600")?;
            let elements: String =
                (0..20_000u32).map(|n| format!("add crowdsec-blacklists 11.0.{}.{}\n", n / 128, n % 128 * 2)).collect();
            let file = lab.directory().join("blocklist");
            std::fs::write(&file, elements)?;
            node.shell(&format!("ipset restore < {}", file.display()))?;
            node.run("iptables-nft -I DOCKER-USER -m set --match-set crowdsec-blacklists src -j DROP")?;
            Ok(())
        })?;
        let node = &cluster.nodes[0];
        served(&client, BANNED)?;
        let status = cluster.agents[0].json(&["status"])?;
        ensure!(status["takeover"]["mesh"] == true && status["firewall"]["prefixes"] == 20_000, "{status:#}");
        for _ in 0..2 {
            node.run("ipset add crowdsec-blacklists 192.168.77.100")?;
            wait_for("the ban to hold", PATIENCE, || closed(&client))?;
            wait_for("others to be served", PATIENCE, || served(&other, "192.168.88.100"))?;
            node.run("ipset del crowdsec-blacklists 192.168.77.100")?;
            wait_for("the ban to end", PATIENCE, || served(&client, BANNED))?;
        }
        Ok(())
    });
}

/// The tables of CrowdSec's bouncer (`nftables_hooks: input, forward`) and of fail2ban's `nftables` action.
#[test]
fn bans_in_the_tables_of_crowdsec_and_fail2ban() {
    scenario(|lab| {
        let (client, other) = (lab.client()?, lab.far_client()?);
        let cluster = cluster(lab, &[], |_| Ok(()))?;
        let node = &cluster.nodes[0];
        let crowdsec = "table ip crowdsec {
            set crowdsec-blacklists-cscli { type ipv4_addr; flags timeout; }
            set crowdsec-blacklists-CAPI { type ipv4_addr; flags timeout; elements = { 203.0.113.7 timeout 4h } }
            chain crowdsec-chain-input {
                type filter hook input priority -10; policy accept;
                ip saddr @crowdsec-blacklists-cscli counter drop
                ip saddr @crowdsec-blacklists-CAPI counter drop
            }
            chain crowdsec-chain-forward {
                type filter hook forward priority -10; policy accept;
                ip saddr @crowdsec-blacklists-cscli counter drop
                ip saddr @crowdsec-blacklists-CAPI counter drop
            }
        }";
        let fail2ban = "table inet f2b-table {
            set addr-set-web { type ipv4_addr; elements = { 203.0.113.8 } }
            chain f2b-chain {
                type filter hook prerouting priority -300; policy accept;
                tcp dport { 80, 443, 8080 } ip saddr @addr-set-web reject with icmp type port-unreachable
            }
        }";
        for (rules, set) in
            [(crowdsec, "ip crowdsec crowdsec-blacklists-cscli"), (fail2ban, "inet f2b-table addr-set-web")]
        {
            let file = lab.directory().join("rules.nft");
            std::fs::write(&file, rules)?;
            node.run(&format!("nft -f {}", file.display()))?;
            wait_for("the client to be served", PATIENCE, || served(&client, BANNED))?;
            node.run(&format!("nft add element {set} {{ 192.168.77.100 }}"))?;
            wait_for("the ban to hold", PATIENCE, || closed(&client))?;
            wait_for("others to be served", PATIENCE, || served(&other, "192.168.88.100"))?;
            node.run(&format!("nft delete element {set} {{ 192.168.77.100 }}"))?;
            wait_for("the ban to end", PATIENCE, || served(&client, BANNED))?;
        }
        Ok(())
    });
}

/// The agent hears of it. How long it takes is printed.
#[test]
fn our_own_table_comes_back() {
    scenario(|lab| {
        let cluster = cluster(lab, &[], |_| Ok(()))?;
        let node = &cluster.nodes[0];
        let mut times = Vec::new();
        for how in ["nft flush ruleset", "nft delete table inet hiveway"].into_iter().cycle().take(10) {
            peer::tcp_load(node, TARGET, 4, 1)?;
            node.run(how)?;
            let flushed = std::time::Instant::now();
            wait_for("our table to come back", PATIENCE, || node.run("nft list table inet hiveway").map(drop))?;
            times.push(flushed.elapsed());
            let own = peer::tcp_load(node, TARGET, 2, 1)?;
            assert_even(&own, &WEB, 1)?;
            std::thread::sleep(std::time::Duration::from_millis(150 * times.len() as u64 % 700));
        }
        times.sort();
        eprintln!("back after {times:?}");
        // Without a notification it takes until the next look at everything: 4.5 s.
        ensure!(times[times.len() / 2] < std::time::Duration::from_secs(2), "{times:?}");
        Ok(())
    });
}

#[test]
fn what_closes_everything_ends_the_takeover_unless_it_is_ignored() {
    scenario(|lab| {
        let client = lab.client()?;
        let cluster = cluster(lab, &["--ignore-firewall=inet:mine:f,inet:mine:typo"], |node| {
            node.run("nft add table inet mine")?;
            node.run("nft add chain inet mine f { type filter hook forward priority 0 ; policy drop ; }")?;
            Ok(())
        })?;
        served(&client, BANNED)?;
        let status = cluster.agents[0].json(&["status"])?;
        ensure!(status["firewall"]["ignored"][0] == "inet:mine:f", "{status:#}");
        let text = cluster.agents[0].cli(&["status"])?;
        ensure!(text.contains("ignored as asked: inet:mine:f"), "{text}");
        // What is asked for and has no effect is said; it has one as soon as there is such a chain.
        let missing = |there: bool| {
            let (status, text) = (cluster.agents[0].json(&["status"])?, cluster.agents[0].cli(&["status"])?);
            let warning = "chain inet:mine:typo of --ignore-firewall is not on the host";
            let listed = status["firewall"]["ignored_missing"] == serde_json::json!(["inet:mine:typo"]);
            let said = status["warnings"].to_string().contains(warning);
            ensure!([listed, said, text.contains(warning)] == [!there; 3], "{text}\n{status:#}");
            Ok(())
        };
        wait_for("it to be said", PATIENCE, || missing(false))?;
        cluster.nodes[0].run("nft add chain inet mine typo")?;
        wait_for("it to be said no more", PATIENCE, || missing(true))?;
        cluster.nodes[0].run("nft add chain inet mine g { type filter hook forward priority 1 ; policy drop ; }")?;
        wait_for("the takeover to end", PATIENCE, || {
            let status = cluster.agents[0].json(&["status"])?;
            let why = status["takeover"]["mesh_why"].as_str().unwrap_or_default();
            ensure!(status["takeover"]["mesh"] == false && why.contains("inet:mine:g"), "{status:#}");
            Ok(())
        })?;
        cluster.nodes[0].run("nft delete table inet mine")?;
        wait_for("it to come back", PATIENCE, || served(&client, BANNED))
    });
}
