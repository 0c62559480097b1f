//! The table of connections in lines against what it promises: a key has its value or has been displaced, and what
//! makes room is what was silent for longest where the new one may be.

#[macro_use]
mod both;

use std::{
    collections::{BTreeMap, BTreeSet},
    marker::PhantomData,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use both::TICK;
use dataplane_common::line::{self, Clients, Layout, SLOTS, Translated, VALUE, WORDS, geometry, head, state};
use dataplane_core::lines::{self, Key, Line as _, Lines, Mapped, New, Places, Promotion, Value};
use proptest::prelude::*;

type Words = [AtomicU64; WORDS];

/// The head, and the buckets of both halves.
struct Table<L>(Words, [Vec<[Words; SLOTS]>; 2], PhantomData<L>);

impl<'a, L: Layout> Lines for &'a Table<L> {
    type Line = Mapped<'a, L>;
    type Bucket = &'a [Words; SLOTS];

    fn head(&self, word: usize) -> u64 {
        self.0[word].load(Relaxed)
    }

    fn bucket(&self, number: u32) -> Option<Self::Bucket> {
        self.1.get((number / line::MOST_BUCKETS) as usize)?.get((number % line::MOST_BUCKETS) as usize)
    }

    fn line(&self, bucket: Self::Bucket, slot: usize) -> Self::Line {
        Mapped::new(&bucket[slot])
    }
}

impl<L: Layout> Table<L> {
    /// With so many buckets in each half.
    fn new(count: u32, seed: u64) -> Self {
        let line = || std::array::from_fn(|_| AtomicU64::new(0));
        let bucket = |_| std::array::from_fn(|_| line());
        let halves = [(0..count).map(bucket).collect(), (0..count).map(bucket).collect()];
        let table = Self(line(), halves, PhantomData);
        table.0[head::SEED].store(seed, Relaxed);
        table.0[head::ESTABLISHES].store(1, Relaxed);
        for half in 0..2 {
            table.0[head::GEOMETRY + half].store(geometry::of(count, 0), Relaxed);
        }
        table
    }

    fn put(&self, key: &Key, value: &Value) -> bool {
        lines::put(&self, key, value)
    }

    fn find(&self, key: &Key) -> Option<Mapped<'_, L>> {
        lines::find(&self, key).and_then(|found| Some(Mapped::new(&(&self).bucket(found.bucket)?[found.slot])))
    }

    fn get(&self, key: &Key) -> Option<Value> {
        let (words, value, _) = lines::read(self.find(key)?)?;
        assert_eq!(words, key.words);
        Some(value)
    }

    /// Whether the connection is established.
    fn stage(&self, key: &Key) -> Option<bool> {
        lines::find(&self, key).map(|found| lines::is_established(found.seen))
    }

    fn remove(&self, key: &Key) -> bool {
        self.find(key).is_some_and(|line| lines::remove_from(line, key))
    }

    /// When the pending connections were last seen that are where this one may be.
    fn seen_at(&self, key: &Key) -> Vec<u64> {
        let places = Places::of(&self, key).unwrap().entered();
        places
            .into_iter()
            .filter_map(|place| (&self).bucket(place))
            .flatten()
            .filter_map(|line| lines::read(Mapped::<L>::new(line)))
            .filter(|(.., seen)| !lines::is_established(*seen))
            .map(|(_, value, _)| value[0])
            .collect()
    }

    fn used(&self, half: u32) -> usize {
        let lines = self.1[half as usize].iter().flatten();
        lines.filter(|line| line[L::STATE].load(Relaxed) & state::USED != 0).count()
    }
}

/// Two of them differ in one word at least, and some in no more.
fn key<L: Layout>(number: u64, half: u32) -> Key {
    let (number, rest) = (number / 3, number % 3);
    let (number, high) = if L::STATE < VALUE { (number, 0) } else { (number / 5, number % 5) };
    both::key::<L>([number.wrapping_mul(0x1_0000_0001), high, rest], half)
}

/// Seen at `at`.
fn value(at: u64, number: u64) -> Value {
    [at, number * TICK, 0, 0, 0, !number]
}

for_both_layouts! {
    a_table_that_is_not_ready_holds_nothing,
    a_flood_displaces_its_like_and_nothing_of_the_other_half,
    in_a_flood_entries_last_until_half_as_many_have_come_as_there_are_lines,
    who_takes_the_place_of_a_younger_one_is_known_before,
    what_is_copied_is_of_the_connection_that_was_found,
    a_key_is_given_to_one_connection_only,
    a_line_that_an_agent_was_writing_when_it_was_ended_is_free_again,
    while_there_is_much_room_hardly_anybody_has_to_make_some,
    buckets_fill_evenly,
    what_is_established_is_never_displaced_and_leaves_room_to_begin,
}

fn a_table_that_is_not_ready_holds_nothing<L: Layout>() {
    let table = Table::<L>::new(0, 5);
    assert!(!table.put(&key::<L>(1, 0), &value(1, 1)) && table.get(&key::<L>(1, 0)).is_none());
    table.0[head::GEOMETRY].store(geometry::of(4, 0), Relaxed);
    assert!(!table.put(&key::<L>(1, 0), &value(1, 1)) && table.find(&key::<L>(1, 0)).is_none(), "segments are missing");
}

fn a_flood_displaces_its_like_and_nothing_of_the_other_half<L: Layout>() {
    const COUNT: u32 = 64;
    let table = Table::<L>::new(COUNT, 99);
    for number in 0..64 {
        assert!(table.put(&key::<L>(number, 0), &value(1000 + number, number)));
    }
    let before: Vec<_> = (0..64).filter(|number| table.get(&key::<L>(*number, 0)).is_some()).collect();
    for number in 0..10_000 {
        assert!(table.put(&key::<L>(number, 1), &value(2000 + number, number)));
        assert!(table.get(&key::<L>(number, 1)).is_some(), "the last one is always there");
    }
    let after: Vec<_> = (0..64).filter(|number| table.get(&key::<L>(*number, 0)).is_some()).collect();
    assert!(before == after && before.len() == 64, "{before:?}, {after:?}");
    assert_eq!(table.used(1), SLOTS * COUNT as usize, "no line stays unused");
}

/// With an LRU list an entry lasts until as many new ones have come as there is room.
fn in_a_flood_entries_last_until_half_as_many_have_come_as_there_are_lines<L: Layout>() {
    const COUNT: u32 = 1024;
    const ROOM: u64 = COUNT as u64 * SLOTS as u64;
    let table = Table::<L>::new(COUNT, 0x5eed);
    let flood = ROOM * 8;
    for number in 0..flood {
        table.put(&key::<L>(number, 0), &value(number + 10, number));
    }
    let last = |share: u64| (flood - ROOM / share..flood).collect::<Vec<_>>();
    let kept = |numbers: &[u64]| {
        let kept = numbers.iter().filter(|number| table.get(&key::<L>(**number, 0)).is_some()).count();
        100 * kept / numbers.len()
    };
    let (all, half, quarter) = (kept(&last(1)), kept(&last(2)), kept(&last(4)));
    assert!(all >= 88 && half >= 99 && quarter == 100, "{all} %, {half} %, {quarter} %");
    let around_half: Vec<_> = (flood - ROOM * 52 / 100..flood - ROOM / 2).collect();
    assert!(kept(&around_half) >= 96, "{} %", kept(&around_half));
}

fn who_takes_the_place_of_a_younger_one_is_known_before<L: Layout>() {
    let table = Table::<L>::new(1, 3);
    for number in 0..SLOTS as u64 {
        assert!(!lines::displaces_younger(lines::choose(&&table, &key::<L>(number, 0)), 1 << 20), "there is room");
        assert!(table.put(&key::<L>(number, 0), &value((number + 1) << 20, number)));
    }
    let choice = lines::choose(&&table, &key::<L>(99, 0));
    for (seen, younger) in [(0, true), (1 << 20, true), (2 << 20, false), (9 << 20, false)] {
        assert_eq!(lines::displaces_younger(choice, seen), younger, "{seen}");
    }
    assert!(!lines::displaces_younger(lines::choose(&&table, &key::<L>(2, 0)), 0), "its own");
}

fn what_is_copied_is_of_the_connection_that_was_found<L: Layout>() {
    let table = Table::<L>::new(1, 3);
    assert!(table.put(&key::<L>(1, 0), &value(10, 1)));
    let line = table.find(&key::<L>(1, 0)).unwrap();
    assert!(lines::copied(line, &key::<L>(1, 0), || ()).is_some());
    assert!(lines::copied(line, &key::<L>(2, 0), || panic!("another's")).is_none());
    // Given to another one meanwhile, and even to the same one again.
    for number in [2, 1] {
        let copied = lines::copied(line, &key::<L>(1, 0), || {
            lines::remove_from(line, &key::<L>(1, 0));
            assert!(table.put(&key::<L>(number, 0), &value(11, number)));
        });
        assert!(copied.is_none());
        table.remove(&key::<L>(2, 0));
        table.put(&key::<L>(1, 0), &value(12, 1));
    }
}

fn a_line_that_an_agent_was_writing_when_it_was_ended_is_free_again<L: Layout>() {
    let table = Table::<L>::new(1, 3);
    let line = Mapped::<L>::new(&table.1[0][0][0]);
    for (claimed, freed) in [(state::CLAIMED, false), (state::CLAIMED_BY_AGENT, true)] {
        line.store(L::STATE, claimed | state::ONE_CLAIM);
        assert_eq!(lines::reclaim(line), freed);
    }
    assert!(!lines::reclaim(line) && table.put(&key::<L>(1, 0), &value(1, 1)));
    let seen = lines::state_in(line);
    assert!(seen & state::BITS == state::PENDING && !lines::reclaim(line), "somebody is there");
}

fn a_key_is_given_to_one_connection_only<L: Layout>() {
    let table = Table::<L>::new(1, 3);
    let (lines, one) = (&&table, key::<L>(1, 0));
    assert_eq!(lines::put_new(lines, &one, &value(10, 1)), New::Done);
    for promote in [false, true] {
        assert!(!promote || lines::promote(lines, &one) == Promotion::Done);
        assert_eq!(lines::put_new(lines, &one, &value(11, 2)), New::Taken);
        assert!(table.get(&one) == Some(value(10, 1)) && table.used(0) == 1);
    }
    assert!(both::remove(lines, &one) && table.used(0) == 0);
    assert_eq!(lines::put_new(lines, &one, &value(11, 2)), New::Done);
    assert!(!both::remove(lines, &one), "it was pending");
    for line in &table.1[0][0] {
        Mapped::<L>::new(line).store(L::STATE, state::CLAIMED);
    }
    assert_eq!(lines::put_new(lines, &one, &value(11, 2)), New::Not);
}

/// Of 100,000 keys that fill tables to a tenth: ports of one client in order. With buckets of one line it is 300.
fn while_there_is_much_room_hardly_anybody_has_to_make_some<L: Layout>() {
    const COUNT: u32 = 1 << 14;
    let mut displaced = 0;
    for seed in 1..=16 {
        let table = Table::<L>::new(COUNT, seed);
        let tenth = u64::from(COUNT) * SLOTS as u64 / 10;
        (0..tenth).for_each(|number| assert!(table.put(&key::<L>(number, 0), &value(number + 2, number))));
        displaced += tenth - table.used(0) as u64;
    }
    assert!(displaced <= 3, "{displaced}");
}

/// Up to three eighths, where the table grows, few have to make room.
fn buckets_fill_evenly<L: Layout>() {
    const COUNT: u32 = 1 << 14;
    let mut displaced = 0;
    for seed in 1..=8 {
        let table = Table::<L>::new(COUNT, seed);
        let eighth = u64::from(COUNT) * SLOTS as u64 / 8;
        (0..3 * eighth).for_each(|number| assert!(table.put(&key::<L>(number, 0), &value(number + 2, number))));
        displaced += 3 * eighth - table.used(0) as u64;
    }
    assert!(displaced <= 12, "{displaced} of 196,608");
}

fn what_is_established_is_never_displaced_and_leaves_room_to_begin<L: Layout>() {
    const COUNT: u32 = 16;
    let table = Table::<L>::new(COUNT, 7);
    let mut established = Vec::new();
    let mut full = 0;
    for number in 0..200 {
        assert!(table.put(&key::<L>(number, 0), &value(number + 10, number)), "{number}");
        assert_eq!(table.stage(&key::<L>(number, 0)), Some(false));
        match lines::promote(&&table, &key::<L>(number, 0)) {
            Promotion::Done => established.push(number),
            Promotion::Full => full += 1,
            Promotion::Gone => panic!("{number} is there"),
        }
        assert_eq!(
            lines::promote(&&table, &key::<L>(number, 0)) == Promotion::Gone,
            full == 0 || established.contains(&number)
        );
    }
    assert!(established.len() == COUNT as usize * line::MOST_ESTABLISHED && full > 0, "{established:?}, {full}");
    for number in 1000..3000 {
        assert!(table.put(&key::<L>(number, 0), &value(number, number)), "there is always a line for one more");
    }
    for number in established {
        assert_eq!(table.get(&key::<L>(number, 0)), Some(value(number + 10, number)), "{number}");
        assert_eq!(table.stage(&key::<L>(number, 0)), Some(true));
        // Of the same key it is not displaced, either.
        assert!(table.put(&key::<L>(number, 0), &value(9999, number)));
        assert_eq!(table.get(&key::<L>(number, 0)), Some(value(number + 10, number)), "{number}");
        assert!(lines::remove_established(&&table, &key::<L>(number, 0)));
        assert!(!lines::remove_established(&&table, &key::<L>(number, 0)) && table.get(&key::<L>(number, 0)).is_none());
    }
    let pending = key::<L>(2999, 0);
    assert!(table.stage(&pending) == Some(false) && !lines::remove_established(&&table, &pending));
    assert_eq!(lines::promote(&&table, &key::<L>(5000, 0)), Promotion::Gone);
    // While programs may be attached that know nothing of it.
    table.0[head::ESTABLISHES].store(0, Relaxed);
    assert_eq!(lines::promote(&&table, &pending), Promotion::Full);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Put(u64),
    PutNew(u64),
    Promote(u64),
    Remove(u64),
    RemoveEstablished(u64),
    See(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let number = 0..40u64;
    let step = prop_oneof![
        3 => number.clone().prop_map(Step::Put),
        3 => number.clone().prop_map(Step::PutNew),
        2 => number.clone().prop_map(Step::Promote),
        1 => number.clone().prop_map(Step::Remove),
        1 => number.clone().prop_map(Step::RemoveEstablished),
        2 => number.prop_map(Step::See),
    ];
    prop::collection::vec(step, 1..200)
}

proptest! {
    #[test]
    fn a_key_has_its_value_or_has_made_room(seed: u64, count in 0..6u32, steps in steps()) {
        follow(&Table::<Clients>::new(1 << count, seed), &steps)?;
        follow(&Table::<Translated>::new(1 << count, seed), &steps)?;
    }

    #[test]
    fn what_is_read_is_what_was_put(seed: u64, words: [u64; 3], value: Value, now: u64) {
        let clients = put_and_read(&Table::<Clients>::new(2, seed), words, value)?;
        prop_assert_eq!(clients, value);
        let mut translated = put_and_read(&Table::<Translated>::new(2, seed), words, value)?;
        prop_assert_eq!(translated[1], value[1] % (TICK << 32) / TICK * TICK);
        // It is whole again to whoever knows when it may have been.
        let now = value[1].saturating_add(now % (TICK << 31));
        translated[1] = line::before(now, translated[1]);
        let whole = [value[0], value[1] / TICK * TICK, value[2], value[3], value[4], value[5]];
        prop_assert_eq!(translated, whole);
    }
}

fn put_and_read<L: Layout>(table: &Table<L>, words: [u64; 3], value: Value) -> Result<Value, TestCaseError> {
    let key = both::key::<L>(words, 0);
    prop_assert!(table.put(&key, &value));
    let line = table.find(&key).unwrap();
    let (pending, read, _) = lines::read(line).unwrap();
    // The stages are not of the key, nor of the value.
    prop_assert_eq!(lines::promote(&table, &key), Promotion::Done);
    let (established, read_again, seen) = lines::read(line).unwrap();
    prop_assert!(pending == key.words && established == key.words && lines::is_established(seen));
    prop_assert_eq!(read, read_again);
    Ok(read)
}

fn follow<L: Layout>(table: &Table<L>, steps: &[Step]) -> Result<(), TestCaseError> {
    let key = |number| key::<L>(number, 0);
    let mut model = BTreeMap::new();
    let mut established = BTreeSet::new();
    for (at, step) in (2..).map(|at| 16 * at).zip(steps) {
        match *step {
            Step::Put(number) | Step::PutNew(number) => {
                let known = model.contains_key(&number);
                let used = table.used(0);
                let places = table.seen_at(&key(number));
                match step {
                    Step::Put(_) => prop_assert!(table.put(&key(number), &value(at, number))),
                    _ => {
                        let put = lines::put_new(&table, &key(number), &value(at, number));
                        prop_assert_eq!(put, if known { New::Taken } else { New::Done });
                    }
                }
                let is_replaced = matches!(step, Step::Put(_)) && !established.contains(&number);
                if !known || is_replaced {
                    model.insert(number, at);
                }
                let gone: Vec<_> = model.keys().copied().filter(|number| table.get(&key(*number)).is_none()).collect();
                // One makes room at most, and none where the key was there.
                prop_assert!(gone.len() <= usize::from(!known) && used + 1 >= table.used(0));
                // No older one was where the new one may be. Times are told apart to sixteen nanoseconds.
                for number in gone {
                    prop_assert!(!established.contains(&number));
                    let seen = model.remove(&number);
                    prop_assert!(places.iter().all(|other| Some(*other & !15) >= seen.map(|seen| seen & !15)));
                }
            }
            Step::Promote(number) => {
                let pending = model.contains_key(&number) && !established.contains(&number);
                match lines::promote(&table, &key(number)) {
                    Promotion::Gone => prop_assert!(!pending),
                    Promotion::Done => prop_assert!(pending && established.insert(number)),
                    Promotion::Full => prop_assert!(pending && established.len() >= line::MOST_ESTABLISHED),
                }
            }
            Step::Remove(number) => {
                model.remove(&number);
                prop_assert_eq!(both::remove(&table, &key(number)), established.remove(&number));
            }
            Step::RemoveEstablished(number) => {
                let was = established.remove(&number);
                prop_assert!(!was || model.remove(&number).is_some());
                prop_assert_eq!(lines::remove_established(&table, &key(number)), was);
            }
            Step::See(number) => {
                let line = table.find(&key(number));
                prop_assert_eq!(line.is_some(), model.contains_key(&number));
                if let Some(line) = line {
                    line.store(VALUE, at);
                    model.insert(number, at);
                }
            }
        }
        for (number, seen) in &model {
            prop_assert_eq!(table.get(&key(*number)), Some(value(*seen, *number)));
            prop_assert_eq!(table.stage(&key(*number)), Some(established.contains(number)));
        }
        prop_assert_eq!(table.used(0), model.len());
    }
    prop_assert_eq!(table.used(1), 0);
    Ok(())
}
