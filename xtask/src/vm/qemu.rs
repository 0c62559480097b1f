//! Boots a kernel, runs a script in it, and has it end.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::kernel::Image;
use super::{Suite, initramfs};

const GUEST: &str = include_str!("guest.sh");
/// What guest.sh says at the end, followed by the suite's exit code.
const RESULT: &str = "vm: the suite ended with ";

/// Killed and waited for, whatever happens.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs `script` (of sh) in a VM: its exit code. Every line that it prints is shown and given to `on_line`.
pub(super) fn run(kernel: &Image, suite: Suite, script: &str, mut on_line: impl FnMut(&str)) -> Result<u8> {
    let started = Instant::now();
    // Beside the kernel: one run of each kernel at a time.
    let archive = initramfs::build(kernel)?;
    fs::write(kernel.root.join("guest.sh"), GUEST)?;
    fs::write(kernel.root.join("suite.sh"), script)?;
    // setpriv: it must not outlive us, even if we are killed.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
    command.args(["-M", "q35", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max", "-smp", "2"]);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"]);
    command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=0x4"]);
    command.args(["-fsdev", "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap"]);
    command.args(["-device", "virtio-9p-pci,fsdev=host,mount_tag=host"]);
    command.args(["-m", &suite.memory_mb().to_string()]);
    if suite.has_nics() {
        // Two, joined by a cable: drivers take VLAN tags off received frames or leave them there, which no veth does.
        for nic in ["a", "b"] {
            command.args(["-netdev", &format!("hubport,id={nic},hubid=0")]);
            command.args(["-device", &format!("vmxnet3,netdev={nic}")]);
        }
    }
    command.arg("-kernel").arg(&kernel.vmlinux).arg("-initrd").arg(archive);
    command.arg("-append").arg(format!(
        "console=ttyS0 quiet panic=-1 mitigations=off tsc=unstable clocksource=hpet random.trust_cpu=on hiveway.vm={}",
        kernel.root.display()
    ));
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut machine = Machine(command.spawn().context("cannot start setpriv and qemu-system-x86_64")?);
    let console = machine.0.stdout.take().context("no pipe from QEMU")?;
    let (sender, lines) = channel();
    thread::spawn(move || {
        for line in BufReader::new(console).split(b'\n').map_while(Result::ok) {
            let _ = sender.send(String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned());
        }
    });
    let mut result = None;
    loop {
        let left = suite.time_limit().saturating_sub(started.elapsed());
        match lines.recv_timeout(left) {
            Ok(line) => {
                println!("{line}");
                on_line(&line);
                // The kernel may have written something in front of it.
                if let Some((_, code)) = line.split_once(RESULT) {
                    result = code.trim().parse().ok();
                }
            }
            Err(RecvTimeoutError::Timeout) => bail!("the VM has not ended after {:?}", suite.time_limit()),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let status = machine.0.wait()?;
    println!("vm-test: {:.1} s", started.elapsed().as_secs_f64());
    judge(result, status)
}

/// The suite's exit code, if both the console and QEMU tell of it.
fn judge(result: Option<u8>, status: ExitStatus) -> Result<u8> {
    let Some(code) = result else { bail!("the VM ended without a result ({status}): a panic? See above") };
    // isa-debug-exit; an even code is a panic, or somebody switched the machine off.
    let expected = (i32::from(code) << 1 | 1) & 0xff;
    if status.code() != Some(expected) {
        bail!("the suite ended with {code}, but QEMU with {status}");
    }
    Ok(code)
}

/// How long it may take, with everything else that this machine does.
impl Suite {
    fn time_limit(self) -> Duration {
        Duration::from_secs(match self {
            Self::Swarm => 100 * 60,
            Self::Packets | Self::Links | Self::Run => 60 * 60,
        })
    }

    /// Whether there are network cards; the driver is up to the suite.
    fn has_nics(self) -> bool {
        matches!(self, Self::Links | Self::Run)
    }

    /// Its files are in memory too.
    fn memory_mb(self) -> u32 {
        match self {
            Self::Packets => 1536,
            Self::Swarm | Self::Links | Self::Run => 4096,
        }
    }
}
