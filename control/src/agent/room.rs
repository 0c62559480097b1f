//! Whether the memory that this process may use has room for the connection tables: the kernel counts what the programs put into
//! maps as the agent's own, and ends the agent where it is too much.

use std::{
    fs,
    path::{Path, PathBuf},
};

use dataplane::Sizes;

/// What an entry takes when it is used, in bytes, measured.
const ENTRY: u64 = 140;
/// What its place in the tables of established connections takes when it is not; in those of pending ones that is as much.
const FREE: u64 = 16;
/// What agent, programs and all other maps take, in bytes.
const REST: u64 = 48 << 20;
const MIB: u64 = 1 << 20;

/// The smallest memory limit of this process's control groups, in bytes, and the file that says so; `None` without one.
pub(super) fn limit() -> Option<(u64, PathBuf)> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    limit_below(Path::new("/sys/fs/cgroup"), group)
}

fn limit_below(root: &Path, group: &str) -> Option<(u64, PathBuf)> {
    let own = root.join(group);
    let files = own.ancestors().take_while(|at| at.starts_with(root)).map(|at| at.join("memory.max"));
    files.filter_map(|file| Some((fs::read_to_string(&file).ok()?.trim().parse().ok()?, file))).min()
}

/// Whether the tables fit.
///
/// # Errors
/// When not even empty ones do, with the remedy. What is returned otherwise is a warning that full ones do not.
pub(super) fn fits(sizes: Sizes, limit: Option<(u64, PathBuf)>) -> Result<Option<String>, String> {
    let Some((limit, file)) = limit else { return Ok(None) };
    // For TCP and for all else.
    let (flows, pending) = (2 * u64::from(sizes.max_flows), 4 * u64::from(sizes.max_pending));
    let fixed = REST + pending * ENTRY;
    let (empty, full) = (fixed + flows * FREE, fixed + flows * ENTRY);
    if full <= limit {
        return Ok(None);
    }
    let most = limit.saturating_sub(fixed) / ENTRY / 2;
    let remedy = match most {
        0..1024 => format!("raise the limit to {} MiB", full.div_ceil(MIB)),
        most => format!("lower --max-flows to {most}, or raise the limit to {} MiB", full.div_ceil(MIB)),
    };
    let what = format!("--max-flows {} --max-pending {}", sizes.max_flows, sizes.max_pending);
    let (limit_mib, file) = (limit / MIB, file.display());
    if empty > limit {
        let empty = empty.div_ceil(MIB);
        return Err(format!(
            "connection tables of {what} take {empty} MiB with the agent, and this control group has {limit_mib} MiB ({file}): {remedy}"
        ));
    }
    Ok(Some(format!(
        "full connection tables ({what}) take {} MiB with the agent, and its control group has {limit_mib} MiB ({file}): the \
         kernel would end the agent before they are full; {remedy}",
        full.div_ceil(MIB)
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(max_flows: u32, mib: u64) -> Result<Option<String>, String> {
        fits(Sizes { max_flows, max_pending: 65_536 }, Some((mib * MIB, "/sys/fs/cgroup/memory.max".into())))
    }

    #[test]
    fn a_limit_that_is_too_small_is_named_with_the_remedy() {
        assert_eq!(fits(Sizes::default(), None), Ok(None));
        assert_eq!(judged(1 << 20, 1024), Ok(None));
        let warning = judged(1 << 20, 128).unwrap().unwrap();
        assert!(warning.contains("--max-flows 1048576") && warning.contains("has 128 MiB"), "{warning}");
        let most = warning.split("lower --max-flows to ").nth(1).and_then(|rest| rest.split(',').next()).unwrap();
        assert_eq!(judged(most.parse().unwrap(), 128), Ok(None), "what it advises does");
        let error = judged(1 << 24, 128).unwrap_err();
        assert!(error.contains("--max-flows 16777216") && error.contains("memory.max"), "{error}");
        assert!(judged(1 << 20, 32).unwrap_err().contains("raise the limit"), "not even the rest has room");
    }

    #[test]
    fn the_smallest_limit_above_counts() {
        let root = tempfile::tempdir().unwrap();
        let unit = root.path().join("system.slice/hiveway.service");
        fs::create_dir_all(&unit).unwrap();
        fs::write(unit.join("memory.max"), "max\n").unwrap();
        assert_eq!(limit_below(root.path(), "system.slice/hiveway.service"), None);
        fs::write(root.path().join("system.slice/memory.max"), "134217728\n").unwrap();
        let found = limit_below(root.path(), "system.slice/hiveway.service").unwrap();
        assert_eq!(found, (128 * MIB, root.path().join("system.slice/memory.max")));
        fs::write(unit.join("memory.max"), "67108864\n").unwrap();
        assert_eq!(limit_below(root.path(), "system.slice/hiveway.service").unwrap().0, 64 * MIB);
    }
}
