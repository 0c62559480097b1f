//! How many connections are remembered, and for how long.

use std::{ops::RangeInclusive, time::Duration};

use clap::Args;
use dataplane::{Sizes, Timeouts};

/// Entries that a table may have. Fewer would save nothing: each half takes a MiB of lines at least. More would not
/// fit.
const ENTRIES: RangeInclusive<i64> = 1024..=1 << 26;

/// Arguments of `hiveway agent` about connections.
#[derive(Clone, Debug, Args)]
pub struct ConnectionArgs {
    /// Idle time after which a connection is forgotten, by state: tcp-half-open, tcp-established, tcp-half-closed,
    /// tcp-closing, udp-unreplied, udp-replied (UDP and all other protocols), icmp. Times like 90s, 2m, 4h. May be
    /// given several times.
    #[arg(long = "timeout", value_name = "STATE=TIME,...", value_delimiter = ',', value_parser = timeout)]
    timeouts: Vec<Timeout>,
    /// Room for established connections: entries of translated ones (two per connection), and clients' connections at
    /// this node.
    #[arg(long, value_name = "N", default_value_t = Sizes::default().max_flows,
          value_parser = clap::value_parser!(u32).range(ENTRIES))]
    max_flows: u32,
    /// Room for connections that have not proved yet that somebody is there, likewise; those that were silent for
    /// longest make room. The tables begin with 16,384 lines, get so many, rounded up to a power of two, as soon as
    /// half of them are used, and more for established connections.
    #[arg(long, value_name = "N", default_value_t = Sizes::default().max_pending,
          value_parser = clap::value_parser!(u32).range(ENTRIES))]
    max_pending: u32,
}

/// One state's.
#[derive(Clone, Debug)]
struct Timeout {
    state: String,
    time: Duration,
}

impl ConnectionArgs {
    /// The defaults, where nothing else is said.
    pub fn timeouts(&self) -> Timeouts {
        let mut timeouts = Timeouts::default();
        for Timeout { state, time } in &self.timeouts {
            if let Some(slot) = timeouts.by_name(state) {
                *slot = *time;
            }
        }
        timeouts
    }

    /// Room in the connection tables.
    pub fn sizes(&self) -> Sizes {
        Sizes { max_flows: self.max_flows, max_pending: self.max_pending }
    }
}

fn timeout(text: &str) -> Result<Timeout, String> {
    let (state, time) = text.split_once('=').ok_or("not like tcp-established=4h")?;
    if Timeouts::default().by_name(state).is_none() {
        let known: Vec<_> = Timeouts::default().named().iter().map(|(name, _)| *name).collect();
        return Err(format!("no such state `{state}`; there are {}", known.join(", ")));
    }
    let time = humantime::parse_duration(time).map_err(|error| format!("{error}: use a time like 90s, 2m, 4h"))?;
    if time.is_zero() {
        return Err("a connection that is forgotten at once could never begin: use more than 0".to_owned());
    }
    Ok(Timeout { state: state.to_owned(), time })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: ConnectionArgs,
    }

    fn parse(flags: &[&str]) -> Result<ConnectionArgs, clap::Error> {
        Line::try_parse_from([&["x"], flags].concat()).map(|line| line.args)
    }

    #[test]
    fn defaults_are_the_data_planes() {
        let args = parse(&[]).unwrap();
        assert_eq!((args.timeouts(), args.sizes()), (Timeouts::default(), Sizes::default()));
    }

    #[test]
    fn states_are_set_one_by_one_or_together_and_the_last_word_counts() {
        let flags =
            ["--timeout", "icmp=5s,tcp-established=1h", "--timeout", "tcp-established=2h 30m", "--max-pending", "2048"];
        let args = parse(&flags).unwrap();
        let (seconds, default) = (Duration::from_secs, Timeouts::default());
        assert_eq!(args.timeouts(), Timeouts { icmp: seconds(5), tcp_established: seconds(9000), ..default });
        assert_eq!(args.sizes(), Sizes { max_pending: 2048, ..Sizes::default() });
    }

    #[test]
    fn nonsense_is_refused_with_what_is_known() {
        for (flags, said) in [
            (["--timeout", "tcp=5s"], "tcp-half-open"),
            (["--timeout", "icmp"], "tcp-established=4h"),
            (["--timeout", "icmp=5"], "90s"),
            (["--timeout", "icmp=0s"], "more than 0"),
            (["--max-flows", "5"], "1024"),
            (["--max-pending", "many"], "many"),
        ] {
            let error = parse(&flags).unwrap_err();
            assert!(error.exit_code() == 2 && error.to_string().contains(said), "{error}");
        }
    }
}
