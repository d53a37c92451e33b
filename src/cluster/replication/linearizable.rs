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
    use crate::cluster::dice::Dice;

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

    /// The same by trying every order, and for each operation of unknown outcome whether it happened.
    fn tried(left: &[Operation], state: Option<u64>) -> bool {
        if left.iter().all(|one| one.ended.is_none()) {
            return true;
        }
        (0..left.len()).any(|at| {
            let one = left[at];
            let first = left
                .iter()
                .all(|other| other.ended.is_none_or(|ended| one.began <= ended));
            let rest: Vec<Operation> = [&left[..at], &left[at + 1..]].concat();
            let never = one.ended.is_none() && tried(&rest, state);
            never || first && step(state, &one).is_some_and(|next| tried(&rest, next))
        })
    }

    #[test]
    fn it_finds_what_trying_everything_finds() {
        let mut dice = Dice::new(11);
        let (mut good, mut bad) = (0, 0);
        for _ in 0..4000 {
            let count = 2 + dice.roll(4);
            let operations: Vec<Operation> = (0..count)
                .map(|_| {
                    let began = dice.roll(12);
                    let value = dice.roll(4).checked_sub(1);
                    Operation {
                        began,
                        ended: (dice.roll(5) > 0).then(|| began + dice.roll(6)),
                        action: match dice.roll(3) {
                            0 => Action::Read(value),
                            1 => Action::Write(value),
                            _ => Action::Count(1 + dice.roll(3)),
                        },
                    }
                })
                .collect();
            let holds = check(&operations);
            assert_eq!(holds, tried(&operations, None), "{operations:?}");
            *if holds { &mut good } else { &mut bad } += 1;
        }
        assert!(good > 500 && bad > 500, "{good} {bad}");
    }

    /// Clients of one register that does everything at once, at some moment of each operation.
    fn happened(dice: &mut Dice) -> Vec<Operation> {
        let mut state: Option<u64> = None;
        (1..=30u64)
            .map(|number| {
                let at = number * 10;
                let known = dice.roll(8) > 0;
                let (began, ended) = (at - dice.roll(10), at + dice.roll(25));
                let action = match (dice.roll(3), state) {
                    (0, _) if known => Action::Read(state),
                    (1, Some(count)) => Action::Count(count + 1),
                    _ => Action::Write(Some(number << 20)),
                };
                let ended = known.then_some(ended);
                if known || dice.roll(2) == 0 {
                    state = match action {
                        Action::Read(seen) => seen,
                        Action::Write(value) => value,
                        Action::Count(to) => Some(to),
                    };
                }
                Operation {
                    began,
                    ended,
                    action,
                }
            })
            .collect()
    }

    /// Errors as broken copies would make them, planted in histories that have happened.
    #[test]
    fn planted_errors_are_found() {
        let mut dice = Dice::new(5);
        for _ in 0..200 {
            let sound = happened(&mut dice);
            assert!(check(&sound), "{sound:?}");
            let until = 1000;
            let ask = |at, action| op(until + at, until + at + 1, action);
            // What was acknowledged is gone; what was never written is there; what was seen is not any
            // more; two have counted to the same number; a deletion is forgotten.
            let wrong: [&[Operation]; 5] = [
                &[
                    ask(0, Action::Write(Some(7))),
                    ask(2, Action::Write(Some(8))),
                    ask(4, Action::Read(Some(7))),
                ],
                &[ask(0, Action::Read(Some(3)))],
                &[
                    unknown(until, Action::Write(Some(7))),
                    ask(2, Action::Read(Some(7))),
                    ask(4, Action::Read(None)),
                ],
                &[
                    ask(0, Action::Write(Some(7))),
                    op(until + 2, until + 9, Action::Count(8)),
                    op(until + 3, until + 8, Action::Count(8)),
                ],
                &[
                    ask(0, Action::Write(Some(7))),
                    ask(2, Action::Write(None)),
                    ask(4, Action::Count(8)),
                ],
            ];
            for planted in wrong {
                let history = [&sound[..], planted].concat();
                assert!(!check(&history), "{history:?}");
            }
        }
    }
}
