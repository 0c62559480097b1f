//! Rules of `iptables-nft` and of `nft` in one chain, and sets of `ipset` with options.

use anyhow::ensure;
use hiveway_tests::lab::{PATIENCE, scenario, wait_for};

use crate::firewall::{BANNED, closed, cluster, served};

/// `iptables-nft-save` prints `ip saddr @good accept` as `-j ACCEPT`, `ip saddr @bad drop` as `-j DROP`, and nothing of
/// a verdict map.
#[test]
fn native_rules_in_a_chain_of_iptables_hold_as_they_stand() {
    scenario(|lab| {
        let (client, other) = (lab.client()?, lab.far_client()?);
        let cluster = cluster(lab, &[], |node| {
            node.run("nft add set ip filter good { type ipv4_addr ; }")?;
            node.run("nft add set ip filter bad { type ipv4_addr ; }")?;
            node.run("nft add element ip filter good { 192.168.88.100 }")?;
            Ok(())
        })?;
        let (node, agent) = (&cluster.nodes[0], &cluster.agents[0]);
        let last = "iptables-nft -A DOCKER-USER -i eth0 -p tcp -m conntrack --ctorigdstport 8080 -j DROP";
        let allow = format!("nft add rule ip filter DOCKER-USER ip saddr @good accept && {last}");
        let ban = "nft add element ip filter bad '{ 192.168.77.100 }' && \
                   nft add rule ip filter DOCKER-USER ip saddr @bad drop && \
                   iptables-nft -A DOCKER-USER -s 203.0.113.1 -m comment --comment ours -j DROP";
        let map = "iptables-nft -A DOCKER-USER -s 203.0.113.1 -m comment --comment ours -j DROP && \
                   nft add rule ip filter DOCKER-USER ip saddr vmap '{ 192.168.77.100 : drop, 203.0.113.2 : accept }'";
        for rules in [allow.as_str(), ban, map] {
            wait_for("the client to be served", PATIENCE, || served(&client, BANNED))?;
            node.shell(rules)?;
            wait_for(&format!("the rules to hold: {rules}"), PATIENCE, || closed(&client))?;
            wait_for("others to be served", PATIENCE, || served(&other, "192.168.88.100"))?;
            let (status, saved) = (agent.json(&["status"])?, node.run("iptables-nft-save -t filter")?);
            ensure!(saved.contains("-A DOCKER-USER"), "iptables shows nothing: {saved}");
            ensure!(status["takeover"]["mesh"] == true, "{rules}: {status:#}\n{saved}");
            node.run("iptables-nft -F DOCKER-USER")?;
        }
        Ok(())
    });
}

/// A netmask in the set, an exception behind a timeout, and a list of sets, with the real `ipset`.
#[test]
fn sets_of_ipset_hold_with_their_options() {
    scenario(|lab| {
        let (client, other) = (lab.client()?, lab.far_client()?);
        let cluster = cluster(lab, &[], |_| Ok(()))?;
        let (node, agent) = (&cluster.nodes[0], &cluster.agents[0]);
        let netmask = "ipset create banned hash:ip netmask 24 && ipset add banned 192.168.77.5 && \
                       iptables-nft -A DOCKER-USER -m set --match-set banned src -j DROP";
        let exception = "ipset create most hash:net timeout 300 counters comment && \
                         ipset add most 192.168.0.0/16 && \
                         ipset add most 192.168.77.0/24 timeout 300 nomatch comment office && \
                         iptables-nft -A DOCKER-USER -m set --match-set most src -j RETURN && \
                         iptables-nft -A DOCKER-USER -i eth0 -p tcp -m conntrack --ctorigdstport 8080 -j DROP";
        let list = "ipset create inner hash:ip && ipset add inner 192.168.77.100 && \
                    ipset create outer list:set && ipset add outer inner && \
                    iptables-nft -A DOCKER-USER -m set --match-set outer src -j DROP";
        for rules in [netmask, exception, list] {
            wait_for("the client to be served", PATIENCE, || served(&client, BANNED))?;
            node.shell(rules)?;
            wait_for(&format!("the rules to hold: {rules}"), PATIENCE, || closed(&client))?;
            wait_for("others to be served", PATIENCE, || served(&other, "192.168.88.100"))?;
            let status = agent.json(&["status"])?;
            ensure!(status["takeover"]["mesh"] == true, "{rules}: {status:#}");
            ensure!(status["firewall"]["unread_sets"] == serde_json::json!([]), "{rules}: {status:#}");
            node.run("iptables-nft -F DOCKER-USER")?;
        }
        Ok(())
    });
}
