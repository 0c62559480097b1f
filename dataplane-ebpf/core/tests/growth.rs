//! The table of connections while it grows, against what it promises: whatever is entered, taken out and seen
//! meanwhile, and however often the agent is ended, each connection is found all the time, and once it has grown each
//! is there once.

#[macro_use]
mod both;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    marker::PhantomData,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use both::TICK;
use dataplane_common::line::{self, Clients, Layout, SLOTS, Translated, VALUE, WORDS, geometry, head, state};
use dataplane_core::{
    growth::{self, Growing, Moved},
    lines::{self, Key, KeyWords, Line as _, Lines, Mapped, New, Places, Promotion, Value},
};
use proptest::prelude::*;

type Words = [AtomicU64; WORDS];

/// Room for all growth that is tested; the first half only.
const BUCKETS: usize = 1 << 12;

struct Table<L> {
    layout: PhantomData<L>,
    head: Words,
    buckets: Vec<[Words; SLOTS]>,
    /// Connections that are there, by their numbers.
    model: RefCell<BTreeMap<u64, Value>>,
    /// Those of them that are established.
    established: RefCell<BTreeSet<u64>>,
    /// Those that were, and found no room.
    spilled: RefCell<BTreeMap<u64, Value>>,
    /// What programs do while the agent waits for them.
    steps: RefCell<Vec<Step>>,
    /// The time, on the entries' clock.
    now: Cell<u64>,
    /// The agent is ended after waiting so often.
    ends_after: Cell<Option<u32>>,
    /// When the head has been read so often, a program takes this connection out.
    taken_out: Cell<Option<(u32, u64)>>,
    /// This connection is not to be found after that.
    gone: Cell<Option<u64>>,
}

#[derive(Debug)]
struct Ended;

impl<'a, L: Layout> Lines for &'a Table<L> {
    const CLAIM: u64 = state::CLAIMED_BY_AGENT;
    type Line = Mapped<'a, L>;
    type Bucket = &'a [Words; SLOTS];

    fn head(&self, word: usize) -> u64 {
        match self.taken_out.take() {
            Some((0, number)) => {
                assert!(lines::remove_from(self.find(number).unwrap(), &key::<L>(number)));
                lines::remove_rest(self, &key::<L>(number));
            }
            left => self.taken_out.set(left.map(|(left, number)| (left - 1, number))),
        }
        self.head[word].load(Relaxed)
    }

    fn bucket(&self, number: u32) -> Option<Self::Bucket> {
        self.buckets.get(number as usize)
    }

    fn line(&self, bucket: Self::Bucket, slot: usize) -> Self::Line {
        Mapped::new(&bucket[slot])
    }
}

impl<L: Layout> Growing for &Table<L> {
    type Error = Ended;

    fn add(&self, _: u32, buckets: u32) -> Result<(), Ended> {
        assert!(buckets as usize <= BUCKETS);
        Ok(())
    }

    fn set_head(&self, word: usize, value: u64) {
        self.head[word].store(value, Relaxed);
    }

    fn spill(&self, words: KeyWords, value: &Value) -> Result<(), Ended> {
        let number = value[2];
        assert_eq!(words, key::<L>(number).words);
        // Until then it is found where it was.
        assert!(self.get(number) == Some(*value) && self.established.borrow_mut().remove(&number));
        assert_eq!(self.model.borrow_mut().remove(&number), Some(*value));
        self.spilled.borrow_mut().insert(number, *value);
        Ok(())
    }

    fn unspill(&self, _: KeyWords) -> Result<(), Ended> {
        panic!("nobody takes it out while it is put there")
    }

    fn wait(&self) -> Result<(), Ended> {
        for _ in 0..3 {
            let step = self.steps.borrow_mut().pop();
            step.into_iter().for_each(|step| self.take(step));
        }
        if let Some(number) = self.gone.get().filter(|_| self.taken_out.get().is_none()) {
            assert!(self.get(number).is_none(), "it was taken out");
        }
        match self.ends_after.get() {
            Some(0) => Err(Ended),
            left => {
                self.ends_after.set(left.map(|left| left - 1));
                Ok(())
            }
        }
    }
}

impl<L: Layout> Table<L> {
    fn new(count: u32, seed: u64) -> Self {
        let line = || std::array::from_fn(|_| AtomicU64::new(0));
        let table = Self {
            layout: PhantomData,
            head: line(),
            buckets: (0..BUCKETS).map(|_| std::array::from_fn(|_| line())).collect(),
            model: RefCell::default(),
            established: RefCell::default(),
            spilled: RefCell::default(),
            steps: RefCell::default(),
            now: Cell::new(TICK),
            ends_after: Cell::new(None),
            taken_out: Cell::new(None),
            gone: Cell::new(None),
        };
        table.head[head::SEED].store(seed, Relaxed);
        table.head[head::ESTABLISHES].store(1, Relaxed);
        table.head[head::GEOMETRY].store(geometry::of(count, 0), Relaxed);
        table
    }

    fn find(&self, number: u64) -> Option<Mapped<'_, L>> {
        let found = lines::find(&self, &key::<L>(number))?;
        Some(Mapped::new(&self.buckets[found.bucket as usize][found.slot]))
    }

    fn get(&self, number: u64) -> Option<Value> {
        lines::read(self.find(number)?).map(|(_, value, _)| value)
    }

    /// Whether the connection is established.
    fn stage(&self, number: u64) -> bool {
        lines::find(&self, &key::<L>(number)).is_some_and(|found| lines::is_established(found.seen))
    }

    /// Whether the connection is in the second of two buckets, if there are two.
    fn moves(&self, number: u64) -> bool {
        self.head[head::GEOMETRY].store(geometry::of(2, 0), Relaxed);
        let places = Places::of(&self, &key::<L>(number)).unwrap().entered();
        self.head[head::GEOMETRY].store(geometry::of(1, 0), Relaxed);
        places == [1, 1]
    }

    /// What a program does, and what holds after it.
    fn take(&self, step: Step) {
        let (mut model, mut established) = (self.model.borrow_mut(), self.established.borrow_mut());
        let now = self.now.replace(self.now.get() + TICK);
        match step {
            // Programs look before they enter anything.
            Step::Put(number) if established.contains(&number) => {}
            Step::PutNew(number) if model.contains_key(&number) => {}
            Step::PutNew(number) => {
                let value = [now, now, number, 0, 0, !number];
                assert_eq!(lines::put_new(&self, &key::<L>(number), &value), New::Done);
                model.insert(number, value);
            }
            Step::Put(number) => {
                let value = [now, now, number, 0, 0, !number];
                assert!(lines::put(&self, &key::<L>(number), &value));
                model.insert(number, value);
            }
            Step::Promote(number) => match lines::promote(&self, &key::<L>(number)) {
                Promotion::Done => assert!(model.contains_key(&number) && established.insert(number)),
                Promotion::Gone => assert!(!model.contains_key(&number) || established.contains(&number)),
                Promotion::Full => assert!(model.contains_key(&number) && !established.contains(&number)),
            },
            Step::Remove(number) => {
                established.remove(&number);
                if let Some(line) = self.find(number).filter(|_| model.remove(&number).is_some()) {
                    assert!(lines::remove_from(line, &key::<L>(number)));
                    lines::remove_rest(&self, &key::<L>(number));
                }
            }
            Step::End(number) => {
                model.remove(&number);
                assert_eq!(both::remove(&self, &key::<L>(number)), established.remove(&number));
                assert!(self.get(number).is_none());
            }
            Step::See(number) => {
                if let Some(value) = model.get_mut(&number) {
                    value[0] = now;
                    self.find(number).unwrap().store(VALUE, now);
                }
            }
            Step::Grow(..) => {}
        }
        for (number, value) in model.iter() {
            assert_eq!(self.get(*number), Some(*value), "{number} after {step:?}");
            assert_eq!(self.stage(*number), established.contains(number), "{number} after {step:?}");
        }
    }

    /// The agent's part. Nothing else is done at the same time but in `wait`.
    fn grow(&self, times: u32, ends_after: Option<u32>) {
        self.ends_after.set(ends_after);
        let buckets = (times * geometry::count(self.head[head::GEOMETRY].load(Relaxed))).min(BUCKETS as u32);
        if let Ok(Moved { lost, .. }) = growth::grow(&self, 0, buckets) {
            assert_eq!(lost, 0);
            self.has_grown();
        }
        self.ends_after.set(None);
    }

    /// Each connection is where it is looked for, once, and nothing else is there.
    fn has_grown(&self) {
        let model = self.model.borrow();
        let mut found = BTreeMap::new();
        for (number, bucket) in (0..).zip(&self.buckets) {
            for (words, value, seen) in bucket.iter().filter_map(|line| lines::read(Mapped::<L>::new(line))) {
                assert_eq!(lines::is_established(seen), self.established.borrow().contains(&value[2]));
                assert!(Places::of(&self, &Key { words, half: 0 }).unwrap().entered().contains(&number));
                assert_eq!(found.insert(value[2], value), None, "twice");
            }
        }
        assert!(found == *model, "{} are there, {} should be", found.len(), model.len());
    }
}

/// Two of them differ in one word at least, and some in no more.
fn key<L: Layout>(number: u64) -> Key {
    let (number, rest) = (number / 3, number % 3);
    let (number, high) = if L::STATE < VALUE { (number, 0) } else { (number / 2, number % 2) };
    both::key::<L>([number.wrapping_mul(0x1_0000_0001), high, rest], 0)
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Put(u64),
    /// Only if it is not found.
    PutNew(u64),
    Promote(u64),
    /// As the agent does.
    Remove(u64),
    /// As a program does.
    End(u64),
    See(u64),
    /// The table becomes so many times as large; perhaps by an agent that is ended after waiting so often.
    Grow(u32, Option<u32>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let number = 0..24u64;
    let step = prop_oneof![
        8 => number.clone().prop_map(Step::Put),
        4 => number.clone().prop_map(Step::PutNew),
        6 => number.clone().prop_map(Step::Promote),
        2 => number.clone().prop_map(Step::Remove),
        2 => number.clone().prop_map(Step::End),
        6 => number.prop_map(Step::See),
        1 => (prop::sample::select(&[2, 4, 8][..]), prop::option::of(0..3u32)).prop_map(|(times, ends)| Step::Grow(times, ends)),
    ];
    prop::collection::vec(step, 1..200)
}

proptest! {
    #[test]
    fn each_is_found_while_the_table_grows_and_is_there_once_afterwards(seed: u64, steps in steps()) {
        follow(&Table::<Clients>::new(32, seed), steps.clone());
        follow(&Table::<Translated>::new(32, seed), steps);
    }
}

fn follow<L: Layout>(table: &Table<L>, steps: Vec<Step>) {
    *table.steps.borrow_mut() = steps;
    loop {
        let next = table.steps.borrow_mut().pop();
        match next {
            Some(Step::Grow(..)) if geometry::count(table.head[head::GEOMETRY].load(Relaxed)) as usize == BUCKETS => {}
            Some(Step::Grow(times, ends_after)) => table.grow(times, ends_after),
            Some(step) => table.take(step),
            None => break,
        }
    }
    growth::resume(&table, 0).unwrap();
    table.has_grown();
}

for_both_layouts! {
    a_table_that_grows_in_time_loses_nothing,
    what_is_taken_out_while_it_is_copied_is_not_found_again,
    what_finds_no_room_in_the_larger_table_ends_and_is_counted,
    lines_that_an_ended_agent_has_left_behind_are_freed,
}

/// Where it had put their connections somewhere else, and told so already.
fn lines_that_an_ended_agent_has_left_behind_are_freed<L: Layout>() {
    let table = Table::<L>::new(1, 3);
    let moving = (0..).find(|number| table.moves(*number)).unwrap();
    let staying = (0..).find(|number| !table.moves(*number)).unwrap();
    [moving, staying].into_iter().for_each(|number| table.take(Step::Put(number)));
    table.model.borrow_mut().clear();
    let used = || table.buckets.iter().flatten().filter(|line| lines::is_used(line[L::STATE].load(Relaxed))).count();
    for (geometry, left) in [(geometry::of(2, 1), 2), (geometry::of(2, 0), 1)] {
        table.head[head::GEOMETRY].store(geometry, Relaxed);
        growth::free_misplaced(&&table, 0);
        assert_eq!(used(), left);
    }
    assert!(table.get(staying).is_some());
}

/// Three eighths of the lines are used whenever the table grows.
fn a_table_that_grows_in_time_loses_nothing<L: Layout>() {
    let table = Table::<L>::new(16, 99);
    let mut numbers = 0..;
    while geometry::count(table.head[head::GEOMETRY].load(Relaxed)) < BUCKETS as u32 {
        let count = u64::from(geometry::count(table.head[head::GEOMETRY].load(Relaxed)));
        for number in numbers.by_ref().take((count * 3 / 4) as usize) {
            let value = [number + 16, number * TICK, number, 0, 0, 0];
            assert!(lines::put(&&table, &key::<L>(number), &value));
            table.model.borrow_mut().insert(number, value);
        }
        // Where both buckets are full, somebody has made room.
        table.model.borrow_mut().retain(|number, _| table.get(*number).is_some());
        table.grow(2, None);
    }
    assert!(table.model.borrow().len() * 100 > 98 * BUCKETS * 3 / 4);
}

fn what_is_taken_out_while_it_is_copied_is_not_found_again<L: Layout>() {
    let mut taken_out = 0;
    for reads in 0..16 {
        let table = Table::<L>::new(1, 7);
        let number = (0..).find(|number| table.moves(*number)).unwrap();
        assert!(lines::put(&&table, &key::<L>(number), &[100, TICK, number, 0, 0, 0]));
        table.taken_out.set(Some((reads, number)));
        table.gone.set(Some(number));
        growth::grow(&&table, 0, 2).unwrap();
        if table.taken_out.take().is_none() {
            taken_out += 1;
            assert!(table.get(number).is_none(), "{reads}");
        }
    }
    assert!(taken_out > 8, "{taken_out}");
}

fn what_finds_no_room_in_the_larger_table_ends_and_is_counted<L: Layout>() {
    let table = Table::<L>::new(1, 7);
    let numbers: Vec<u64> = (0..).filter(|number| table.moves(*number)).take(SLOTS).collect();
    for number in &numbers {
        assert!(lines::put(&&table, &key::<L>(*number), &[100, TICK, *number, 0, 0, 0]));
    }
    // Two are established: as many as the other two, younger ones they displace, but for the lines in which a program
    // is still writing.
    for number in &numbers[..2] {
        assert_eq!(lines::promote(&&table, &key::<L>(*number)), Promotion::Done);
        table.established.borrow_mut().insert(*number);
        table.model.borrow_mut().insert(*number, [100, TICK, *number, 0, 0, 0]);
    }
    for line in &table.buckets[1][..3] {
        line[L::STATE].store(state::CLAIMED, Relaxed);
    }
    assert_eq!(growth::grow(&&table, 0, 2).unwrap(), Moved { moved: 1, spilled: 1, lost: 2 });
    assert_eq!(numbers.iter().filter(|number| table.get(**number).is_some()).count(), 1);
    assert_eq!(table.spilled.borrow().len(), 1);
    assert!(table.buckets[0].iter().all(|line| lines::read(Mapped::<L>::new(line)).is_none()));
    assert!(line::number(1, 0) as usize > BUCKETS);
}
