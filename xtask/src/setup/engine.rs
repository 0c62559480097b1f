//! Docker Engines for the swarm lab: Debian's packages of other suites, unpacked below target/ and never installed.
//!
//! The packages come from the mirror that the machine's own apt sources name. apt runs with lists, sources and a cache
//! of its own, so nothing about the system's packages changes, and it checks signatures and hashes as it does for any
//! other package. The programs run on an older Debian because all they need of it is a C library; runc stays the
//! machine's.

mod version;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};

pub(crate) use version::Wanted;
use version::{Offer, Upstream};

use crate::setup::need_root;
use crate::sh;

/// Where Debian keeps engines of different ages. What each has now is for the mirror to say.
const SUITES: [&str; 4] = ["bookworm", "trixie", "forky", "sid"];
/// The engine, its command (a package of its own since 26), and what runs its containers.
const PACKAGES: [&str; 3] = ["docker.io", "docker-cli", "containerd"];
/// Debian's archive keys, which every Debian has.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Package lists of a suite are read again after that.
const LISTS_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// The directory of an unpacked engine: programs in usr/bin and usr/sbin, and its version in `version`. One that was
/// asked for by its version is unpacked once; the newest is looked for anew when the package lists are a day old.
pub(crate) fn fetch(wanted: &Wanted) -> Result<PathBuf> {
    if let (Wanted::Series(_), Some(have)) = (wanted, unpacked(wanted)?) {
        return Ok(have);
    }
    need_root("unpacking an engine that is mounted over the nodes' programs")?;
    let mirror = mirror()?;
    let (mut offers, mut silent) = (Vec::new(), Vec::new());
    for suite in SUITES {
        match Suite::new(suite)?.offer(&mirror) {
            Ok(offer) => offers.extend(offer),
            Err(error) => silent.push(format!("Debian {suite}: {error:#}")),
        }
    }
    silent.iter().for_each(|line| eprintln!("setup: {line}"));
    let Some(offer) = version::choose(wanted, &offers) else {
        if let Some(have) = unpacked(wanted)? {
            eprintln!("setup: the mirror has no engine; taking {}", have.display());
            return Ok(have);
        }
        let have: Vec<_> = offers.iter().map(|offer| format!("{} ({})", offer.upstream, offer.suite)).collect();
        let have = if have.is_empty() { "none".to_owned() } else { have.join(", ") };
        bail!("no engine {wanted} is to be had: of Docker Engines {mirror} has {have}");
    };
    let directory = directory()?.join(&offer.version);
    if !directory.is_dir() {
        sweep()?;
        let part = directory.with_extension(format!("part{}", std::process::id()));
        let outcome = unpack(offer, &part).with_context(|| format!("engine {} of {}", offer.upstream, offer.suite));
        if outcome.is_err() {
            let _ = fs::remove_dir_all(&part);
        }
        outcome?;
        fs::rename(&part, &directory).with_context(|| directory.display().to_string())?;
    }
    eprintln!("setup: Docker Engine {} of Debian {} is in {}", offer.upstream, offer.suite, directory.display());
    Ok(directory)
}

/// Where engines are kept.
fn directory() -> Result<PathBuf> {
    let directory = sh::target_dir().join("engines");
    fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
    directory.canonicalize().with_context(|| directory.display().to_string())
}

/// Removes what processes that have ended have begun to unpack.
fn sweep() -> Result<()> {
    for entry in fs::read_dir(directory()?)?.flatten() {
        let path = entry.path();
        let owner = path.extension().and_then(|name| name.to_str()?.strip_prefix("part")?.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            fs::remove_dir_all(&path).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

/// The newest wanted one of those that have been unpacked before.
fn unpacked(wanted: &Wanted) -> Result<Option<PathBuf>> {
    let mut found: Vec<(Upstream, PathBuf)> = Vec::new();
    for entry in fs::read_dir(directory()?)?.flatten() {
        let Ok(text) = fs::read_to_string(entry.path().join("version")) else { continue };
        let partial = entry.path().extension().is_some_and(|name| name.to_string_lossy().starts_with("part"));
        if let (false, Some(upstream)) = (partial, Upstream::parse(&text)) {
            found.push((upstream, entry.path()));
        }
    }
    found.sort();
    Ok(found.into_iter().rev().find(|(upstream, _)| wanted.is(upstream)).map(|(_, path)| path))
}

/// The archive that the machine gets Debian's packages from, in apt's own words.
fn mirror() -> Result<String> {
    let format = "$(LABEL) $(REPO_URI)";
    let targets =
        || sh::output(sh::command("apt-get").args(["indextargets", "--format", format, "Created-By: Packages"]));
    ensure!(
        sh::in_path("apt-get").is_some(),
        "engines are Debian's packages, and this is no Debian: apt-get is missing"
    );
    let find = |said: &str| {
        said.lines()
            .find_map(|line| line.trim().strip_prefix("Debian ").map(|uri| uri.trim_end_matches('/').to_owned()))
    };
    if let Some(mirror) = find(&targets()?) {
        return Ok(mirror);
    }
    // A fresh machine has no lists, and so no labels.
    super::apt::update()?;
    find(&targets()?).context("apt's sources name no archive with the label Debian: see `apt-get indextargets`")
}

/// A suite, with apt directories of its own.
struct Suite {
    name: &'static str,
    place: PathBuf,
}

impl Suite {
    fn new(name: &'static str) -> Result<Self> {
        Ok(Self { name, place: directory()?.join("apt").join(name) })
    }

    /// Its newest engine, if it has one.
    fn offer(&self, mirror: &str) -> Result<Option<Offer>> {
        self.update(mirror)?;
        let said = sh::output(self.apt("apt-cache").args(["madison", PACKAGES[0]]))?;
        let versions = version::of_madison(&said);
        Ok(versions.filter_map(|version| Offer::new(self.name, version)).max_by(|a, b| a.upstream.cmp(&b.upstream)))
    }

    fn is_fresh(&self) -> bool {
        let age = fs::metadata(self.place.join("updated")).and_then(|file| file.modified());
        age.is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age < LISTS_AGE))
    }

    fn update(&self, mirror: &str) -> Result<()> {
        if self.is_fresh() {
            return Ok(());
        }
        ensure!(Path::new(KEYRING).is_file(), "{KEYRING} is missing: apt-get install debian-archive-keyring");
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(self.place.join(part))?;
        }
        let name = self.name;
        fs::write(self.place.join("sources.list"), format!("deb [signed-by={KEYRING}] {mirror} {name} main\n"))?;
        eprintln!("setup: apt-get update for Debian {name} (in {})", self.place.display());
        sh::output(self.apt("apt-get").args(["update", "--quiet", "--quiet", "--error-on=any"]))?;
        fs::write(self.place.join("updated"), "")?;
        Ok(())
    }

    /// apt-get or apt-cache that knows this suite alone, and reads and writes nothing of the system's.
    fn apt(&self, program: &str) -> Command {
        let mut command = sh::command(program);
        let place = self.place.display();
        for option in [
            format!("Dir::Etc::SourceList={place}/sources.list"),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            "Dir::Etc::Preferences=/dev/null".to_owned(),
            "Dir::Etc::PreferencesParts=/dev/null".to_owned(),
            format!("Dir::State::Lists={place}/lists"),
            "Dir::State::Status=/dev/null".to_owned(),
            format!("Dir::Cache={place}/cache"),
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            "APT::Sandbox::User=root".to_owned(),
            // What the system may have been told to put up with.
            "APT::Get::AllowUnauthenticated=false".to_owned(),
            "Acquire::AllowInsecureRepositories=false".to_owned(),
        ] {
            command.arg("-o").arg(option);
        }
        command
    }

    /// Whether it has a package of this name.
    fn has(&self, package: &str) -> Result<bool> {
        let said = sh::output(self.apt("apt-cache").args(["madison", package]))?;
        Ok(version::of_madison(&said).next().is_some())
    }
}

/// Downloads the packages of one engine and unpacks their programs.
fn unpack(offer: &Offer, to: &Path) -> Result<()> {
    let suite = Suite::new(offer.suite)?;
    let debs = to.join("debs");
    fs::create_dir_all(&debs)?;
    let mut packages = Vec::new();
    for package in PACKAGES {
        if suite.has(package)? {
            packages.push(package);
        }
    }
    eprintln!("setup: downloading {} of Debian {}", packages.join(", "), offer.suite);
    sh::output(suite.apt("apt-get").args(["download", "--quiet", "--quiet"]).args(&packages).current_dir(&debs))?;
    for deb in fs::read_dir(&debs)?.flatten() {
        sh::run(sh::command("dpkg").arg("--extract").arg(deb.path()).arg(to))?;
    }
    // Only programs are used: the packages, manuals, units and configuration would take as much room again.
    for entry in fs::read_dir(to)?.chain(fs::read_dir(to.join("usr"))?).flatten() {
        let name = entry.file_name();
        if !["usr", "bin", "sbin"].iter().any(|kept| name == *kept) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    // What it says itself, and whether it starts here at all: a later one may need a newer C library.
    let engine = to.join("usr/sbin/dockerd");
    let said = sh::output(sh::command(&engine).arg("--version")).context("it does not run on this system")?;
    let found = Upstream::find(&said).with_context(|| format!("dockerd --version says {said:?}"))?;
    ensure!(found == offer.upstream, "dockerd --version says {found}");
    ensure!(to.join("usr/bin/docker").is_file(), "no command `docker` in {}", packages.join(", "));
    fs::write(to.join("version"), format!("{found}\n"))?;
    Ok(())
}
