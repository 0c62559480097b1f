//! What the verifier checks once instead of once for each way that leads to it.
//!
//! A function that is not inlined is still verified again for each call with other knowledge of registers and stack,
//! and what follows the call once more for each way through the function. A *global* function (BTF's word for one that
//! is visible outside the object; function-by-function verification, Linux 5.6) is verified on its own: for any
//! arguments, and after a call nothing is known of its result but the type. Such functions here come in pairs: an
//! inlined one with the types of the rest of the crate, and behind it the global one,
//!
//! * `#[unsafe(no_mangle)]`, not inlined, `extern "C"`;
//! * whose arguments are at most five: the context, scalars, and pointers to structs of a fixed size, which the
//!   verifier takes for pointers that may be null, and which the caller has written in full;
//! * which reads what is to be the key of a map into memory of its own, with [`key`] (VERIFIER(6.1): a pointer that was
//!   passed is taken for no key);
//! * whose result is a scalar, 0 where there is nothing to say (VERIFIER(6.1): a function without a result is refused);
//!   for `Result<(), DropReason>` see [`code`] and [`outcome`].
//!
//! It pays where a function is called from several places, or where its ways differ in what they leave in registers.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use dataplane_common::drop_reason::DropReason;

use crate::skb::Skb;

/// The context of a global function.
#[inline(always)]
pub(crate) fn context(ctx: *mut __sk_buff) -> Skb {
    Skb(TcContext::new(ctx))
}

/// A key of a map that was passed by pointer.
#[inline(always)]
pub(crate) fn key<K: Copy>(passed: &K) -> K {
    // Volatile: LLVM may not use the pointer itself all the same.
    // SAFETY: a reference is valid and aligned.
    unsafe { core::ptr::read_volatile(passed) }
}

/// A result as a scalar: 0, or the number of the reason and one more.
#[inline(always)]
pub(crate) fn code(result: Result<(), DropReason>) -> u32 {
    match result {
        Ok(()) => 0,
        Err(reason) => reason as u32 + 1,
    }
}

/// The result behind a scalar of [`code`].
#[inline(always)]
pub(crate) fn outcome(code: u32) -> Result<(), DropReason> {
    const LAST: u32 = DropReason::ALL.len() as u32 - 1;
    match code {
        0 => Ok(()),
        // SAFETY: the numbers go from 0 to the last one without a gap: `drop_reasons!` asserts it.
        code => Err(unsafe { core::mem::transmute::<u32, DropReason>((code - 1).min(LAST)) }),
    }
}

/// What a global function returns for a null pointer. No caller passes one.
pub(crate) const NULL: u32 = DropReason::NotConfigured as u32 + 1;
