//! Whether the memory that this process may use has room for the connection tables: the kernel counts what the programs
//! put into maps as the agent's own, and ends the agent where it is too much.

use std::{
    fs,
    path::{Path, PathBuf},
};

use dataplane::Sizes;

/// Tables of connections: of clients', and of translated ones.
const TABLES: u64 = 2;
/// Halves of each: TCP's, and all else's.
const HALVES: u64 = 2;
/// What a line of a connection takes in bytes, used or not; each half takes a MiB at least.
const LINE: u64 = 64;
/// What a place in `AFFINITY` or `FLOWS` takes, unused (a power of two of them) and used, in bytes. They hold
/// established connections that found no line, mostly none.
const FREE: u64 = 16;
const USED: u64 = 160;
/// What agent, programs and all other maps take, in bytes.
const REST: u64 = 48 << 20;
/// What a start takes besides, in bytes, until the programs are loaded: mostly what the kernel's verifier remembers of
/// the largest one. Measured on 6.18.
const START: u64 = 64 << 20;
/// Since this version the kernel counts what its verifier takes as the process's.
const VERIFIER_COUNTS: (u32, u32) = (6, 17);
const MIB: u64 = 1 << 20;
/// The smallest `--max-flows` and `--max-pending` that are taken.
const LEAST: u32 = 1024;

/// Where control groups are mounted.
const GROUPS: &str = "/sys/fs/cgroup";

/// The smallest memory limit of this process's control groups, in bytes, and the file that says so; `None` without one.
pub(super) fn limit() -> Option<(u64, PathBuf)> {
    limit_in(Path::new(GROUPS), &fs::read_to_string("/proc/self/cgroup").ok()?)
}

/// `groups` is as in `/proc/PID/cgroup`: a line `0::/GROUP` of version 2, and a line `N:memory:/GROUP` where memory is
/// still accounted by version 1.
fn limit_in(root: &Path, groups: &str) -> Option<(u64, PathBuf)> {
    let limits = groups.lines().filter_map(|line| {
        let (controllers, group) = line.split_once(':')?.1.split_once(":/")?;
        if controllers.is_empty() {
            return limit_below(root, group, "memory.max");
        }
        let memory = controllers.split(',').any(|name| name == "memory");
        memory.then(|| limit_below(&root.join("memory"), group, "memory.limit_in_bytes")).flatten()
    });
    limits.min()
}

fn limit_below(root: &Path, group: &str, name: &str) -> Option<(u64, PathBuf)> {
    let own = root.join(group);
    let files = own.ancestors().take_while(|at| at.starts_with(root)).map(|at| at.join(name));
    files.filter_map(|file| Some((fs::read_to_string(&file).ok()?.trim().parse().ok()?, file))).min()
}

/// What a start takes on the running kernel beside what stays, in bytes.
pub(super) fn start() -> u64 {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    start_on(&release)
}

fn start_on(release: &str) -> u64 {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|word| word.parse().unwrap_or(0));
    let version: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= VERIFIER_COUNTS { START } else { 0 }
}

/// Whether the tables fit; `start`: what a start takes besides, in bytes.
///
/// # Errors
/// When not even empty ones do, with the remedy. What is returned otherwise is a warning that full ones do not.
pub(super) fn fits(sizes: Sizes, start: u64, limit: Option<(u64, PathBuf)>) -> Result<Option<String>, String> {
    let Some((limit, file)) = limit else { return Ok(None) };
    let has_room = |sizes| {
        let (begins, full) = takes(sizes, start);
        full.max(begins) <= limit
    };
    if has_room(sizes) {
        return Ok(None);
    }
    let (begins, full) = takes(sizes, start);
    let enough = full.max(begins).div_ceil(MIB);
    let remedy = match largest(sizes.max_flows, |max_flows| has_room(Sizes { max_flows, ..sizes })) {
        0..LEAST if has_room(Sizes { max_flows: LEAST, max_pending: LEAST }) => {
            format!("lower --max-pending and --max-flows, or raise the limit to {enough} MiB")
        }
        0..LEAST => format!("raise the limit to {enough} MiB"),
        most => format!("lower --max-flows to {most}, or raise the limit to {enough} MiB"),
    };
    let what = format!("--max-flows {} --max-pending {}", sizes.max_flows, sizes.max_pending);
    let (limit_mib, file) = (limit / MIB, file.display());
    if begins > limit {
        let begins = begins.div_ceil(MIB);
        return Err(format!(
            "a start with connection tables of {what} takes {begins} MiB, and this control group has {limit_mib} MiB \
             ({file}): {remedy}"
        ));
    }
    Ok(Some(format!(
        "full connection tables ({what}) take {} MiB with the agent, and its control group has {limit_mib} MiB ({file}): the \
         kernel would end the agent before they are full; {remedy}",
        full.div_ceil(MIB)
    )))
}

/// What agent and maps take in bytes: at a start, and when all halves have grown as far as they may and what finds no
/// line has filled its map.
fn takes(sizes: Sizes, start: u64) -> (u64, u64) {
    // A flood has all halves grow to what pending connections may need.
    let (pending, most) = sizes.lines();
    let lines = |each: u32| TABLES * HALVES * (u64::from(each) * LINE).max(MIB);
    let spilled = u64::from(sizes.spilled());
    let begins = REST + start + lines(pending) + TABLES * spilled.next_power_of_two() * FREE;
    (begins, REST + lines(most) + TABLES * spilled * USED)
}

/// The largest number up to `most` that is good, where all below a good one are; 0 if there is none.
fn largest(most: u32, is_good: impl Fn(u32) -> bool) -> u32 {
    (0..u32::BITS).rev().map(|bit| 1 << bit).fold(0, |found, more| {
        let next = found + more;
        if next <= most && is_good(next) { next } else { found }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(max_flows: u32, start: u64, mib: u64) -> Result<Option<String>, String> {
        let limit = Some((mib * MIB, "/sys/fs/cgroup/memory.max".into()));
        fits(Sizes { max_flows, max_pending: 65_536 }, start, limit)
    }

    fn advised(text: &str) -> u32 {
        let most = text.split("lower --max-flows to ").nth(1).and_then(|rest| rest.split(',').next()).unwrap();
        most.parse().unwrap()
    }

    #[test]
    fn a_limit_that_is_too_small_is_named_with_the_remedy() {
        assert_eq!(fits(Sizes::default(), START, None), Ok(None));
        assert_eq!(judged(1 << 20, START, 1024), Ok(None));
        let warning = judged(1 << 20, 0, 128).unwrap().unwrap();
        assert!(warning.contains("--max-flows 1048576") && warning.contains("has 128 MiB"), "{warning}");
        assert_eq!(judged(advised(&warning), 0, 128), Ok(None), "what it advises does");
        assert!(judged(advised(&warning) + 1, 0, 128).unwrap().is_some(), "and no more does");
        let error = judged(1 << 20, 0, 60).unwrap_err();
        assert!(error.contains("lower --max-pending and --max-flows"), "{error}");
        let error = judged(1 << 28, 0, 128).unwrap_err();
        assert!(error.contains("--max-flows 268435456") && error.contains("memory.max"), "{error}");
        assert!(judged(1 << 20, 0, 32).unwrap_err().contains("raise the limit"), "not even the rest has room");
    }

    #[test]
    fn a_start_takes_more_than_what_stays_where_the_kernel_counts_its_verifier() {
        for (release, more) in [("6.1.0-31-amd64", 0), ("6.16.12", 0), ("6.17.0-rc1", START), ("7.0", START), ("", 0)] {
            assert_eq!(start_on(release), more, "{release}");
        }
        let error = judged(1 << 20, START, 131).unwrap_err();
        assert!(error.contains("takes 132 MiB") && error.contains("has 131 MiB"), "{error}");
        assert_eq!(judged(advised(&error), START, 131), Ok(None), "what it advises does");
        let error = judged(1 << 20, START, 127).unwrap_err();
        assert!(error.contains("lower --max-pending and --max-flows"), "{error}");
        assert!(judged(1 << 20, START, 116).unwrap_err().contains(": raise the limit"), "not even the smallest");
    }

    #[test]
    fn tables_begin_small_and_grow() {
        const TABLES_OF: u64 = 4;
        // Four halves with what pending connections may need, a MiB at least, and two maps for what finds no line.
        let empty = |sizes| takes(sizes, 0).0 - REST;
        assert_eq!(empty(Sizes::default()), TABLES_OF * 4 * MIB + 4 * MIB);
        assert_eq!(empty(Sizes { max_flows: 1024, max_pending: 1024 }), TABLES_OF * MIB + 2 * 1024 * FREE);
        // Twice as many lines as entries may be established, or as many as pending connections get.
        let full = |max_flows, max_pending| takes(Sizes { max_flows, max_pending }, START).1 - REST;
        assert_eq!(full(1 << 20, 1 << 16), TABLES_OF * 128 * MIB + 2 * (1 << 17) * USED);
        assert_eq!(full(1 << 16, 1 << 20), TABLES_OF * 64 * MIB + 2 * (1 << 13) * USED);
        // There are lines for 16 million in each half at most.
        assert_eq!(full(1 << 26, 1 << 16), TABLES_OF * 1024 * MIB + 2 * ((1 << 26) - (1 << 23)) * USED);
    }

    #[test]
    fn the_largest_good_number_is_found() {
        for (most, good, found) in
            [(0, 5, 0), (9, 5, 5), (9, 0, 0), (4, 5, 4), (u32::MAX, u32::MAX, u32::MAX), (8, 8, 8)]
        {
            assert_eq!(largest(most, |number| number <= good), found, "{good} of {most}");
        }
    }

    #[test]
    fn the_smallest_limit_above_counts() {
        let root = tempfile::tempdir().unwrap();
        let limit = |groups: &str| limit_in(root.path(), groups);
        let write = |file: &str, text: &str| {
            let file = root.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, text).unwrap();
            file
        };
        let two = "0::/system.slice/hiveway.service\n";
        let own = write("system.slice/hiveway.service/memory.max", "max\n");
        assert_eq!(limit(two), None);
        let above = write("system.slice/memory.max", "134217728\n");
        assert_eq!(limit(two), Some((128 * MIB, above.clone())));
        fs::write(&own, "67108864\n").unwrap();
        assert_eq!(limit(two), Some((64 * MIB, own.clone())));

        // Version 1, alone and beside version 2 without a controller of memory; without a limit it says a huge number.
        let one = "9:name=systemd:/\n4:memory:/docker/agent\n1:cpu,cpuacct:/docker/agent\n0::/\n";
        let old = write("memory/docker/agent/memory.limit_in_bytes", "9223372036854771712\n");
        assert!(
            limit(one).is_some_and(|(bytes, _)| fits(Sizes::default(), START, Some((bytes, old.clone()))) == Ok(None))
        );
        let outer = write("memory/docker/memory.limit_in_bytes", "33554432\n");
        assert_eq!(limit(one), Some((32 * MIB, outer)));
    }
}
