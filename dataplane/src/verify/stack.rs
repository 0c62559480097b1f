//! How much stack a program takes, counted as the strictest kernel counts it. What the running one says is not enough:
//! it rounds frames up to 16 bytes where older ones round to 32, and is silent about who calls whom.

use std::collections::BTreeSet;

use aya_obj::generated::{
    BPF_ADD, BPF_ALU64, BPF_CALL, BPF_DW, BPF_IMM, BPF_JMP, BPF_K, BPF_LD, BPF_LDX, BPF_MOV, BPF_PSEUDO_CALL,
    BPF_PSEUDO_FUNC, BPF_ST, BPF_STX, BPF_X, bpf_insn,
};

/// What kernels before 6.10 round each frame up to (`check_max_stack_depth` in `kernel/bpf/verifier.c`).
const ROUNDED: u64 = 32;
/// The register that points to the end of the frame.
const FRAME: u8 = 10;

const CALL: u8 = (BPF_JMP | BPF_CALL) as u8;
const LOAD: u8 = (BPF_LD | BPF_IMM | BPF_DW) as u8;
const MOVE: u8 = (BPF_ALU64 | BPF_MOV | BPF_X) as u8;
const ADD: u8 = (BPF_ALU64 | BPF_ADD | BPF_K) as u8;

/// Bytes on the deepest chain of calls of a linked program, its own frame included.
pub(super) fn deepest(program: &[bpf_insn]) -> u64 {
    let calls: Vec<_> = program.iter().enumerate().filter_map(|(at, instruction)| called(at, instruction)).collect();
    let starts: BTreeSet<usize> = [0].into_iter().chain(calls.iter().map(|(_, start)| *start)).collect();
    let starts: Vec<usize> = starts.into_iter().filter(|start| *start < program.len()).collect();
    let ends = starts.iter().skip(1).copied().chain([program.len()]);
    let frames: Vec<u64> = starts.iter().zip(ends).map(|(&start, end)| frame(&program[start..end])).collect();
    let subprogram = |at: usize| starts.partition_point(|start| *start <= at).saturating_sub(1);
    let mut callees = vec![BTreeSet::new(); starts.len()];
    for (at, start) in calls {
        callees[subprogram(at)].insert(subprogram(start));
    }
    chain(0, &callees, &frames)
}

/// There is no recursion: the verifier refuses that.
fn chain(subprogram: usize, callees: &[BTreeSet<usize>], frames: &[u64]) -> u64 {
    let below = callees[subprogram].iter().map(|callee| chain(*callee, callees, frames)).max().unwrap_or(0);
    frames[subprogram].max(1).next_multiple_of(ROUNDED) + below
}

/// If the instruction calls a subprogram, or passes it to a helper that does: where it is, and where the subprogram
/// starts.
fn called(at: usize, instruction: &bpf_insn) -> Option<(usize, usize)> {
    let source = u32::from(instruction.src_reg());
    let calls = (instruction.code == CALL && source == BPF_PSEUDO_CALL)
        || (instruction.code == LOAD && source == BPF_PSEUDO_FUNC);
    calls.then(|| (at + 1).checked_add_signed(instruction.imm as isize)).flatten().map(|start| (at, start))
}

/// The lowest byte of its frame that a subprogram names. LLVM reaches all that lies there from the frame pointer, or
/// from a copy of it that it moves to the start of the object first.
fn frame(subprogram: &[bpf_insn]) -> u64 {
    let mut copies = [false; 16];
    let mut lowest = 0i64;
    for instruction in subprogram {
        let (dst, src) = (instruction.dst_reg(), instruction.src_reg());
        let class = u32::from(instruction.code & 7);
        match (instruction.code, class) {
            (MOVE, _) if src == FRAME => copies[usize::from(dst)] = true,
            (ADD, _) if copies[usize::from(dst)] => {
                lowest = lowest.min(instruction.imm.into());
                copies[usize::from(dst)] = false;
            }
            (_, BPF_LDX) if src == FRAME => lowest = lowest.min(instruction.off.into()),
            (_, BPF_ST | BPF_STX) if dst == FRAME => lowest = lowest.min(instruction.off.into()),
            _ => {}
        }
    }
    lowest.unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instruction(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> bpf_insn {
        bpf_insn { code, _bitfield_align_1: [], _bitfield_1: bpf_insn::new_bitfield_1(dst, src), off, imm }
    }

    fn call(distance: i32) -> bpf_insn {
        instruction(CALL, 0, BPF_PSEUDO_CALL as u8, 0, distance)
    }

    /// `*(u64 *)(r10 + off) = r0`.
    fn store(off: i16) -> bpf_insn {
        instruction(0x7b, FRAME, 0, off, 0)
    }

    const EXIT: u8 = 0x95;

    #[test]
    fn a_frame_reaches_to_its_lowest_byte() {
        let copied = [instruction(MOVE, 2, FRAME, 0, 0), instruction(ADD, 2, 0, 0, -72)];
        assert_eq!(frame(&[store(-8), store(-40), store(-16)]), 40);
        assert_eq!(frame(&copied), 72);
        // Of another register.
        assert_eq!(frame(&[instruction(MOVE, 2, 1, 0, 0), instruction(ADD, 2, 0, 0, -72)]), 0);
        assert_eq!(frame(&[instruction(0x79, 0, FRAME, -24, 0)]), 24);
    }

    #[test]
    fn the_deepest_chain_counts_and_not_the_largest_frame() {
        let exit = instruction(EXIT, 0, 0, 0, 0);
        // The program (40) calls two (100, and 8 that calls one with 72).
        let program =
            [store(-40), call(2), call(3), exit, store(-100), exit, store(-8), call(1), exit, store(-72), exit];
        assert_eq!(deepest(&program), 64 + 32 + 96);
        assert_eq!(deepest(&[exit]), 32);
    }
}
