//! What must not be in git: binaries, large files, names of somebody's own directories.

use std::fs;
use std::path::Path;

use anyhow::Result;

use crate::sh;

/// Captures of real swarms are the largest text files there are.
const LARGEST: usize = 512 * 1024;

/// Must be there for whoever gets the sources.
const REQUIRED: &[&str] =
    &["Cargo.lock", "README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE-MIT", "LICENSE-APACHE"];

/// The names of all files that are in git.
pub(super) fn listed() -> Result<Vec<String>> {
    let listed = sh::output(sh::command("git").args(["-c", "safe.directory=*", "ls-files", "-z"]))?;
    Ok(listed.split('\0').filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

pub(crate) fn check() -> Result<Vec<String>> {
    let root = sh::root();
    let names = listed()?;
    let absent = REQUIRED.iter().filter(|required| !names.iter().any(|name| name == *required));
    let mut problems: Vec<String> = absent.map(|name| format!("{name} is not in git")).collect();
    let home = root.to_string_lossy().into_owned();
    for name in names {
        let path = root.join(&name);
        // A link's target is judged under its own name; a deleted file is not there to judge.
        if path.is_symlink() || !path.is_file() {
            continue;
        }
        problems.extend(judge(&fs::read(&path)?, &home).map(|problem| format!("{name}: {problem}")));
    }
    Ok(problems)
}

fn judge(content: &[u8], root: &str) -> Option<String> {
    if content.len() > LARGEST {
        return Some(format!("{} KiB, more than {}", content.len() / 1024, LARGEST / 1024));
    }
    let Ok(text) = std::str::from_utf8(content) else { return Some("binary".to_owned()) };
    if text.contains('\0') {
        return Some("binary".to_owned());
    }
    // `/src` alone would be found everywhere.
    let telling = Path::new(root).components().count() > 2;
    (telling && text.contains(root)).then(|| format!("names the directory it was built in, {root}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn judges_content() {
        let judged = |content: &[u8]| judge(content, "/somewhere/hiveway").unwrap_or_default();
        assert_eq!(judged(b"fine /somewhere/else\n"), "");
        assert_eq!(judged(b"\x7fELF\x02\x01\x01\0"), "binary");
        assert_eq!(judged(b"\xff\xfe"), "binary");
        assert!(judged(b"at /somewhere/hiveway/src").contains("names the directory"));
        assert!(judged(&vec![b'x'; LARGEST + 1]).contains("KiB"));
        assert_eq!(judge(b"use crate::src; see /src", "/src"), None);
    }
}
