//! What a panic says goes the way of the log. The process that panics is this program again.

use std::{
    env,
    io::{self, BufRead, BufReader, Read, Write},
    process::{self, Child, Command, Stdio},
    thread,
    time::Duration,
};

use control::log;

/// How many lines the process logs before it panics.
const LINES: &str = "HIVEWAY_TEST_LINES";
/// How long it may take; a process that hangs ends then.
const PATIENCE: Duration = Duration::from_secs(60);
const NAME: &str = "the_process_that_panics";

/// Nothing, unless one of the other tests has started it.
#[test]
fn the_process_that_panics() {
    let Some(lines) = env::var(LINES).ok().and_then(|text| text.parse().ok()) else { return };
    thread::spawn(|| {
        thread::sleep(PATIENCE);
        process::exit(1);
    });
    log::start().unwrap();
    log::take_panics();
    for number in 0..lines {
        writeln!(log::Lines, "line {number}").unwrap();
    }
    let worker =
        thread::Builder::new().name("worker".into()).spawn(|| panic!("out of {}", "order\n\u{1b}[31mforged")).unwrap();
    worker.join().unwrap_err();
    writeln!(io::stdout(), "it has panicked").unwrap();
    writeln!(log::Lines, "it goes on").unwrap();
    // Before that, the reader is given the time to come back.
    thread::sleep(Duration::from_secs(1));
    log::finish();
}

fn start(lines: usize) -> Child {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", NAME, "--nocapture"]).env(LINES, lines.to_string()).env("RUST_BACKTRACE", "0");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits until the process has panicked, and returns all that it has said.
fn said(mut child: Child) -> String {
    // Open to the end: the test harness writes there, too.
    let mut stdout = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(stdout.any(|line| line.ends_with("it has panicked")), "it hangs, or is dead");
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(child.wait().unwrap().success());
    text
}

#[test]
fn a_panic_is_a_line_of_the_log() {
    let text = said(start(2));
    let lines: Vec<_> = text.lines().collect();
    // No text in it is a line of its own, or obeyed by a terminal.
    let ["line 0", "line 1", panic, "  | ?[31mforged", "it goes on"] = lines[..] else { panic!("{text}") };
    assert!(panic.starts_with("panic in the thread worker at ") && panic.ends_with(": out of order"), "{panic}");
}

#[test]
fn a_panic_waits_for_no_reader_and_is_not_lost() {
    let text = said(start(200_000));
    assert_eq!(text.matches("panic in the thread worker").count(), 1, "{}", &text[text.len() - 500..]);
    assert!(text.contains("lines of the log were dropped here"));
}
