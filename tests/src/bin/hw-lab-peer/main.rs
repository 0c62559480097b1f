//! Small servers and load generators for the lab. They say `listening` on stderr when they are, and print results as
//! one line of JSON on stdout.

mod big_tcp;
mod flood;
mod http;
mod progress;
mod task;
mod tcp_load;
mod udp;

use std::{
    io::Read as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use clap::{Parser, Subcommand};
use hiveway_tests::load::Tally;

#[derive(Parser)]
#[command(about = "Small servers and load generators for Hiveway's lab")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// HTTP server: `/` tells its name and the peer's address, `/bytes/N` sends N bytes, POST answers the checksum.
    Http {
        #[arg(long)]
        port: u16,
        #[arg(long)]
        name: String,
    },
    /// UDP server: answers its name and the peer's address to `who`, anything else with itself.
    UdpEcho {
        #[arg(long)]
        port: u16,
        #[arg(long)]
        name: String,
        /// Answers may be fragmented by the network (no DF).
        #[arg(long)]
        fragmentable: bool,
    },
    /// What a task of the swarm lab runs: both servers, on 80/tcp (and 8080/tcp) and 53/udp, named like the host. Ends
    /// on SIGTERM.
    Task,
    /// TCP connections with a request each.
    TcpLoad(tcp_load::Options),
    /// UDP requests from a new port each.
    UdpLoad(udp::Options),
    /// Packets of connections that never go on, until stdin is closed.
    Flood(flood::Options),
    /// Lets IPv4 packets that are segmented or were merged be this large on an interface.
    BigTcp {
        #[arg(long)]
        interface: String,
        /// In bytes.
        #[arg(long)]
        size: u32,
    },
    /// One large upload and one large download, checksums compared.
    Transfer {
        #[arg(long)]
        target: String,
        #[arg(long)]
        bytes: usize,
        /// Give up after this long without progress.
        #[arg(long, default_value_t = 10_000)]
        timeout_ms: u64,
    },
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Http { port, name } => http::serve(port, &name),
        Command::UdpEcho { port, name, fragmentable } => udp::serve(port, &name, fragmentable),
        Command::Task => task::serve(),
        Command::TcpLoad(options) => report(&tcp_load::run(&options)),
        Command::UdpLoad(options) => report(&udp::run(&options)),
        Command::Flood(options) => flood::run(&options),
        Command::BigTcp { interface, size } => big_tcp::set(&interface, size),
        Command::Transfer { target, bytes, timeout_ms } => report(&tcp_load::transfer(&target, bytes, timeout_ms)),
    }
}

#[expect(clippy::print_stdout, reason = "the result goes to stdout")]
fn report(tally: &Tally) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(tally)?);
    Ok(())
}

/// A flag that is set when stdin is closed.
fn stdin_closed() -> Arc<AtomicBool> {
    let flag = Arc::new(AtomicBool::new(false));
    let closed = Arc::clone(&flag);
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        closed.store(true, Ordering::Relaxed);
    });
    flag
}
