//! A network and mount namespace of one test's own, with a BPF file system in it; all gone when the test ends.

use std::{
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    panic::resume_unwind,
    path::Path,
    process::Command,
    thread,
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};

/// Runs `test` on a thread of its own in fresh namespaces, with the path of an empty BPF file system. Needs root and
/// fails without it.
pub fn sandbox(test: impl FnOnce(&Path) -> Result<()> + Send + 'static) -> Result<()> {
    let thread = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).context("this test needs root")?;
        let nothing = None::<&Path>;
        // What we mount must not travel to the machine's own namespace.
        mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).context("make / private")?;
        let dir = tempfile::tempdir()?;
        mount(Some("bpf"), dir.path(), Some("bpf"), MsFlags::empty(), nothing).context("mount a BPF file system")?;
        run("ip link set lo up")?;
        let result = test(dir.path());
        // What is pinned ends with the file system; the directory can be removed once it is no mount point.
        umount2(dir.path(), MntFlags::MNT_DETACH).context("unmount the BPF file system")?;
        result
    });
    match thread.join() {
        Ok(result) => result,
        Err(panic) => resume_unwind(panic),
    }
}

/// Runs a command line (split at spaces) in this thread's namespaces.
pub fn run(line: &str) -> Result<String> {
    let mut words = line.split_whitespace();
    let program = words.next().context("an empty command line")?;
    let output = Command::new(program).args(words).output().with_context(|| format!("`{line}` does not start"))?;
    ensure!(output.status.success(), "`{line}`: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Adds a veth pair, both ends up; returns the index of `name`.
pub fn veth(name: &str, peer: &str) -> Result<u32> {
    run(&format!("ip link add {name} type veth peer name {peer}"))?;
    run(&format!("ip link set {name} up"))?;
    run(&format!("ip link set {peer} up"))?;
    Ok(nix::net::if_::if_nametoindex(name)?)
}

/// Sends a frame out of a device as it is; it arrives at the other end of a veth pair.
pub fn send_raw(ifname: &str, frame: &[u8]) -> Result<()> {
    let ifindex = nix::net::if_::if_nametoindex(ifname)?;
    // SAFETY: no pointers; the descriptor is checked and owned right away.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0) };
    ensure!(fd >= 0, "AF_PACKET: {}", std::io::Error::last_os_error());
    // SAFETY: just opened, and nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: plain integers; all zeroes is a valid value.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_ifindex = ifindex as i32;
    // SAFETY: frame and address are valid for the lengths given.
    let sent = unsafe {
        libc::sendto(
            fd.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const to).cast(),
            size_of::<libc::sockaddr_ll>() as u32,
        )
    };
    ensure!(sent == frame.len() as isize, "send on {ifname}: {}", std::io::Error::last_os_error());
    Ok(())
}
