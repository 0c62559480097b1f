//! Stories on a real Docker Swarm with real `docker` commands: `cargo xtask test swarm [NAME...]`, as root.
//!
//! One swarm serves all of them, one after the other. A story is a function, listed here; it creates what it needs and
//! checks what it claims. The frame then checks that the API, DNS, VIPs, the mesh and `service ls` agree and no map
//! holds anything stale, removes everything, and checks that nothing is left.

mod balancer;
mod balancer_encrypted;
mod certificates;
mod coming_and_going;
mod data_path;
mod failures;
mod interfaces;
mod jobs;
mod mesh;
mod nat;
mod other_drivers;
mod paths;
mod plain;
mod scaling;
mod stacks;
mod support;
mod updates;
mod vip;

use std::process::ExitCode;

use hiveway_tests::swarm::Version;
use support::{
    Needs::{Balancer, Engines, Hiveway, HivewaySince},
    Story,
};

/// Engines that name interfaces as they are told, choose their MACs at random, and find an IPv6 subnet for a network by
/// themselves. (26.1 refuses every task on a network with `--ipv6` and no subnet: "could not find an available,
/// non-overlapping IPv6 address pool".)
const INTERFACES_OF_28: Version = Version([28, 0, 0]);
/// Engines that end the tasks of a job whose service is removed: 20.10 lets them run, so nothing after it can start
/// from an empty swarm.
const JOBS_END: Version = Version([26, 0, 0]);

const STORIES: &[Story] = &[
    Story { name: "plain_overlay_across_nodes", needs: Engines, run: plain::overlay_across_nodes },
    Story { name: "plain_scaling_and_dns", needs: Engines, run: plain::scaling_and_dns },
    Story { name: "three_replicas_and_curl_on_all_nodes", needs: Hiveway, run: mesh::three_replicas },
    Story { name: "global_service", needs: Hiveway, run: mesh::global_service },
    Story { name: "udp", needs: Hiveway, run: mesh::udp },
    Story { name: "internal_network_with_published_port", needs: Hiveway, run: mesh::internal_network },
    Story { name: "host_mode_port_is_the_engines", needs: Hiveway, run: mesh::host_mode },
    Story { name: "bound_to_an_address", needs: Hiveway, run: mesh::bound },
    Story { name: "containers_on_the_default_bridge", needs: Hiveway, run: mesh::default_bridge },
    Story { name: "service_by_name", needs: Hiveway, run: vip::vip },
    Story { name: "dnsrr", needs: Hiveway, run: vip::dnsrr },
    Story { name: "attachable_network_with_docker_run", needs: Hiveway, run: vip::attachable },
    Story { name: "scale_2_3_9_2", needs: Hiveway, run: scaling::scale },
    Story { name: "drain_and_activate", needs: Hiveway, run: scaling::drain_and_activate },
    Story { name: "publish_add_and_target_port_change", needs: Hiveway, run: scaling::ports_change },
    Story { name: "failing_health_check", needs: Hiveway, run: updates::failing_health_check },
    Story { name: "rolling_update_and_rollback", needs: Hiveway, run: updates::rolling_update_and_rollback },
    Story { name: "two_stacks_with_the_same_names", needs: Hiveway, run: stacks::same_names },
    Story { name: "stack_removed_under_load", needs: Hiveway, run: stacks::removed_under_load },
    Story { name: "agent_killed_on_each_node", needs: Hiveway, run: failures::agents_killed },
    Story { name: "engine_restarted_on_each_node", needs: Hiveway, run: failures::engines_restarted },
    Story { name: "promote_and_demote", needs: Hiveway, run: failures::promote_and_demote },
    Story { name: "ca_rotated", needs: Hiveway, run: certificates::ca_rotated },
    Story { name: "autolocked", needs: Hiveway, run: certificates::autolocked },
    Story { name: "relay_by_address", needs: Hiveway, run: certificates::relay_by_address },
    Story { name: "quorum_lost_and_found", needs: Hiveway, run: failures::quorum_lost_and_found },
    Story { name: "node_death_and_return", needs: Hiveway, run: failures::node_death_and_return },
    Story { name: "mixed_cluster", needs: Hiveway, run: coming_and_going::mixed_cluster },
    Story { name: "roll_back", needs: Hiveway, run: coming_and_going::roll_back },
    Story { name: "swarm_leave", needs: Hiveway, run: coming_and_going::swarm_leave },
    Story { name: "node_rebooted", needs: Hiveway, run: failures::nodes_rebooted },
    Story { name: "ports_come_and_go", needs: Hiveway, run: scaling::ports_come_and_go },
    Story { name: "stack_with_healthcheck", needs: Hiveway, run: stacks::with_healthcheck },
    Story { name: "interface_names", needs: HivewaySince(INTERFACES_OF_28), run: interfaces::names },
    Story { name: "random_macs", needs: HivewaySince(INTERFACES_OF_28), run: interfaces::random_macs },
    Story { name: "ipv6_network", needs: HivewaySince(INTERFACES_OF_28), run: interfaces::ipv6 },
    Story { name: "global_job", needs: HivewaySince(JOBS_END), run: jobs::global },
    Story { name: "replicated_job", needs: HivewaySince(JOBS_END), run: jobs::replicated },
    Story { name: "swarm_scoped_bridge", needs: Hiveway, run: other_drivers::bridge },
    Story { name: "swarm_scoped_macvlan", needs: Hiveway, run: other_drivers::macvlan },
    Story { name: "paths_between_nodes", needs: Hiveway, run: paths::matrix },
    Story { name: "data_path_port", needs: Hiveway, run: data_path::port },
    Story { name: "data_path_address", needs: Hiveway, run: data_path::address },
    Story { name: "data_path_address_changes", needs: Hiveway, run: data_path::address_changes },
    Story { name: "one_to_one_nat", needs: Hiveway, run: nat::one_to_one },
    Story { name: "engines_balance_by_themselves", needs: Balancer, run: balancer::engines_alone },
    Story { name: "installed_under_load", needs: Balancer, run: balancer::installed_under_load },
    Story { name: "vip_of_ours_beside_the_engines", needs: Balancer, run: balancer::vip },
    Story { name: "rolled_back_under_load", needs: Balancer, run: balancer::rolled_back_under_load },
    Story { name: "mixed_cluster_with_ipvs", needs: Balancer, run: balancer::mixed_cluster },
    Story { name: "bound_beside_ipvs", needs: Balancer, run: balancer::bound },
    Story { name: "encrypted_network", needs: Balancer, run: balancer_encrypted::encrypted_network },
];

fn main() -> ExitCode {
    support::harness::run(STORIES)
}
