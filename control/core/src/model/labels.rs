//! Labels of services that mean something to Hiveway.
//!
//! Restrictions stand in labels, so one that is not understood closes the service's published ports: read as if it were
//! not there, it would leave them open to everybody.

use super::{ADDRESSES_LABEL, ALLOW_LABEL, AllowEntry, DENY_LABEL, Place, Places, parse_allow};
use crate::near::{closest, distance};

/// What our labels begin with.
const PREFIX: &str = "hiveway";

/// All of them.
const KNOWN: [&str; 3] = [ALLOW_LABEL, DENY_LABEL, ADDRESSES_LABEL];

/// What is odd about a label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Oddity {
    /// An entry that is ignored: IPv6.
    Ignored(String),
    /// There is no such label, or its text can't be read, and why.
    Unreadable(String),
}

/// Whether a label is meant for Hiveway: it begins with `hiveway.`, or would but for a typing error.
pub fn is_meant_for_us(key: &str) -> bool {
    if key.starts_with("hiveway.") {
        return true;
    }
    let lower = key.trim().to_ascii_lowercase();
    match lower.strip_prefix(PREFIX) {
        Some(rest) => !rest.starts_with(|next: char| next.is_ascii_alphanumeric()),
        // Most labels are far from it, and there are many.
        None => lower.contains(['.', '-', '_']) && KNOWN.iter().any(|known| is_near(&lower, known)),
    }
}

/// One typing error away. More would take in other programs' labels: `driveway.allow` is two away.
fn is_near(key: &str, known: &str) -> bool {
    let alike = key.len().abs_diff(known.len()) <= 1 && (key.contains("hive") || key.contains("way"));
    alike && distance(key, known) <= 1
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
        _ if is_meant_for_us(key) => Err(unknown(key)),
        _ => return Vec::new(),
    };
    match ignored {
        Ok(entries) => Vec::into_iter(entries).map(Oddity::Ignored).collect(),
        Err(why) => vec![Oddity::Unreadable(why)],
    }
}

/// Whether a label with this text closes its service's published ports.
pub(super) fn closes(key: &str, text: &str) -> bool {
    match key {
        ALLOW_LABEL | DENY_LABEL => parse_allow(text).is_err(),
        ADDRESSES_LABEL => Places::parse(text).is_err(),
        _ => is_meant_for_us(key),
    }
}

fn unknown(key: &str) -> String {
    let wanted = key.trim().to_ascii_lowercase().replace(['-', '_', ' ', '/', ':'], ".");
    match closest(&wanted, KNOWN.into_iter()) {
        Some(near) => format!("there is no such label; did you mean {near}?"),
        None => format!("there is no such label; there are {}", KNOWN.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_label_is_found_and_the_near_one_suggested() {
        for (key, near) in [
            ("hiveway.alow", "hiveway.allow"),
            ("hiveway.Allow", "hiveway.allow"),
            ("hiveway.dany", "hiveway.deny"),
            ("Hiveway.deny", "hiveway.deny"),
            ("hiveway-allow", "hiveway.allow"),
            ("hiveway_addresses", "hiveway.addresses"),
            ("hiveway.adresses", "hiveway.addresses"),
            ("hiveawy.allow", "hiveway.allow"),
            ("hivway.deny", "hiveway.deny"),
            (" hiveway.allow", "hiveway.allow"),
        ] {
            assert!(is_meant_for_us(key) && closes(key, "10.0.0.0/8"), "{key}");
            let want = format!("there is no such label; did you mean {near}?");
            assert_eq!(oddities(key, "10.0.0.0/8"), [Oddity::Unreadable(want)], "{key}");
        }
        let far = oddities("hiveway.ports", "80");
        let all = "there is no such label; there are hiveway.allow, hiveway.deny, hiveway.addresses";
        assert_eq!(far, [Oddity::Unreadable(all.into())]);
    }

    #[test]
    fn labels_of_others_are_none_of_ours() {
        let others = "driveway.allow com.docker.stack.namespace traefik.enable hivewayx.allow hive.allow allow \
                      subway.deny hive.addresses com.hiveway.allow org.hiveway allowed-ways";
        for key in others.split_whitespace() {
            assert!(!is_meant_for_us(key) && !closes(key, "x"), "{key}");
            assert_eq!(oddities(key, "x"), [], "{key}");
        }
    }

    #[test]
    fn what_is_named_as_unreadable_closes_and_nothing_else_does() {
        for key in KNOWN.into_iter().chain(["hiveway.alow", "other"]) {
            for text in ["", "10.0.0.0/8", "fd00::/8", "10.0.0.1/8", "eth 0"] {
                let named = oddities(key, text).iter().any(|oddity| matches!(oddity, Oddity::Unreadable(_)));
                assert_eq!(closes(key, text), named, "{key}={text}");
            }
        }
    }
}
