//! What is wrong with a table, and where.

use std::fmt;

/// Whether a table with this problem is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The table is refused whole.
    Error,
    /// Probably a mistake, but the table can be used.
    Warning,
}

/// One problem with its place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Problem {
    /// Where: a path like `tasks[3].addresses.app`; empty for the file as a whole.
    pub path: String,
    /// What is wrong and what to do about it.
    pub message: String,
    /// How bad it is.
    pub severity: Severity,
    /// What it means for other problems of the table.
    #[serde(skip)]
    pub(crate) kind: Kind,
}

/// What a problem has to do with others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Nothing.
    #[default]
    Alone,
    /// Ids of this section are not known because of it.
    HidesIds(&'static str),
    /// An id is referred to that this section does not have.
    UnknownId(&'static str),
}

impl Problem {
    /// An error at `path`.
    pub fn error(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into(), severity: Severity::Error, kind: Kind::Alone }
    }

    /// A warning at `path`.
    pub fn warning(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into(), severity: Severity::Warning, kind: Kind::Alone }
    }

    pub(crate) fn of(self, kind: Kind) -> Self {
        Self { kind, ..self }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        match self.path.as_str() {
            "" => write!(f, "{severity}: {}", self.message),
            path => write!(f, "{severity}: {path}: {}", self.message),
        }
    }
}

impl std::error::Error for Problem {}
