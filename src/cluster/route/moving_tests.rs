#![forbid(unsafe_code)]

use super::*;
use crate::settings::proxy::Moving;

/// From pool a to pool b.
fn moving(stage: Moving, ttl: Option<u32>) -> Arc<Tree> {
    let text = "route = 'a'\n[pools]\na = { servers = ['a'] }\nb = { servers = ['b'] }\n";
    let mut proxy = parse(text).unwrap();
    let route = proxy.routes.len() + 2;
    proxy.routes.extend([
        Route::Pool { pool: 0 },
        Route::Pool { pool: 1 },
        Route::Moving {
            old: route - 2,
            new: route - 1,
            ttl,
            stage,
        },
    ]);
    proxy.root = route;
    Arc::new(Tree::build(&proxy, "host"))
}

/// What is said first, and then of each outcome, which has to be of the send that was said last.
fn told(tree: &Arc<Tree>, command: Command, outcomes: &[Outcome]) -> String {
    told_so(tree, command, Manner::default(), outcomes)
}

fn told_so(tree: &Arc<Tree>, command: Command, manner: Manner, outcomes: &[Outcome]) -> String {
    let question = question(command, "key");
    let (mut told, mut words) = Told::so(tree, question, manner, Fixed::default());
    for (tag, outcome) in outcomes.iter().enumerate() {
        let next = told.outcome(tag as Tag, *outcome);
        words = format!("{words} | {next}");
    }
    assert!(told.walk.is_over(), "{words}");
    words
}

/// While not all proxies know where a key belongs, it is where it was, and those who know look in both places.
#[test]
fn a_key_stays_until_all_know_that_it_moves() {
    use Outcome::{ClientError, Done, Hit, Miss, Refused};
    let tree = moving(Moving::Settling, None);
    let of = |command, outcomes: &[Outcome]| told(&tree, command, outcomes);
    assert_eq!(of(Command::Get, &[Hit]), "0:a | Reply(0)");
    assert_eq!(of(Command::Get, &[Miss, Hit]), "0:a | 1:b | Reply(1)");
    for command in [Command::Set, Command::Delete, Command::Incr, Command::Gat] {
        assert_eq!(of(command, &[Done, Miss]), "0:a | 1:b delete | Reply(0)");
        let unknown = [DOWN, Miss];
        assert_eq!(of(command, &unknown), "0:a | 1:b delete | Reply(0)");
    }
    for command in [Command::Delete, Command::Incr, Command::Cas] {
        assert_eq!(of(command, &[Miss, Done]), "0:a | 1:b | Reply(1)");
    }
    for command in [Command::Append, Command::Replace] {
        assert_eq!(of(command, &[Refused, Done]), "0:a | 1:b | Reply(1)");
    }
    for outcome in [Refused, ClientError] {
        assert_eq!(of(Command::Cas, &[outcome]), "0:a | Reply(0)");
    }
    let add = |outcomes: &[Outcome]| of(Command::Add, outcomes);
    assert_eq!(add(&[Done, Refused]), "0:b life | 1:b | Reply(1)");
    assert_eq!(add(&[Miss, Refused]), "0:b life | 1:a | Reply(1)");
    let stored = add(&[Miss, Done, Miss]);
    assert_eq!(stored, "0:b life | 1:a | 2:b delete | Reply(1)");
}

/// Then it is brought over by a token of the new place, and whoever changes it has changed both places before
/// that is answered, the old one first.
#[test]
fn a_key_is_brought_over_by_a_token() {
    use Outcome::{Done, Hit, Miss, Refused};
    let tree = moving(Moving::Bringing, None);
    let of = |command, outcomes: &[Outcome]| told(&tree, command, outcomes);
    let unknown = Outcome::Failed(Failure::Error);
    assert_eq!(of(Command::Get, &[Hit]), "0:b | Reply(0)");
    assert_eq!(
        of(Command::Get, &[Miss, Done, Hit, Done]),
        "0:b | 1:b token | 2:a | Reply(2), 3:a life | (4:b fill 2 as 3 by 1)"
    );
    assert_eq!(
        of(Command::Get, &[Miss, unknown, Hit, Done]),
        "0:b | 1:b token | 2:a | Reply(2), 3:a life | (4:b fill 2 as 3)"
    );
    assert_eq!(
        of(Command::Get, &[Miss, DOWN, Hit]),
        "0:b | 1:b token | 2:a | Reply(2)"
    );
    assert_eq!(
        of(Command::Get, &[Miss, Done, Miss]),
        "0:b | 1:b token | 2:a | Reply(2)"
    );
    assert_eq!(
        of(Command::Get, &[Miss, Done, DOWN]),
        "0:b | 1:b token | 2:a | Reply(0)"
    );
    assert_eq!(
        of(Command::Get, &[Miss, Done, unknown]),
        "0:b | 1:b token | 2:a | Reply(2)"
    );
    for outcome in [Done, Miss, DOWN] {
        let set = of(Command::Set, &[outcome, Done]);
        assert_eq!(set, "0:a delete | 1:b | Reply(1)");
    }
    assert_eq!(of(Command::Delete, &[Done, Miss]), "0:a | 1:b | Reply(0)");
    assert_eq!(of(Command::Delete, &[Done, Done]), "0:a | 1:b | Reply(1)");
    assert_eq!(of(Command::Delete, &[Miss, Miss]), "0:a | 1:b | Reply(1)");
    for command in [Command::Incr, Command::Append, Command::Cas] {
        assert_eq!(of(command, &[Done, Miss]), "0:b | 1:a delete | Reply(0)");
        assert_eq!(
            of(command, &[Miss, Done, Hit, Done, Done, Done, Done]),
            "0:b | 1:b token | 2:a read | 3:a life | 4:b fill 2 as 3 by 1 | 5:b | 6:a delete | Reply(5)"
        );
        assert_eq!(
            of(command, &[Miss, Done, Hit, Done, Refused, Miss]),
            "0:b | 1:b token | 2:a read | 3:a life | 4:b fill 2 as 3 by 1 | 5:b | Reply(5)",
            "deleted meanwhile"
        );
        assert_eq!(
            of(command, &[Miss, Done, Miss]),
            "0:b | 1:b token | 2:a read | Reply(0)"
        );
    }
    assert_eq!(
        of(Command::Add, &[Done, Hit, Done, Done, Refused]),
        "0:b token | 1:a read | 2:a life | 3:b fill 1 as 2 by 0 | 4:b | Reply(4)"
    );
    assert_eq!(
        of(Command::Add, &[Done, Miss, Done, Miss]),
        "0:b token | 1:a read | 2:b | 3:a delete | Reply(2)"
    );

    let tree = moving(Moving::Bringing, Some(60));
    assert_eq!(
        told(&tree, Command::Get, &[Miss, Done, Hit]),
        "0:b | 1:b token | 2:a | Reply(2), (3:b fill 2 60s by 1)"
    );
}

/// What would create a key is sent only where it is, or when it is nowhere.
#[test]
fn no_key_is_created_while_it_is_elsewhere() {
    use Outcome::{Done, Hit, Miss, Refused};
    let creates = Manner {
        creates: true,
        once: false,
    };
    let settling = moving(Moving::Settling, None);
    let bringing = moving(Moving::Bringing, None);
    let ending = moving(Moving::Ending, None);
    for command in [Command::Incr, Command::Gat, Command::Append] {
        let of = |tree, outcomes: &[Outcome]| told_so(tree, command, creates, outcomes);
        for (outcomes, words) in [
            (
                &[Done, Done, Miss][..],
                "0:a life | 1:a | 2:b delete | Reply(1)",
            ),
            (&[Miss, Done, Done], "0:a life | 1:b life | 2:b | Reply(2)"),
            (
                &[Miss, Miss, Done, Miss],
                "0:a life | 1:b life | 2:a | 3:b delete | Reply(2)",
            ),
            (&[DOWN], "0:a life | Unknown"),
            (&[Miss, DOWN], "0:a life | 1:b life | Unknown"),
        ] {
            assert_eq!(of(&settling, outcomes), words);
        }
        for (outcomes, words) in [
            (
                &[Done, Done, Miss][..],
                "0:b life | 1:b | 2:a delete | Reply(1)",
            ),
            (
                &[Miss, Done, Hit, Done, Done, Done, Done],
                "0:b life | 1:b token | 2:a read | 3:a life | 4:b fill 2 as 3 by 1 | 5:b | 6:a delete | Reply(5)",
            ),
            (
                &[Miss, Done, Miss, Done, Miss],
                "0:b life | 1:b token | 2:a read | 3:b | 4:a delete | Reply(3)",
            ),
            (
                &[Miss, Done, Hit, Miss, Done, Miss],
                "0:b life | 1:b token | 2:a read | 3:a life | 4:b | 5:a delete | Reply(4)",
            ),
            (&[DOWN], "0:b life | Unknown"),
            (
                &[Miss, Done, DOWN],
                "0:b life | 1:b token | 2:a read | Unknown",
            ),
            (
                &[Miss, DOWN, Hit],
                "0:b life | 1:b token | 2:a read | Unknown",
            ),
            (
                &[Miss, Done, Hit, Done, DOWN],
                "0:b life | 1:b token | 2:a read | 3:a life | 4:b fill 2 as 3 by 1 | Unknown",
            ),
        ] {
            assert_eq!(of(&bringing, outcomes), words);
        }
        // Somebody else has filled it or deleted it, or the token has been forgotten.
        let words = of(
            &bringing,
            &[Miss, Done, Hit, Done, Refused, Done, Done, Done],
        );
        assert!(
            words.ends_with("| 5:b life | 6:b | 7:a delete | Reply(6)"),
            "{words}"
        );
        let refused = [Miss, Done, Hit, Done, Refused].repeat(4);
        let words = of(&bringing, &refused);
        assert!(words.ends_with("Unknown"), "{words}");
        assert_eq!(of(&ending, &[Done, Miss]), "0:b | 1:a delete | Reply(0)");
    }
}

/// A value that is sent on as it comes is sent once, and what the old place is given meanwhile it forgets.
#[test]
fn a_long_value_is_sent_once() {
    use Outcome::{Done, Hit, Miss, Refused};
    let once = Manner {
        creates: false,
        once: true,
    };
    let settling = moving(Moving::Settling, None);
    let bringing = moving(Moving::Bringing, None);
    let ending = moving(Moving::Ending, None);
    let of = |tree, command, outcomes: &[Outcome]| told_so(tree, command, once, outcomes);
    let set = |tree, outcomes: &[Outcome]| of(tree, Command::Set, outcomes);
    assert_eq!(set(&settling, &[Done, Miss]), "0:a | 1:b delete | Reply(0)");
    assert_eq!(set(&settling, &[DOWN, Miss]), "0:a | 1:b delete | Reply(0)");
    for tree in [&bringing, &ending] {
        for stored in [Done, DOWN] {
            let words = set(tree, &[Done, stored, Miss]);
            assert_eq!(words, "0:a delete | 1:b | 2:a delete | Reply(1)");
        }
    }
    for command in [Command::Append, Command::Replace, Command::Cas] {
        for (outcomes, words) in [
            (
                &[Done, Done, Miss][..],
                "0:a life | 1:a | 2:b delete | Reply(1)",
            ),
            (&[Done, Miss], "0:a life | 1:a | Reply(1)"),
            (&[Miss, Done, Done], "0:a life | 1:b life | 2:b | Reply(2)"),
            (&[Miss, Miss, Miss], "0:a life | 1:b life | 2:a | Reply(2)"),
            (&[DOWN], "0:a life | Unknown"),
        ] {
            assert_eq!(of(&settling, command, outcomes), words);
        }
        for (outcomes, words) in [
            (
                &[Done, Done, Miss][..],
                "0:b life | 1:b | 2:a delete | Reply(1)",
            ),
            (&[Done, Miss], "0:b life | 1:b | Reply(1)"),
            (
                &[Miss, Done, Hit, Done, Done, Done, Done],
                "0:b life | 1:b token | 2:a read | 3:a life | 4:b fill 2 as 3 by 1 | 5:b | 6:a delete | Reply(5)",
            ),
            (
                &[Miss, Done, Miss, Miss],
                "0:b life | 1:b token | 2:a read | 3:b | Reply(3)",
            ),
        ] {
            assert_eq!(of(&bringing, command, outcomes), words);
        }
    }
    let add = |tree, outcomes: &[Outcome]| of(tree, Command::Add, outcomes);
    assert_eq!(
        add(&settling, &[Done, Refused]),
        "0:a life | 1:a | Reply(1)"
    );
    assert_eq!(
        add(&settling, &[Miss, Miss, Done, Miss]),
        "0:a life | 1:b life | 2:a | 3:b delete | Reply(2)"
    );
    assert_eq!(
        add(&bringing, &[Done, Miss, Done, Miss]),
        "0:b token | 1:a read | 2:b | 3:a delete | Reply(2)"
    );
}

/// At last nobody looks for it where it was, and it is not there.
#[test]
fn a_key_is_not_looked_for_for_ever() {
    use Outcome::{Done, Miss};
    let tree = moving(Moving::Ending, None);
    let of = |command, outcomes: &[Outcome]| told(&tree, command, outcomes);
    assert_eq!(of(Command::Get, &[Miss]), "0:b | Reply(0)");
    assert_eq!(
        of(Command::Set, &[Done, Done]),
        "0:a delete | 1:b | Reply(1)"
    );
    assert_eq!(of(Command::Delete, &[Miss, Done]), "0:a | 1:b | Reply(1)");
    assert_eq!(of(Command::Incr, &[Miss]), "0:b | Reply(0)");
    assert_eq!(
        of(Command::Add, &[Done, Miss]),
        "0:b | 1:a delete | Reply(0)"
    );
}
