//! The programs' debug output: there when asked for, and only then. One test, because a process has one logger.

mod support;

use std::{
    sync::Mutex,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::Result;
use dataplane::{Dataplane, LogLevel, Options, Program};
use support::sandbox::{sandbox, send_raw, veth};

/// Remembers what the programs say.
struct Memory;

static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

impl log::Log for Memory {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        LINES.lock().expect("no thread panics with it").push(record.args().to_string());
    }

    fn flush(&self) {}
}

fn said(what: &str) -> bool {
    LINES.lock().expect("no thread panics with it").iter().any(|line| line.contains(what))
}

#[test]
fn the_programs_speak_when_asked() -> Result<()> {
    log::set_logger(&Memory).map_err(anyhow::Error::msg)?;
    log::set_max_level(log::LevelFilter::Trace);
    sandbox(|bpffs| {
        let ifindex = veth("hwv0", "peer0")?;
        // Nobody's interface: every packet is dropped, and said to be.
        let line = format!("drop 5 on ifindex {ifindex}");
        for log_level in [None, Some(LogLevel::Warn), Some(LogLevel::Debug)] {
            let mut dataplane = Dataplane::open(&Options { log_level, ..Options::new(bpffs.join("hiveway")) })?;
            dataplane.attach(Program::FromContainer, "hwv0")?;
            let dropped = |d: &Dataplane| Ok::<_, anyhow::Error>(d.drops()?[5].1.packets);
            let before = dropped(&dataplane)?;
            send_raw("peer0", &[0; 60])?;
            let heard = log_level == Some(LogLevel::Debug);
            let deadline = Instant::now() + Duration::from_secs(60);
            while (dropped(&dataplane)? == before || (heard && !said(&line))) && Instant::now() < deadline {
                sleep(Duration::from_millis(5));
            }
            assert!(dropped(&dataplane)? > before);
            // Long enough for the log thread to have heard it.
            sleep(Duration::from_millis(300));
            assert_eq!(said(&line), heard, "{log_level:?}");
        }
        Ok(())
    })
}
