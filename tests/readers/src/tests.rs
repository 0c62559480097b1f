//! Every target with its seeds, and with damaged ones for a few seconds.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use crate::{Target, damage, seeds::seeds};

/// For each target.
const TIME: Duration = Duration::from_secs(6);
/// An input that takes longer is a defect. Undamaged ones take milliseconds, on a loaded machine too.
const PATIENCE: Duration = Duration::from_secs(15);
/// Inputs that are read at least, however slow the machine is.
const LEAST: u64 = 100;

/// Reads damaged inputs until the time is over. Returns how many.
fn damaged(name: &str, seeds: &[Vec<u8>], time: Duration, read: impl Fn(&[u8])) -> u64 {
    let begun = Instant::now();
    let mut number = 0;
    while number < LEAST.max(seeds.len() as u64) || begun.elapsed() < time {
        let input = damage::input(seeds, number);
        let started = Instant::now();
        let done = catch_unwind(AssertUnwindSafe(|| read(&input)));
        let took = started.elapsed();
        assert!(
            done.is_ok() && took < PATIENCE,
            "{name}: input {number} of seed {:#x} ({} bytes) is a defect, after {took:?}. To have it in a file: \
             cargo run --package hiveway-readers -- input {name} {number} >FILE",
            damage::SEED,
            input.len()
        );
        number += 1;
    }
    number
}

fn check(target: Target) {
    let seeds = seeds(target).unwrap();
    assert!(!seeds.is_empty());
    let name = format!("{target:?}").to_lowercase();
    damaged(&name, &seeds, TIME, |input| target.read(input));
}

#[test]
fn table() {
    check(Target::Table);
}

#[test]
fn engine() {
    check(Target::Engine);
}

#[test]
fn stream() {
    check(Target::Stream);
}

#[test]
fn relay() {
    check(Target::Relay);
}

#[test]
fn certificates() {
    check(Target::Certificates);
}

#[test]
fn firewall() {
    check(Target::Firewall);
}

#[test]
fn protocol() {
    check(Target::Protocol);
}

#[test]
fn packets() {
    check(Target::Packets);
}

#[test]
fn a_defect_is_told_with_the_number_of_its_input() {
    let read = |input: &[u8]| assert!(!input.contains(&0xff), "byte 255");
    let told = catch_unwind(|| damaged("some", &[b"seed".to_vec()], TIME, read)).unwrap_err();
    let told = told.downcast_ref::<String>().unwrap();
    let number = told.split("input ").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok()).unwrap();
    assert!(damage::input(&[b"seed".to_vec()], number).contains(&0xff), "{told}");
    assert!(told.contains(&format!("input some {number} >FILE")), "{told}");
}
