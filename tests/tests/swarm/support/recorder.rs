//! A request loop from outside that keeps when which request was answered by whom.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, bail, ensure};
use hiveway_tests::lab::{slowness, wait_for};

use super::Stage;

/// A request takes longer only if something was lost: the first repetition of a SYN comes after 1 s.
const LIMIT: Duration = Duration::from_secs(5);
/// Between the requests of a thread: one client's ports must last for a minute, in which nobody else may have them.
const PAUSE: Duration = Duration::from_millis(10);

/// One request, a new connection or a new UDP socket.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) sent: Instant,
    /// The same for people, who compare it with logs.
    at: SystemTime,
    pub(crate) took: Duration,
    /// Who was asked.
    pub(crate) target: SocketAddrV4,
    /// Who answered, or why nobody did.
    pub(crate) answer: Result<String, String>,
}

/// The loop; stops when it is dropped.
pub(crate) struct Recorder {
    stop: Arc<AtomicBool>,
    events: Arc<Mutex<Vec<Event>>>,
    threads: Vec<JoinHandle<Result<()>>>,
}

#[derive(Clone, Copy)]
enum Kind {
    Tcp,
    Udp,
}

impl Recorder {
    /// HTTP requests to a published port on these nodes, one loop for each; returns when all have answered.
    pub(crate) fn tcp(stage: &Stage, nodes: &[Ipv4Addr], port: u16) -> Result<Self> {
        Self::start(stage, nodes, port, Kind::Tcp)
    }

    /// The same with UDP.
    pub(crate) fn udp(stage: &Stage, nodes: &[Ipv4Addr], port: u16) -> Result<Self> {
        Self::start(stage, nodes, port, Kind::Udp)
    }

    fn start(stage: &Stage, nodes: &[Ipv4Addr], port: u16, kind: Kind) -> Result<Self> {
        let (stop, events) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let threads = nodes.iter().map(|&node| {
            let (stop, events, outside) = (Arc::clone(&stop), Arc::clone(&events), stage.outside());
            let target = SocketAddrV4::new(node, port);
            std::thread::spawn(move || outside.enter(|| repeat(kind, target, &stop, &events)))
        });
        let recorder = Self { threads: threads.collect(), stop, events };
        wait_for("first answers", LIMIT * 4, || {
            let events = recorder.events();
            let answered = |node: &&Ipv4Addr| events.iter().any(|e| e.target.ip() == *node && e.answer.is_ok());
            let silent: Vec<_> = nodes.iter().filter(|node| !answered(node)).collect();
            ensure!(silent.is_empty(), "none from {silent:?}: {:?}", events.last());
            Ok(())
        })?;
        Ok(recorder)
    }

    /// What has happened so far.
    pub(crate) fn events(&self) -> Vec<Event> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for so many more answers.
    pub(crate) fn wait_answers(&self, more: usize) -> Result<()> {
        let count = || self.events().iter().filter(|event| event.answer.is_ok()).count();
        let wanted = count() + more;
        wait_for(&format!("{more} more answers"), LIMIT * 12, || {
            let seen = count();
            ensure!(seen >= wanted, "{seen} of {wanted}");
            Ok(())
        })
    }

    /// Ends the loop: everything that has happened.
    pub(crate) fn stop(mut self) -> Result<Vec<Event>> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in std::mem::take(&mut self.threads) {
            thread.join().map_err(|_| anyhow::anyhow!("a loop panicked"))??;
        }
        Ok(self.events())
    }

    /// Ends the loop; fails if a single request did. The number of requests.
    pub(crate) fn stop_without_loss(self) -> Result<usize> {
        let events = self.stop()?;
        let mut errors: BTreeMap<String, usize> = BTreeMap::new();
        for event in &events {
            if let Err(error) = &event.answer {
                *errors.entry(format!("{}: {error}", event.target)).or_default() += 1;
            }
        }
        let lost: usize = errors.values().sum();
        let first = events.iter().find(|event| event.answer.is_err());
        let first = first.map_or_else(String::new, |event| time_of_day(event.at));
        ensure!(lost == 0, "{lost} of {} requests were lost, the first one at {first}: {errors:?}", events.len());
        Ok(events.len())
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// When the last request was sent that this task answered.
pub(crate) fn last_answer_of(events: &[Event], name: &str) -> Option<Instant> {
    events.iter().filter(|event| event.answer.as_deref() == Ok(name)).map(|event| event.sent).max()
}

/// UTC, as agents write it.
/// `15:59:09.722`, in UTC.
pub(crate) fn time_of_day(at: SystemTime) -> String {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs() % 86400;
    format!("{:02}:{:02}:{:02}.{:03}", seconds / 3600, seconds / 60 % 60, seconds % 60, since.subsec_millis())
}

fn repeat(kind: Kind, target: SocketAddrV4, stop: &AtomicBool, events: &Mutex<Vec<Event>>) {
    while !stop.load(Ordering::Relaxed) {
        let (sent, at) = (Instant::now(), SystemTime::now());
        let answer = match kind {
            Kind::Tcp => ask_tcp(target),
            Kind::Udp => ask_udp(target),
        };
        let event =
            Event { sent, at, took: sent.elapsed(), target, answer: answer.map_err(|error| format!("{error:#}")) };
        events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
        std::thread::sleep(PAUSE);
    }
}

fn ask_tcp(target: SocketAddrV4) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&target.into(), LIMIT * slowness()).context("connect")?;
    stream.set_read_timeout(Some(LIMIT * slowness()))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n").context("send")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("receive")?;
    name(&answer)
}

fn ask_udp(target: SocketAddrV4) -> Result<String> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(Duration::from_secs(1) * slowness()))?;
    socket.connect(target).context("connect")?;
    socket.send(b"who").context("send")?;
    let mut buffer = [0; 256];
    let length = socket.recv(&mut buffer).context("receive")?;
    name(&String::from_utf8_lossy(&buffer[..length]))
}

/// `abc` of `name=abc peer=...`.
fn name(answer: &str) -> Result<String> {
    match answer.split_whitespace().find_map(|word| word.strip_prefix("name=")) {
        Some(name) => Ok(name.to_owned()),
        None => bail!("answer {answer:?}"),
    }
}
