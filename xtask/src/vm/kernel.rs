//! Debian's kernels: downloaded, unpacked, not installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::Kernel;
use crate::sh;

/// A kernel that is ready to boot.
pub(crate) struct Image {
    /// As `uname -r` says.
    pub(crate) release: String,
    /// Its ELF image.
    pub(crate) vmlinux: PathBuf,
    /// What has its `lib/modules`.
    pub(crate) root: PathBuf,
}

impl Kernel {
    /// The package that depends on the newest one of this series.
    fn package(self) -> &'static str {
        match self {
            Self::V6_1 | Self::Newest => "linux-image-amd64",
            Self::V6_12 => "linux-image-6.12-amd64",
        }
    }

    /// Where its packages come from.
    fn repository(self) -> Result<Repository> {
        match self {
            Self::V6_1 | Self::V6_12 => Ok(Repository::default()),
            Self::Newest => Repository::sid(),
        }
    }
}

/// What apt is told of package lists other than the machine's own.
#[derive(Default)]
struct Repository(Vec<String>);

impl Repository {
    /// Debian's unstable suite, on the mirror that this machine's own lists come from. The lists are kept apart, so
    /// that the machine goes on to know nothing of them.
    fn sid() -> Result<Self> {
        const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
        let format = "$(ORIGIN) $(LABEL) $(REPO_URI)";
        let said =
            sh::output(sh::command("apt-get").args(["indextargets", "--format", format, "Created-By: Packages"]))?;
        let mirror = said.lines().find_map(|line| line.strip_prefix("Debian Debian "));
        let mirror = mirror.context("no list of this machine's is Debian's own; is this Debian 12?")?;
        let directory = super::directory()?.join("sid");
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(directory.join(part))?;
        }
        let sources = directory.join("sources.list");
        fs::write(&sources, format!("deb [signed-by={KEYS}] {mirror} sid main\n"))?;
        let at = |part: &str| directory.join(part).display().to_string();
        let repository = Self(vec![
            format!("-oDir::Etc::SourceList={}", sources.display()),
            "-oDir::Etc::SourceParts=/dev/null".to_owned(),
            format!("-oDir::State::Lists={}", at("lists")),
            format!("-oDir::Cache={}", at("cache")),
            "-oAPT::Sandbox::User=root".to_owned(),
        ]);
        sh::output(repository.command("apt-get").args(["update", "--quiet"])).context("apt-get update")?;
        Ok(repository)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = sh::command(program);
        command.args(&self.0);
        command
    }
}

/// Downloads and unpacks the newest of its series, unless that has been done.
pub(crate) fn fetch(kernel: Kernel) -> Result<Image> {
    let repository = kernel.repository()?;
    let package = newest(&repository, kernel.package())?;
    let release = package.trim_start_matches("linux-image-").to_owned();
    let root = super::directory()?.join(&release);
    let image = Image { vmlinux: root.join("vmlinux"), release, root };
    // Written last.
    if !image.vmlinux.is_file() {
        let _ = fs::remove_dir_all(&image.root);
        fs::create_dir_all(&image.root)?;
        unpack(&repository, &package, &image).with_context(|| format!("unpacking {package}"))?;
    }
    Ok(image)
}

/// The package of one version, such as linux-image-6.1.0-56-amd64.
fn newest(repository: &Repository, package: &str) -> Result<String> {
    let said = sh::output(repository.command("apt-cache").args(["depends", package]))?;
    let depends = said.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    let found = depends.map(str::trim).find(|name| name.starts_with("linux-image-")).map(str::to_owned);
    found.with_context(|| format!("{package} depends on no kernel; is this Debian 12 with its security updates?"))
}

fn unpack(repository: &Repository, package: &str, image: &Image) -> Result<()> {
    // Newer packages are split; the image's own then only says which parts there are.
    let said = sh::output(repository.command("apt-cache").args(["depends", package]))?;
    let depends = said.lines().filter_map(|line| line.trim().strip_prefix("Depends: ")).map(str::trim);
    // The base has what the modules' own package leaves out: which of them are built in, and their order.
    const PARTS: [&str; 3] = ["linux-base-", "linux-binary-", "linux-modules-"];
    let parts = depends.filter(|name| PARTS.iter().any(|part| name.starts_with(part)));
    for package in [package].into_iter().chain(parts) {
        eprintln!("vm-test: downloading {package}");
        let mut download = repository.command("apt-get");
        sh::output(download.args(["download", "--quiet", package]).current_dir(&image.root))
            .context("apt-get download")?;
        let archive = fs::read_dir(&image.root)?.flatten().map(|entry| entry.path()).find(|path| is(path, "deb"));
        let archive = archive.context("apt-get has downloaded nothing")?;
        sh::run(sh::command("dpkg").arg("-x").arg(&archive).arg(&image.root))?;
        fs::remove_file(archive)?;
    }
    if !image.root.join("lib").exists() {
        std::os::unix::fs::symlink("usr/lib", image.root.join("lib"))?;
    }
    sh::run(sh::command("depmod").arg("-b").arg(&image.root).arg(&image.release))?;
    let in_boot = image.root.join("boot").join(format!("vmlinuz-{}", image.release));
    let beside_modules = image.root.join("lib/modules").join(&image.release).join("vmlinuz");
    let compressed = fs::read(if in_boot.exists() { in_boot } else { beside_modules })?;
    let partial = image.root.join("vmlinux.part");
    decompress(&compressed, &partial)?;
    fs::rename(partial, &image.vmlinux)?;
    Ok(())
}

fn is(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found == extension)
}

/// Emulated, a kernel takes many seconds to decompress itself; so it is done here. The fields are those of the kernel's
/// Documentation/arch/x86/boot.rst: setup_sects, payload_offset, payload_length.
fn decompress(image: &[u8], to: &Path) -> Result<()> {
    let payload = payload(image).context("no compressed kernel image")?;
    let program = match payload {
        [0xfd, b'7', b'z', b'X', ..] => "xz",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        other => bail!("the kernel is compressed in an unknown way: {:02x?}", other.get(..4)),
    };
    let packed = to.with_extension("packed");
    fs::write(&packed, payload)?;
    let mut command = Command::new(program);
    command.args(["--decompress", "--stdout", "--quiet"]).stdin(fs::File::open(&packed)?);
    let status = command.stdout(fs::File::create(to)?).stderr(Stdio::inherit()).status();
    fs::remove_file(packed)?;
    if !status.with_context(|| format!("cannot start {program}"))?.success() {
        bail!("{program} could not decompress the kernel");
    }
    Ok(())
}

fn payload(image: &[u8]) -> Option<&[u8]> {
    let number = |at: usize| Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?) as usize);
    let start = (usize::from(*image.get(0x1f1)?) + 1) * 512 + number(0x248)?;
    // The last four bytes are the size that it decompresses to, and none of the compressed stream.
    image.get(start..(start + number(0x24c)?).checked_sub(4)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_payload_is_where_the_header_says() {
        let mut image = vec![0; 2048];
        image[0x1f1] = 1; // one sector of set-up code after the boot sector
        image[0x248..0x24c].copy_from_slice(&16_u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&10_u32.to_le_bytes());
        image[1024 + 16..1024 + 26].copy_from_slice(b"compr.SIZE");
        assert_eq!(payload(&image), Some(&b"compr."[..]));
        assert_eq!(payload(&image[..1030]), None);
    }
}
