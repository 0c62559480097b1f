//! Names of pins: `<program>@<interface>`.

use std::{fmt, str::FromStr};

use crate::Program;

/// Which program on which interface. Displayed as a file name that a BPF file system accepts (it refuses dots).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PinName {
    pub(crate) program: Program,
    pub(crate) ifname: String,
}

impl fmt::Display for PinName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@", self.program)?;
        for char in self.ifname.chars() {
            match char {
                '.' => f.write_str("%2e")?,
                '/' => f.write_str("%2f")?,
                '%' => f.write_str("%25")?,
                other => write!(f, "{other}")?,
            }
        }
        Ok(())
    }
}

/// The name is none of ours.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Foreign;

impl FromStr for PinName {
    type Err = Foreign;

    fn from_str(name: &str) -> Result<Self, Foreign> {
        let (program, ifname) = name.split_once('@').ok_or(Foreign)?;
        let program = program.parse().map_err(|_| Foreign)?;
        let ifname = ifname.replace("%2e", ".").replace("%2f", "/").replace("%25", "%");
        let parsed = Self { program, ifname };
        if parsed.to_string() == name { Ok(parsed) } else { Err(Foreign) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_interface_name_comes_back(ifname in "[!-~]{1,15}") {
            let name = PinName { program: Program::FromClient, ifname };
            let text = name.to_string();
            prop_assert!(!text.contains(['.', '/']));
            prop_assert_eq!(text.parse(), Ok(name));
        }
    }

    #[test]
    fn foreign_names_are_not_taken_for_ours() {
        for name in ["", "from_client", "from_nowhere@eth0", "from_client@eth0.5", "from_client@%2E"] {
            assert_eq!(name.parse::<PinName>(), Err(Foreign), "{name}");
        }
    }
}
