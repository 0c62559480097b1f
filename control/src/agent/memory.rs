//! What the agent asks of the allocator. A round in a large swarm takes several times the memory of everything that
//! stays, and what stays is made in between.

/// From how many bytes on a block of memory is the kernel's again as soon as it is free.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 128 * 1024;

/// Once, before there are threads: large blocks come from the kernel and go back to it, and all threads share one heap.
/// By default glibc keeps blocks as large as the largest that was ever given back, and gives each thread a heap of its
/// own, of which every one keeps what the thread's largest work has left.
pub(super) fn keep_little() {
    #[cfg(target_env = "gnu")]
    // SAFETY: only sets numbers of the allocator.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// After a round: what it has read, derived and planned is gone, but the allocator keeps its memory.
pub(super) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: only asks the allocator to return free pages; takes its own locks.
    tokio::task::block_in_place(|| unsafe { libc::malloc_trim(0) });
}
