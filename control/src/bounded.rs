//! Files read with a bound: what a path leads to may be a device, a pipe without a writer, or of any size.

use std::{
    fs::{File, FileType, OpenOptions},
    io::{self, Read},
    os::{
        fd::AsRawFd,
        unix::fs::{FileTypeExt, OpenOptionsExt},
    },
    path::Path,
};

/// Largest small file: certificates, keys, the engine's own notes. In bytes.
pub const SMALL: u64 = 1 << 20;
/// Largest table file, in bytes. One of ten thousand tasks has about three million.
pub const TABLE: u64 = 64 << 20;
/// Largest file of a Docker Engine API capture, in bytes: an engine says thousands of bytes of each task.
pub const CAPTURE: u64 = 256 << 20;
/// Largest file of the state directory, in bytes: the last table of a swarm is one message of a relay.
pub const STATE: u64 = 512 << 20;

/// Reads a regular file of at most `limit` bytes.
///
/// # Errors
/// [`io::ErrorKind::NotFound`] when it is not there; what it is instead of a regular file; that it is too large; the
/// kernel's.
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut file = open(path)?;
    let size = file.metadata()?.len();
    if size > limit {
        return Err(too_large(limit));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
    // It may grow meanwhile, and files of /proc have no size.
    (&mut file).take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(too_large(limit));
    }
    Ok(bytes)
}

/// [`read`] as text.
///
/// # Errors
/// As [`read`]; [`io::ErrorKind::InvalidData`] for what is no UTF-8.
pub fn read_text(path: &Path, limit: u64) -> io::Result<String> {
    String::from_utf8(read(path, limit)?)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8 text"))
}

/// What a path leads to, without opening it: opening a device may do something, and a pipe blocks.
///
/// # Errors
/// The kernel's.
pub(crate) fn peek(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_CLOEXEC).open(path)
}

/// Opens for reading what [`peek`] has found: that very file, whatever the path leads to by now.
///
/// # Errors
/// The kernel's.
pub(crate) fn reopen(found: &File) -> io::Result<File> {
    let flags = libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOCTTY;
    OpenOptions::new().read(true).custom_flags(flags).open(format!("/proc/self/fd/{}", found.as_raw_fd()))
}

/// What a file is, for messages.
pub(crate) fn describe(kind: FileType) -> &'static str {
    if kind.is_file() {
        "a regular file"
    } else if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a pipe"
    } else if kind.is_socket() {
        "a socket"
    } else if kind.is_char_device() || kind.is_block_device() {
        "a device"
    } else {
        "neither file nor directory"
    }
}

fn open(path: &Path) -> io::Result<File> {
    let found = peek(path)?;
    let kind = found.metadata()?.file_type();
    if !kind.is_file() {
        return Err(io::Error::other(format!("it is {}, not a regular file", describe(kind))));
    }
    reopen(&found)
}

fn too_large(limit: u64) -> io::Error {
    let size = if limit >= 1 << 20 { format!("{} MiB", limit >> 20) } else { format!("{limit} bytes") };
    io::Error::new(io::ErrorKind::FileTooLarge, format!("it is larger than {size}, the limit for such a file"))
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        sync::mpsc,
        thread,
        time::{Duration, Instant},
    };

    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;

    /// Without an answer in time the test fails instead of hanging.
    fn read_soon(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let (said, answer) = mpsc::channel();
        let path = path.to_owned();
        thread::spawn(move || said.send(read(&path, limit)));
        answer.recv_timeout(Duration::from_secs(5)).expect("an answer within five seconds")
    }

    #[test]
    fn what_is_no_regular_file_is_named_and_never_waited_for() {
        let scratch = tempfile::tempdir().unwrap();
        let fifo = scratch.path().join("fifo");
        mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        let socket = scratch.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let link = scratch.path().join("link");
        std::os::unix::fs::symlink("/dev/zero", &link).unwrap();
        for (path, what) in [
            (fifo.as_path(), "a pipe"),
            (&socket, "a socket"),
            (scratch.path(), "a directory"),
            (Path::new("/dev/zero"), "a device"),
            (&link, "a device"),
        ] {
            let why = read_soon(path, SMALL).unwrap_err().to_string();
            assert_eq!(why, format!("it is {what}, not a regular file"));
        }
        let missing = read_soon(&scratch.path().join("missing"), SMALL).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_file_is_read_up_to_its_limit() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("file");
        fs::write(&path, [7; 1000]).unwrap();
        assert_eq!(read(&path, 1000).unwrap(), [7; 1000]);
        let why = read(&path, 999).unwrap_err();
        assert!(why.kind() == io::ErrorKind::FileTooLarge && why.to_string().contains("999 bytes"), "{why}");

        // A hole of a terabyte: nothing of it is read.
        File::create(&path).unwrap().set_len(1 << 40).unwrap();
        let started = Instant::now();
        let why = read(&path, TABLE).unwrap_err().to_string();
        assert!(why.contains("larger than 64 MiB") && started.elapsed() < Duration::from_secs(1), "{why}");
        // Files of /proc say that they are empty.
        assert!(!read(Path::new("/proc/self/mountinfo"), SMALL).unwrap().is_empty());
        assert!(read(Path::new("/proc/self/mountinfo"), 10).is_err());
        fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(read_text(&path, SMALL).unwrap_err().to_string().contains("UTF-8"));
    }
}
