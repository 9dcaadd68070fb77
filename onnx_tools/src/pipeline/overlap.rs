//! Reading ahead: what a stage needs next is fetched while the stage before it works, as far as memory allows.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Bytes that a budget lets through beside what the largest weight takes.
const SLACK: u64 = 16 << 20;

/// Memory that weights and blobs on their way through a pipeline may take.
#[derive(Debug)]
pub struct Budget {
    limit: u64,
    taken: Mutex<u64>,
    given_back: Condvar,
}

/// Bytes taken from a [`Budget`], given back when dropped.
#[derive(Debug)]
pub struct Share {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Budget {
    /// Twice the `largest` weight for each thread, and a little.
    pub fn new(largest: u64) -> Arc<Self> {
        let weights = largest.saturating_mul(2).saturating_mul(rayon::current_num_threads() as u64);
        Arc::new(Budget {
            limit: weights.saturating_add(SLACK),
            taken: Mutex::new(0),
            given_back: Condvar::new(),
        })
    }

    /// Waits until `bytes` are free. What is more than the whole budget gets through when nothing else is taken.
    pub fn take(self: &Arc<Self>, bytes: u64) -> Share {
        let mut taken = self.lock();
        while *taken > 0 && taken.saturating_add(bytes) > self.limit {
            taken = self.given_back.wait(taken).unwrap_or_else(PoisonError::into_inner);
        }
        *taken = taken.saturating_add(bytes);
        Share { budget: Arc::clone(self), bytes }
    }

    fn lock(&self) -> MutexGuard<'_, u64> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    /// Gives `bytes` of the share back.
    pub fn shrink(&mut self, bytes: u64) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        let mut taken = self.budget.lock();
        *taken = taken.saturating_sub(bytes);
        self.budget.given_back.notify_all();
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.shrink(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_share_waits_for_room() {
        let budget = Arc::new(Budget { limit: 10, taken: Mutex::new(0), given_back: Condvar::new() });
        let mut first = budget.take(8);
        let (sender, receiver) = mpsc::channel();
        std::thread::scope(|scope| {
            let budget = &budget;
            scope.spawn(move || {
                let share = budget.take(5);
                sender.send(()).expect("a receiver");
                drop(share);
            });
            assert!(receiver.recv_timeout(Duration::from_millis(50)).is_err(), "8 + 5 are too many");
            first.shrink(3);
            receiver.recv().expect("5 + 5 are not");
        });
        drop(first);
        assert_eq!(*budget.lock(), 0);
        drop(budget.take(1000));
        assert_eq!(*budget.lock(), 0, "one share may be larger than the budget");
    }
}
