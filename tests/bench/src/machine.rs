//! What figures were measured on.

use std::{fmt, fs};

use serde::{Deserialize, Serialize};

use crate::report::said;

/// A machine, as far as it explains figures.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Machine {
    cpu: String,
    cores: usize,
    /// Last-level cache, as the kernel says it.
    cache: String,
    memory_mib: u64,
    /// A hypervisor's flag is set.
    virtual_machine: bool,
    kernel: String,
    /// Congestion control of TCP.
    congestion: String,
    /// What the kernel does against the processor's leaks: (leak, remedy), those that it is not affected by left out.
    mitigations: Vec<(String, String)>,
}

impl Machine {
    pub(crate) fn this() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field =
            |name: &str| cpuinfo.lines().find_map(|line| line.strip_prefix(name)?.split_once(": ").map(|f| f.1));
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let memory = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next());
        Self {
            cpu: field("model name").unwrap_or_default().to_owned(),
            // All of them, whichever this process may use.
            cores: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
            cache: cache().unwrap_or_default(),
            memory_mib: memory.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024,
            virtual_machine: field("flags").is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
            kernel: said("uname", &["-r"]),
            congestion: said("sysctl", &["-n", "net.ipv4.tcp_congestion_control"]),
            mitigations: mitigations(),
        }
    }
}

/// The largest of the first core's caches.
fn cache() -> Option<String> {
    let caches = fs::read_dir("/sys/devices/system/cpu/cpu0/cache").ok()?.flatten();
    let read = |path: std::path::PathBuf| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    let levels = caches.filter_map(|entry| {
        let level: u32 = read(entry.path().join("level"))?.parse().ok()?;
        Some((level, read(entry.path().join("size"))?))
    });
    levels.max().map(|(level, size)| format!("L{level} {size}"))
}

fn mitigations() -> Vec<(String, String)> {
    let entries = fs::read_dir("/sys/devices/system/cpu/vulnerabilities").into_iter().flatten().flatten();
    let mut all: Vec<_> = entries
        .filter_map(|entry| {
            let text = fs::read_to_string(entry.path()).ok()?.trim().to_owned();
            (text != "Not affected").then(|| (entry.file_name().to_string_lossy().into_owned(), text))
        })
        .collect();
    all.sort();
    all
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cpu, cores, cache, memory_mib, kernel, congestion, .. } = self;
        let kind = if self.virtual_machine { "virtual cores" } else { "cores" };
        write!(f, "{cpu}, {cores} {kind}, {cache}, {memory_mib} MiB; kernel {kernel}, {congestion}. Mitigations: ")?;
        if self.mitigations.is_empty() {
            return f.write_str("none.");
        }
        let all: Vec<_> = self.mitigations.iter().map(|(leak, remedy)| format!("{leak} ({remedy})")).collect();
        write!(f, "{}.", all.join(", "))
    }
}
