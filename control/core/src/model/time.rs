//! When something was made.

use std::{fmt, str::FromStr};

/// A point in time as the engine writes it, RFC 3339 in UTC; ordered by time.
///
/// Kept as text with nine digits of fraction, so that the order of texts is that of times.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(String);

const SHAPE: &str = "0000-00-00T00:00:00";

impl FromStr for Timestamp {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.strip_suffix('Z').and_then(|rest| {
            let (seconds, fraction) = rest.split_once('.').unwrap_or((rest, "0"));
            let shaped = seconds.len() == SHAPE.len()
                && seconds.bytes().zip(SHAPE.bytes()).all(|(byte, shape)| match shape {
                    b'0' => byte.is_ascii_digit(),
                    other => byte == other,
                });
            let digits = (1..=9).contains(&fraction.len()) && fraction.bytes().all(|byte| byte.is_ascii_digit());
            (shaped && digits).then(|| Self(format!("{seconds}.{fraction:0<9}Z")))
        });
        parsed.ok_or_else(|| format!("{text:?} is no time like 2026-11-21T00:27:35.5Z (RFC 3339, UTC)"))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_that_of_time_whatever_the_fraction() {
        let sorted = [
            "2025-12-31T23:59:59.999999999Z",
            "2026-11-21T00:27:35Z",
            "2026-11-21T00:27:35.000000001Z",
            "2026-11-21T00:27:35.5Z",
            "2026-11-21T00:27:35.51Z",
            "2026-11-21T00:27:36.1Z",
        ];
        let times = sorted.map(|text| text.parse::<Timestamp>().unwrap_or_else(|why| panic!("{why}")));
        assert!(times.is_sorted());
        assert_eq!("2026-11-21T00:27:35.0Z".parse(), Ok::<_, String>(times[1].clone()));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in
            ["", "Z", "2026-11-21", "2026-11-21T00:27:35+01:00", "2026-11-21T00:27:35.Z", "2026-11-21 00:27:35Z"]
        {
            assert!(text.parse::<Timestamp>().is_err(), "{text}");
        }
    }
}
