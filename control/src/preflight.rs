//! `hiveway preflight`, and what the agent asks before it starts: everything that the agent needs of the machine is
//! tried, in a network namespace that is thrown away, and what is missing is named with its remedy. A kernel's version
//! says little: enterprise kernels have backports.

mod verdict;
mod xdp;

use std::{path::Path, thread};

use dataplane::Check;
use netlink_packet_route::link::{InfoData, InfoVeth, LinkMessage};
use nix::{
    sched::{CloneFlags, unshare},
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};
use rtnetlink::{LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVxlan};
use serde_json::{Value, json};

use crate::{
    child::{self, Limits},
    cli::{PreflightArgs, exit},
    netlink::Socket,
    say::outln,
};

/// A ruleset with all that ours needs: NAT, connection tracking, the routing table's opinion, marks, counters.
const RULES: &str = "table inet hiveway_preflight {
    counter seen { }
    set ports { type inet_service; flags interval; elements = { 1-2, 80 } }
    chain post { type nat hook postrouting priority 100; ip saddr 192.0.2.0/24 masquerade random; }
    chain out { type nat hook output priority -100; tcp dport @ports fib daddr type local dnat ip to 192.0.2.1; }
    chain pass { type filter hook forward priority -10; udp dport 4789 ct state new counter name seen meta mark 1 drop; }
}
";

/// Tries the machine, or with `--xdp` measures interfaces instead; returns the exit code.
pub fn run(args: &PreflightArgs) -> u8 {
    if args.xdp.is_empty() {
        return report_all(&checks(&args.bpffs, true), args.json);
    }
    // Without privileges the kernel's refusal would be taken for the driver's.
    let privileges: Vec<_> =
        dataplane::checks(&args.bpffs, false).into_iter().filter(|check| check.name == "privileges").collect();
    if privileged(&privileges) {
        xdp::run(&args.xdp, &args.state_dir, args.json)
    } else {
        report_all(&privileges, args.json)
    }
}

/// Prints every check, as lines or as JSON; the exit code says whether all have passed.
fn report_all(checks: &[Check], as_json: bool) -> u8 {
    let ok = checks.iter().all(|check| check.result.is_ok());
    if as_json {
        outln!("{:#}", report(checks));
    } else {
        for check in checks {
            match &check.result {
                Ok(found) => outln!("ok      {:12}{found}", check.name),
                Err(missing) => outln!("MISSING {:12}{missing}", check.name),
            }
        }
        outln!("{}", if ok { "This machine has what Hiveway needs." } else { "Hiveway cannot run here as it is." });
        if !privileged(checks) {
            outln!("Nothing else can be tried without these privileges.");
        }
    }
    if ok { exit::OK } else { exit::FAILED }
}

fn report(checks: &[Check]) -> Value {
    let each = |check: &Check| match &check.result {
        Ok(found) => json!({"check": check.name, "ok": true, "found": found}),
        Err(missing) => json!({"check": check.name, "ok": false, "missing": missing}),
    };
    json!({
        "ok": checks.iter().all(|check| check.result.is_ok()),
        "complete": privileged(checks),
        "checks": checks.iter().map(each).collect::<Vec<_>>(),
    })
}

/// Without privileges the kernel refuses whatever is tried, which says nothing of it.
fn privileged(checks: &[Check]) -> bool {
    !checks.iter().any(|check| check.name == "privileges" && check.result.is_err())
}

/// Tries everything. Without `programs` these are not loaded, which takes seconds: for the agent, which loads them
/// next.
pub fn checks(bpffs: &Path, programs: bool) -> Vec<Check> {
    let mut checks = dataplane::checks(bpffs, programs);
    if !privileged(&checks) {
        return checks;
    }
    let tcx = dataplane::has_tcx().unwrap_or(false);
    checks.extend(inside(move || in_namespace(tcx)));
    checks
}

/// Checks on a thread in a network namespace of its own, which does nothing to this process's namespaces, whatever
/// happens.
fn inside(checks: impl FnOnce() -> Vec<Check> + Send + 'static) -> Vec<Check> {
    let failed = |why: String| vec![Check { name: "namespace", result: Err(why) }];
    let thread = thread::Builder::new().spawn(move || match unshare(CloneFlags::CLONE_NEWNET) {
        Ok(()) => checks(),
        Err(errno) => failed(format!("no network namespace can be made: {errno}; run as root, or with CAP_SYS_ADMIN")),
    });
    match thread.map(thread::JoinHandle::join) {
        Ok(Ok(checks)) => checks,
        Ok(Err(_)) => {
            failed("the checks in a network namespace have panicked (stderr says where): please report it".to_owned())
        }
        Err(error) => failed(format!("no thread can be started: {error}; raise the limit of threads")),
    }
}

/// What can be tried without disturbing the node: the thread is in a namespace of its own.
fn in_namespace(tcx: bool) -> Vec<Check> {
    let rules = Check { name: "nft", result: nft(RULES) };
    let qdisc = Check { name: "clsact", result: needed(!tcx, clsact()) };
    let packets = Check { name: "packets", result: packet_socket() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let mut checks = match runtime {
        Ok(runtime) => runtime.block_on(links()),
        Err(error) => vec![Check { name: "links", result: Err(error.to_string()) }],
    };
    checks.extend([qdisc, packets, rules]);
    checks
}

/// Makes one interface of each kind.
async fn links() -> Vec<Check> {
    let socket = match Socket::open() {
        Ok(socket) => socket,
        Err(error) => return vec![Check { name: "netlink", result: Err(error.to_string()) }],
    };
    let peer = LinkMessageBuilder::<LinkUnspec>::new().name("p1".to_owned()).build();
    let veth = LinkMessageBuilder::<LinkVeth>::new("p0", "p1").set_info_data(InfoData::Veth(InfoVeth::Peer(peer)));
    let vxlan = LinkMessageBuilder::<LinkVxlan>::new("vx").id(4096).port(4789).udp_csum(false);
    vec![
        link(&socket, "veth", veth.build()).await,
        link(&socket, "bridge", LinkMessageBuilder::<LinkBridge>::new("br").build()).await,
        link(&socket, "vxlan", vxlan.build()).await,
    ]
}

async fn link(socket: &Socket, name: &'static str, message: LinkMessage) -> Check {
    let made = socket.handle().link().add(message).execute().await;
    let missing = |error| format!("the kernel makes no interface of this kind: {error}; `modprobe {name}`");
    Check { name, result: made.map(|()| "can be made".to_owned()).map_err(missing) }
}

/// What is missing is in nobody's way where it is not needed.
fn needed(is: bool, result: Result<String, String>) -> Result<String, String> {
    result.or_else(|missing| if is { Err(missing) } else { Ok(format!("not needed beside TCX links ({missing})")) })
}

/// What probes leave through.
fn packet_socket() -> Result<String, String> {
    let opened = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None);
    opened.map(|_| "sockets can be opened".to_owned()).map_err(|errno| {
        format!("no packet socket: {errno}; `modprobe af_packet`, or a kernel with CONFIG_PACKET, and CAP_NET_RAW")
    })
}

/// What kernels without TCX need.
fn clsact() -> Result<String, String> {
    match dataplane::try_clsact() {
        Ok(()) => Ok("can be attached".to_owned()),
        Err(error) => Err(format!("no clsact qdisc: {error}; `modprobe sch_ingress cls_bpf`")),
    }
}

/// Has `nft` take such rules.
fn nft(rules: &str) -> Result<String, String> {
    // The first rules of their kind have modules loaded, which takes seconds on a machine that is busy booting; giving
    // up would end the agent's start.
    let limits = Limits { time: std::time::Duration::from_secs(30), bytes: 64 * 1024 };
    let output = child::run("nft", &["-f", "-"], rules.as_bytes(), limits).map_err(|error| {
        if error.is_missing() {
            "there is no `nft`: install the package nftables".to_owned()
        } else {
            error.to_string()
        }
    })?;
    if output.status.success() {
        return Ok(version("nft").unwrap_or_else(|| "takes our kind of rules".to_owned()));
    }
    let complaint = output.stderr.lines().next().unwrap_or_default().to_owned();
    Err(format!(
        "nft refuses our kind of rules: {complaint}; the kernel needs nf_tables, nft_nat, nft_masq, nft_ct, nft_fib_inet and \
         nf_conntrack (`modprobe`)"
    ))
}

/// What it says of itself; `None` if it does not say so at once.
fn version(program: &str) -> Option<String> {
    let limits = Limits { time: std::time::Duration::from_secs(1), bytes: 4096 };
    let output = child::run(program, &["--version"], b"", limits).ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said_with_its_remedy_and_nothing_stays() {
        let before = std::fs::read_to_string("/proc/net/dev").unwrap();
        let found = checks(Path::new("/sys/fs/bpf/hiveway-preflight"), false);
        let names: Vec<_> = found.iter().map(|check| check.name).collect();
        assert_eq!(names, ["privileges", "bpffs", "hook", "veth", "bridge", "vxlan", "clsact", "packets", "nft"]);
        assert!(found.iter().all(|check| check.result.is_ok()), "as root, with a BPF file system: {found:?}");
        let interfaces = |text: &str| {
            text.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect::<Vec<_>>()
        };
        let after = std::fs::read_to_string("/proc/net/dev").unwrap();
        assert_eq!(interfaces(&before), interfaces(&after));
    }

    #[test]
    fn rules_that_nft_refuses_are_quoted() {
        let refused = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            nft("table inet t { chain c { no such thing } }").unwrap_err()
        });
        let refused = refused.join().unwrap();
        assert!(refused.contains("syntax error") && refused.contains("nft_fib_inet"), "{refused}");
    }

    #[test]
    fn a_version_that_is_not_said_is_not_waited_for() {
        let scratch = tempfile::tempdir().unwrap();
        let hangs = scratch.path().join("hangs");
        std::fs::write(&hangs, "#!/bin/sh\nexec sleep 600\n").unwrap();
        std::fs::set_permissions(&hangs, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let (said, hear) = std::sync::mpsc::channel();
        thread::spawn(move || said.send(version(hangs.to_str().unwrap())));
        assert_eq!(hear.recv_timeout(std::time::Duration::from_secs(30)), Ok(None));
    }

    #[test]
    fn what_is_not_needed_may_be_missing() {
        let missing = || Err("no clsact qdisc".to_owned());
        assert_eq!(needed(true, missing()), missing());
        assert!(needed(false, missing()).unwrap().contains("not needed beside TCX links (no clsact qdisc)"));
    }

    #[test]
    fn checks_that_panic_are_no_success() {
        let found = inside(|| panic!("as the test wants it"));
        assert!(found.len() == 1 && found[0].result.as_ref().unwrap_err().contains("panicked"), "{found:?}");
    }

    #[test]
    fn the_report_says_whether_all_is_there() {
        let good = Check { name: "a", result: Ok("there".to_owned()) };
        let bad = Check { name: "b", result: Err("gone".to_owned()) };
        assert_eq!(report(std::slice::from_ref(&good))["ok"], true);
        let both = report(&[good, bad]);
        assert_eq!((&both["ok"], &both["complete"]), (&json!(false), &json!(true)));
        assert_eq!(both["checks"][1], json!({"check": "b", "ok": false, "missing": "gone"}));
        let unprivileged = Check { name: "privileges", result: Err("missing CAP_NET_RAW".to_owned()) };
        assert_eq!(report(&[unprivileged])["complete"], false);
    }
}
