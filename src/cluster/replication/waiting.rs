#![forbid(unsafe_code)]
//! Who waits until copies have got further, and the thread that need not hurry while nobody does.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;

type Call = Box<dyn FnOnce() + Send>;

#[derive(Default)]
pub struct Waiting {
    calls: Mutex<Vec<Call>>,
    /// The thread that keeps the copies, once it runs.
    keeper: OnceLock<Thread>,
}

impl Waiting {
    /// Calls `then` in the next [`progress`](Waiting::progress).
    pub fn push(&self, then: Call) {
        let first = {
            let mut calls = self.calls();
            calls.push(then);
            calls.len() == 1
        };
        if first && let Some(keeper) = self.keeper.get() {
            keeper.unpark();
        }
    }

    /// The calling thread keeps the copies. It may park while [nobody waits](Waiting::any): who then
    /// begins to wait ends that.
    pub fn naps_here(&self) {
        let _ = self.keeper.set(std::thread::current());
    }

    /// Whether anybody waits.
    pub fn any(&self) -> bool {
        !self.calls().is_empty()
    }

    /// Copies have got further.
    pub fn progress(&self) {
        let calls = std::mem::take(&mut *self.calls());
        for then in calls {
            then();
        }
    }

    fn calls(&self) -> MutexGuard<'_, Vec<Call>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::channel;
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn who_begins_to_wait_ends_the_nap() {
        let waiting = Arc::new(Waiting::default());
        let (ready, is_ready) = channel();
        let (awake, is_awake) = channel();
        let keeper = thread::spawn({
            let waiting = waiting.clone();
            move || {
                waiting.naps_here();
                for _ in 0..3 {
                    ready.send(()).unwrap();
                    while !waiting.any() {
                        thread::park();
                    }
                    awake.send(()).unwrap();
                    waiting.progress();
                }
            }
        });
        let (called, is_called) = channel();
        for number in 0..3 {
            is_ready.recv().unwrap();
            let called = called.clone();
            waiting.push(Box::new(move || called.send(number).unwrap()));
            let patience = Duration::from_secs(20);
            assert_eq!(is_awake.recv_timeout(patience), Ok(()), "it sleeps on");
            assert_eq!(is_called.recv_timeout(patience), Ok(number));
        }
        keeper.join().unwrap();
        assert!(!waiting.any());
    }
}
