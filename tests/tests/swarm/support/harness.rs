//! Runs the stories one after the other in one swarm, and says how it went as Rust's own test harness does.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    process::ExitCode,
    sync::OnceLock,
    time::Instant,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use clap::Parser;
use hiveway_tests::swarm::{Engine, Hiveway, Place, Shape, Swarm, Version, need_engine, sweep_dead};

use super::{Stage, timings::Timings};

/// What a story is told on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Docker alone: proves the frame.
    Engines,
    /// Hiveway on all nodes.
    Hiveway,
    /// Hiveway on all nodes, whose engines are of this version or a later one: what the story shows began there.
    HivewaySince(Version),
    /// Docker alone, on a kernel where its engines can balance (IPVS); the story installs Hiveway itself.
    Balancer,
}

/// A story: creates what it needs, changes it, checks. What it leaves behind is checked, and then removed, by the
/// frame.
pub(crate) struct Story {
    /// What is shown, as a user would say it.
    pub(crate) name: &'static str,
    pub(crate) needs: Needs,
    pub(crate) run: fn(&mut Stage) -> Result<()>,
}

#[derive(Parser)]
#[command(about = "Stories on a real Docker Swarm (as root)")]
struct Arguments {
    /// Only stories whose name contains one of these
    stories: Vec<String>,
    /// Names the stories
    #[arg(long)]
    list: bool,
    /// Docker alone: leaves out the stories that need Hiveway
    #[arg(long)]
    no_hiveway: bool,
    /// Only the stories that need a kernel with IPVS, on two nodes; `cargo xtask vm-test swarm` boots one
    #[arg(long)]
    balancer: bool,
    /// Tells them on a lab that is up, by its name, and leaves that up
    #[arg(long)]
    on: Option<String>,
    /// Tells everything so many times
    #[arg(long, default_value_t = 1)]
    rounds: u32,
    /// Ends at the first failure and leaves the swarm up, for `cargo xtask swarm --name ...`
    #[arg(long)]
    keep: bool,
}

/// What is to be removed on ctrl-c.
static PLACE: OnceLock<Place> = OnceLock::new();

/// Runs the stories that the command line asks for.
#[expect(clippy::print_stdout, reason = "the results are what it was run for")]
pub(crate) fn run(stories: &[Story]) -> ExitCode {
    let arguments = Arguments::parse();
    let chosen = |story: &&Story| {
        arguments.stories.is_empty() || arguments.stories.iter().any(|name| story.name.contains(name.as_str()))
    };
    let chosen: Vec<_> = stories.iter().filter(chosen).collect();
    if arguments.list {
        chosen.iter().for_each(|story| println!("{}: test", story.name));
        return ExitCode::SUCCESS;
    }
    let engine = match arguments.engine() {
        Ok(engine) => engine,
        Err(error) => {
            println!("no engine: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let (ready, left_out): (Vec<_>, Vec<_>) =
        chosen.into_iter().partition(|story| arguments.can_tell(story, engine.version()));
    println!("running {} stories on Docker Engine {}", ready.len(), engine.version());
    for story in &left_out {
        if let Needs::HivewaySince(version) = story.needs {
            println!("test {} ... ignored, it is for engines from {version} on", story.name);
        }
    }
    let mut stage = match set_up(&arguments, &engine) {
        Ok(stage) => stage,
        Err(error) => {
            println!("cannot set up the swarm: {error:#}");
            println!("test result: FAILED. 0 passed; {} failed; {} ignored", ready.len().max(1), left_out.len());
            take_down();
            return ExitCode::FAILURE;
        }
    };
    let (mut passed, mut failed) = (0, Vec::new());
    let all = (0..arguments.rounds).flat_map(|_| &ready);
    for story in all {
        let started = Instant::now();
        let outcome = tell(&mut stage, story);
        let took = started.elapsed().as_secs_f64();
        match outcome {
            Ok(()) => {
                passed += 1;
                println!("test {} ... ok ({took:.1} s)", story.name);
            }
            Err(error) => {
                failed.push(story.name);
                println!("test {} ... FAILED ({took:.1} s)\n{error:#}", story.name);
                if arguments.keep {
                    break;
                }
                if let Err(error) = recover(&mut stage) {
                    println!("no swarm any more: {error:#}");
                    break;
                }
            }
        }
    }
    stage.timings.lines().iter().for_each(|line| println!("timing: {line}"));
    println!("timings: {}", stage.timings.json());
    let kept = arguments.keep && !failed.is_empty();
    if kept {
        println!("the swarm is still up: cargo xtask swarm --name {} status", stage.swarm.place().name());
    } else {
        take_down();
    }
    if !failed.is_empty() {
        // As libtest lists them: `cargo xtask test` repeats the names before its closing line.
        println!("failures:");
        failed.iter().for_each(|name| println!("    {name}"));
    }
    let word = if failed.is_empty() { "ok" } else { "FAILED" };
    println!("test result: {word}. {passed} passed; {} failed; {} ignored", failed.len(), left_out.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

impl Arguments {
    /// The engine of the lab that is up, or the one that the environment names.
    fn engine(&self) -> Result<Engine> {
        self.on.as_ref().map_or_else(Engine::from_environment, |name| Engine::of(&Place::new(name)?))
    }

    fn can_tell(&self, story: &Story, engine: Version) -> bool {
        match story.needs {
            Needs::Engines => !self.balancer,
            Needs::Hiveway => !self.balancer && !self.no_hiveway,
            Needs::HivewaySince(version) => !self.balancer && !self.no_hiveway && engine >= version,
            Needs::Balancer => self.balancer,
        }
    }
}

fn set_up(arguments: &Arguments, engine: &Engine) -> Result<Stage> {
    need_engine()?;
    let balancer = Path::new("/proc/net/ip_vs").exists();
    ensure!(
        balancer || !arguments.balancer,
        "this kernel has no IPVS (no module ip_vs): use `cargo xtask vm-test swarm`"
    );
    // Two are enough with a balancer, and quicker where the kernel is emulated.
    let shape = Shape { nodes: if arguments.balancer { 2 } else { 3 }, managers: 1 };
    let hiveway = !arguments.no_hiveway && !arguments.balancer;
    if let Some(name) = &arguments.on {
        let stage = Stage { swarm: Swarm::open(&Place::new(name)?)?, hiveway, timings: Timings::default() };
        stage.tidy()?;
        return Ok(stage);
    }
    sweep_dead()?;
    let place = Place::new(&format!("t{}", std::process::id()))?;
    PLACE.get_or_init(|| place.clone());
    ctrlc::set_handler(|| {
        eprintln!("interrupted: cleaning up");
        take_down();
        std::process::exit(130);
    })
    .context("cannot handle ctrl-c")?;
    make(&place, shape, engine, hiveway, Timings::default())
}

fn make(place: &Place, shape: Shape, engine: &Engine, hiveway: bool, timings: Timings) -> Result<Stage> {
    let swarm = Swarm::up(place, shape, engine)?;
    let stage = Stage { swarm, hiveway, timings };
    if hiveway {
        stage.swarm.start_hiveway(&[]).map_err(|error| anyhow!("{error:#}\n{}", diagnosis(&stage)))?;
    }
    Ok(stage)
}

/// One story, then the agreement of what it has left, then the removal of that.
fn tell(stage: &mut Stage, story: &Story) -> Result<()> {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        (story.run)(stage)?;
        stage.agree().context("after the story")
    }));
    let outcome = outcome.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map_or("panic", String::as_str);
        Err(anyhow!("{text}"))
    });
    outcome.and_then(|()| stage.tidy().context("cleaning up after the story")).map_err(|error| {
        // Before anything is taken down.
        anyhow!("{error:#}\n{}", diagnosis(stage))
    })
}

/// After a failure: tidied up if that works, else a new swarm.
fn recover(stage: &mut Stage) -> Result<()> {
    if stage.tidy().is_ok() {
        return Ok(());
    }
    let place = stage.swarm.place().clone();
    let engine = Engine::of(&place)?;
    Swarm::down(&place)?;
    *stage = make(&place, stage.swarm.shape(), &engine, stage.hiveway, std::mem::take(&mut stage.timings))?;
    Ok(())
}

fn diagnosis(stage: &Stage) -> String {
    let mut said = String::new();
    for line in ["node ls", "service ls", "network ls"] {
        // Not through a story's patience: there may be no manager any more.
        let node = stage.nodes().into_iter().next();
        let answer = node.map(|node| stage.docker_on(&node, line));
        said += &format!(
            "---- docker {line}\n{}\n",
            answer.map_or(String::new(), |a| a.unwrap_or_else(|e| format!("{e:#}")))
        );
    }
    if Path::new("/proc/net/ip_vs").exists() {
        // The engines balance as well: what they say of it, and have set up.
        for node in stage.nodes() {
            let state = node.run("sh", &["-c", BALANCER_STATE]).unwrap_or_else(|error| format!("{error:#}"));
            said += &format!("---- {}: the engine\n{}\n{state}\n", node.label(), complaints(&node.engine().log()));
        }
    }
    if stage.hiveway || !stage.agents().is_empty() {
        for node in stage.nodes() {
            said += &Hiveway::on(&node).diagnosis();
            said.push('\n');
        }
    }
    said
}

/// Published ports, and the balancer behind them.
const BALANCER_STATE: &str = "iptables -t nat -S; iptables -S FORWARD; \
    nsenter --net=/run/docker/netns/ingress_sbox sh -c \
    'ip -br addr; iptables -t mangle -S; iptables -t nat -S; sysctl net.ipv4.vs.conntrack; cat /proc/net/ip_vs' 2>&1";

/// The last lines of an engine's log that are not good news.
fn complaints(log: &str) -> String {
    let bad = |line: &&str| ["level=warn", "level=error", "level=fatal"].iter().any(|level| line.contains(level));
    let lines: Vec<_> = log.lines().filter(bad).collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

fn take_down() {
    if let Some(place) = PLACE.get()
        && let Err(error) = Swarm::down(place)
    {
        eprintln!("{error:#}");
    }
}
