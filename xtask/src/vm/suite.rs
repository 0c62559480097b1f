//! What can be run in the VM.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Result, bail};
use clap::ValueEnum;
use serde_json::Value;

use super::Kernel;
use crate::{
    lab::ENGINE_VARIABLE,
    setup::{
        self,
        engine::{self, Wanted},
    },
    sh,
};

/// Test files of crate dataplane that meet every hook, helper, kind of program and kind of map at least once, and what
/// kernels treat differently: GSO metadata, IP options, ICMP errors, adjusted room, maps of maps. Each test loads all
/// programs, which takes an emulated kernel 5 s and more.
const KERNEL_DEPENDENT: [&str; 22] = [
    "lifecycle",
    "earlier_maps",
    "growth",
    "attachments",
    "sandboxes",
    "golden_container",
    "golden_vip",
    "golden_mesh",
    "golden_mesh_backend",
    "golden_mesh_dsr",
    "golden_gateway",
    "golden_gso",
    "golden_left",
    "golden_options",
    "golden_path_mtu",
    "golden_probe",
    "golden_shares",
    "golden_ttl",
    "golden_ingress",
    "golden_xdp",
    "golden_xdp_memory",
    "golden_xdp_open",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Suite {
    /// Attaching and golden packets, on 6.1, 6.12 and the newest kernel: the files whose outcome may depend on the
    /// kernel, those named, or `all`
    Packets,
    /// Stories on a Docker Swarm whose engines can balance by themselves (IPVS, ESP), on 6.12
    Swarm,
    /// VLAN devices, WireGuard, IP tunnels and bonds under real agents, on 6.12: the scenarios of `tests/tests/links`,
    /// or those named
    Links,
    /// Any command: `vm-test run uname -r`
    Run,
}

impl Suite {
    /// Those that it is run on unless one is asked for.
    pub(super) fn kernels(self) -> &'static [Kernel] {
        match self {
            Self::Packets => &[Kernel::V6_1, Kernel::V6_12, Kernel::Newest],
            Self::Swarm | Self::Links | Self::Run => &[Kernel::V6_12],
        }
    }

    /// Builds what it needs; a script for sh.
    pub(super) fn script(self, engine: Option<&Wanted>, arguments: &[String]) -> Result<String> {
        match self {
            Self::Packets => {
                let named: Vec<&str> = arguments.iter().map(String::as_str).collect();
                let tests = match named[..] {
                    [] => test_programs("dataplane", &KERNEL_DEPENDENT)?,
                    ["all"] => test_programs("dataplane", &["*"])?,
                    _ => test_programs("dataplane", &named)?,
                };
                Ok(run_all(&sh::root().join("dataplane").canonicalize()?, &tests, &[]))
            }
            Self::Swarm => {
                setup::for_swarm()?;
                // Unpacked here: the guest sees this machine's files and reaches no mirror.
                let engine = engine.map(engine::fetch).transpose()?;
                let mut build = sh::cargo();
                sh::run(build.args(["build", "--package", "control", "--package", "hiveway-tests", "--bins"]))?;
                let tests = test_programs("hiveway-tests", &["swarm"])?;
                let arguments: Vec<_> =
                    ["--balancer".to_owned()].into_iter().chain(arguments.iter().cloned()).collect();
                Ok(swarm_set_up(engine.as_deref())?
                    + &run_all(&sh::root().join("tests").canonicalize()?, &tests, &arguments))
            }
            Self::Links => {
                let mut build = sh::cargo();
                sh::run(build.args(["build", "--package", "control", "--package", "hiveway-tests", "--bins"]))?;
                let tests = test_programs("hiveway-tests", &["links"])?;
                // Elsewhere they are ignored; one at a time, on emulated cores.
                let all = ["--ignored".to_owned(), "--test-threads=1".to_owned(), "--nocapture".to_owned()];
                let arguments: Vec<_> = all.into_iter().chain(arguments.iter().cloned()).collect();
                Ok(LINKS_SET_UP.to_owned() + &run_all(&sh::root().join("tests").canonicalize()?, &tests, &arguments))
            }
            Self::Run => {
                if arguments.is_empty() {
                    bail!("what is to be run in the VM?");
                }
                Ok(format!("cd {}\n{}\n", quote(&sh::root().canonicalize()?.to_string_lossy()), arguments.join(" ")))
            }
        }
    }
}

/// Loaded beforehand: an emulated kernel takes longer for some than the agent waits for `nft`.
const LINKS_SET_UP: &str = "modprobe --all 8021q vmxnet3 bonding wireguard ip_gre ipip vxlan nf_tables nft_chain_nat nft_masq nft_nat nft_ct \
     nft_fib_inet sch_ingress cls_bpf act_gact || exit 1\nnft list ruleset || exit 1\nexport HIVEWAY_TEST_SLOWNESS=10\n";

/// Modules that an engine expects to find loaded or loads in a namespace where it can't. The namespaces that engines
/// make have the settings of the machine's first one, where engines otherwise are and switch forwarding on: without it
/// the answers end in the ingress network's balancer. And the server in the images without its debug information,
/// because every engine hashes every image. `engine`: the directory of an unpacked one.
fn swarm_set_up(engine: Option<&Path>) -> Result<String> {
    let server = sh::target_dir().join("debug/hw-lab-peer").canonicalize()?;
    let engine = engine
        .map(|engine| format!("export {ENGINE_VARIABLE}={}\n", quote(&engine.to_string_lossy())))
        .unwrap_or_default();
    Ok(format!(
        "modprobe --all ip_vs ip_vs_rr xt_ipvs esp4 xfrm_user vxlan br_netfilter || exit 1\n\
         echo 1 > /proc/sys/net/ipv4/ip_forward || exit 1\n\
         strip -o /var/tmp/hw-lab-peer {} || exit 1\nexport HW_LAB_PEER=/var/tmp/hw-lab-peer\n\
         export HIVEWAY_TEST_SLOWNESS=4\n{engine}",
        quote(&server.to_string_lossy())
    ))
}

/// Builds tests of a package without running them: their programs.
fn test_programs(package: &str, tests: &[&str]) -> Result<Vec<PathBuf>> {
    let mut cargo = sh::cargo();
    cargo.args(["test", "--no-run", "--message-format=json-render-diagnostics"]);
    cargo.args(["--package", package]).args(tests.iter().flat_map(|test| ["--test", test]));
    let said = sh::output(cargo.stderr(Stdio::inherit()))?;
    let messages = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let programs: Vec<PathBuf> = messages
        .filter(|message| message["reason"] == "compiler-artifact" && message["target"]["kind"][0] == "test")
        .filter_map(|message| Some(message["executable"].as_str()?.into()))
        .collect();
    if programs.is_empty() {
        bail!("{package} has no test {}", tests.join(", "));
    }
    Ok(programs)
}

/// One after the other, whatever becomes of the ones before; fails if one has.
fn run_all(directory: &Path, programs: &[PathBuf], arguments: &[String]) -> String {
    let mut script = format!("cd {}\nexport CARGO_MANIFEST_DIR=$PWD\nfailed=0\n", quote(&directory.to_string_lossy()));
    let arguments: String = arguments.iter().map(|argument| format!(" {}", quote(argument))).collect();
    for program in programs {
        let path = program.to_string_lossy();
        script += &format!("echo 'Running {path}'\n{}{arguments} 2>&1 || failed=1\n", quote(&path));
    }
    script + "exit $failed\n"
}

fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_dependent_file_is_there_once() {
        let there = |name: &&str| Path::new("../dataplane/tests").join(format!("{name}.rs")).exists();
        assert_eq!(KERNEL_DEPENDENT.iter().find(|name| !there(name)), None);
        let names: std::collections::BTreeSet<_> = KERNEL_DEPENDENT.into_iter().collect();
        assert_eq!(names.len(), KERNEL_DEPENDENT.len());
    }

    #[test]
    fn a_script_goes_on_after_a_failure_and_fails() {
        let script = run_all(Path::new("/"), &["/bin/false".into(), "/bin/echo".into()], &["it's".to_owned()]);
        let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
        assert!(String::from_utf8_lossy(&output.stdout).contains("\nit's\n"));
        assert_eq!(output.status.code(), Some(1));
    }
}
