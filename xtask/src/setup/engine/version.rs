//! Which engine is wanted, and which ones there are.

use std::fmt;
use std::str::FromStr;

use anyhow::{Error, bail};

/// An engine's own version, such as 28.5.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Upstream([u16; 3]);

impl Upstream {
    /// The version that a Debian version, or the text of a file, begins with: `28.5.2+dfsg4-5`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let mut parts = text[..end].split('.').map(str::parse);
        let version = [parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?];
        parts.next().is_none().then_some(Self(version))
    }

    /// The version in `Docker version 28.5.2+dfsg4, build 28.5.2`.
    pub(super) fn find(text: &str) -> Option<Self> {
        text.split_whitespace().find_map(Self::parse)
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.0;
        write!(f, "{major}.{minor}.{patch}")
    }
}

/// What `--engine` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// The newest that the mirror has.
    Newest,
    /// The newest whose version begins with these numbers: 28.5, or 28.5.2.
    Series(Vec<u16>),
}

impl Wanted {
    pub(super) fn is(&self, version: &Upstream) -> bool {
        match self {
            Self::Newest => true,
            Self::Series(numbers) => version.0.starts_with(numbers),
        }
    }
}

impl FromStr for Wanted {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if text == "newest" {
            return Ok(Self::Newest);
        }
        let numbers: Result<Vec<u16>, _> = text.split('.').map(str::parse).collect();
        match numbers {
            Ok(numbers) if (1..=3).contains(&numbers.len()) => Ok(Self::Series(numbers)),
            _ => bail!("an engine is a version such as 20.10, 26.1 or 28.5, or `newest`"),
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Newest => f.write_str("at all"),
            Self::Series(numbers) => {
                let numbers: Vec<_> = numbers.iter().map(u16::to_string).collect();
                f.write_str(&numbers.join("."))
            }
        }
    }
}

/// An engine that a suite has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Offer {
    pub(super) suite: &'static str,
    pub(super) upstream: Upstream,
    /// The package's version.
    pub(super) version: String,
}

impl Offer {
    pub(super) fn new(suite: &'static str, version: &str) -> Option<Self> {
        // An epoch is Debian's, not the engine's.
        let upstream = version.rsplit_once(':').map_or(version, |(_, rest)| rest);
        Some(Self { suite, upstream: Upstream::parse(upstream)?, version: version.to_owned() })
    }
}

/// The newest that is wanted; of equals the one of the oldest suite, which needs the oldest C library.
pub(super) fn choose<'o>(wanted: &Wanted, offers: &'o [Offer]) -> Option<&'o Offer> {
    let fit = offers.iter().filter(|offer| wanted.is(&offer.upstream));
    fit.reduce(|best, offer| if offer.upstream > best.upstream { offer } else { best })
}

/// The versions in `apt-cache madison PACKAGE`: ` docker.io | 28.5.2+dfsg4-5 | ... sid/main amd64 Packages`.
pub(super) fn of_madison(said: &str) -> impl Iterator<Item = &str> {
    said.lines().filter(|line| line.contains("Packages")).filter_map(|line| line.split('|').nth(1).map(str::trim))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offers() -> Vec<Offer> {
        let all = [
            ("bookworm", "20.10.24+dfsg1-1+deb12u1+b6"),
            ("trixie", "26.1.5+dfsg1-9+deb13u1+b1"),
            ("forky", "28.5.2+dfsg4-5"),
            ("sid", "28.5.2+dfsg4-6"),
        ];
        all.iter().filter_map(|(suite, version)| Offer::new(suite, version)).collect()
    }

    fn suite(wanted: &str) -> Option<&'static str> {
        choose(&wanted.parse().unwrap(), &offers()).map(|offer| offer.suite)
    }

    #[test]
    fn a_series_is_looked_for_in_all_suites() {
        assert_eq!(suite("20.10"), Some("bookworm"));
        assert_eq!(suite("26.1"), Some("trixie"));
        assert_eq!(suite("28.5"), Some("forky"), "equal ones: the older suite's");
        assert_eq!(suite("28.5.2"), Some("forky"));
        assert_eq!(suite("newest"), Some("forky"));
    }

    #[test]
    fn what_no_suite_has_is_not_replaced_by_something_near() {
        assert_eq!(suite("29.1"), None);
        assert_eq!(suite("28"), Some("forky"));
        assert_eq!(suite("2"), None, "numbers, not text");
        assert_eq!(suite("28.5.1"), None);
    }

    #[test]
    fn an_engine_is_numbers_or_newest() {
        for bad in ["", "latest", "28.", "28.5.2.1", "28.x", "-1"] {
            assert!(bad.parse::<Wanted>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn versions_are_read_from_what_apt_and_dockerd_say() {
        let said = " docker.io | 1:28.5.2+dfsg4-5 | http://mirror/debian sid/main amd64 Packages\n \
                    docker.io | 28.5.2+dfsg4-5 | http://mirror/debian sid/main Sources\n";
        assert_eq!(of_madison(said).collect::<Vec<_>>(), ["1:28.5.2+dfsg4-5"]);
        assert_eq!(Offer::new("sid", "1:28.5.2+dfsg4-5").unwrap().upstream, Upstream([28, 5, 2]));
        assert_eq!(Upstream::find("Docker version 20.10.24+dfsg1, build 297e128"), Some(Upstream([20, 10, 24])));
        assert_eq!(Upstream::find("Docker version unknown"), None);
    }
}
