//! Our own traffic: loads the programs, attaches the far end, sends and counts.

use std::{
    path::PathBuf,
    sync::OnceLock,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use aya::{
    Ebpf, TestRun as _,
    maps::{Array, PerCpuArray},
    programs::{ProgramError, SchedClassifier, TcAttachType, TestRunAttrs, TestRunOptions, Xdp, XdpMode},
};
use dataplane_common::traffic::{Order, tally};
use hiveway_tests::lab::Netns;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use zerocopy::IntoBytes as _;

use crate::maps::Raw;

/// Frames per run of the generator: some ten milliseconds.
const RUN: u32 = 1 << 16;
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
    pub(super) elapsed: Duration,
    /// Time that the core has spent on it: less than `elapsed` if somebody else had the core meanwhile.
    pub(super) busy: Duration,
}

impl Traffic {
    /// Loads everything; packets are made, and so forwarded, on `core`.
    pub(super) fn load(core: usize) -> Result<Self> {
        let path = object()?;
        let remedy = || format!("cannot load {}: run `cargo xtask build-ebpf`", path.display());
        let mut ebpf = Ebpf::load_file(&path).with_context(remedy)?;
        for name in ["generate", "bounce", "push", "sink"] {
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

    /// Attaches the XDP program `sink`, `bounce` or `push`, in the driver.
    pub(super) fn attach_xdp(&mut self, name: &str, netns: &Netns, interface: &str) -> Result<()> {
        let program = xdp(&mut self.ebpf, name)?;
        netns.enter(|| program.attach(interface, XdpMode::Driver))?.with_context(|| format!("cannot attach {name}"))?;
        Ok(())
    }

    /// What becomes of packets at the far end: a constant of `dataplane_common::traffic::far_end`.
    pub(super) fn set_far_end(&mut self, mode: u32) -> Result<()> {
        let mut map: Array<_, u32> = self.ebpf.map_mut("FAR_END").context("no map FAR_END")?.try_into()?;
        Ok(map.set(0, mode, 0)?)
    }

    /// Sends this many frames out of a device of `netns`.
    pub(super) fn send(&mut self, netns: &Netns, device: u32, order: (Order, usize), frames: u64) -> Result<Tally> {
        self.order(order.0)?;
        let before = self.tally()?;
        let mut left = frames;
        self.generate(netns, device, order.1, |run| {
            let next = u32::try_from(left).unwrap_or(u32::MAX).min(RUN);
            left -= u64::from(next);
            (next > 0).then(|| run(next)).transpose()
        })?;
        settle();
        let after = self.tally()?;
        Ok(Tally { delivered: after.delivered - before.delivered, answered: after.answered - before.answered })
    }

    /// Sends for that long.
    pub(super) fn measure(
        &mut self,
        netns: &Netns,
        device: u32,
        order: (Order, usize),
        length: Duration,
    ) -> Result<Sent> {
        self.order(order.0)?;
        let before = self.tally()?.delivered;
        let (mut sent, mut elapsed, mut busy, mut started) = (0, Duration::ZERO, Duration::ZERO, None);
        let core = self.core;
        self.generate(netns, device, order.1, |run| {
            if started.is_none() {
                started = Some((Instant::now(), busy_time(core)?));
            }
            run(RUN)?;
            sent += u64::from(RUN);
            if let Some((since, busy_before)) = started {
                elapsed = since.elapsed();
                busy = busy_time(core)? - busy_before;
            }
            Ok((elapsed < length).then_some(()))
        })?;
        settle();
        Ok(Sent { sent, delivered: self.tally()?.delivered - before, elapsed, busy })
    }

    /// Calls `step` until it returns `None`, on the core and in the namespace of the generator; it gets a function that
    /// sends that many frames.
    fn generate(
        &mut self,
        netns: &Netns,
        device: u32,
        length: usize,
        mut step: impl FnMut(&dyn Fn(u32) -> Result<()>) -> Result<Option<()>> + Send,
    ) -> Result<()> {
        let core = self.core;
        let program = &*xdp(&mut self.ebpf, "generate")?;
        let frame = vec![0; length];
        let context = Context { data: 0, data_end: length as u32, ingress_ifindex: device, ..Context::default() };
        let work = move || -> Result<()> {
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
            while step(&run)?.is_some() {}
            Ok(())
        };
        netns.enter(work)?
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
