//! Packets in a file for Wireshark (libpcap format, Ethernet).

use std::{fs, io, path::PathBuf};

/// Writes the packets to `target/golden/<name>.pcap` and returns the path.
pub fn write(name: &str, packets: &[&[u8]]) -> io::Result<PathBuf> {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("golden");
    fs::create_dir_all(&directory)?;
    let file: String = name.chars().map(|c| if c.is_alphanumeric() { c } else { '_' }).collect();
    let path = directory.join(file).with_extension("pcap");
    let mut bytes = Vec::new();
    // Magic, version 2.4, no time zone, no accuracy, snap length, link type Ethernet.
    for word in [0xa1b2_c3d4u32, 0x0004_0002, 0, 0, 65535, 1] {
        bytes.extend(word.to_le_bytes());
    }
    for (second, packet) in packets.iter().enumerate() {
        for word in [second as u32, 0, packet.len() as u32, packet.len() as u32] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend_from_slice(packet);
    }
    fs::write(&path, bytes)?;
    Ok(path)
}
