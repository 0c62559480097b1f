//! Entering another network namespace, on a thread that ends afterwards: one that returned to a pool would carry on in
//! the wrong namespace.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsFd as _, BorrowedFd},
        linux::fs::MetadataExt as _,
        unix::fs::OpenOptionsExt as _,
    },
    path::{Path, PathBuf},
    thread,
};

use nix::sched::{CloneFlags, setns};

/// Runs `work` inside `netns`.
pub(super) fn inside<T: Send>(netns: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("sandbox".to_owned()).spawn_scoped(scope, || {
            setns(netns, CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        })?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace has panicked")))
    })
}

/// What a namespace is called by: its inode.
pub(super) fn inode(netns: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(File::from(netns.try_clone_to_owned()?).metadata()?.st_ino())
}

/// Finds the namespace with this inode again: where it is mounted, or in which process it lives. `None`: it is gone, as
/// far as this process can see.
pub(super) fn find(inode: u64) -> Option<File> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| {
        let is_process = entry.file_name().to_str()?.bytes().all(|byte| byte.is_ascii_digit());
        is_process.then(|| entry.path().join("ns/net"))
    });
    mounted_at(&mounts, inode).into_iter().chain(processes).find_map(|path| open(&path, inode))
}

fn open(path: &Path, inode: u64) -> Option<File> {
    // Something else may have been mounted over it, and a pipe would keep its opener waiting for ever.
    let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
    fs::metadata(path).ok().filter(|found| found.st_ino() == inode)?;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).ok()?;
    (self::inode(file.as_fd()).ok()? == inode).then_some(file)
}

/// Mount points of that namespace. Lines look like `99 23 0:4 net:[4026532281] /run/netns/x rw shared:1 - nsfs nsfs
/// rw`.
fn mounted_at(mountinfo: &str, inode: u64) -> Vec<PathBuf> {
    let root = format!("net:[{inode}]");
    let at = |line: &str| {
        let mut fields = line.split(' ').skip(3);
        (fields.next()? == root).then(|| fields.next().map(PathBuf::from))?
    };
    mountinfo.lines().filter_map(at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_mount_points_of_a_namespace() {
        let mountinfo = "23 1 0:21 / /proc rw - proc proc rw\n\
                         99 23 0:4 net:[4026532281] /run/docker/netns/1 rw shared:1 - nsfs nsfs rw\n\
                         98 23 0:4 net:[4026532282] /run/docker/netns/2 rw shared:1 - nsfs nsfs rw\n";
        assert_eq!(mounted_at(mountinfo, 4026532282), [PathBuf::from("/run/docker/netns/2")]);
        assert!(mounted_at(mountinfo, 1).is_empty());
    }

    #[test]
    fn a_pipe_where_the_namespace_was_is_not_waited_for() {
        let scratch = tempfile::tempdir().unwrap();
        let fifo = scratch.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let inode = fs::metadata(&fifo).unwrap().st_ino();
        let (said, answer) = std::sync::mpsc::channel();
        thread::spawn(move || said.send((open(&fifo, inode + 1).is_none(), open(&fifo, inode).is_some())));
        let answer = answer.recv_timeout(std::time::Duration::from_secs(5));
        assert_eq!(answer, Ok((true, true)), "an answer, and by the inode alone");
    }

    #[test]
    fn finds_its_own_namespace_again() {
        let own = File::open("/proc/self/ns/net").unwrap();
        let found = find(inode(own.as_fd()).unwrap()).unwrap();
        assert_eq!(inode(found.as_fd()).unwrap(), inode(own.as_fd()).unwrap());
    }
}
