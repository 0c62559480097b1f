//! The trampoline: the program that is attached to one container's interface, says which one it is, and calls the
//! program that all of them share.
//!
//! Interface indices are unique in one network namespace only, and kernels like 6.1 tell a TC program nothing of the
//! namespace it runs in. So each interface has a trampoline of its own with its id as a constant
//! ([ADR 13](../../../docs/adr/0013-a-trampoline-per-container-interface.md)):
//!
//! ```text
//! w2 = ID                                // with SANDBOX_BIT
//! *(u32 *)(r1 + offsetof(cb[2])) = w2    // where from_sandbox and to_sandbox look
//! r2 = SANDBOX_PROGRAMS                  // two slots: a 64-bit constant
//! w3 = INDEX                             // from or to
//! call tail_call                         // does not come back, unless there is no such program:
//! w0 = TC_ACT_UNSPEC                     // then the packet goes on as if nobody were here
//! exit
//! ```

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
};

use aya_obj::generated::{
    BPF_ALU, BPF_CALL, BPF_DW, BPF_EXIT, BPF_IMM, BPF_JMP, BPF_K, BPF_LD, BPF_MEM, BPF_MOV, BPF_PSEUDO_MAP_FD, BPF_STX,
    BPF_W, bpf_func_id, bpf_insn,
};
use dataplane_common::mark::{SANDBOX_ID, sandbox_program};

use crate::{Program, sys};

/// Offset of `cb` in `struct __sk_buff`.
const CB: i16 = 48;
/// `TC_ACT_UNSPEC`, which is `TCX_NEXT`.
const NEXT: i32 = -1;

/// Loads the trampoline of interface `id` that calls `program` by way of the map `programs`.
pub(super) fn load(program: Program, id: u32, programs: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let (index, name) = match program {
        Program::FromSandbox => (sandbox_program::FROM, "hwf"),
        Program::ToSandbox => (sandbox_program::TO, "hwt"),
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    };
    sys::load_classifier(&code(id, programs.as_raw_fd(), index), c"Dual MIT/GPL", &format!("{name}_{id:08x}"))
}

fn code(id: u32, programs: i32, index: u32) -> [bpf_insn; 8] {
    let word = (SANDBOX_ID * size_of::<u32>()) as i16;
    [
        instruction(BPF_ALU | BPF_MOV | BPF_K, 2, 0, 0, id as i32),
        instruction(BPF_STX | BPF_MEM | BPF_W, 1, 2, CB + word, 0),
        instruction(BPF_LD | BPF_IMM | BPF_DW, 2, BPF_PSEUDO_MAP_FD, 0, programs),
        instruction(0, 0, 0, 0, 0),
        instruction(BPF_ALU | BPF_MOV | BPF_K, 3, 0, 0, index as i32),
        instruction(BPF_JMP | BPF_CALL, 0, 0, 0, bpf_func_id::BPF_FUNC_tail_call as i32),
        instruction(BPF_ALU | BPF_MOV | BPF_K, 0, 0, 0, NEXT),
        instruction(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
    ]
}

fn instruction(code: u32, dst: u8, src: u32, off: i16, imm: i32) -> bpf_insn {
    bpf_insn {
        code: code as u8,
        _bitfield_align_1: [],
        _bitfield_1: bpf_insn::new_bitfield_1(dst, src as u8),
        off,
        imm,
    }
}
