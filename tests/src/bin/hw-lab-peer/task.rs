//! The process of a task in the swarm lab.

use anyhow::{Context as _, Result};

/// Serves on 80/tcp, 8080/tcp and 53/udp until SIGTERM.
pub(crate) fn serve() -> Result<()> {
    // The first process of a PID namespace only gets signals that it asked for.
    ctrlc::set_handler(|| std::process::exit(0)).context("cannot handle SIGTERM")?;
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").context("host name")?;
    let name = name.trim().to_owned();
    let (other, udp) = (name.clone(), name.clone());
    std::thread::spawn(move || end(crate::udp::serve(53, &udp, false)));
    std::thread::spawn(move || end(crate::http::serve(8080, &other)));
    crate::http::serve(80, &name)
}

/// A task without one of its servers is better seen to fail.
fn end(outcome: Result<()>) {
    if let Err(error) = outcome {
        eprintln!("{error:#}");
        std::process::exit(1);
    }
}
