//! Port lists as the kernel writes them: `80,443,8000-8010`.

use std::{collections::BTreeSet, fmt};

/// Parses a list; what makes no sense is left out (the kernel never writes any).
pub fn parse_ports(text: &str) -> BTreeSet<u16> {
    let mut ports = BTreeSet::new();
    for item in text.split(',').map(str::trim) {
        match item.split_once('-') {
            Some((first, last)) => {
                if let (Ok(first), Ok(last)) = (first.parse::<u16>(), last.parse::<u16>()) {
                    ports.extend(first..=last);
                }
            }
            None => ports.extend(item.parse::<u16>()),
        }
    }
    ports
}

/// Writes a list, with ranges.
pub struct PortList<'a>(pub &'a BTreeSet<u16>);

impl fmt::Display for PortList<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ports = self.0.iter().copied().peekable();
        let mut separator = "";
        while let Some(first) = ports.next() {
            let mut last = first;
            while let Some(next) = ports.next_if(|next| last.checked_add(1) == Some(*next)) {
                last = next;
            }
            match last == first {
                true => write!(f, "{separator}{first}")?,
                false => write!(f, "{separator}{first}-{last}")?,
            }
            separator = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_round_trip() {
        for text in ["", "80", "80,443", "80,8000-8010,65535", "1-65535"] {
            assert_eq!(PortList(&parse_ports(text)).to_string(), text);
        }
        assert_eq!(parse_ports(" 5, 7-6,x"), BTreeSet::from([5]));
    }
}
