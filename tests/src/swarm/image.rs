//! Images without a registry: busybox, curl and our own small server, imported from a tar archive on every node.
//!
//! `demo/web:1` and `:2` (for updates) answer `name=<host name> peer=<client>` on 80/tcp and 53/udp. `demo/health:1`
//! and `:2` do so too, and are healthy unless `/tmp/sick` exists.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::{Node, output, program};
use crate::peer;

/// Name and what `docker import --change` is told. Half a second between checks: three failures are still quick.
const IMAGES: [(&str, &[&str]); 4] = [
    ("demo/web:1", &["ENV VERSION=1"]),
    ("demo/web:2", &["ENV VERSION=2"]),
    ("demo/health:1", &["ENV VERSION=1", HEALTH]),
    ("demo/health:2", &["ENV VERSION=2", HEALTH]),
];
const HEALTH: &str = "HEALTHCHECK --interval=500ms --timeout=2s --retries=2 CMD test ! -e /tmp/sick";
const SERVE: &str = r#"CMD ["/bin/hw-lab-peer", "task"]"#;

/// Packs the images' common file system; the archive.
pub(super) fn pack(directory: &Path) -> Result<PathBuf> {
    let root = directory.join("rootfs");
    for part in ["bin", "etc", "tmp", "root", "var/run", "proc", "sys", "dev"] {
        fs::create_dir_all(root.join(part))?;
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\n")?;
    fs::write(root.join("etc/nsswitch.conf"), "hosts: files dns\n")?;
    let busybox = program("busybox")?;
    for applet in output(Command::new(&busybox).arg("--list"))?.lines().filter(|name| *name != "busybox") {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    add_program(&root, &busybox, "busybox")?;
    add_program(&root, &peer::binary()?, "hw-lab-peer")?;
    add_program(&root, &program("curl")?, "curl")?;
    let archive = directory.join("image.tar");
    output(Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&archive).arg("."))?;
    fs::remove_dir_all(root)?;
    Ok(archive)
}

/// Puts a program into `bin`, and the libraries it is linked with where it expects them.
fn add_program(root: &Path, program: &Path, name: &str) -> Result<()> {
    let target = root.join("bin").join(name);
    let _ = fs::remove_file(&target); // busybox may have an applet of that name
    fs::copy(program, &target).with_context(|| program.display().to_string())?;
    // It fails for one that is linked statically, which needs none.
    for library in libraries(&output(Command::new("ldd").arg(program)).unwrap_or_default()) {
        let target = root.join(library.strip_prefix("/")?);
        fs::create_dir_all(target.parent().context("a library has a directory")?)?;
        fs::copy(&library, target).with_context(|| library.display().to_string())?;
    }
    Ok(())
}

/// The absolute paths in what ldd says.
fn libraries(said: &str) -> BTreeSet<PathBuf> {
    said.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect()
}

/// Imports all images on a node.
pub(super) fn import(node: &Node, archive: &Path) -> Result<()> {
    let archive = archive.to_str().context("the lab's directory is plain text")?;
    for (image, changes) in IMAGES {
        let mut arguments = vec!["import", "--change", SERVE];
        arguments.extend(changes.iter().flat_map(|change| ["--change", change]));
        arguments.extend([archive, image]);
        node.docker(&arguments)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_the_absolute_paths_that_ldd_names() {
        let said = "\tlinux-vdso.so.1 (0x00007ffc)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let found: Vec<_> = libraries(said).into_iter().collect();
        assert_eq!(found, [Path::new("/lib/x86_64-linux-gnu/libc.so.6"), Path::new("/lib64/ld-linux-x86-64.so.2")]);
    }
}
