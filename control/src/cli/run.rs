//! Carries out a parsed command line and says how it ended.

use std::io::IsTerminal;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing_subscriber::EnvFilter;

use super::{AgentArgs, Cli, Command, Flows, List, ShowArgs, check, exit, show};
use crate::{agent, log, plain, preflight, say::errln, status::protocol::Request, teardown, validate};

/// Runs the command; returns the exit code.
pub fn run(cli: Cli) -> u8 {
    let shown = |request, args: &ShowArgs| show::show(&request, args);
    let listed = |request, list: &List| show::show(&request, list.args());
    match &cli.command {
        Command::Agent(args) => run_agent(args),
        Command::Validate(args) => validate::run(&args.table, &args.engine),
        Command::Status(args) => shown(Request::Status, args),
        Command::Check(args) => check::check(args),
        Command::Network(list) => listed(Request::Networks, list),
        Command::Service(list) => listed(Request::Services, list),
        Command::Endpoint(list) => listed(Request::Endpoints, list),
        Command::Flow(Flows::Ls(args)) => show::flows(args),
        Command::Drops(args) => shown(Request::Drops, args),
        Command::Plan(args) => shown(Request::Plan, args),
        Command::Preflight(args) => preflight::run(args),
        Command::Teardown(args) => teardown::run(&args.bpffs, &args.state_dir),
    }
}

fn run_agent(args: &AgentArgs) -> u8 {
    if let Some(why) = args.missing() {
        errln!("error: {why}");
        return exit::USAGE;
    }
    log_to_stderr();
    raise_descriptors();
    match agent::run(args.clone()) {
        Ok(()) => exit::OK,
        Err(error) => {
            errln!("error: {error:#}");
            exit::FAILED
        }
    }
}

/// A node with many tasks needs more descriptors than the 1,024 that processes get at first.
fn raise_descriptors() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(soft, hard)| if soft < hard { setrlimit(Resource::RLIMIT_NOFILE, hard, hard) } else { Ok(()) });
    if let Err(errno) = raised {
        tracing::warn!("the limit of open files stays as it is: {errno}");
    }
}

fn log_to_stderr() {
    match log::start() {
        Ok(()) => log::take_panics(),
        Err(error) => errln!("warning: no log: {error}"),
    }
    let filter = EnvFilter::new(filter(std::env::var("HIVEWAY_LOG").ok().as_deref()));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| log::Lines)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .fmt_fields(plain::fields())
        // Where stderr's reader has gone, complaining about that on stderr would be a panic.
        .log_internal_errors(false)
        .init();
}

/// What is logged.
fn filter(chosen: Option<&str>) -> String {
    let chosen = chosen.unwrap_or("info");
    // It writes down all bytes of a message that it cannot decode: a container could push out everything else. What
    // could not be read is counted and told by the agent itself.
    let quiet = if chosen.contains("netlink_proto") { "" } else { "netlink_proto=off," };
    // The programs' own level decides what they say; all of it is shown.
    format!("{quiet}{chosen},dataplane_ebpf=trace")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_decoded_is_not_logged_but_on_request() {
        assert_eq!(filter(None), "netlink_proto=off,info,dataplane_ebpf=trace");
        assert_eq!(filter(Some("debug")), "netlink_proto=off,debug,dataplane_ebpf=trace");
        assert_eq!(filter(Some("info,netlink_proto=error")), "info,netlink_proto=error,dataplane_ebpf=trace");
    }
}
