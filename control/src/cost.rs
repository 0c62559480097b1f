//! What work costs in processor time.

use std::{
    pin::pin,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeValLike,
};

/// Processor time of the calling thread so far.
pub(crate) fn of_thread() -> Duration {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_THREAD) else { return Duration::ZERO };
    let time = usage.user_time() + usage.system_time();
    Duration::from_micros(time.num_microseconds().try_into().unwrap_or(0))
}

/// A sum that tasks on any threads add to, in microseconds.
#[derive(Debug)]
pub(crate) struct Meter(AtomicU64);

impl Meter {
    pub(crate) const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    pub(crate) fn used(&self) -> Duration {
        Duration::from_micros(self.0.load(Ordering::Relaxed))
    }

    /// The same future; what it costs is added.
    pub(crate) async fn count<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        std::future::poll_fn(|context| {
            let before = of_thread();
            let polled = work.as_mut().poll(context);
            let cost = of_thread().saturating_sub(before).as_micros();
            self.0.fetch_add(cost.try_into().unwrap_or(u64::MAX), Ordering::Relaxed);
            polled
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_task_costs_is_counted_between_its_waits() {
        let meter = Meter::new();
        let work = async {
            for _ in 0..2 {
                let until = of_thread() + Duration::from_millis(20);
                while of_thread() < until {
                    std::hint::black_box((0..1000).sum::<u64>());
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        meter.count(work).await;
        assert!(meter.used() >= Duration::from_millis(38), "{:?}", meter.used());
    }
}
