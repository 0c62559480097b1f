//! Files and directories that only this process's user may read or write, whatever the umask says.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use dataplane::private::{self, DIRECTORY, OTHERS};

const FILE: u32 = 0o600;

/// Makes a directory, and those above it that are missing, for this user alone. Returns whether others may look into
/// one that was there before.
///
/// # Errors
/// The kernel's.
pub fn make_directory(path: &Path) -> io::Result<bool> {
    private::make_directory(path)?;
    Ok(fs::metadata(path)?.mode() & OTHERS != 0)
}

/// Takes a directory away from others.
///
/// # Errors
/// The kernel's.
pub fn close_directory(path: &Path) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(DIRECTORY))
}

/// Takes a file away from others, if it is there.
///
/// # Errors
/// The kernel's.
pub fn close_file(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_file() && found.mode() & OTHERS != 0 => {
            fs::set_permissions(path, fs::Permissions::from_mode(FILE))
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Replaces a file as a whole. Not synced: after a crash of the machine it may be the old one, or empty.
///
/// # Errors
/// The kernel's.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write(path, bytes, false)
}

/// [`replace`]; once it returns the new one is on the disk.
///
/// # Errors
/// The kernel's.
pub fn replace_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write(path, bytes, true)
}

fn write(path: &Path, bytes: &[u8], sync: bool) -> io::Result<()> {
    let temporary = temporary(path)?;
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(FILE).open(&temporary)?;
    file.write_all(bytes)?;
    if sync {
        file.sync_all()?;
    }
    fs::rename(&temporary, path)
}

/// Where the new version of a file is written.
fn temporary(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidFilename))?;
    Ok(path.with_file_name(format!(".{}.tmp", name.display())))
}

/// Opens a file that locks are taken on, and makes it if it is missing. One that another user could have opened is
/// refused: whoever has it open can hold the lock.
///
/// # Errors
/// That it is not this user's alone; the kernel's.
pub fn open_lock(path: &Path) -> io::Result<File> {
    // No link is followed, and nothing is waited for.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(FILE).custom_flags(flags);
    let file = options.open(path)?;
    let found = file.metadata()?;
    if !found.is_file() || found.uid() != nix::unistd::geteuid().as_raw() || found.mode() & OTHERS != 0 {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "it is not a file of this user alone, so others could hold its lock; remove it",
        ));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn what_is_written_is_the_owners_alone() {
        let scratch = tempfile::tempdir().unwrap();
        let (directory, file) = (scratch.path().join("a/b"), scratch.path().join("a/b/file"));
        assert!(!make_directory(&directory).unwrap());
        assert_eq!((mode(&directory), mode(&scratch.path().join("a"))), (0o700, 0o700));
        // What a version has left that knew nothing of this.
        fs::write(&file, "old").unwrap();
        fs::write(directory.join(".file.tmp"), "cut").unwrap();
        for synced in [false, true] {
            fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
            write(&file, b"new", synced).unwrap();
            assert_eq!((mode(&file), fs::read(&file).unwrap().as_slice()), (0o600, b"new".as_slice()));
        }
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        close_file(&file).unwrap();
        assert_eq!(mode(&file), 0o600);
        close_file(&directory.join("missing")).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(make_directory(&directory).unwrap(), "others may look into it");
    }

    #[test]
    fn a_lock_that_others_could_hold_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("lock");
        open_lock(&path).unwrap();
        assert_eq!(mode(&path), 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(open_lock(&path).unwrap_err().to_string().contains("remove it"));
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(scratch.path().join("elsewhere"), &path).unwrap();
        assert!(open_lock(&path).is_err(), "a link of somebody else's");
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(open_lock(&path).unwrap_err().to_string().contains("remove it"));
    }
}
