//! Which numbers are free: ranges of consecutive slots, and a rest for those that were in use until a moment ago.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
};

/// Consecutive numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SlotRange {
    /// The first.
    pub(crate) base: u32,
    /// How many.
    pub(crate) len: u32,
}

impl SlotRange {
    fn end(self) -> u32 {
        self.base + self.len
    }
}

/// Hands out ranges. What was given back rests for a while before it is handed out again, because a packet on another
/// CPU may still be reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SlotAllocator {
    /// Free ranges, by base; never adjacent to each other.
    free: BTreeMap<u32, u32>,
    /// Ranges that rest, and until when; in order of time.
    resting: VecDeque<(u64, SlotRange)>,
    /// How long a range rests, in nanoseconds.
    rest: u64,
}

impl SlotAllocator {
    /// Everything in `numbers` is free.
    pub(crate) fn new(numbers: Range<u32>, rest: u64) -> Self {
        let free = (!numbers.is_empty()).then(|| (numbers.start, numbers.end - numbers.start));
        Self { free: free.into_iter().collect(), resting: VecDeque::new(), rest }
    }

    /// Marks `range` as in use, as found in the maps after a restart. False, and no effect, unless all of it is free.
    pub(crate) fn reserve(&mut self, range: SlotRange) -> bool {
        let Some(end) = range.base.checked_add(range.len) else { return false };
        let Some((&base, &len)) = self.free.range(..=range.base).next_back() else { return false };
        if range.len == 0 || end > base + len {
            return false;
        }
        self.free.remove(&base);
        if base < range.base {
            self.free.insert(base, range.base - base);
        }
        if end < base + len {
            self.free.insert(end, base + len - end);
        }
        true
    }

    /// Takes `len` consecutive numbers, the lowest that are free. `now` is a time in nanoseconds that never goes back.
    pub(crate) fn take(&mut self, len: u32, now: u64) -> Option<SlotRange> {
        self.wake(now);
        let (&base, _) = self.free.iter().find(|(_, free)| **free >= len)?;
        let range = SlotRange { base, len };
        self.reserve(range).then_some(range)
    }

    /// Gives `range` back.
    pub(crate) fn give_back(&mut self, range: SlotRange, now: u64) {
        if range.len > 0 {
            self.resting.push_back((now.saturating_add(self.rest), range));
        }
    }

    /// Makes free what has rested long enough.
    fn wake(&mut self, now: u64) {
        while let Some((until, range)) = self.resting.front().copied() {
            if until > now {
                break;
            }
            self.resting.pop_front();
            self.release(range);
        }
    }

    fn release(&mut self, range: SlotRange) {
        let (mut base, mut len) = (range.base, range.len);
        if let Some((&before, &before_len)) = self.free.range(..base).next_back()
            && before + before_len == base
        {
            self.free.remove(&before);
            (base, len) = (before, before_len + len);
        }
        if let Some(after_len) = self.free.remove(&range.end()) {
            len += after_len;
        }
        self.free.insert(base, len);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const REST: u64 = 10;

    #[derive(Clone, Debug)]
    enum Step {
        Take(u32),
        GiveBack(usize),
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (1u32..12).prop_map(Step::Take),
            any::<usize>().prop_map(Step::GiveBack),
            (0u64..12).prop_map(Step::Wait),
        ]
    }

    fn overlaps(a: SlotRange, b: SlotRange) -> bool {
        a.base < b.end() && b.base < a.end()
    }

    proptest! {
        #[test]
        fn never_hands_out_what_is_in_use_or_resting(steps in prop::collection::vec(step(), 0..200)) {
            let numbers = 1..64;
            let mut ranges = SlotAllocator::new(numbers.clone(), REST);
            let mut used: Vec<SlotRange> = Vec::new();
            let mut resting: Vec<(u64, SlotRange)> = Vec::new();
            let mut now = 0;
            for step in steps {
                match step {
                    Step::Take(len) => {
                        if let Some(range) = ranges.take(len, now) {
                            prop_assert_eq!(range.len, len);
                            prop_assert!(range.base >= numbers.start && range.end() <= numbers.end);
                            prop_assert!(used.iter().all(|u| !overlaps(*u, range)));
                            prop_assert!(resting.iter().all(|(until, r)| *until <= now || !overlaps(*r, range)));
                            used.push(range);
                        }
                    }
                    Step::GiveBack(which) if !used.is_empty() => {
                        let range = used.swap_remove(which % used.len());
                        ranges.give_back(range, now);
                        resting.push((now + REST, range));
                    }
                    Step::GiveBack(_) => {}
                    Step::Wait(time) => now += time,
                }
            }
            // What a restarted agent recovers from the ranges in use equals what this one has once all have rested.
            let mut recovered = SlotAllocator::new(numbers.clone(), REST);
            for range in &used {
                prop_assert!(recovered.reserve(*range));
            }
            ranges.wake(u64::MAX);
            prop_assert_eq!(&ranges, &recovered);
            // And nothing is lost.
            for range in used {
                ranges.give_back(range, now);
            }
            ranges.wake(u64::MAX);
            prop_assert_eq!(ranges, SlotAllocator::new(numbers, REST));
        }
    }

    #[test]
    fn what_rests_is_not_handed_out_until_its_time_is_over() {
        let mut ranges = SlotAllocator::new(0..4, REST);
        let range = ranges.take(4, 0).unwrap();
        ranges.give_back(range, 100);
        assert_eq!(ranges.take(1, 100 + REST - 1), None);
        assert_eq!(ranges.take(4, 100 + REST), Some(range));
    }

    #[test]
    fn reserves_only_what_is_wholly_free() {
        let mut ranges = SlotAllocator::new(1..10, REST);
        assert!(ranges.reserve(SlotRange { base: 4, len: 2 }));
        for refused in [(4, 1), (3, 2), (5, 2), (0, 1), (9, 2), (10, 1), (u32::MAX, 2), (2, 0)] {
            let (base, len) = refused;
            assert!(!ranges.reserve(SlotRange { base, len }), "{refused:?}");
        }
        assert!(ranges.reserve(SlotRange { base: 6, len: 4 }));
        assert!(ranges.reserve(SlotRange { base: 1, len: 3 }));
        assert_eq!(ranges.take(1, 0), None);
    }
}
