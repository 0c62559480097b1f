//! The orders in which a CPU can use connections while the agent moves them to their places in a larger table, as loom
//! finds them, with at most two preemptions per run.

#[macro_use]
mod both;
mod modelled;

use std::{convert::Infallible, marker::PhantomData};

use both::TICK;
use dataplane_common::line::{VALUE, WORDS, geometry, head, state};
use dataplane_core::{
    growth::{self, Growing, Moved},
    lines::{self, Key, KeyWords, Line as _, Lines, New, Places, Promotion, Value},
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
use modelled::{Modelled, Shared, every_order};

/// A table of two buckets of two lines, the first of which is used before it grows.
struct Table<L> {
    layout: PhantomData<L>,
    head: [AtomicU64; WORDS],
    buckets: [[[AtomicU64; WORDS]; SLOTS]; 2],
    /// What a program holds while it runs, in place of the kernel's RCU.
    programs: RwLock<()>,
}

impl<L: Shared> Table<L> {
    fn new() -> Arc<Self> {
        let line = || std::array::from_fn(|_| AtomicU64::new(0));
        let table = Self {
            layout: PhantomData,
            head: line(),
            buckets: std::array::from_fn(|_| std::array::from_fn(|_| line())),
            programs: RwLock::new(()),
        };
        table.head[head::ESTABLISHES].store(1, Relaxed);
        table.head[head::GEOMETRY].store(geometry::of(2, 0), Relaxed);
        // Key 1 moves when the table grows.
        let seed = (0..).find(|seed| {
            table.head[head::SEED].store(*seed, Relaxed);
            Places::of(&&table, &key::<L>(1)).unwrap().entered() == [1, 1]
        });
        assert!(seed.is_some());
        table.head[head::GEOMETRY].store(geometry::of(1, 0), Relaxed);
        Arc::new(table)
    }

    fn find(&self, key: &Key) -> Option<Modelled<'_, L>> {
        let found = lines::find(&self, key)?;
        Some(Modelled::new(&self.buckets[found.bucket as usize][found.slot]))
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
        lines.filter(|line| line[L::STATE].load(Relaxed) & state::USED != 0).count()
    }
}

impl<'a, L: Shared> Lines for &'a Table<L> {
    type Line = Modelled<'a, L>;
    type Bucket = &'a [[AtomicU64; WORDS]; SLOTS];
    const SLOTS: usize = SLOTS;

    fn head(&self, word: usize) -> u64 {
        self.head[word].load(Acquire)
    }

    fn bucket(&self, number: u32) -> Option<Self::Bucket> {
        self.buckets.get(number as usize)
    }

    fn line(&self, bucket: Self::Bucket, slot: usize) -> Modelled<'a, L> {
        Modelled::new(&bucket[slot])
    }
}

impl<L: Shared> Growing for &Table<L> {
    type Error = Infallible;

    fn add(&self, _: u32, _: u32) -> Result<(), Infallible> {
        Ok(())
    }

    fn set_head(&self, word: usize, value: u64) {
        self.head[word].store(value, Release);
    }

    fn spill(&self, _: KeyWords, _: &Value) -> Result<(), Infallible> {
        panic!("there is room")
    }

    fn unspill(&self, _: KeyWords) -> Result<(), Infallible> {
        panic!("there is room")
    }

    fn wait(&self) -> Result<(), Infallible> {
        drop(self.programs.write().unwrap());
        Ok(())
    }
}

/// Lines of a bucket.
const SLOTS: usize = 2;

fn key<L: Shared>(number: u64) -> Key {
    both::key::<L>([number; _], 0)
}

fn value(number: u64) -> Value {
    [number, number * TICK, number, number, number, number]
}

/// Has the table grow while `program` runs, in every order; `before` and `after` are the threads' beginning and end.
fn while_it_grows<L: Shared>(program: fn(&Table<L>), after: fn(&Table<L>, Moved)) {
    every_order(move || {
        let table = Table::new();
        assert!(lines::put(&&*table, &key::<L>(1), &value(1)));
        let agent = {
            let table = table.clone();
            thread::spawn(move || growth::grow(&&*table, 0, 2).unwrap())
        };
        program(&table);
        let moved = agent.join().unwrap();
        assert_eq!(table.head[head::GEOMETRY].load(Relaxed), geometry::of(2, 0));
        after(&table, moved);
    });
}

for_both_layouts! {
    it_is_found_all_the_time,
    what_is_noted_meanwhile_is_kept,
    what_is_taken_out_meanwhile_does_not_come_back,
    what_a_program_removes_meanwhile_does_not_come_back,
    what_is_new_meanwhile_is_there_beside_it,
    what_proves_itself_meanwhile_stays_established,
    what_is_entered_anew_meanwhile_is_there_once,
}

fn it_is_found_all_the_time<L: Shared>() {
    while_it_grows::<L>(
        |table| {
            for _ in 0..2 {
                assert_eq!(table.program(|| table.get(&key::<L>(1))), Some(value(1)));
            }
        },
        |table, moved| {
            assert_eq!(
                (table.get(&key::<L>(1)), table.used(), moved),
                (Some(value(1)), 1, Moved { moved: 1, ..Moved::default() })
            );
        },
    );
}

fn what_is_noted_meanwhile_is_kept<L: Shared>() {
    while_it_grows::<L>(
        |table| {
            table.program(|| {
                let line = table.find(&key::<L>(1)).unwrap();
                line.store(VALUE, 9);
                line.store(VALUE + 5, 8);
            });
        },
        |table, _| {
            assert_eq!((table.get(&key::<L>(1)), table.used()), (Some([9, TICK, 1, 1, 1, 8]), 1));
        },
    );
}

fn what_is_taken_out_meanwhile_does_not_come_back<L: Shared>() {
    while_it_grows::<L>(
        |table| {
            table.program(|| {
                let line = table.find(&key::<L>(1)).unwrap();
                assert!(lines::remove_from(line, &key::<L>(1)));
            });
        },
        |table, _| assert_eq!((table.get(&key::<L>(1)), table.used()), (None, 0)),
    );
}

fn what_a_program_removes_meanwhile_does_not_come_back<L: Shared>() {
    while_it_grows::<L>(
        |table| assert!(!table.program(|| both::remove(&table, &key::<L>(1))), "it was pending"),
        |table, _| assert_eq!((table.get(&key::<L>(1)), table.used()), (None, 0)),
    );
}

fn what_is_new_meanwhile_is_there_beside_it<L: Shared>() {
    while_it_grows::<L>(
        |table| {
            // The agent may take the line first that was chosen.
            let new = table.program(|| lines::put_new(&table, &key::<L>(2), &value(2)));
            assert_ne!(new, New::Taken);
            assert_eq!(table.program(|| table.get(&key::<L>(2))), (new == New::Done).then(|| value(2)));
        },
        |table, moved| {
            assert_eq!((table.get(&key::<L>(1)), moved.lost), (Some(value(1)), 0));
            assert_eq!(table.used(), 1 + usize::from(table.get(&key::<L>(2)).is_some()));
        },
    );
}

/// In the line where it was, in the other one, or in both.
fn what_proves_itself_meanwhile_stays_established<L: Shared>() {
    while_it_grows::<L>(
        |table| assert_eq!(table.program(|| lines::promote(&table, &key::<L>(1))), Promotion::Done),
        |table, _| {
            let found = lines::find(&table, &key::<L>(1)).map(|found| lines::is_established(found.seen));
            assert_eq!((found, table.get(&key::<L>(1)), table.used()), (Some(true), Some(value(1)), 1));
        },
    );
}

fn what_is_entered_anew_meanwhile_is_there_once<L: Shared>() {
    while_it_grows::<L>(
        |table| {
            let entered = table.program(|| lines::put(&table, &key::<L>(1), &value(2)));
            assert!(entered || table.program(|| table.get(&key::<L>(1))).is_some());
        },
        |table, _| {
            let found = table.get(&key::<L>(1));
            assert!(found == Some(value(2)) || found == Some(value(1)), "{found:?}");
            assert_eq!(table.used(), 1);
        },
    );
}
