//! Map `XDP_DEVICES`.

/// Values of map `XDP_DEVICES` (hash, key: interface index, native `u32`): how `xdp_mesh` is attached there.
pub mod xdp_mode {
    /// In the driver.
    pub const NATIVE: u32 = 1;
    /// In the stack.
    pub const GENERIC: u32 = 2;
}

/// How many interfaces can have the program.
pub const MAX_DEVICES: u32 = 1_024;
