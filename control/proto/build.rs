//! Generates the messages and services from `proto/`, with a compiler in Rust (no `protoc` needed).

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(["proto/swarm.proto", "proto/relay.proto"], ["proto"])?;
    // Sorted maps: equal messages are equal bytes.
    tonic_prost_build::configure().btree_map(".").compile_fds(files)?;
    Ok(())
}
