//! Answers that may be long in coming, for who cannot wait: a fresh one if it comes in time, otherwise the last one.
//! However many ask, there is one question under way.

use std::{
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// Reads something on demand, on a thread of its own.
pub(crate) struct Fresh<Q, T>(Arc<Inner<Q, T>>);

struct Inner<Q, T> {
    read: Box<dyn Fn(Q) -> T + Send + Sync>,
    state: Mutex<State<T>>,
    came: Condvar,
}

struct State<T> {
    last: Option<Answer<T>>,
    under_way: bool,
}

/// What was read.
#[derive(Debug)]
pub(crate) struct Answer<T> {
    /// The answer itself.
    pub(crate) value: Arc<T>,
    /// When its reading began.
    pub(crate) at: Instant,
}

impl<T> Clone for Answer<T> {
    fn clone(&self) -> Self {
        Self { value: self.value.clone(), at: self.at }
    }
}

impl<Q: Send + 'static, T: Send + Sync + 'static> Fresh<Q, T> {
    /// Nothing is read yet.
    pub(crate) fn new(read: impl Fn(Q) -> T + Send + Sync + 'static) -> Self {
        let state = State { last: None, under_way: false };
        Self(Arc::new(Inner { read: Box::new(read), state: Mutex::new(state), came: Condvar::new() }))
    }

    /// An answer that was read after the call, if it comes within `patience`; otherwise the last one, if there is one.
    pub(crate) fn get(&self, question: impl Fn() -> Q, patience: Duration) -> Option<Answer<T>> {
        let asked = Instant::now();
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(last) = state.last.as_ref().filter(|last| last.at >= asked) {
                return Some(last.clone());
            }
            if !state.under_way {
                // Without a thread there is no answer.
                state.under_way = self.ask(question()).is_ok();
            }
            let left = patience.saturating_sub(asked.elapsed());
            if left.is_zero() || !state.under_way {
                return state.last.clone();
            }
            state = self.0.came.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn ask(&self, question: Q) -> std::io::Result<()> {
        let inner = self.0.clone();
        thread::Builder::new().name("fresh".into()).spawn(move || {
            let at = Instant::now();
            // A panic is an answer that has not come.
            let read = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| (inner.read)(question)));
            let mut state = inner.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.under_way = false;
            if let Ok(value) = read {
                state.last = Some(Answer { value: Arc::new(value), at });
            }
            inner.came.notify_all();
        })?;
        Ok(())
    }
}

impl<Q, T> std::fmt::Debug for Fresh<Q, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fresh").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    };

    use super::*;

    const LONG: Duration = Duration::from_secs(30);
    const SHORT: Duration = Duration::from_millis(50);

    #[test]
    fn an_answer_in_time_is_newer_than_the_question() {
        let count = Arc::new(AtomicUsize::new(0));
        let counted = count.clone();
        let fresh = Fresh::new(move |plus: usize| counted.fetch_add(1, SeqCst) + plus);
        for n in 0..3 {
            let asked = Instant::now();
            let answer = fresh.get(|| 10, LONG).unwrap();
            assert!(answer.at >= asked && *answer.value == n + 10);
        }
    }

    #[test]
    fn what_hangs_is_asked_once_and_the_last_answer_stays() {
        let count = Arc::new(AtomicUsize::new(0));
        let (release, gate) = mpsc::channel::<()>();
        let (counted, gate) = (count.clone(), Mutex::new(gate));
        let fresh = Fresh::new(move |()| {
            let n = counted.fetch_add(1, SeqCst);
            if n > 0 {
                let _ = gate.lock().unwrap().recv();
            }
            n
        });
        assert_eq!(*fresh.get(|| (), LONG).unwrap().value, 0);
        let started = Instant::now();
        for _ in 0..3 {
            assert_eq!(*fresh.get(|| (), SHORT).unwrap().value, 0, "the last one");
        }
        assert!(started.elapsed() < Duration::from_secs(5) && count.load(SeqCst) == 2, "asked once");
        release.send(()).unwrap();
        drop(release);
        assert!(*fresh.get(|| (), LONG).unwrap().value >= 2, "it answers again");
    }

    #[test]
    fn nothing_is_said_before_there_was_an_answer() {
        let (_release, gate) = mpsc::channel::<()>();
        let gate = Mutex::new(gate);
        let fresh = Fresh::new(move |()| gate.lock().unwrap().recv().is_ok());
        assert!(fresh.get(|| (), SHORT).is_none());
    }
}
