//! The orders in which two CPUs can use the lines of connections, as loom finds them: also those of processors that
//! reorder what they read and write. At most two preemptions per run.

#[macro_use]
mod both;
mod modelled;

use std::marker::PhantomData;

use both::TICK;
use dataplane_common::line::{VALUE, WORDS, geometry, head, state};
use dataplane_core::lines::{self, Key, Line as _, Lines, New, Places, Promotion, Value};
use loom::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
};
use modelled::{Modelled, Shared, every_order};

/// The head, and the first half's one bucket or two.
struct Table<L, const SLOTS: usize>([AtomicU64; WORDS], Vec<[[AtomicU64; WORDS]; SLOTS]>, PhantomData<L>);

impl<L: Shared, const SLOTS: usize> Table<L, SLOTS> {
    fn new(count: u32) -> Arc<Self> {
        let line = || std::array::from_fn(|_| AtomicU64::new(0));
        let table = Self(line(), (0..count).map(|_| std::array::from_fn(|_| line())).collect(), PhantomData);
        table.0[head::ESTABLISHES].store(1, Relaxed);
        table.0[head::GEOMETRY].store(geometry::of(count, 0), Relaxed);
        // Where there are two buckets key 1 may be in both.
        let seed = (0..).find(|seed| {
            table.0[head::SEED].store(*seed, Relaxed);
            let [one, other] = Places::of(&&table, &key::<L>(1)).unwrap().entered();
            count == 1 || one != other
        });
        assert!(seed.is_some());
        Arc::new(table)
    }

    fn find(&self, key: &Key) -> Option<Modelled<'_, L>> {
        lines::find(&self, key).map(|found| Modelled::new(&self.1[found.bucket as usize][found.slot]))
    }

    /// What is under a key, if its line is still the same connection's afterwards, as the agent reads it.
    fn get(&self, key: &Key) -> Option<Value> {
        lines::read(self.find(key)?).filter(|(words, ..)| *words == key.words).map(|(_, value, _)| value)
    }

    fn used(&self) -> usize {
        self.1.iter().flatten().filter(|line| line[L::STATE].load(Relaxed) & state::USED != 0).count()
    }
}

impl<'a, L: Shared, const SLOTS: usize> Lines for &'a Table<L, SLOTS> {
    type Line = Modelled<'a, L>;
    type Bucket = &'a [[AtomicU64; WORDS]; SLOTS];
    const SLOTS: usize = SLOTS;

    fn head(&self, word: usize) -> u64 {
        self.0[word].load(Relaxed)
    }

    fn bucket(&self, number: u32) -> Option<Self::Bucket> {
        self.1.get(number as usize)
    }

    fn line(&self, bucket: Self::Bucket, slot: usize) -> Modelled<'a, L> {
        Modelled::new(&bucket[slot])
    }
}

fn key<L: Shared>(number: u64) -> Key {
    both::key::<L>([number; _], 0)
}

fn value(number: u64) -> Value {
    [number, number * TICK, number, number, number, number]
}

/// What two CPUs do at once.
fn at_once<L: Shared, const SLOTS: usize, T: 'static, U>(
    table: &Arc<Table<L, SLOTS>>,
    one: impl FnOnce(&Table<L, SLOTS>) -> U,
    other: impl FnOnce(&Table<L, SLOTS>) -> T + 'static,
) -> (U, T) {
    let other = {
        let table = table.clone();
        thread::spawn(move || other(&table))
    };
    (one(table), other.join().unwrap())
}

/// The whole of a value, of whichever connection, or nothing: never half of one.
fn is_whole(found: Option<Value>, wanted: &[u64]) {
    if let Some(found) = found {
        assert!(found == value(found[0]) && wanted.contains(&found[0]), "{found:?}");
    }
}

for_both_layouts! {
    what_is_read_is_one_connections_while_its_line_is_given_to_another,
    half_of_a_key_is_nobodys,
    a_connection_that_two_enter_at_once_is_there_once,
    what_is_taken_out_while_another_takes_its_place_takes_nothing_else_with_it,
    what_proves_itself_while_another_takes_its_place_is_established_or_gone,
    what_two_promote_at_once_is_counted_once,
    what_is_promoted_is_not_taken_out_as_pending,
    what_is_copied_is_one_connections_while_its_line_is_given_to_another,
    of_two_that_are_new_under_one_key_not_more_than_one_is_there,
    of_two_that_replace_one_not_more_than_one_is_there,
    what_is_new_while_another_is_entered_takes_nothing_from_it,
    what_proves_itself_while_a_new_one_takes_its_place_is_established_or_gone,
    what_is_removed_while_a_new_one_takes_its_place_takes_nothing_else_with_it,
    what_is_promoted_while_it_is_removed_is_gone,
}

fn what_is_read_is_one_connections_while_its_line_is_given_to_another<L: Shared>() {
    every_order(|| {
        let table = Table::<L, 1>::new(1);
        assert!(lines::put(&&*table, &key::<L>(1), &value(1)));
        let writer = {
            let table = table.clone();
            thread::spawn(move || assert!(lines::put(&&*table, &key::<L>(2), &value(2))))
        };
        is_whole(table.get(&key::<L>(1)), &[1]);
        is_whole(table.get(&key::<L>(2)), &[2]);
        writer.join().unwrap();
        assert_eq!((table.get(&key::<L>(1)), table.get(&key::<L>(2))), (None, Some(value(2))));
    });
}

fn half_of_a_key_is_nobodys<L: Shared>() {
    every_order(|| {
        let table = Table::<L, 1>::new(1);
        assert!(lines::put(&&*table, &both::key::<L>([7, 5, 1], 0), &value(1)));
        let writer = {
            let table = table.clone();
            thread::spawn(move || lines::put(&&*table, &both::key::<L>([8, 6, 2], 0), &value(2)))
        };
        // Together the two have the words of each of these.
        let mixed = [[7, 6, 2], [8, 5, 1], [7, 5, 2], [8, 6, 1], [7, 6, 1], [8, 5, 2]];
        for words in &mixed[..if L::STATE < VALUE { 2 } else { 6 }] {
            assert!(table.find(&both::key::<L>(*words, 0)).is_none(), "{words:?}");
        }
        writer.join().unwrap();
    });
}

/// In one bucket of two lines, and in two buckets of one.
fn a_connection_that_two_enter_at_once_is_there_once<L: Shared>() {
    every_order(|| both_enter(&Table::<L, 2>::new(1)));
    every_order(|| both_enter(&Table::<L, 1>::new(2)));
}

fn both_enter<L: Shared, const SLOTS: usize>(table: &Arc<Table<L, SLOTS>>) {
    let other = {
        let table = table.clone();
        thread::spawn(move || lines::put(&&*table, &key::<L>(1), &value(2)))
    };
    let entered = lines::put(&&**table, &key::<L>(1), &value(1));
    let entered = [entered, other.join().unwrap()];
    is_whole(table.get(&key::<L>(1)), &[1, 2]);
    assert!(entered.contains(&true) && table.get(&key::<L>(1)).is_some(), "{entered:?}");
    assert_eq!(table.used(), 1);
}

fn what_is_taken_out_while_another_takes_its_place_takes_nothing_else_with_it<L: Shared>() {
    every_order(|| {
        let table = Table::<L, 1>::new(1);
        assert!(lines::put(&&*table, &key::<L>(1), &value(1)));
        let sweep = {
            let table = table.clone();
            thread::spawn(move || {
                if let Some(line) = table.find(&key::<L>(1)) {
                    lines::remove_from(line, &key::<L>(1));
                }
            })
        };
        let entered = lines::put(&&*table, &key::<L>(2), &value(2));
        sweep.join().unwrap();
        assert_eq!(table.get(&key::<L>(1)), None);
        assert_eq!(table.get(&key::<L>(2)).is_some(), entered);
    });
}

/// In its line, or never: whoever enters another connection there finds it established, or takes the line before.
fn what_proves_itself_while_another_takes_its_place_is_established_or_gone<L: Shared>() {
    every_order(|| {
        let table = Table::<L, 1>::new(1);
        assert!(lines::put(&&*table, &key::<L>(1), &value(1)));
        let writer = {
            let table = table.clone();
            thread::spawn(move || lines::put(&&*table, &key::<L>(2), &value(2)))
        };
        let promoted = lines::promote(&&*table, &key::<L>(1));
        let entered = writer.join().unwrap();
        assert_ne!(promoted, Promotion::Full);
        assert_eq!(table.get(&key::<L>(1)), (promoted == Promotion::Done).then(|| value(1)));
        assert_eq!(entered, promoted == Promotion::Gone);
    });
}

fn what_two_promote_at_once_is_counted_once<L: Shared>() {
    every_order(|| {
        let table = Table::<L, 2>::new(1);
        assert!(lines::put(&&*table, &key::<L>(1), &value(1)));
        let other = {
            let table = table.clone();
            thread::spawn(move || lines::promote(&&*table, &key::<L>(1)))
        };
        let promoted = [lines::promote(&&*table, &key::<L>(1)), other.join().unwrap()];
        assert!(promoted.contains(&Promotion::Done) && promoted.contains(&Promotion::Gone), "{promoted:?}");
    });
}

/// A promotion, and a sweep that has judged the entry before.
fn what_is_promoted_is_not_taken_out_as_pending<L: Shared>() {
    every_order(|| {
        let table = Table::<L, 1>::new(1);
        assert!(lines::put(&&*table, &key::<L>(1), &value(1)));
        let sweep = {
            let table = table.clone();
            thread::spawn(move || {
                let line = table.find(&key::<L>(1)).map(|line| (line, lines::read(line)));
                line.is_some_and(|(line, read)| {
                    read.is_some_and(|(.., seen)| !lines::is_established(seen) && lines::free(line, seen))
                })
            })
        };
        let promoted = lines::promote(&&*table, &key::<L>(1));
        let removed = sweep.join().unwrap();
        assert_eq!(removed, promoted == Promotion::Gone);
        assert_eq!(table.get(&key::<L>(1)).is_some(), promoted == Promotion::Done);
    });
}

fn what_is_copied_is_one_connections_while_its_line_is_given_to_another<L: Shared>() {
    every_order(|| {
        let table = Table::<L, 1>::new(1);
        assert!(lines::put(&&*table, &key::<L>(1), &value(1)));
        let writer = {
            let table = table.clone();
            thread::spawn(move || lines::put(&&*table, &key::<L>(2), &value(2)))
        };
        if let Some(line) = table.find(&key::<L>(1)) {
            let mut copy = value(0);
            let seen = lines::copied(line, &key::<L>(1), || copy = std::array::from_fn(|at| line.load(VALUE + at)));
            if let (Some(seen), Some(at)) = (seen, L::STATE.checked_sub(VALUE)) {
                copy[at] = L::created(seen);
            }
            is_whole(seen.map(|_| copy), &[1]);
        }
        writer.join().unwrap();
    });
}

/// In one line, in one bucket of two, and in two buckets of one.
fn of_two_that_are_new_under_one_key_not_more_than_one_is_there<L: Shared>() {
    every_order(|| both_new(&Table::<L, 1>::new(1)));
    every_order(|| both_new(&Table::<L, 2>::new(1)));
    every_order(|| both_new(&Table::<L, 1>::new(2)));
}

fn both_new<L: Shared, const SLOTS: usize>(table: &Arc<Table<L, SLOTS>>) {
    let (one, other) = at_once(
        table,
        |table| lines::put_new(&table, &key::<L>(1), &value(1)),
        |table| lines::put_new(&table, &key::<L>(1), &value(2)),
    );
    is_of_one(table, [one, other]);
}

/// `told`: two CPUs that have inserted values 1 and 2 under key 1.
fn is_of_one<L: Shared, const SLOTS: usize>(table: &Table<L, SLOTS>, told: [New; 2]) {
    let wanted = match told {
        [New::Done, New::Done] => panic!("it was given to both"),
        [New::Done, _] => Some(value(1)),
        [_, New::Done] => Some(value(2)),
        _ => None,
    };
    assert_eq!((table.get(&key::<L>(1)), table.used()), (wanted, usize::from(wanted.is_some())), "{told:?}");
}

/// Each takes out only what it has found out of date.
fn of_two_that_replace_one_not_more_than_one_is_there<L: Shared>() {
    every_order(|| both_replace(&Table::<L, 1>::new(1)));
    every_order(|| both_replace(&Table::<L, 2>::new(1)));
    every_order(|| both_replace(&Table::<L, 1>::new(2)));
}

fn both_replace<L: Shared, const SLOTS: usize>(table: &Arc<Table<L, SLOTS>>) {
    assert!(lines::put(&&**table, &key::<L>(1), &value(9)));
    let (one, other) = at_once(table, |table| replace(table, 1), |table| replace(table, 2));
    assert!(usize::from(one.0) + usize::from(other.0) == 1, "freed by one of them: {one:?}, {other:?}");
    is_of_one(table, [one.1, other.1]);
}

/// Whether value 9 was freed, and what came of the new one.
fn replace<L: Shared, const SLOTS: usize>(table: &Table<L, SLOTS>, number: u64) -> (bool, New) {
    let found = lines::find(&table, &key::<L>(1));
    if let Some(found) = found {
        let line = Modelled::<L>::new(&table.1[found.bucket as usize][found.slot]);
        let is_old = line.load_after(VALUE, found.seen) == 9;
        if !is_old || !lines::remove_found(&table, &key::<L>(1), found.seen) {
            return (false, New::Taken);
        }
    }
    (found.is_some(), lines::put_new(&table, &key::<L>(1), &value(number)))
}

/// In one line, and in two.
fn what_is_new_while_another_is_entered_takes_nothing_from_it<L: Shared>() {
    every_order(|| {
        let table = Table::<L, 1>::new(1);
        let (new, entered) = new_beside(&table, |table| lines::put(&table, &key::<L>(2), &value(2)));
        // They may displace each other.
        assert!(table.used() == 1 && (new == New::Done || entered), "{new:?}, {entered}");
        is_whole(table.get(&key::<L>(1)), if new == New::Done { &[1] } else { &[] });
        is_whole(table.get(&key::<L>(2)), if entered { &[2] } else { &[] });
    });
    every_order(|| {
        let table = Table::<L, 2>::new(1);
        let (new, entered) = new_beside(&table, |table| lines::put(&table, &key::<L>(2), &value(2)));
        assert!(entered);
        assert_eq!(table.get(&key::<L>(1)), (new == New::Done).then(|| value(1)));
        assert_eq!(table.get(&key::<L>(2)), Some(value(2)));
        assert_eq!(table.used(), 1 + usize::from(new == New::Done));
    });
}

fn what_proves_itself_while_a_new_one_takes_its_place_is_established_or_gone<L: Shared>() {
    every_order(|| {
        let table = Table::<L, 1>::new(1);
        assert!(lines::put(&&*table, &key::<L>(2), &value(2)));
        let (new, promoted) = new_beside(&table, |table| lines::promote(&table, &key::<L>(2)));
        assert_eq!((new, promoted) == (New::Done, Promotion::Gone), table.get(&key::<L>(2)).is_none());
        assert_eq!((new, promoted) == (New::Not, Promotion::Done), table.get(&key::<L>(1)).is_none());
        assert_eq!(table.used(), 1);
    });
}

/// In one line, and in two.
fn what_is_removed_while_a_new_one_takes_its_place_takes_nothing_else_with_it<L: Shared>() {
    every_order(|| removed_beside(&Table::<L, 1>::new(1)));
    every_order(|| removed_beside(&Table::<L, 2>::new(1)));
}

fn removed_beside<L: Shared, const SLOTS: usize>(table: &Arc<Table<L, SLOTS>>) {
    assert!(lines::put(&&**table, &key::<L>(2), &value(2)));
    let (new, was_established) = new_beside(table, |table| both::remove(&table, &key::<L>(2)));
    assert!(!was_established && table.get(&key::<L>(2)).is_none());
    assert_eq!(table.get(&key::<L>(1)), (new == New::Done).then(|| value(1)));
    assert_eq!(table.used(), usize::from(new == New::Done));
}

/// Key 1 is new while `other` does something with key 2.
fn new_beside<L: Shared, const SLOTS: usize, T: 'static>(
    table: &Arc<Table<L, SLOTS>>,
    other: impl FnOnce(&Table<L, SLOTS>) -> T + 'static,
) -> (New, T) {
    let (new, done) = at_once(table, |table| lines::put_new(&table, &key::<L>(1), &value(1)), other);
    assert_ne!(new, New::Taken, "the other one has another key");
    (new, done)
}

fn what_is_promoted_while_it_is_removed_is_gone<L: Shared>() {
    every_order(|| {
        let table = Table::<L, 2>::new(1);
        assert!(lines::put(&&*table, &key::<L>(1), &value(1)));
        let (promoted, was_established) =
            at_once(&table, |table| lines::promote(&table, &key::<L>(1)), |table| both::remove(&table, &key::<L>(1)));
        // Who counts established ones needs to know.
        assert_eq!(was_established, promoted == Promotion::Done);
        assert_eq!((table.get(&key::<L>(1)), table.used()), (None, 0));
    });
}
