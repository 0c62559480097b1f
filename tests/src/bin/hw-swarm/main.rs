//! `cargo xtask swarm`: a real Docker Swarm on this machine, with Hiveway on its nodes.

#![expect(clippy::print_stdout, reason = "it answers on stdout")]

mod status;

use std::{
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand, ValueEnum};
use hiveway_tests::swarm::{Engine, Hiveway, Place, Shape, Swarm};

#[derive(Parser)]
#[command(name = "cargo xtask swarm", bin_name = "cargo xtask swarm", about = "A real Docker Swarm on this machine")]
struct Arguments {
    /// Which lab; several can be up at once
    #[arg(long, default_value = "swarm", global = true)]
    name: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Starts the engines, makes a swarm of them, and starts Hiveway on the nodes
    Up {
        /// How many engines
        #[arg(long, default_value_t = 3)]
        nodes: u8,
        /// How many of them are managers
        #[arg(long, default_value_t = 1)]
        managers: u8,
        /// The nodes' Docker Engine: 20.10, 26.1, 28.5, any other version that Debian's mirror has, or `newest`. It is
        /// unpacked below target/, not installed
        #[arg(long, default_value = "newest")]
        engine: String,
        /// Leave Hiveway out
        #[arg(long)]
        no_hiveway: bool,
    },
    /// Removes everything
    Down,
    /// Runs a command on a node (n1, n2, ...), or outside (client): `exec n1 -- docker service ls`
    Exec {
        node: String,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<String>,
    },
    /// What is up
    Status,
    /// A node dies at once, with everything that runs on it
    Die { node: String },
    /// A dead node comes back, as after a reboot, without Hiveway
    Revive { node: String },
    /// Hiveway on one node, or on `all`
    Hiveway {
        node: String,
        action: Action,
        /// For `start`: further arguments of the agent. For `run`: those of hiveway, as in `run service ls`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Action {
    /// Starts the agent and waits until it is ready
    Start,
    /// Ends the agent with SIGTERM; the data plane goes on
    Stop,
    /// Ends the agent with SIGKILL; the data plane goes on
    Kill,
    /// Ends the agent and gives everything back to Docker
    Teardown,
    /// `hiveway status`
    Status,
    /// The agent's log
    Log,
    /// Any `hiveway` command
    Run,
}

fn main() -> ExitCode {
    match Arguments::parse().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl Arguments {
    fn run(self) -> Result<ExitCode> {
        let place = Place::new(&self.name)?;
        match self.command {
            // `cargo xtask` has read the engine's version and says in the environment where it has put it.
            Command::Up { nodes, managers, engine: _, no_hiveway } => {
                up(&place, Shape { nodes, managers }, !no_hiveway)?
            }
            Command::Down => Swarm::down(&place)?,
            Command::Exec { node, command } => return exec(&Swarm::open(&place)?, &node, &command),
            Command::Status => status::print(&Swarm::open(&place)?),
            Command::Die { node } => Swarm::open(&place)?.node(&node)?.die()?,
            Command::Revive { node } => Swarm::open(&place)?.node(&node)?.revive()?,
            Command::Hiveway { node, action, arguments } => {
                let swarm = Swarm::open(&place)?;
                let nodes = if node == "all" { swarm.nodes() } else { vec![swarm.node(&node)?] };
                let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
                for node in &nodes {
                    hiveway(&Hiveway::on(node), action, &arguments)?;
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn up(place: &Place, shape: Shape, with_hiveway: bool) -> Result<()> {
    /// Whether what is there is ours to remove.
    static BUILDING: AtomicBool = AtomicBool::new(false);
    let (started, interrupted) = (Instant::now(), place.clone());
    ctrlc::set_handler(move || {
        if BUILDING.load(Ordering::SeqCst) {
            eprintln!("interrupted: cleaning up");
            let _ = Swarm::down(&interrupted);
        }
        std::process::exit(130);
    })
    .context("cannot handle ctrl-c")?;
    BUILDING.store(!place.directory().exists(), Ordering::SeqCst);
    let engine = Engine::from_environment()?;
    let swarm = Swarm::up(place, shape, &engine)?;
    BUILDING.store(false, Ordering::SeqCst);
    let took = started.elapsed().as_secs_f64();
    let (nodes, managers, version) = (shape.nodes, shape.managers, engine.version());
    println!("a swarm of {nodes} engines {version}, {managers} of them managers, is up after {took:.1} s");
    if with_hiveway {
        swarm.start_hiveway(&[]).context("the swarm is up, but Hiveway is not")?;
        println!("Hiveway is ready on all nodes");
    }
    println!("look around: cargo xtask swarm exec n1 -- docker node ls");
    println!(
        "a service:   cargo xtask swarm exec n1 -- docker service create --name web --replicas 3 -p 8080:80 demo/web:1"
    );
    println!("outside:     cargo xtask swarm exec client -- curl 192.168.77.12:8080");
    println!("the end:     cargo xtask swarm down");
    Ok(())
}

fn exec(swarm: &Swarm, node: &str, command: &[String]) -> Result<ExitCode> {
    let (program, arguments) = command.split_first().context("no command")?;
    let mut command = match node {
        "client" | "switch" => swarm.switch().command(program)?,
        label => swarm.node(label)?.command(program)?,
    };
    let status = command.args(arguments).status().with_context(|| format!("cannot run {program}"))?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}

fn hiveway(agent: &Hiveway, action: Action, arguments: &[&str]) -> Result<()> {
    match action {
        Action::Start => agent.start(arguments)?,
        Action::Stop => agent.stop()?,
        Action::Kill => agent.kill()?,
        Action::Teardown => print!("{}", agent.teardown()?),
        Action::Status => print!("{}", agent.cli(&["status"])?),
        Action::Log => print!("{}", agent.daemon().log()),
        Action::Run => print!("{}", agent.cli(arguments)?),
    }
    Ok(())
}
