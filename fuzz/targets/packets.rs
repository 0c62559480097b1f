#![no_main]

use hiveway_readers::Target;

libfuzzer_sys::fuzz_target!(|data: &[u8]| Target::Packets.read(data));
