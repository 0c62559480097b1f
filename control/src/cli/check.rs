//! `hiveway check`: whether the paths to other nodes work.
use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{
    CheckArgs,
    columns::{columns, text},
    exit, matrix_text,
};
use crate::{
    plain,
    say::{self, errln, outln},
    status::{client::ask, protocol::Request},
};

/// Asks, prints, and says by the exit code whether all paths pass. Waits a while for paths that nothing is known of
/// yet.
pub(super) fn check(args: &CheckArgs) -> u8 {
    let until = Instant::now() + Duration::from_secs(args.wait);
    let value = loop {
        match ask(&args.show.socket, &Request::Check) {
            Ok(value) if value["waiting"] == true && Instant::now() < until => sleep(Duration::from_millis(300)),
            Ok(value) => break value,
            Err(error) => {
                errln!("error: {error}");
                return exit::FAILED;
            }
        }
    };
    if args.show.json {
        outln!("{value:#}");
    } else {
        say::out(format_args!("{}", render(&value)));
    }
    // An agent that was started from an older binary says only whether its own paths pass.
    let passing = value["passing"] == true && value["all_passing"] != false;
    if passing && value["waiting"] == false { exit::OK } else { exit::FAILED }
}

/// The answer as text.
pub(super) fn render(value: &Value) -> String {
    let value = &plain::value(value);
    let rows = || value["paths"].as_array().into_iter().flatten();
    let or = |value: &Value, shown: fn(String) -> String| match value {
        Value::Null => "-".to_owned(),
        value => shown(text(value)),
    };
    let here = text(&value["hostname"]);
    let mut out = columns(
        &["FROM", "TO", "ADDRESS", "STATE", "SINCE", "RTT", "LOSS", "MTU", "PASSED", "BACK", "HEARD"],
        rows().map(|row| {
            let rtt = match row["rtt_microseconds"].as_u64() {
                Some(rtt) => format!("{:.2} ms", rtt as f64 / 1e3),
                None => "-".to_owned(),
            };
            vec![
                here.clone(),
                text(&row["hostname"]),
                text(&row["address"]),
                text(&row["state"]),
                format!("{} s", text(&row["since_seconds"])),
                rtt,
                format!("{:.1} %", row["loss"].as_f64().unwrap_or_default() * 100.0),
                text(&row["mtu"]),
                or(&row["passed"], |size| size),
                or(&row["their_mtu"], |size| size),
                or(&row["heard_seconds_ago"], |seconds| format!("{seconds} s ago")),
            ]
        }),
        "no other node that runs Hiveway",
    );
    out += &matrix_text::render(value);
    out += &problems(&value["problems"]);
    out
}

/// What is wrong, a paragraph each.
pub(super) fn problems(list: &Value) -> String {
    let problem = |problem: &Value| {
        let (severity, what, remedy) = (&problem["severity"], &problem["problem"], &problem["remedy"]);
        format!("\n{}: {}\n  remedy: {}\n", text(severity), text(what), text(remedy))
    };
    list.as_array().into_iter().flatten().map(problem).collect()
}

/// One line about all paths of a `status`.
pub(super) fn summary(status: &Value) -> String {
    let count = |state: &str| {
        let rows = status["paths"].as_array().into_iter().flatten();
        rows.filter(|row| state.is_empty() || row["state"] == state).count()
    };
    let (all, passing) = (count(""), count("passing"));
    let others = ["failing", "waiting"].map(|state| (count(state), state)).into_iter().filter(|(n, _)| *n > 0);
    let others: String = others.map(|(n, state)| format!(", {n} {state}")).collect();
    if all == 0 { "to no other node".to_owned() } else { format!("{passing} of {all} pass{others} (hiveway check)") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_row_per_path_and_what_is_wrong() {
        let path = json!({"node": "x", "hostname": "n2", "address": "192.0.2.2", "state": "failing", "since_seconds": 9,
            "rtt_microseconds": 120, "loss": 0.25, "mtu": 1500, "passed": null, "their_mtu": 1400,
            "heard_seconds_ago": 1});
        let problem = json!({"severity": "error", "problem": "n2 is silent", "remedy": "talk to it"});
        let shown = render(&json!({"hostname": "n1", "paths": [path], "problems": [problem]}));
        for part in
            ["n1    n2  192.0.2.2", "failing", "0.12 ms", "25.0 %", "1400", "error: n2 is silent\n  remedy: talk to it"]
        {
            assert!(shown.contains(part), "{part}: {shown}");
        }
        assert!(render(&json!({"hostname": "n1", "paths": [], "problems": []})).contains("no other node"));
    }
}
