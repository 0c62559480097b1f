//! Chains that ask chains.

use super::saved;

/// FORWARD asks chain 0, and each chain asks the next one `width` times.
fn levels(depth: usize, width: usize) -> String {
    let ask = |from: &str, to: usize| format!("-A {from} -s 203.0.113.0/24 -j c{to}\n");
    let chains: String = (0..=depth).map(|level| format!(":c{level} - [0:0]\n")).collect();
    let rules: String = (0..depth).map(|level| ask(&format!("c{level}"), level + 1).repeat(width)).collect();
    format!("*filter\n:FORWARD ACCEPT [0:0]\n{chains}{}{rules}COMMIT\n", ask("FORWARD", 0))
}

#[test]
fn a_chain_that_is_asked_often_is_followed() {
    assert_eq!(saved(&levels(4, 8)), Vec::<String>::new());
}

/// Followed to the end these are 8¹² rules.
#[test]
fn chains_that_multiply_are_not_followed_to_the_end() {
    assert_eq!(saved(&levels(12, 8)), ["203.0.113.0/24"]);
}

/// The kernel refuses them; they are read while they change.
#[test]
fn chains_that_ask_themselves_may_do_anything() {
    let asks = "-A loop -s 203.0.113.0/24 -j loop\n".repeat(8);
    let rules = format!("*filter\n:FORWARD ACCEPT [0:0]\n:loop - [0:0]\n-A FORWARD -j loop\n{asks}COMMIT\n");
    assert_eq!(saved(&rules), ["203.0.113.0/24"]);
}
