//! `cargo xtask bench`: throughput and latency of container networks, ours beside the kernel's and the bare underlay,
//! measured in turns within one run, because absolute figures drift from minute to minute.
#![allow(clippy::print_stdout, reason = "the table is its result")]

mod churn;
mod iperf;
mod maps;
mod mesh;
mod offloads;
mod outcome;
mod overlay;
mod paths;
mod quiet;
mod report;
mod rr;
mod stats;

use std::{net::SocketAddr, process::ExitCode};

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask bench", about = "Measures Hiveway against what it replaces")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// One TCP stream and request/response latency between containers
    Overlay(overlay::Options),
    /// Nanoseconds per packet of a published port at its ingress node, one core
    Mesh(mesh::Options),
    /// From a change of the table to the last map write; what the agent needs for it
    Churn(churn::Options),
    /// Answers the requests of rr-client
    #[command(hide = true)]
    RrServer {
        #[arg(long)]
        port: u16,
    },
    /// Sends one byte and waits for one byte, over and over; prints JSON
    #[command(hide = true)]
    RrClient {
        #[arg(long)]
        target: SocketAddr,
        #[arg(long)]
        seconds: f64,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Overlay(options) => overlay::run(&options),
        Command::Mesh(options) => mesh::run(&options),
        Command::Churn(options) => churn::run(&options),
        Command::RrServer { port } => rr::serve(port),
        Command::RrClient { target, seconds } => {
            println!("{}", serde_json::to_string(&rr::load(target, seconds)?)?);
            Ok(())
        }
    }
}
