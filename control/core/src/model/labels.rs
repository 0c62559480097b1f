//! Labels of services that mean something to Hiveway.

use super::{ADDRESSES_LABEL, ALLOW_LABEL, AllowEntry, DENY_LABEL, Place, Places, parse_allow};

/// What is odd about a label's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Oddity {
    /// An entry that is ignored: IPv6.
    Ignored(String),
    /// The text can't be read, and why.
    Unreadable(String),
}

/// What is odd about the label `key` with this text; nothing about labels of others.
pub fn oddities(key: &str, text: &str) -> Vec<Oddity> {
    let ignored = match key {
        ALLOW_LABEL | DENY_LABEL => parse_allow(text).map(|entries| {
            entries.iter().filter(|entry| matches!(entry, AllowEntry::V6(_))).map(ToString::to_string).collect()
        }),
        ADDRESSES_LABEL => Places::parse(text).map(|places| {
            places.all().iter().filter(|place| matches!(place, Place::V6(_))).map(ToString::to_string).collect()
        }),
        _ => return Vec::new(),
    };
    match ignored {
        Ok(entries) => Vec::into_iter(entries).map(Oddity::Ignored).collect(),
        Err(why) => vec![Oddity::Unreadable(why)],
    }
}
