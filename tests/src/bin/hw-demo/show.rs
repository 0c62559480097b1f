//! Printing what is run, so that it can be repeated by hand with `--keep`.

use anyhow::Result;
use hiveway_tests::lab::Netns;

pub(crate) fn chapter(title: &str) {
    println!("\n== {title}");
}

pub(crate) fn say(text: &str) {
    println!("   {text}");
}

/// Prints and runs a command line in a namespace and prints its output.
pub(crate) fn run(netns: &Netns, line: &str) -> Result<String> {
    println!("$ nsenter --net={} {line}", netns.path().display());
    let output = netns.run(line)?;
    for text in output.lines().filter(|text| !text.trim().is_empty()) {
        println!("  {text}");
    }
    Ok(output)
}
