#![forbid(unsafe_code)]
//! Whether what clients saw of one key can have happened one after another.
//!
//! A search in the manner of Wing and Gong: of the operations that may come first, because no other
//! had ended before they began, one that fits the state is taken, and the rest must be linearizable
//! behind it. Operations whose outcome is unknown may happen at any time after they began, or never.

use std::collections::HashSet;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The key was seen with this value, or not at all.
    Read(Option<u64>),
    /// It was given this value, or deleted.
    Write(Option<u64>),
    /// It was counted up by one, to this value.
    Count(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    pub began: u64,
    /// `None`: nobody knows whether it happened.
    pub ended: Option<u64>,
    pub action: Action,
}

/// The state behind an action, if the action is possible in `state`.
fn step(state: Option<u64>, operation: &Operation) -> Option<Option<u64>> {
    match operation.action {
        Action::Read(seen) => (seen == state).then_some(state),
        Action::Write(value) => Some(value),
        // Whoever does not know the outcome does not know the number either.
        Action::Count(to) if operation.ended.is_some() => (state? + 1 == to).then_some(Some(to)),
        Action::Count(_) => Some(Some(state? + 1)),
    }
}

/// Whether these operations on one key, which is absent at first, have an order. At most 64 of them.
pub fn check(operations: &[Operation]) -> bool {
    assert!(operations.len() <= 64, "a history is short");
    let mut seen = HashSet::new();
    search(operations, 0, None, &mut seen)
}

fn search(
    operations: &[Operation],
    done: u64,
    state: Option<u64>,
    seen: &mut HashSet<(u64, Option<u64>)>,
) -> bool {
    let left = |at: &usize| done & 1 << at == 0;
    let known_left = (0..operations.len())
        .filter(left)
        .any(|at| operations[at].ended.is_some());
    if !known_left {
        return true;
    }
    if !seen.insert((done, state)) {
        return false;
    }
    let first_end = (0..operations.len())
        .filter(left)
        .filter_map(|at| operations[at].ended)
        .min()
        .unwrap_or(u64::MAX);
    for at in (0..operations.len()).filter(left) {
        let operation = &operations[at];
        if operation.began > first_end {
            continue;
        }
        if let Some(next) = step(state, operation)
            && search(operations, done | 1 << at, next, seen)
        {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(began: u64, ended: u64, action: Action) -> Operation {
        Operation {
            began,
            ended: Some(ended),
            action,
        }
    }

    fn unknown(began: u64, action: Action) -> Operation {
        Operation {
            began,
            ended: None,
            action,
        }
    }

    #[test]
    fn what_can_have_happened_is_accepted() {
        use Action::{Count, Read, Write};
        assert!(check(&[]));
        assert!(check(&[
            op(0, 1, Write(Some(1))),
            op(2, 3, Read(Some(1))),
            op(4, 9, Write(Some(2))),
            op(5, 6, Read(Some(1))),
            op(7, 8, Read(Some(2))),
        ]));
        // Nobody knows whether it happened: seen or not seen, both may be.
        assert!(check(&[unknown(0, Write(Some(1))), op(5, 6, Read(None))]));
        assert!(check(&[
            unknown(0, Write(Some(1))),
            op(5, 6, Read(Some(1)))
        ]));
        assert!(check(&[
            op(0, 1, Write(Some(7))),
            unknown(2, Count(0)),
            op(3, 4, Count(9)),
        ]));
    }

    #[test]
    fn what_cannot_is_not() {
        use Action::{Count, Read, Write};
        // A lost write.
        assert!(!check(&[op(0, 1, Write(Some(1))), op(2, 3, Read(None))]));
        // A value from nowhere.
        assert!(!check(&[op(0, 1, Read(Some(5)))]));
        // Seen, then not seen any more.
        assert!(!check(&[
            unknown(0, Write(Some(1))),
            op(2, 3, Read(Some(1))),
            op(4, 5, Read(None)),
        ]));
        // Counted twice to the same number.
        assert!(!check(&[
            op(0, 1, Write(Some(1))),
            op(2, 5, Count(2)),
            op(2, 5, Count(2)),
        ]));
    }
}
