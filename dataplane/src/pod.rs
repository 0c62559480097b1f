//! The bridge between the shared types (zerocopy) and aya's maps (`Pod`).

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Types without padding in which every bit pattern is valid: what may be a map's key or value.
pub(crate) trait Plain: FromBytes + IntoBytes + Immutable + Copy + 'static {}

impl<T: FromBytes + IntoBytes + Immutable + Copy + 'static> Plain for T {}

/// A [`Plain`] type as aya wants it.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Raw<T>(pub(crate) T);

// SAFETY: `Raw` has the layout of `T`, and `Plain` guarantees what `Pod` asks for: no padding (`IntoBytes`), every bit
// pattern valid (`FromBytes`), no references.
unsafe impl<T: Plain> aya::Pod for Raw<T> {}
