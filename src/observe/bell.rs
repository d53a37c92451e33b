#![forbid(unsafe_code)]
//! How a thread that sleeps is told that there is something to do, however often that is said.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Rung by many, answered by one.
#[derive(Default)]
pub struct Bell {
    rung: AtomicBool,
    wake: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl fmt::Debug for Bell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Bell").field(&self.rung).finish()
    }
}

impl Bell {
    /// Wakes whoever answers, if nobody has since the last answer.
    pub fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel)
            && let Some(wake) = self.wake.get()
        {
            wake();
        }
    }

    pub fn is_rung(&self) -> bool {
        self.rung.load(Ordering::Acquire)
    }

    /// For whoever looks at what there is to do, before looking: who rings from here on wakes again.
    pub fn answer(&self) {
        self.rung.swap(false, Ordering::AcqRel);
    }

    /// What wakes whoever answers; the first counts.
    pub fn on_ring(&self, wake: impl Fn() + Send + Sync + 'static) {
        let _ = self.wake.set(Box::new(wake));
    }
}
