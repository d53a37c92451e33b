//! A lock for what is held for a moment.

use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::AtomicU32;

use super::bucket::{acquire, release};

/// As a mutex, but given back with a plain store: a locked instruction would wait until everything that
/// was written under the lock has reached the cache. Whoever waits for it does so as for a pair.
pub struct Lock<T> {
    control: AtomicU32,
    value: UnsafeCell<T>,
}

/// The value, while it is nobody else's.
pub struct Held<'l, T> {
    lock: &'l Lock<T>,
    /// Shared between threads it shows the value to all of them.
    _value: PhantomData<&'l mut T>,
}

impl<T> Lock<T> {
    pub fn new(value: T) -> Lock<T> {
        Lock {
            control: AtomicU32::new(0),
            value: UnsafeCell::new(value),
        }
    }

    #[inline]
    pub fn hold(&self) -> Held<'_, T> {
        acquire(&self.control);
        Held {
            lock: self,
            _value: PhantomData,
        }
    }
}

// SAFETY: the value is only reached through `Held`, of which there is one at a time: who takes the lock
// sees (acquire) what was done before it was given back (release). So sharing the lock hands the value
// from thread to thread, for which it has to be `Send`.
unsafe impl<T: Send> Sync for Lock<T> {}

impl<T> Drop for Held<'_, T> {
    #[inline]
    fn drop(&mut self) {
        release(&self.lock.control);
    }
}

impl<T> Deref for Held<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: whoever has this has the lock, so nobody else has a reference to the value.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for Held<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above, and this is borrowed mutably.
        unsafe { &mut *self.lock.value.get() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time() {
        let lock = Lock::new((0u64, 0u64));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..5_000 {
                        let mut both = lock.hold();
                        assert_eq!(both.0, both.1);
                        both.0 += 1;
                        both.1 += 1;
                    }
                });
            }
        });
        assert_eq!(*lock.hold(), (20_000, 20_000));
    }
}
