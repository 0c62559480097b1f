//! `cargo xtask verify`: loads every program into this kernel and compares what it costs with
//! dataplane-ebpf/budget.txt.
#![allow(clippy::print_stdout, reason = "the table is the result")]

use std::fs;

use anyhow::{Context, Result, bail};

use crate::{build_ebpf, setup, sh};

const BUDGET: &str = "dataplane-ebpf/budget.txt";

/// A line of the budget, or what was measured.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Cost {
    program: String,
    /// Instructions that the verifier walked through, all paths together.
    verified: u64,
    /// Bytes, on the deepest chain of calls.
    stack: u64,
}

/// Prints the table; an error if a program is over its budget, has none, or does not load.
pub(crate) fn run() -> Result<()> {
    setup::need_root("loading BPF programs")?;
    setup::run()?;
    build_ebpf::run()?;
    judge()
}

/// The same of programs that have been built.
pub(crate) fn judge() -> Result<()> {
    let text = fs::read_to_string(sh::root().join(BUDGET)).with_context(|| format!("reading {BUDGET}"))?;
    let budget = parse(&text).context(BUDGET)?;
    let example = ["run", "--quiet", "--package", "dataplane", "--example", "verify"];
    let measured = parse(&sh::output(sh::cargo().args(example))?)?;

    println!("{:<16} {:>10} {:>10} {:>8} {:>8}", "program", "verified", "budget", "stack", "budget");
    let gone = budget.iter().filter(|limit| !measured.iter().any(|cost| cost.program == limit.program));
    let mut problems: Vec<String> =
        gone.map(|limit| format!("{} is in {BUDGET} but not loaded", limit.program)).collect();
    for cost in measured {
        let Some(limit) = budget.iter().find(|limit| limit.program == cost.program) else {
            problems.push(format!("{} has no line in {BUDGET}", cost.program));
            continue;
        };
        let (name, over) = (&cost.program, over(&cost, limit));
        let mark = if over.is_empty() { "" } else { "  OVER" };
        println!("{name:<16} {:>10} {:>10} {:>8} {:>8}{mark}", cost.verified, limit.verified, cost.stack, limit.stack);
        problems.extend(over);
    }
    if !problems.is_empty() {
        bail!("{}", problems.join("\n       "));
    }
    Ok(())
}

/// Reads `program verified stack` lines; `#` starts a comment.
fn parse(text: &str) -> Result<Vec<Cost>> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| match line.split_whitespace().collect::<Vec<_>>()[..] {
            [program, verified, stack] => {
                Ok(Cost { program: program.to_owned(), verified: verified.parse()?, stack: stack.parse()? })
            }
            _ => bail!("not `program instructions bytes`: {line}"),
        })
        .collect()
}

fn over(cost: &Cost, limit: &Cost) -> Vec<String> {
    let what = [("verified instructions", cost.verified, limit.verified), ("bytes of stack", cost.stack, limit.stack)];
    let over = what.into_iter().filter(|(_, is, may)| is > may);
    over.map(|(what, is, may)| format!("{}: {is} {what}, budget {may}", cost.program)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_budget_and_judges_by_it() {
        let budget = parse("# comment\n\nfrom_a  100 512\n").unwrap();
        let cost = |verified, stack| Cost { program: "from_a".to_owned(), verified, stack };
        assert_eq!(budget, [cost(100, 512)]);
        assert!(over(&cost(100, 512), &budget[0]).is_empty());
        assert_eq!(over(&cost(101, 600), &budget[0]).len(), 2);
        assert!(parse("from_a 100").is_err());
    }
}
