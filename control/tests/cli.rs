//! The command line's contract: exit codes and messages. No privileges needed.

mod support;

use std::process::{Command, Output, Stdio};

use support::{HIVEWAY, stderr, stdout};

fn hiveway(args: &[&str]) -> Output {
    Command::new(HIVEWAY).args(args).output().unwrap()
}

#[test]
fn help_and_version_succeed() {
    for args in [&["--help"][..], &["agent", "--help"], &["network", "ls", "--help"], &["--version"]] {
        assert_eq!(hiveway(args).status.code(), Some(0), "{args:?}");
    }
    let help = stdout(&hiveway(&["agent", "--help"]));
    for flag in [
        "--node",
        "--table",
        "--underlay",
        "--mesh-interfaces",
        "--netns-dir",
        "--state-dir",
        "--bpffs",
        "--socket",
        "--metrics",
        "--vxlan-port",
        "--mesh-vni",
        "--xdp",
        "--gwbridge",
        "--gwbridge-subnet",
        "--mesh-return",
        "--mesh-allow",
    ] {
        assert!(help.contains(flag), "no {flag} in the help");
    }
}

#[test]
fn wrong_usage_is_exit_code_2() {
    for args in [&["frobnicate"][..], &["agent"], &["agent", "--bogus"], &["network"], &["validate"]] {
        assert_eq!(hiveway(args).status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn a_table_that_never_ends_or_never_begins_is_refused_at_once() {
    let scratch = tempfile::tempdir().unwrap();
    let (fifo, huge) = (scratch.path().join("fifo"), scratch.path().join("huge.yaml"));
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::fs::File::create(&huge).unwrap().set_len(1 << 40).unwrap();
    for (path, why) in [
        ("/dev/zero".as_ref(), "it is a device, not a regular file"),
        (fifo.as_path(), "it is a pipe, not a regular file"),
        (&huge, "it is larger than 64 MiB"),
    ] {
        // `timeout` ends with 124; one that takes all memory is stopped at a gigabyte.
        let command = format!("ulimit -v 1048576; exec timeout 10 {HIVEWAY} validate --table file:{}", path.display());
        let output = Command::new("sh").args(["-c", &command]).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{path:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(why) || stdout(&output).contains(why), "{path:?}: {}", stderr(&output));
    }
}

/// Runs it with stdout, or stderr, closed at the other end or on a full disk.
fn with_output(args: &[&str], stdout: Stdio, stderr: Stdio) -> Output {
    Command::new(HIVEWAY).args(args).stdout(stdout).stderr(stderr).spawn().unwrap().wait_with_output().unwrap()
}

fn closed() -> Stdio {
    std::io::pipe().unwrap().1.into()
}

#[test]
fn output_that_nobody_takes_is_no_panic() {
    let scratch = tempfile::tempdir().unwrap();
    let (good, bad) = (scratch.path().join("good.yaml"), scratch.path().join("bad.yaml"));
    std::fs::write(&good, "version: 1\nnodes: [{id: n1, hostname: n1, address: 192.0.2.1}]\n").unwrap();
    std::fs::write(&bad, "version: 7\n").unwrap();
    let table = |path: &std::path::Path| format!("file:{}", path.display());
    let (good, bad) = (table(&good), table(&bad));
    let good = ["validate", "--table", &good];
    let bad = ["validate", "--table", &bad];
    let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();

    assert_eq!(with_output(&good, closed(), Stdio::piped()).status.code(), Some(0), "its reader has seen enough");
    assert_eq!(with_output(&bad, closed(), closed()).status.code(), Some(1));
    assert_eq!(with_output(&bad, Stdio::null(), full().into()).status.code(), Some(1));
    let output = with_output(&good, full().into(), Stdio::piped());
    assert_eq!(output.status.code(), Some(1), "what was asked for is not there");
    assert!(stderr(&output).contains("stdout: No space left on device"), "{}", stderr(&output));
}

#[test]
fn live_sources_are_checked_on_managers_only() {
    let output = hiveway(&["validate", "--table", "swarm", "--control-socket", "/nonexistent/control.sock"]);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("/nonexistent/control.sock") && said.contains("no manager"), "{said}");
    let output = hiveway(&["validate", "--table", "relay:192.0.2.1:4788"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("on a manager"));
    let output = hiveway(&["agent", "--table", "file:/x", "--underlay", "eth0"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--node ID is required with --table file:/x"));
}

#[test]
fn no_agent_is_said_with_the_path_and_the_remedy() {
    for command in
        [&["status"][..], &["network", "ls"], &["service", "ls"], &["endpoint", "ls"], &["flow", "ls"], &["drops"]]
    {
        let output = hiveway(&[command, &["--socket", "/nonexistent/agent.sock"]].concat());
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1));
        assert!(said.contains("/nonexistent/agent.sock") && said.contains("hiveway agent"), "{said}");
    }
}

#[test]
fn validate_prints_every_problem_with_its_place() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("table.yaml");
    let source = format!("file:{}", path.display());
    std::fs::write(&path, "version: 1\nnodes: [{id: n1, hostname: n1, address: 192.0.2.1}]\n").unwrap();
    let output = hiveway(&["validate", "--table", &source]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains("1 nodes"));

    let bad = "version: 1\n\
        nodes: [{id: n1, hostname: n1, address: 192.0.2.1}, {id: n1, hostname: n2, address: 192.0.2.2}]\n\
        networks: [{id: app, name: app, subnets: [{subnet: 10.0.1.0/24, gateway: 10.0.1.1, vni: 4097}]}]\n\
        tasks: [{id: t, node_id: n9, desired_state: running, state: running, addresses: {app: 10.9.9.9}}]\n";
    std::fs::write(&path, bad).unwrap();
    let output = hiveway(&["validate", "--table", &source]);
    assert_eq!(output.status.code(), Some(1));
    let said = stdout(&output);
    for place in ["nodes[1]", "tasks[0].node_id", "tasks[0].addresses.app"] {
        assert!(said.contains(place), "no {place} in {said}");
    }

    let output = hiveway(&["validate", "--table", "file:/nonexistent.yaml"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("/nonexistent.yaml"));
}
