//! The compiled programs, embedded by the build script.

/// The eBPF object, aligned as its parser wants it.
pub(crate) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/programs.o"));
