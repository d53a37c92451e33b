#![forbid(unsafe_code)]

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::settings::proxy::{Failure, parse};

#[path = "moving_tests.rs"]
mod moving;

struct Fixed {
    random: u64,
    nanoseconds: u64,
    unix: u64,
    loads: Vec<u64>,
}

impl Default for Fixed {
    fn default() -> Fixed {
        Fixed {
            random: 1,
            nanoseconds: 1_000_000_000,
            unix: 1_000_000,
            loads: vec![0; 8],
        }
    }
}

impl World for Fixed {
    fn load(&self, pool: usize, _: &[u8]) -> u64 {
        self.loads[pool]
    }

    fn random(&mut self) -> u64 {
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        self.random
    }

    fn nanoseconds(&self) -> u64 {
        self.nanoseconds
    }

    fn unix_seconds(&self) -> u64 {
        self.unix
    }

    fn key_max(&self) -> usize {
        250
    }
}

/// Pools a, b and c, which are 0, 1 and 2.
fn tree(route: &str) -> Arc<Tree> {
    let text = format!(
        "route = {route}\n[pools]\na = {{ servers = ['a'] }}\nb = {{ servers = ['b'] }}\nc = {{ servers = ['c'] }}\n"
    );
    Arc::new(Tree::build(&parse(&text).unwrap(), "host"))
}

fn question(command: Command, key: &'static str) -> Question<'static> {
    Question {
        command,
        key: key.as_bytes(),
        listener: None,
    }
}

/// A walk and what it said, in words: `0:a` is send 0 of the request to pool a; `(…)` is awaited
/// by nobody.
struct Told {
    walk: Walk,
    world: Fixed,
}

impl Told {
    fn start(tree: &Arc<Tree>, command: Command, world: Fixed) -> (Told, String) {
        Told::of(tree, question(command, "key"), world)
    }

    fn of(tree: &Arc<Tree>, question: Question<'_>, world: Fixed) -> (Told, String) {
        Told::so(tree, question, Manner::default(), world)
    }

    fn so(
        tree: &Arc<Tree>,
        question: Question<'_>,
        manner: Manner,
        mut world: Fixed,
    ) -> (Told, String) {
        let mut actions = Vec::new();
        let root = tree.root();
        let walk = Walk::start(tree, root, &question, manner, &mut world, &mut actions);
        let told = Told { walk, world };
        let words = told.words(&actions);
        (told, words)
    }

    fn outcome(&mut self, tag: Tag, outcome: Outcome) -> String {
        let mut actions = Vec::new();
        self.walk
            .outcome(tag, outcome, &mut self.world, &mut actions);
        self.words(&actions)
    }

    fn words(&self, actions: &[Action]) -> String {
        let words: Vec<String> = actions
            .iter()
            .map(|action| match action {
                Action::Answer(source) => format!("{source:?}"),
                Action::Send(send) => {
                    let pool = ["a", "b", "c"][send.pool];
                    let mut words = format!("{}:{pool}", send.tag);
                    match send.what {
                        What::Request => {}
                        What::Read => words.push_str(" read"),
                        What::Life => words.push_str(" life"),
                        What::Token => words.push_str(" token"),
                        What::Fill { of, life, token } => {
                            let life = match life {
                                Life::Seconds(ttl) => format!("{ttl}s"),
                                Life::Of(tag) => format!("as {tag}"),
                            };
                            words.push_str(&format!(" fill {of} {life}"));
                            if let Token::Of(tag) = token {
                                words.push_str(&format!(" by {tag}"));
                            }
                        }
                        What::Delete => words.push_str(" delete"),
                    }
                    if send.key != 0 {
                        let key = self.walk.key(send.key).escape_ascii();
                        words.push_str(&format!(" {key}"));
                    }
                    match send.ttl {
                        Ttl::AsIs => {}
                        Ttl::AtMost(ttl) => words.push_str(&format!(" <={ttl}s")),
                        Ttl::Exactly(ttl) => words.push_str(&format!(" ={ttl}s")),
                    }
                    if send.delay_ms > 0 {
                        words.push_str(&format!(" after {}ms", send.delay_ms));
                    }
                    if send.awaited {
                        words
                    } else {
                        format!("({words})")
                    }
                }
            })
            .collect();
        words.join(", ")
    }
}

const DOWN: Outcome = Outcome::Failed(Failure::Down);

#[test]
fn rules_are_followed_without_a_walk() {
    let tree = tree(
        "{ match = [{ prefix = 'a:', to = 'a' }, { command = ['delete'], to = 'b' }, { listener = 'x', to = { null = true } }], otherwise = 'c' }",
    );
    let settle = |command, key: &str, listener| {
        let question = Question {
            command,
            key: key.as_bytes(),
            listener,
        };
        tree.settle(tree.root(), &question, 0)
    };
    assert_eq!(settle(Command::Get, "a:1", None), Settled::Pool(0));
    assert_eq!(settle(Command::Delete, "a:1", None), Settled::Pool(0));
    assert_eq!(settle(Command::Delete, "b", None), Settled::Pool(1));
    assert_eq!(settle(Command::Get, "b", None), Settled::Pool(2));
    let Settled::Route(id) = settle(Command::Get, "b", Some("x")) else {
        panic!()
    };
    assert_eq!(*tree.route(id), Route::Null);
}

#[test]
fn a_failover_goes_on_while_it_fails() {
    let tree = tree("{ failover = ['a', 'b', 'c'], ttl_max = '10s' }");
    let (mut told, first) = Told::start(&tree, Command::Set, Fixed::default());
    assert_eq!(first, "0:a");
    assert_eq!(told.outcome(0, DOWN), "1:b <=10s");
    assert_eq!(told.outcome(0, DOWN), "", "told twice");
    assert_eq!(told.outcome(1, Outcome::Done), "Reply(1)");
    assert!(told.walk.is_over());

    let (mut told, _) = Told::start(&tree, Command::Get, Fixed::default());
    assert_eq!(
        told.outcome(0, Outcome::Miss),
        "Reply(0)",
        "a miss is an answer"
    );
    let (mut told, _) = Told::start(&tree, Command::Get, Fixed::default());
    told.outcome(0, DOWN);
    told.outcome(1, DOWN);
    assert_eq!(told.outcome(2, DOWN), "Reply(2)", "the last one's");
}

#[test]
fn a_failover_on_a_miss_prefers_the_miss_to_a_failure() {
    let tree = tree("{ failover = ['a', 'b'], on = ['miss'] }");
    let (mut told, _) = Told::start(&tree, Command::Get, Fixed::default());
    assert_eq!(
        told.outcome(0, Outcome::Miss),
        "1:b <=0s".replace(" <=0s", "")
    );
    assert!(told.walk.needs(0));
    assert_eq!(told.outcome(1, DOWN), "Reply(0)");
    let (mut told, _) = Told::start(&tree, Command::Get, Fixed::default());
    assert_eq!(told.outcome(0, DOWN), "Reply(0)", "that is not asked for");
}

#[test]
fn a_failover_has_its_rate() {
    let tree = tree("{ failover = ['a', 'b'], rate = 0.001, burst = 1 }");
    let (mut told, _) = Told::start(&tree, Command::Get, Fixed::default());
    assert_eq!(told.outcome(0, DOWN), "1:b");
    let (mut told, _) = Told::start(&tree, Command::Get, Fixed::default());
    assert_eq!(told.outcome(0, DOWN), "Reply(0)");
}

#[test]
fn the_first_child_differs_by_key_or_host() {
    let of_key = tree("{ failover = ['a', 'b', 'c'], order = 'key' }");
    let firsts: Vec<String> = ["k1", "k2", "k3", "k4", "k5", "k6", "k7"]
        .map(|key| Told::of(&of_key, question(Command::Get, key), Fixed::default()).1)
        .into();
    for pool in ["0:a", "0:b", "0:c"] {
        assert!(firsts.iter().any(|first| first == pool), "{firsts:?}");
    }
    let text = "route = { failover = ['a', 'b'], order = 'host' }\n[pools]\na = { servers = ['a'] }\nb = { servers = ['b'] }";
    let proxy = parse(text).unwrap();
    let first = |host: &str| {
        let tree = Arc::new(Tree::build(&proxy, host));
        Told::start(&tree, Command::Get, Fixed::default()).1
    };
    assert!((0..9).any(|n| first(&format!("host{n}")) != first("host")));
    assert_eq!(first("host"), first("host"));
}

#[test]
fn fan_outs_wait_as_they_are_told() {
    let outcomes = |wait: &str, outcomes: &[(Tag, Outcome)]| -> Vec<String> {
        let tree = tree(&format!("{{ fanout = ['a', 'b', 'c'], wait = '{wait}' }}"));
        let (mut told, first) = Told::start(&tree, Command::Delete, Fixed::default());
        let mut said = vec![first];
        said.extend(
            outcomes
                .iter()
                .map(|(tag, outcome)| told.outcome(*tag, *outcome)),
        );
        assert!(
            said.iter()
                .any(|words| words.contains("Reply") || words.contains("Null"))
        );
        assert!(told.walk.is_over());
        said
    };
    let all = "0:a, 1:b, 2:c";
    assert_eq!(
        outcomes(
            "all",
            &[(1, Outcome::Done), (0, Outcome::Miss), (2, Outcome::Done)]
        ),
        [all, "", "", "Reply(0)"]
    );
    assert_eq!(
        outcomes(
            "first",
            &[(2, DOWN), (1, Outcome::Miss), (0, Outcome::Done)]
        ),
        [all, "", "Reply(1)", ""]
    );
    assert_eq!(
        outcomes("first", &[(2, DOWN), (1, DOWN), (0, DOWN)]),
        [all, "", "", "Reply(0)"]
    );
    assert_eq!(
        outcomes(
            "majority",
            &[(2, Outcome::Miss), (0, Outcome::Done), (1, Outcome::Done)]
        ),
        [all, "", "", "Reply(0)"]
    );
    assert_eq!(
        outcomes(
            "majority",
            &[(2, Outcome::Done), (1, Outcome::Done), (0, DOWN)]
        ),
        [all, "", "Reply(2)", ""]
    );
    assert_eq!(
        outcomes("primary", &[(0, Outcome::Done)]),
        ["0:a, (1:b), (2:c)", "Reply(0)"]
    );
    assert_eq!(outcomes("none", &[]), ["(0:a), (1:b), (2:c), Null"]);
}

#[test]
fn replies_are_needed_until_there_is_an_answer() {
    let tree = tree("{ fanout = ['a', 'b', 'c'], wait = 'all' }");
    let (mut told, _) = Told::start(&tree, Command::Get, Fixed::default());
    told.outcome(1, Outcome::Hit);
    assert!(told.walk.needs(1) && !told.walk.needs(0));
    told.outcome(0, Outcome::Hit);
    told.outcome(2, Outcome::Hit);
    assert!(!told.walk.needs(1));
}

#[test]
fn random_takes_the_less_busy() {
    let tree = tree("{ random = ['a', 'b'] }");
    let world = Fixed {
        loads: vec![u64::MAX, 7, 0],
        ..Fixed::default()
    };
    assert_eq!(Told::start(&tree, Command::Get, world).1, "0:b");
}

#[test]
fn a_tier_reads_near_first_and_fills_it() {
    let tree = tree("{ tier = { near = 'a', far = 'b', ttl = '5s' } }");
    let (mut told, first) = Told::start(&tree, Command::Get, Fixed::default());
    assert_eq!(first, "0:a");
    assert_eq!(told.outcome(0, Outcome::Miss), "1:b");
    assert_eq!(told.outcome(1, Outcome::Hit), "Reply(1), (2:a fill 1 5s)");

    let (mut told, _) = Told::start(&tree, Command::Get, Fixed::default());
    assert_eq!(told.outcome(0, Outcome::Hit), "Reply(0)");
    let (mut told, _) = Told::start(&tree, Command::Get, Fixed::default());
    assert_eq!(told.outcome(0, DOWN), "1:b", "near is a help, not a need");
    assert_eq!(told.outcome(1, Outcome::Miss), "Reply(1)");

    for command in [Command::Set, Command::Incr, Command::Delete, Command::Touch] {
        let (mut told, first) = Told::start(&tree, command, Fixed::default());
        // What follows in one pipeline must not be read near as it was.
        assert_eq!(first, "(0:a delete), 1:b");
        assert_eq!(told.outcome(1, Outcome::Done), "(2:a delete), Reply(1)");
    }
}

/// What is brought over lives as long as it would have where it was.
#[test]
fn what_warms_up_keeps_its_life() {
    let tree = tree("{ warmup = { cold = 'a', warm = 'b' } }");
    let (mut told, _) = Told::start(&tree, Command::Get, Fixed::default());
    assert_eq!(told.outcome(0, Outcome::Miss), "1:b");
    assert_eq!(told.outcome(1, Outcome::Hit), "Reply(1), 2:b life");
    assert!(told.walk.needs(1) && !told.walk.is_over());
    assert_eq!(told.outcome(2, Outcome::Done), "(3:a fill 1 as 2)");
    assert!(told.walk.is_over());

    let (mut told, _) = Told::start(&tree, Command::Get, Fixed::default());
    told.outcome(0, Outcome::Miss);
    told.outcome(1, Outcome::Hit);
    assert_eq!(told.outcome(2, Outcome::Miss), "", "it has just gone");
    assert!(told.walk.is_over());

    let (mut told, _) = Told::start(&tree, Command::Incr, Fixed::default());
    assert_eq!(told.outcome(0, Outcome::Miss), "1:b read");
    assert_eq!(told.outcome(1, Outcome::Hit), "2:b life");
    assert!(told.walk.needs(0) && told.walk.needs(1));
    assert_eq!(told.outcome(2, Outcome::Done), "3:a fill 1 as 2");
    assert_eq!(told.outcome(3, Outcome::Done), "4:a");
    assert_eq!(told.outcome(4, Outcome::Done), "Reply(4)");

    let (mut told, _) = Told::start(&tree, Command::Incr, Fixed::default());
    told.outcome(0, Outcome::Miss);
    told.outcome(1, Outcome::Hit);
    assert_eq!(told.outcome(2, Outcome::Miss), "Reply(0)");
    assert!(told.walk.is_over());
}

#[test]
fn a_cold_pool_is_warmed_up() {
    let tree = tree("{ warmup = { cold = 'a', warm = 'b', ttl = '1h' } }");
    let (mut told, first) = Told::start(&tree, Command::Get, Fixed::default());
    assert_eq!(first, "0:a");
    assert_eq!(told.outcome(0, Outcome::Miss), "1:b");
    assert_eq!(
        told.outcome(1, Outcome::Hit),
        "Reply(1), (2:a fill 1 3600s)"
    );

    let (mut told, _) = Told::start(&tree, Command::Get, Fixed::default());
    assert_eq!(
        told.outcome(0, DOWN),
        "Reply(0)",
        "the warm one may not stand in"
    );

    // What changes a value needs it in its new place first.
    let (mut told, _) = Told::start(&tree, Command::Incr, Fixed::default());
    assert_eq!(told.outcome(0, Outcome::Miss), "1:b read");
    assert!(told.walk.needs(0));
    assert_eq!(told.outcome(1, Outcome::Hit), "2:a fill 1 3600s");
    assert_eq!(told.outcome(2, Outcome::Refused), "3:a");
    assert_eq!(told.outcome(3, Outcome::Done), "Reply(3)");
    let (mut told, _) = Told::start(&tree, Command::Incr, Fixed::default());
    told.outcome(0, Outcome::Miss);
    assert_eq!(told.outcome(1, Outcome::Miss), "Reply(0)");

    for command in [Command::Set, Command::Delete] {
        let (mut told, first) = Told::start(&tree, command, Fixed::default());
        assert_eq!(first, "0:a");
        assert_eq!(told.outcome(0, Outcome::Done), "(1:b delete), Reply(0)");
    }
}

#[test]
fn a_migration_moves_each_key_once() {
    let tree = tree(
        "{ migrate = { from = 'a', to = 'b', start = 2026-01-01T00:00:00Z, over = '1000s' } }",
    );
    let start = 1_767_225_600;
    let settle = |key: &str, at| {
        let question = Question {
            command: Command::Get,
            key: key.as_bytes(),
            listener: None,
        };
        match tree.settle(tree.root(), &question, at) {
            Settled::Pool(pool) => pool,
            other => panic!("{other:?}"),
        }
    };
    let keys: Vec<String> = (0..1000).map(|n| format!("key{n}")).collect();
    let mut moved_before = 0;
    for at in (0..=1000).step_by(100) {
        let moved: Vec<&String> = keys
            .iter()
            .filter(|key| settle(key, start + at) == 1)
            .collect();
        assert!(
            (moved.len() as i64 - at as i64).abs() < 60,
            "{} at {at}",
            moved.len()
        );
        assert!(moved.len() >= moved_before);
        assert!(moved.iter().all(|key| settle(key, start + at + 50) == 1));
        moved_before = moved.len();
    }
    assert!(keys.iter().all(|key| settle(key, start - 1) == 0));
    assert!(keys.iter().all(|key| settle(key, start + 5000) == 1));

    let at = |unix| Fixed {
        unix,
        ..Fixed::default()
    };
    let (_, first) = Told::start(&tree, Command::Delete, at(start + 1));
    assert_eq!(first, "0:a, (1:b)");
    let (_, first) = Told::start(&tree, Command::Delete, at(start + 1000));
    assert_eq!(first, "0:b");
}

#[test]
fn a_shadow_gets_copies_of_its_share() {
    let all = tree("{ shadow = { main = 'a', copies = 'b', share = 1.0 } }");
    let (mut told, first) = Told::start(&all, Command::Set, Fixed::default());
    assert_eq!(first, "0:a, (1:b)");
    assert_eq!(told.outcome(1, DOWN), "", "nobody asked");
    assert_eq!(told.outcome(0, Outcome::Done), "Reply(0)");
    let none = tree("{ shadow = { main = 'a', copies = 'b', share = 0 } }");
    assert_eq!(Told::start(&none, Command::Set, Fixed::default()).1, "0:a");
}

#[test]
fn keys_and_lives_are_rewritten() {
    let tree = tree(
        "{ rewrite = { to = { rewrite = { to = 'a', prefix = 'x:', ttl_max = '60s' } }, strip = 'k', suffix = '!', ttl = '90s' } }",
    );
    let (told, first) = Told::start(&tree, Command::Set, Fixed::default());
    assert_eq!(first, "0:a x:ey! =60s");
    assert_eq!(told.walk.key(0), b"key");
    let long: &'static str = Box::leak("y".repeat(248).into_boxed_str());
    let (_, first) = Told::of(&tree, question(Command::Get, long), Fixed::default());
    assert_eq!(first, "KeyTooLong");
}

#[test]
fn lives_are_capped_as_memcached_reads_them() {
    let now = 2_000_000_000;
    let capped = |exptime| Ttl::AtMost(60).apply(exptime, now);
    assert_eq!(capped(0), 60, "0 is never");
    assert_eq!(capped(10), 10);
    assert_eq!(capped(600), 60);
    assert_eq!(capped(-1), -1, "at once stays at once");
    assert_eq!(capped(now as i64 + 10), now as i64 + 10);
    assert_eq!(capped(now as i64 + 600), 60);
    assert_eq!(Ttl::Exactly(5).apply(0, now), 5);
    assert_eq!(Ttl::AsIs.apply(600, now), 600);
    let long = 60 * 60 * 24 * 31;
    assert_eq!(
        Ttl::Exactly(long).apply(0, now),
        now as i64 + i64::from(long)
    );
}

#[test]
fn limits_say_busy_and_give_back_what_they_counted() {
    let tree = tree("{ limit = { to = 'a', in_flight = 1, command = 'write' } }");
    let (mut first, said) = Told::start(&tree, Command::Set, Fixed::default());
    assert_eq!(said, "0:a");
    assert_eq!(Told::start(&tree, Command::Set, Fixed::default()).1, "Busy");
    assert_eq!(Told::start(&tree, Command::Get, Fixed::default()).1, "0:a");
    first.outcome(0, Outcome::Done);
    let (second, said) = Told::start(&tree, Command::Set, Fixed::default());
    assert_eq!(said, "0:a");
    drop(first);
    assert_eq!(Told::start(&tree, Command::Set, Fixed::default()).1, "Busy");
    drop(second);
    assert_eq!(Told::start(&tree, Command::Set, Fixed::default()).1, "0:a");

    let tree = super::tests::tree("{ limit = { to = 'a', rate = 1.0, burst = 2 } }");
    let said = |ns| {
        let world = Fixed {
            nanoseconds: ns,
            ..Fixed::default()
        };
        Told::start(&tree, Command::Get, world).1
    };
    let second = 1_000_000_000;
    assert_eq!(
        [said(second), said(second), said(second)],
        ["0:a", "0:a", "Busy"]
    );
    assert_eq!(said(2 * second), "0:a");
}

#[test]
fn nothing_errors_and_faults() {
    let null = tree("{ null = true }");
    assert_eq!(Told::start(&null, Command::Set, Fixed::default()).1, "Null");
    let gone = tree("{ failover = [{ error = 'gone' }, 'a'] }");
    assert_eq!(Told::start(&gone, Command::Get, Fixed::default()).1, "0:a");
    let error = tree("{ error = 'gone' }");
    assert_eq!(
        Told::start(&error, Command::Get, Fixed::default()).1,
        "Error(0)"
    );
    let slow = tree("{ fault = { to = 'a', delay = '5ms' } }");
    assert_eq!(
        Told::start(&slow, Command::Get, Fixed::default()).1,
        "0:a after 5ms"
    );
    let some = tree("{ fault = { to = 'a', error = 'x', share = 0.5 } }");
    let mut world = Fixed::default();
    let struck = (0..1000)
        .filter(|_| {
            let random = world.random();
            let world = Fixed {
                random,
                ..Fixed::default()
            };
            Told::start(&some, Command::Get, world)
                .1
                .starts_with("Error")
        })
        .count();
    assert!((400..600).contains(&struck), "{struck}");
}

/// Routes of every kind, as deep as `depth`.
fn any_route(depth: u32) -> BoxedStrategy<String> {
    let leaf = prop_oneof![
        6 => prop_oneof![Just("'a'"), Just("'b'"), Just("'c'")].prop_map(str::to_owned),
        1 => Just("{ null = true }".to_owned()),
        1 => Just("{ error = 'no' }".to_owned()),
    ];
    leaf.prop_recursive(depth, 12, 3, |inner| {
        let two = (inner.clone(), inner.clone());
        let waits = prop_oneof![
            Just("all"), Just("first"), Just("majority"), Just("primary"), Just("none")
        ];
        prop_oneof![
            two.clone().prop_map(|(a, b)| format!("{{ failover = [{a}, {b}], on = ['down', 'miss'], ttl_max = '9s' }}")),
            (two.clone(), waits).prop_map(|((a, b), wait)| format!("{{ fanout = [{a}, {b}], wait = '{wait}' }}")),
            two.clone().prop_map(|(a, b)| format!("{{ random = [{a}, {b}] }}")),
            two.clone().prop_map(|(a, b)| format!("{{ tier = {{ near = {a}, far = {b}, ttl = '5s' }} }}")),
            two.clone().prop_map(|(a, b)| format!("{{ warmup = {{ cold = {a}, warm = {b}, ttl = '5s' }} }}")),
            two.clone().prop_map(|(a, b)| format!("{{ migrate = {{ from = {a}, to = {b}, start = 1970-01-10T00:00:00Z, over = '10d' }} }}")),
            two.clone().prop_map(|(a, b)| format!("{{ shadow = {{ main = {a}, copies = {b}, share = 0.5 }} }}")),
            two.prop_map(|(a, b)| format!("{{ match = [{{ command = 'read', to = {a} }}], otherwise = {b} }}")),
            inner.clone().prop_map(|a| format!("{{ rewrite = {{ to = {a}, prefix = 'p' }} }}")),
            inner.clone().prop_map(|a| format!("{{ limit = {{ to = {a}, in_flight = 3 }} }}")),
            inner.prop_map(|a| format!("{{ fault = {{ to = {a}, error = 'x', share = 0.2 }} }}")),
        ]
    })
    .boxed()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever the routes and whatever comes of the sends: exactly one answer, no more sends than
    /// the configuration's bound, every place that was counted given back.
    #[test]
    fn every_request_has_one_answer(
        route in any_route(4),
        command in prop::sample::select(Command::ALL.to_vec()),
        script in prop::collection::vec((any::<prop::sample::Index>(), 0..6_u8), 64),
        seed in any::<u64>(),
    ) {
        let text = format!("route = {route}\n[pools]\na = {{ servers = ['a'] }}\nb = {{ servers = ['b'] }}\nc = {{ servers = ['c'] }}\n");
        // Some are too large to be allowed.
        let Ok(proxy) = parse(&text) else { return Ok(()) };
        let tree = Arc::new(Tree::build(&proxy, "host"));
        let mut world = Fixed { random: seed, ..Fixed::default() };
        let mut actions = Vec::new();
        let mut walk = Walk::start(
            &tree, tree.root(), &question(command, "key"), Manner::default(), &mut world, &mut actions,
        );
        let mut owed: Vec<Tag> = Vec::new();
        let (mut answers, mut sends) = (0, 0);
        let mut script = script.into_iter();
        loop {
            for action in actions.drain(..) {
                match action {
                    Action::Answer(_) => answers += 1,
                    Action::Send(send) => {
                        sends += 1;
                        if send.awaited {
                            owed.push(send.tag);
                        }
                    }
                }
            }
            if owed.is_empty() {
                break;
            }
            let (at, outcome) = script
                .next()
                .map_or((0, 0), |(index, outcome)| (index.index(owed.len()), outcome));
            let tag = owed.swap_remove(at);
            let outcome = [
                Outcome::Hit, Outcome::Miss, Outcome::Done, Outcome::Refused, DOWN,
                Outcome::Failed(Failure::Timeout),
            ][usize::from(outcome)];
            walk.outcome(tag, outcome, &mut world, &mut actions);
        }
        prop_assert_eq!(answers, 1, "{}", route);
        prop_assert!(walk.is_over());
        prop_assert!(sends <= 64 , "{} sends", sends);
        drop(walk);
        for gate in &tree.gates {
            if let Some(in_flight) = &gate.in_flight {
                prop_assert!(in_flight.is_empty());
            }
        }
    }
}
