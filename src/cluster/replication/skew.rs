#![forbid(unsafe_code)]
//! By how much another node's clock is ahead of this one's.

/// A clock that seems to have gone back is believed after so long, in milliseconds: until then what it said
/// may only have been long on its way, or this process may have been stopped.
const BELIEVED_AFTER: u64 = 60_000;

/// Differences that are no news, in milliseconds.
const NEAR: i64 = 50;

/// What is known of it. Delay makes a clock seem to be behind, never ahead: what shows it furthest ahead is
/// nearest to the truth.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Skew {
    ms: i64,
    known: bool,
    /// Since when it has seemed to be further behind than that, and by how much at the best.
    behind: Option<(u64, i64)>,
}

impl Skew {
    /// Milliseconds.
    pub fn ms(&self) -> i64 {
        self.ms
    }

    /// A connection is new: nothing has been on its way for long.
    pub fn begin(&mut self) {
        self.known = false;
        self.behind = None;
    }

    /// The other clock read `theirs` in what came at `now` of this process, when this one read `ours`, both in
    /// Unix milliseconds.
    pub fn heard(&mut self, theirs: u64, ours: u64, now: u64) {
        let ahead = (theirs as i64).saturating_sub(ours as i64);
        if !self.known || ahead >= self.ms - NEAR {
            self.ms = if self.known {
                ahead.max(self.ms)
            } else {
                ahead
            };
            self.known = true;
            self.behind = None;
            return;
        }
        let (since, best) = self.behind.unwrap_or((now, ahead));
        let best = best.max(ahead);
        if now >= since + BELIEVED_AFTER {
            self.ms = best;
            self.behind = None;
        } else {
            self.behind = Some((since, best));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIX: u64 = 1_800_000_000_000;

    fn heard(skew: &mut Skew, ahead: i64, now: u64) -> i64 {
        let ours = UNIX + now;
        skew.heard((ours as i64 + ahead) as u64, ours, now);
        skew.ms()
    }

    #[test]
    fn a_clock_that_is_wrong_from_the_beginning_is_known_at_once() {
        for ahead in [-5000, 5000] {
            let mut skew = Skew::default();
            assert_eq!(heard(&mut skew, ahead, 1), ahead);
            assert_eq!(
                heard(&mut skew, ahead - 3, 250),
                ahead,
                "a little later than usual"
            );
            skew.begin();
            assert_eq!(heard(&mut skew, 2, 300), 2, "another node, or another try");
        }
    }

    #[test]
    fn what_was_long_on_its_way_says_nothing() {
        let mut skew = Skew::default();
        assert_eq!(heard(&mut skew, 0, 1), 0);
        // This process was stopped, and what came meanwhile is read at once.
        for beat in 0..40 {
            assert_eq!(heard(&mut skew, -10_000 + 250 * beat, 10_250), 0);
        }
        assert_eq!(heard(&mut skew, -1, 10_500), 0);
        // A slow link, with a long queue in front of each beat but some.
        for second in 11..200 {
            let ahead = if second % 30 == 0 { -20 } else { -8000 };
            assert_eq!(heard(&mut skew, ahead, second * 1000), 0);
        }
    }

    #[test]
    fn a_clock_that_was_set_is_followed() {
        let mut skew = Skew::default();
        heard(&mut skew, 0, 1);
        assert_eq!(heard(&mut skew, 4000, 250), 4000, "forward: at once");
        for second in 1..=60 {
            assert_eq!(heard(&mut skew, -second % 7, second as u64 * 1000), 4000);
        }
        assert_eq!(
            heard(&mut skew, -3, 61_001),
            0,
            "back: when it has stayed so"
        );
    }
}
