//! The orders in which a CPU can use connections while the agent moves them to their places in a larger table, as loom
//! finds them, with at most two preemptions per run.

mod modelled;

use std::convert::Infallible;

use dataplane_common::line::{STATE, VALUE, WORDS, geometry, head, state};
use dataplane_core::{
    growth::{self, Growing, Moved},
    lines::{self, Key, Line as _, Lines, Places, Promotion, Value},
};
use loom::{
    sync::{
        Arc, RwLock,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    thread,
};
use modelled::{Modelled, every_order};

/// A table of two buckets of two lines, the first of which is used before it grows.
struct Table {
    head: [AtomicU64; WORDS],
    buckets: [[[AtomicU64; WORDS]; SLOTS]; 2],
    /// What a program holds while it runs, in place of the kernel's RCU.
    programs: RwLock<()>,
}

impl Table {
    fn new() -> Arc<Self> {
        let line = || std::array::from_fn(|_| AtomicU64::new(0));
        let table = Self {
            head: line(),
            buckets: std::array::from_fn(|_| std::array::from_fn(|_| line())),
            programs: RwLock::new(()),
        };
        table.head[head::SEED].store(SEED, Relaxed);
        table.head[head::ESTABLISHES].store(1, Relaxed);
        table.head[head::GEOMETRY].store(geometry::of(2, 0), Relaxed);
        let places = Places::of(&&table, &key(1)).unwrap().entered();
        assert_eq!(places, [1, 1], "another seed is needed");
        table.head[head::GEOMETRY].store(geometry::of(1, 0), Relaxed);
        Arc::new(table)
    }

    fn find(&self, key: &Key) -> Option<Modelled<'_>> {
        let found = lines::find(&self, key)?;
        Some(Modelled(&self.buckets[found.bucket as usize][found.slot]))
    }

    /// What is under a key, if its line is still the same connection's afterwards.
    fn get(&self, key: &Key) -> Option<Value> {
        lines::read(self.find(key)?).filter(|(words, ..)| *words == key.words).map(|(_, value, _)| value)
    }

    /// Runs a program.
    fn program<T>(&self, run: impl FnOnce() -> T) -> T {
        let _running = self.programs.read().unwrap();
        run()
    }

    fn used(&self) -> usize {
        let lines = self.buckets.iter().flatten();
        lines.filter(|line| line[STATE].load(Relaxed) & state::USED != 0).count()
    }
}

impl<'a> Lines for &'a Table {
    type Line = Modelled<'a>;
    type Bucket = &'a [[AtomicU64; WORDS]; SLOTS];
    const SLOTS: usize = SLOTS;

    fn head(&self, word: usize) -> u64 {
        self.head[word].load(Acquire)
    }

    fn bucket(&self, number: u32) -> Option<Self::Bucket> {
        self.buckets.get(number as usize)
    }

    fn line(&self, bucket: Self::Bucket, slot: usize) -> Modelled<'a> {
        Modelled(&bucket[slot])
    }
}

impl Growing for &Table {
    type Error = Infallible;

    fn add(&self, _: u32, _: u32) -> Result<(), Infallible> {
        Ok(())
    }

    fn set_head(&self, word: usize, value: u64) {
        self.head[word].store(value, Release);
    }

    fn spill(&self, _: [u64; 2], _: &Value) -> Result<(), Infallible> {
        panic!("there is room")
    }

    fn unspill(&self, _: [u64; 2]) -> Result<(), Infallible> {
        panic!("there is room")
    }

    fn wait(&self) -> Result<(), Infallible> {
        drop(self.programs.write().unwrap());
        Ok(())
    }
}

/// Lines of a bucket.
const SLOTS: usize = 2;

/// With this one key 1 moves when the table grows.
const SEED: u64 = 1;

fn key(number: u64) -> Key {
    Key { words: [number, number], half: 0 }
}

fn value(number: u64) -> Value {
    [number; _]
}

/// Has the table grow while `program` runs, in every order; `before` and `after` are the threads' beginning and end.
fn while_it_grows(program: fn(&Table), after: fn(&Table, Moved)) {
    every_order(move || {
        let table = Table::new();
        assert!(lines::put(&&*table, &key(1), &value(1)));
        let agent = {
            let table = table.clone();
            thread::spawn(move || growth::double(&&*table, 0).unwrap())
        };
        program(&table);
        let moved = agent.join().unwrap();
        assert_eq!(table.head[head::GEOMETRY].load(Relaxed), geometry::of(2, 0));
        after(&table, moved);
    });
}

#[test]
fn it_is_found_all_the_time() {
    while_it_grows(
        |table| {
            for _ in 0..2 {
                assert_eq!(table.program(|| table.get(&key(1))), Some(value(1)));
            }
        },
        |table, moved| {
            assert_eq!(
                (table.get(&key(1)), table.used(), moved),
                (Some(value(1)), 1, Moved { moved: 1, ..Moved::default() })
            );
        },
    );
}

#[test]
fn what_is_noted_meanwhile_is_kept() {
    while_it_grows(
        |table| {
            table.program(|| {
                let line = table.find(&key(1)).unwrap();
                line.store(VALUE, 9);
                line.store(VALUE + 5, 8);
            });
        },
        |table, _| {
            assert_eq!((table.get(&key(1)), table.used()), (Some([9, 1, 1, 1, 1, 8]), 1));
        },
    );
}

#[test]
fn what_is_taken_out_meanwhile_does_not_come_back() {
    while_it_grows(
        |table| {
            table.program(|| {
                let line = table.find(&key(1)).unwrap();
                assert!(lines::remove_from(line, &key(1)));
            });
        },
        |table, _| assert_eq!((table.get(&key(1)), table.used()), (None, 0)),
    );
}

/// In the line where it was, in the other one, or in both.
#[test]
fn what_proves_itself_meanwhile_stays_established() {
    while_it_grows(
        |table| assert_eq!(table.program(|| lines::promote(&table, &key(1))), Promotion::Done),
        |table, _| {
            let found = lines::find(&table, &key(1)).map(|found| lines::is_established(found.seen));
            assert_eq!((found, table.get(&key(1)), table.used()), (Some(true), Some(value(1)), 1));
        },
    );
}

#[test]
fn what_is_entered_anew_meanwhile_is_there_once() {
    while_it_grows(
        |table| {
            let entered = table.program(|| lines::put(&table, &key(1), &value(2)));
            assert!(entered || table.program(|| table.get(&key(1))).is_some());
        },
        |table, _| {
            let found = table.get(&key(1));
            assert!(found == Some(value(2)) || found == Some(value(1)), "{found:?}");
            assert_eq!(table.used(), 1);
        },
    );
}
