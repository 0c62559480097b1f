//! `cargo xtask bench`: throughput and latency of container networks, ours beside the kernel's and the bare underlay,
//! measured in turns within one run, because absolute figures drift from minute to minute.
#![allow(clippy::print_stdout, reason = "the table is its result")]

mod all;
mod churn;
mod connections;
mod figures;
mod iperf;
mod machine;
mod maps;
mod mesh;
mod offloads;
mod outcome;
mod overlay;
mod paths;
mod quiet;
mod render;
mod report;
mod rr;
mod stats;
mod vip;

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
    /// TCP streams, small UDP packets and request/response latency between containers
    Overlay(overlay::Options),
    /// Nanoseconds per packet of a published port at its ingress node, one core
    Mesh(mesh::Options),
    /// Connections per second and request latency through published ports and virtual addresses
    Vip(vip::Options),
    /// From a change of the table to the last map write; what the agent needs for it
    Churn(churn::Options),
    /// All of them in one run, with a report in Markdown and a chart
    All(all::Options),
    /// Tables and chart for the docs from what runs have written
    Report(render::Options),
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
    /// Answers one byte on each connection of connections-client
    #[command(hide = true)]
    ConnectionsServer {
        #[arg(long)]
        port: u16,
    },
    /// Makes a connection for each byte that it sends; prints JSON
    #[command(hide = true)]
    ConnectionsClient {
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
        Command::Vip(options) => vip::run(&options),
        Command::All(options) => all::run(&options),
        Command::Report(options) => render::run(&options),
        Command::ConnectionsServer { port } => connections::serve(port),
        Command::ConnectionsClient { target, seconds } => {
            println!("{}", serde_json::to_string(&connections::load(target, seconds)?)?);
            Ok(())
        }
        Command::RrServer { port } => rr::serve(port),
        Command::RrClient { target, seconds } => {
            println!("{}", serde_json::to_string(&rr::load(target, seconds)?)?);
            Ok(())
        }
    }
}
