//! Starting other programs: errors name the command, and the variables that cargo sets for us are not passed on.

use std::env;
use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The workspace's root directory.
pub(crate) fn root() -> PathBuf {
    // At run time, not `env!`: a checkout that was moved still works.
    let manifest_dir = env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from("xtask"), PathBuf::from);
    manifest_dir.parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// The target directory that the host's crates are built in.
pub(crate) fn target_dir() -> PathBuf {
    root().join(env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

/// A command that runs in the workspace's root, without what `cargo run` put into our environment.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root());
    for (name, _) in env::vars_os() {
        let Some(name) = name.to_str() else { continue };
        // Another toolchain's compiler must not find this one's libraries, nor see xtask's package metadata.
        if name.starts_with("CARGO_PKG_") || matches!(name, "CARGO" | "CARGO_MANIFEST_DIR" | "CARGO_MANIFEST_PATH") {
            command.env_remove(name);
        }
    }
    command.env_remove("LD_LIBRARY_PATH");
    if let Ok(path) = env::join_paths(search_path()) {
        command.env("PATH", path);
    }
    command
}

/// The cargo that started us: builds everything but the BPF object.
pub(crate) fn cargo() -> Command {
    command(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Runs a command with our standard streams; any other exit code than 0 is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {}", line(command)))?;
    if !status.success() {
        bail!("{} failed: {status}", line(command));
    }
    Ok(())
}

/// Replaces this process, so that signals reach the program itself; returns only if that failed.
pub(crate) fn become_program(command: &mut Command) -> Result<()> {
    let error = command.exec();
    Err(error).with_context(|| format!("cannot start {}", line(command)))
}

/// What a command printed on stdout; any other exit code than 0 is an error that carries its stderr.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start {}", line(command)))?;
    if !output.status.success() {
        bail!("{} failed: {}\n{}", line(command), output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Where a program is: in PATH, cargo's own directory, or the ones that an ordinary user's PATH lacks.
pub(crate) fn in_path(program: &str) -> Option<PathBuf> {
    search_path().iter().map(|directory| directory.join(program)).find(|path| path.is_file())
}

fn search_path() -> Vec<PathBuf> {
    let mut directories: Vec<PathBuf> = env::split_paths(&env::var_os("PATH").unwrap_or_default()).collect();
    if let Some(home) = env::var_os("HOME") {
        directories.push(Path::new(&home).join(".cargo/bin"));
    }
    directories.extend(["/usr/sbin".into(), "/sbin".into()]);
    directories
}

/// A command as one would type it.
pub(crate) fn line(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let mut line = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}
