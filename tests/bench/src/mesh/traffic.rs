//! Our own traffic: loads the programs, attaches the far end, sends and counts.

use std::{
    path::PathBuf,
    sync::OnceLock,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use aya::{
    Ebpf, TestRun as _,
    maps::{Array, MapData, PerCpuArray},
    programs::{ProgramError, SchedClassifier, TcAttachType, TestRunAttrs, TestRunOptions, Xdp, XdpMode},
};
use dataplane_common::traffic::{Order, far_end, tally};
use hiveway_tests::lab::Netns;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use zerocopy::IntoBytes as _;

use super::{
    order::Frames,
    runs::{self, Times},
};
use crate::maps::Raw;

/// Runs of nothing whose median is the fixed cost.
const EMPTY_RUNS: usize = 5;
/// Frames in a row before the node under test gets its turn, as one interrupt of a card brings them (NAPI's weight).
const BATCH: u32 = 64;

/// The programs and their maps.
pub(super) struct Traffic {
    ebpf: Ebpf,
    core: usize,
}

/// What became of the packets.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub(super) delivered: u64,
    pub(super) answered: u64,
}

/// A measurement.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) sent: u64,
    pub(super) delivered: u64,
    /// Without the runs' fixed cost. The core has worked less than has passed if somebody else had it meanwhile.
    pub(super) times: Times,
    pub(super) runs: u32,
    /// Of each run.
    pub(super) fixed: Times,
}

impl Traffic {
    /// Loads everything; packets are made, and so forwarded, on `core`.
    pub(super) fn load(core: usize) -> Result<Self> {
        let path = object()?;
        let remedy = || format!("cannot load {}: run `cargo xtask build-ebpf`", path.display());
        let mut ebpf = Ebpf::load_file(&path).with_context(remedy)?;
        for name in ["generate", "replay", "replay_tunnel", "bounce", "push", "pull", "sink"] {
            xdp(&mut ebpf, name)?.load()?;
        }
        classifier(&mut ebpf)?.load()?;
        Ok(Self { ebpf, core })
    }

    /// Counts and answers what comes in through an interface.
    pub(super) fn attach_far_end(&mut self, netns: &Netns, interface: &str) -> Result<()> {
        let program = classifier(&mut self.ebpf)?;
        netns.enter(|| program.attach(interface, TcAttachType::Ingress))?.context("cannot attach the far end")?;
        Ok(())
    }

    /// Attaches the XDP program `sink`, `bounce`, `push` or `pull`, in the driver.
    pub(super) fn attach_xdp(&mut self, name: &str, netns: &Netns, interface: &str) -> Result<()> {
        let program = xdp(&mut self.ebpf, name)?;
        netns.enter(|| program.attach(interface, XdpMode::Driver))?.with_context(|| format!("cannot attach {name}"))?;
        Ok(())
    }

    /// What becomes of packets at the far end: a constant of `dataplane_common::traffic::far_end`.
    pub(super) fn set_far_end(&mut self, mode: u32) -> Result<()> {
        Ok(self.far_end()?.set(far_end::MODE, mode, 0)?)
    }

    /// The far end keeps what it answers from the beginning.
    pub(super) fn forget_answers(&mut self) -> Result<()> {
        Ok(self.far_end()?.set(far_end::NEXT, 0, 0)?)
    }

    /// How many flows the far end has answered since.
    pub(super) fn answers(&mut self) -> Result<u32> {
        Ok(self.far_end()?.get(&far_end::NEXT, 0)?)
    }

    fn far_end(&mut self) -> Result<Array<&mut MapData, u32>> {
        Ok(self.ebpf.map_mut("FAR_END").context("no map FAR_END")?.try_into()?)
    }

    /// Sends this many frames out of a device of `netns`, in one run.
    pub(super) fn send(&mut self, netns: &Netns, device: u32, frames: &Frames, count: u32) -> Result<Tally> {
        self.order(frames.order)?;
        let before = self.tally()?;
        self.generate(netns, device, frames, |run| run(count))?;
        settle();
        let after = self.tally()?;
        Ok(Tally { delivered: after.delivered - before.delivered, answered: after.answered - before.answered })
    }

    /// Sends so many frames to warm up, then for that long.
    pub(super) fn measure(
        &mut self,
        netns: &Netns,
        device: u32,
        frames: &Frames,
        (warm, length): (u32, Duration),
    ) -> Result<Sent> {
        let core = self.core;
        self.order(frames.order)?;
        let (fixed, warmed) = self.generate(netns, device, frames, |run| {
            let empty = (0..EMPTY_RUNS).map(|_| timed(core, || run(BATCH))).collect::<Result<Vec<_>>>()?;
            Ok((Times::medians(&empty), timed(core, || run(warm))?))
        })?;
        settle();
        let before = self.tally()?.delivered;
        let (sent, runs, times) = self.generate(netns, device, frames, |run| {
            let (mut sent, mut runs, mut gross, mut net) = (0, 0, Times::default(), Times::default());
            let mut pace = (warm.into(), warmed.without(1, fixed).elapsed);
            // What was measured while warming up, with other caches, may be wrong: then there is a second run.
            while net.elapsed < length * 9 / 10 {
                let count = runs::frames(length - net.elapsed, pace);
                gross = gross + timed(core, || run(count))?;
                (sent, runs) = (sent + u64::from(count), runs + 1);
                net = gross.without(runs, fixed);
                pace = (sent, net.elapsed);
            }
            Ok((sent, runs, net))
        })?;
        settle();
        Ok(Sent { sent, delivered: self.tally()?.delivered - before, times, runs, fixed })
    }

    /// Calls `work` on the core and in the namespace of the generator; it gets a function that sends that many frames.
    fn generate<R: Send>(
        &mut self,
        netns: &Netns,
        device: u32,
        frames: &Frames,
        work: impl FnOnce(&dyn Fn(u32) -> Result<()>) -> Result<R> + Send,
    ) -> Result<R> {
        let core = self.core;
        let program = &*xdp(&mut self.ebpf, frames.program)?;
        let frame = vec![0; frames.length];
        let context =
            Context { data: 0, data_end: frames.length as u32, ingress_ifindex: device, ..Context::default() };
        let pinned = move || -> Result<R> {
            pin(&[core])?;
            let run = |frames: u32| loop {
                let result = program.test_run(TestRunOptions {
                    data_in: Some(&frame),
                    ctx_in: Some(context.as_bytes()),
                    repeat: frames,
                    attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
                    ..TestRunOptions::default()
                });
                return match result {
                    Ok(_) => Ok(()),
                    Err(error) if interrupted(&error) => continue,
                    Err(error) => Err(error).context("the generator"),
                };
            };
            work(&run)
        };
        netns.enter(pinned)?
    }

    fn order(&mut self, order: Order) -> Result<()> {
        let mut map: Array<_, Raw<Order>> = self.ebpf.map_mut("ORDER").context("no map ORDER")?.try_into()?;
        Ok(map.set(0, Raw(order), 0)?)
    }

    fn tally(&self) -> Result<Tally> {
        let map: PerCpuArray<_, u64> = self.ebpf.map("TALLY").context("no map TALLY")?.try_into()?;
        let slot = |slot| -> Result<u64> { Ok(map.get(&slot, 0)?.iter().sum()) };
        Ok(Tally { delivered: slot(tally::DELIVERED)?, answered: slot(tally::ANSWERED)? })
    }
}

/// `struct xdp_md` of `<linux/bpf.h>`.
#[repr(C)]
#[derive(Clone, Copy, Default, zerocopy::IntoBytes, zerocopy::Immutable)]
struct Context {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress_ifindex: u32,
    rx_queue_index: u32,
    egress_ifindex: u32,
}

/// What something takes.
fn timed(core: usize, work: impl FnOnce() -> Result<()>) -> Result<Times> {
    let (since, before) = (Instant::now(), busy_time(core)?);
    work()?;
    Ok(Times { elapsed: since.elapsed(), busy: busy_time(core)? - before })
}

/// What this thread has computed so far, and the kernel's thread that takes over when there is more to receive than one
/// turn can hold. Interrupts' time is in it, unless the kernel accounts for that apart (`CONFIG_IRQ_TIME_ACCOUNTING`).
fn busy_time(core: usize) -> Result<Duration> {
    let of = |path: &str| -> Result<Duration> {
        let text = std::fs::read_to_string(path).with_context(|| path.to_owned())?;
        let nanoseconds = text.split_whitespace().next().with_context(|| format!("{path} is empty"))?;
        Ok(Duration::from_nanos(nanoseconds.parse()?))
    };
    Ok(of("/proc/thread-self/schedstat")? + of(&format!("/proc/{}/schedstat", ksoftirqd(core)?))?)
}

/// Process id of `ksoftirqd/<core>`.
fn ksoftirqd(core: usize) -> Result<u32> {
    static PID: OnceLock<Option<u32>> = OnceLock::new();
    let find = || {
        let name = format!("ksoftirqd/{core}\n");
        let pids = std::fs::read_dir("/proc").ok()?.flatten();
        let mut pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.find(|pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == name))
    };
    PID.get_or_init(find).with_context(|| format!("no ksoftirqd/{core}"))
}

/// What the last frames have still to go through, at most a ring's length.
fn settle() {
    std::thread::sleep(Duration::from_millis(5));
}

/// Keeps this thread, and what it starts, on some cores.
pub(super) fn pin(cores: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    cores.iter().try_for_each(|core| set.set(*core))?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("cannot use cores {cores:?}"))
}

fn interrupted(error: &ProgramError) -> bool {
    let ProgramError::SyscallError(error) = error else { return false };
    error.io_error.kind() == std::io::ErrorKind::Interrupted
}

fn xdp<'e>(ebpf: &'e mut Ebpf, name: &str) -> Result<&'e mut Xdp> {
    Ok(ebpf.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?)
}

fn classifier(ebpf: &mut Ebpf) -> Result<&mut SchedClassifier> {
    Ok(ebpf.program_mut("far_end").context("no program far_end")?.try_into()?)
}

/// Where `cargo xtask build-ebpf` puts it, seen from this program in the same target directory.
fn object() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let places = own.ancestors().skip(1).map(|directory| directory.join("bpfel-unknown-none/release/traffic"));
    match places.into_iter().find(|place| place.is_file()) {
        Some(place) => Ok(place),
        None => bail!("no bpfel-unknown-none/release/traffic beside {}: run `cargo xtask build-ebpf`", own.display()),
    }
}
