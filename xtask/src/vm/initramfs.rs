//! The first file system: just enough to mount this machine's root and go on there.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::kernel::Image;
use crate::sh;

/// What reaches the root over a virtual PCI device, and lets it be written to.
const MODULES: [&str; 4] = ["virtio_pci", "9pnet_virtio", "9p", "overlay"];
const INIT: &str = include_str!("init.sh");
/// Static, and with all that init.sh uses.
const BUSYBOX: &str = "/bin/busybox";

/// Writes a cpio archive for this kernel; its path.
pub(super) fn build(kernel: &Image) -> Result<PathBuf> {
    let stage = kernel.root.join("initramfs");
    let _ = fs::remove_dir_all(&stage);
    fs::create_dir_all(stage.join("bin"))?;
    fs::copy(BUSYBOX, stage.join("bin/busybox")).context(BUSYBOX)?;
    let init = stage.join("init");
    fs::write(&init, INIT)?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    add_modules(kernel, &stage)?;
    let archive = kernel.root.join("initramfs.cpio");
    pack(&stage, &archive)?;
    fs::remove_dir_all(stage)?;
    Ok(archive)
}

/// The modules in the order in which they are to be inserted: 10.ko, 11.ko, ...
fn add_modules(kernel: &Image, stage: &Path) -> Result<()> {
    let mut added: Vec<PathBuf> = Vec::new();
    for module in MODULES {
        let mut modprobe = sh::command("modprobe");
        modprobe.arg("--dirname").arg(&kernel.root).arg("--set-version").arg(&kernel.release);
        let said = sh::output(modprobe.args(["--show-depends", module]))?;
        // Lines are `insmod PATH`, or `builtin NAME`.
        for path in said.lines().filter_map(|line| line.strip_prefix("insmod ")) {
            let path = PathBuf::from(path.trim());
            if added.contains(&path) {
                continue;
            }
            let target = stage.join(format!("{}.ko", 10 + added.len()));
            if path.extension().is_some_and(|extension| extension == "xz") {
                fs::write(target, unxz(&path)?)?;
            } else {
                fs::copy(&path, target)?;
            }
            added.push(path);
        }
    }
    Ok(())
}

/// busybox's insmod does not know compressed modules.
fn unxz(path: &Path) -> Result<Vec<u8>> {
    let output = Command::new("xz").args(["--decompress", "--stdout"]).arg(path).output().context("xz")?;
    if !output.status.success() {
        bail!("xz: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(output.stdout)
}

fn pack(stage: &Path, archive: &Path) -> Result<()> {
    let script = "find . | /bin/busybox cpio --quiet -o -H newc";
    let mut command = Command::new("sh");
    command.args(["-c", script]).current_dir(stage).stdout(fs::File::create(archive)?).stderr(Stdio::inherit());
    sh::run(&mut command).context("packing the initramfs")
}
