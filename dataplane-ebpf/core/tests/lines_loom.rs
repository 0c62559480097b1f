//! The orders in which two CPUs can use the lines of connections, as loom finds them: also those of processors that
//! reorder what they read and write. At most two preemptions per run.

mod modelled;

use dataplane_common::line::{STATE, VALUE, WORDS, geometry, head, state};
use dataplane_core::lines::{self, Key, Line as _, Lines, Places, Promotion, Value};
use loom::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
};
use modelled::{Modelled, every_order};

/// The head, and the first half's one bucket or two.
struct Table<const SLOTS: usize>([AtomicU64; WORDS], Vec<[[AtomicU64; WORDS]; SLOTS]>);

impl<const SLOTS: usize> Table<SLOTS> {
    fn new(count: u32) -> Arc<Self> {
        let line = || std::array::from_fn(|_| AtomicU64::new(0));
        let table = Self(line(), (0..count).map(|_| std::array::from_fn(|_| line())).collect());
        table.0[head::SEED].store(SEED, Relaxed);
        table.0[head::ESTABLISHES].store(1, Relaxed);
        table.0[head::GEOMETRY].store(geometry::of(count, 0), Relaxed);
        Arc::new(table)
    }

    fn find(&self, key: &Key) -> Option<Modelled<'_>> {
        lines::find(&self, key).map(|found| Modelled(&self.1[found.bucket as usize][found.slot]))
    }

    /// What is under a key, if its line is still the same connection's afterwards, as the agent reads it.
    fn get(&self, key: &Key) -> Option<Value> {
        lines::read(self.find(key)?).filter(|(words, ..)| *words == key.words).map(|(_, value, _)| value)
    }

    fn used(&self) -> usize {
        self.1.iter().flatten().filter(|line| line[STATE].load(Relaxed) & state::USED != 0).count()
    }
}

impl<'a, const SLOTS: usize> Lines for &'a Table<SLOTS> {
    type Line = Modelled<'a>;
    type Bucket = &'a [[AtomicU64; WORDS]; SLOTS];
    const SLOTS: usize = SLOTS;

    fn head(&self, word: usize) -> u64 {
        self.0[word].load(Relaxed)
    }

    fn bucket(&self, number: u32) -> Option<Self::Bucket> {
        self.1.get(number as usize)
    }

    fn line(&self, bucket: Self::Bucket, slot: usize) -> Modelled<'a> {
        Modelled(&bucket[slot])
    }
}

/// With this one key 1 has two places in a table of two buckets.
const SEED: u64 = 3;

fn key(number: u64) -> Key {
    Key { words: [number, number], half: 0 }
}

fn value(number: u64) -> Value {
    [number; _]
}

/// The whole of a value, of whichever connection, or nothing: never half of one.
fn is_whole(found: Option<Value>, wanted: &[u64]) {
    if let Some(found) = found {
        assert!(found.iter().all(|word| *word == found[0]) && wanted.contains(&found[0]), "{found:?}");
    }
}

#[test]
fn what_is_read_is_one_connections_while_its_line_is_given_to_another() {
    every_order(|| {
        let table = Table::<1>::new(1);
        assert!(lines::put(&&*table, &key(1), &value(1)));
        let writer = {
            let table = table.clone();
            thread::spawn(move || assert!(lines::put(&&*table, &key(2), &value(2))))
        };
        is_whole(table.get(&key(1)), &[1]);
        is_whole(table.get(&key(2)), &[2]);
        writer.join().unwrap();
        assert_eq!((table.get(&key(1)), table.get(&key(2))), (None, Some(value(2))));
    });
}

#[test]
fn half_of_a_key_is_nobodys() {
    every_order(|| {
        let table = Table::<1>::new(1);
        // Together the two have the words of the third.
        assert!(lines::put(&&*table, &Key { words: [7, 1], half: 0 }, &value(1)));
        let writer = {
            let table = table.clone();
            thread::spawn(move || lines::put(&&*table, &Key { words: [8, 2], half: 0 }, &value(2)))
        };
        for words in [[7, 2], [8, 1]] {
            assert!(table.find(&Key { words, half: 0 }).is_none(), "{words:?}");
        }
        writer.join().unwrap();
    });
}

/// In one bucket of two lines, and in two buckets of one.
#[test]
fn a_connection_that_two_enter_at_once_is_there_once() {
    every_order(|| both_enter(&Table::<2>::new(1)));
    every_order(|| {
        let table = Table::<1>::new(2);
        let [one, other] = Places::of(&&*table, &key(1)).unwrap().entered();
        assert_ne!(one, other, "another seed is needed");
        both_enter(&table);
    });
}

fn both_enter<const SLOTS: usize>(table: &Arc<Table<SLOTS>>) {
    let other = {
        let table = table.clone();
        thread::spawn(move || lines::put(&&*table, &key(1), &value(2)))
    };
    let entered = lines::put(&&**table, &key(1), &value(1));
    let entered = [entered, other.join().unwrap()];
    is_whole(table.get(&key(1)), &[1, 2]);
    assert!(entered.contains(&true) && table.get(&key(1)).is_some(), "{entered:?}");
    assert_eq!(table.used(), 1);
}

#[test]
fn what_is_taken_out_while_another_takes_its_place_takes_nothing_else_with_it() {
    every_order(|| {
        let table = Table::<1>::new(1);
        assert!(lines::put(&&*table, &key(1), &value(1)));
        let sweep = {
            let table = table.clone();
            thread::spawn(move || {
                if let Some(line) = table.find(&key(1)) {
                    lines::remove_from(line, &key(1));
                }
            })
        };
        let entered = lines::put(&&*table, &key(2), &value(2));
        sweep.join().unwrap();
        assert_eq!(table.get(&key(1)), None);
        assert_eq!(table.get(&key(2)).is_some(), entered);
    });
}

/// In its line, or never: whoever enters another connection there finds it established, or takes the line before.
#[test]
fn what_proves_itself_while_another_takes_its_place_is_established_or_gone() {
    every_order(|| {
        let table = Table::<1>::new(1);
        assert!(lines::put(&&*table, &key(1), &value(1)));
        let writer = {
            let table = table.clone();
            thread::spawn(move || lines::put(&&*table, &key(2), &value(2)))
        };
        let promoted = lines::promote(&&*table, &key(1));
        let entered = writer.join().unwrap();
        assert_ne!(promoted, Promotion::Full);
        assert_eq!(table.get(&key(1)), (promoted == Promotion::Done).then(|| value(1)));
        assert_eq!(entered, promoted == Promotion::Gone);
    });
}

#[test]
fn what_two_promote_at_once_is_counted_once() {
    every_order(|| {
        let table = Table::<2>::new(1);
        assert!(lines::put(&&*table, &key(1), &value(1)));
        let other = {
            let table = table.clone();
            thread::spawn(move || lines::promote(&&*table, &key(1)))
        };
        let promoted = [lines::promote(&&*table, &key(1)), other.join().unwrap()];
        assert!(promoted.contains(&Promotion::Done) && promoted.contains(&Promotion::Gone), "{promoted:?}");
    });
}

/// A promotion, and a sweep that has judged the entry before.
#[test]
fn what_is_promoted_is_not_taken_out_as_pending() {
    every_order(|| {
        let table = Table::<1>::new(1);
        assert!(lines::put(&&*table, &key(1), &value(1)));
        let sweep = {
            let table = table.clone();
            thread::spawn(move || {
                let line = table.find(&key(1)).map(|line| (line, lines::read(line)));
                line.is_some_and(|(line, read)| {
                    read.is_some_and(|(.., seen)| !lines::is_established(seen) && lines::free(line, seen))
                })
            })
        };
        let promoted = lines::promote(&&*table, &key(1));
        let removed = sweep.join().unwrap();
        assert_eq!(removed, promoted == Promotion::Gone);
        assert_eq!(table.get(&key(1)).is_some(), promoted == Promotion::Done);
    });
}

#[test]
fn what_is_copied_is_one_connections_while_its_line_is_given_to_another() {
    every_order(|| {
        let table = Table::<1>::new(1);
        assert!(lines::put(&&*table, &key(1), &value(1)));
        let writer = {
            let table = table.clone();
            thread::spawn(move || lines::put(&&*table, &key(2), &value(2)))
        };
        if let Some(line) = table.find(&key(1)) {
            let mut seen = value(0);
            let copied = lines::copied(line, &key(1), || seen = std::array::from_fn(|at| line.load(VALUE + at)));
            is_whole(copied.map(|_| seen), &[1]);
        }
        writer.join().unwrap();
    });
}
