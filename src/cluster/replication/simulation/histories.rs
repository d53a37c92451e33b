#![forbid(unsafe_code)]
//! Histories of whole groups, and what must hold in them.

use std::time::{Duration, Instant};

use super::super::model::Entry;
use super::super::session::Session;
use super::super::source::Scrubbed;
use super::super::{frame, linearizable};
use super::{Faults, World};
use crate::cluster::dice::Dice;
use crate::store::journal::place;

/// Tells the seed of what has gone wrong, whatever it is.
struct Told(u64);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {}", self.0);
        }
    }
}

/// One history, to its end.
fn lived(seed: u64, nodes: usize, steps: usize, faults: Faults) -> World {
    let mut world = World::new(seed, nodes, faults);
    for _ in 0..steps {
        world.step();
    }
    world.settle(seed);
    world
}

fn run(seed: u64, nodes: usize, steps: usize, faults: Faults) -> World {
    let _told = Told(seed);
    let world = lived(seed, nodes, steps, faults);
    for (key, history) in world.histories.iter().enumerate() {
        assert!(
            linearizable::check(history),
            "seed {seed}: key {key} {}",
            history
                .iter()
                .map(|one| format!("\n{}-{:?} {:?}", one.began, one.ended, one.action))
                .collect::<String>()
        );
    }
    world
}

const MIXED: Faults = Faults {
    cuts: true,
    blocks: true,
    crashes: false,
    flushes: true,
    long_values: true,
    two_phase: false,
    damage: false,
    careless: false,
};

const AGREED: Faults = Faults {
    crashes: true,
    two_phase: true,
    ..MIXED
};

/// How long one test goes on beyond the least that it does.
const BUDGET: Duration = Duration::from_millis(1500);

/// Runs a history for each seed: at least so many, and as many as there is time for; `LARDER_SEEDS` says
/// how many instead. Most are short, so that there are many beginnings; a fourth goes on for longer. How
/// many there were.
fn histories(least: u64, mut one: impl FnMut(u64, usize)) -> u64 {
    let asked = std::env::var("LARDER_SEEDS").ok();
    let asked: Option<u64> = asked.and_then(|number| number.parse().ok());
    let began = Instant::now();
    let mut seed = 0;
    while match asked {
        Some(most) => seed < most,
        None => seed < least || began.elapsed() < BUDGET,
    } {
        seed += 1;
        let steps = if seed % 4 == 0 { 200 } else { 15 + seed % 40 };
        one(seed, steps as usize);
    }
    println!("{seed} histories in {:?}", began.elapsed());
    seed
}

#[test]
fn copies_become_equal_whatever_the_network_does() {
    histories(150, |seed, steps| {
        run(seed, 3, steps, MIXED);
    });
}

#[test]
fn copies_become_equal_when_nodes_crash_and_others_lead() {
    let faults = Faults {
        crashes: true,
        ..MIXED
    };
    let mut promotions = 0;
    histories(200, |seed, steps| {
        promotions += run(seed, 3, steps, faults).promotions;
    });
    assert!(promotions > 10);
}

#[test]
fn damage_is_found_and_repaired() {
    let faults = Faults {
        damage: true,
        long_values: true,
        ..Faults::default()
    };
    histories(150, |seed, steps| {
        run(seed, 2, steps, faults);
    });
}

#[test]
fn two_phase_commit_is_linearizable() {
    let (mut promotions, mut operations) = (0, 0);
    histories(400, |seed, steps| {
        let world = run(seed, 3, steps, AGREED);
        promotions += world.promotions;
        operations += world.histories.iter().map(Vec::len).sum::<usize>();
    });
    assert!(
        promotions > 20 && operations > 3000,
        "{promotions} {operations}"
    );
}

/// A leader that answers before the votes are there loses what it has answered, and that is noticed.
#[test]
fn a_leader_that_waits_for_no_votes_is_found_out() {
    let faults = Faults {
        careless: true,
        ..AGREED
    };
    let found = (1..2000).find(|&seed| {
        let world = lived(seed, 3, 200, faults);
        !world.histories.iter().all(|one| linearizable::check(one))
    });
    assert!(found.is_some());
}

/// By scrubbing, and by comparing a copy that has fallen off the log.
#[test]
fn of_a_long_value_only_segments_that_differ_are_sent() {
    let mut world = World::new(1, 2, Faults::default());
    let key = world.keys[0].clone();
    let mut value = vec![7; 100_000];
    world.nodes[0].data.write(&key, value.clone());
    world.settle(1);
    let counts = |world: &mut World| {
        let session = world.wires[0].sessions[1].as_mut();
        let source = session.and_then(Session::source);
        source.expect("a leader's").counts
    };
    let before = counts(&mut world);
    let rotten = |entry: &mut Entry| entry.value[50_000] ^= 1;
    let entry = &world.nodes[1].data.items;
    entry.borrow_mut().get_mut(&key).map(rotten).expect("there");
    world.settle(1);
    let after = counts(&mut world);
    assert_eq!((before.values_patched, after.values_patched), (0, 1));
    let bytes = after.bytes - before.bytes;
    assert!((4096..25_000).contains(&bytes), "{bytes}");

    world.cut(0);
    value[10_000] ^= 1;
    value.extend_from_slice(b"and more");
    world.nodes[0].data.write(&key, value);
    world.nodes[0].data.journal.close_rings();
    world.settle(1);
    let anew = counts(&mut world);
    assert_eq!((anew.values_patched, anew.diffs > 0), (1, true));
    assert!((4096..25_000).contains(&anew.bytes), "{}", anew.bytes);
}

#[test]
fn a_seed_is_a_history() {
    let faults = Faults {
        crashes: true,
        ..MIXED
    };
    let (first, second) = (run(7, 3, 150, faults), run(7, 3, 150, faults));
    assert_eq!((first.trace, first.now), (second.trace, second.now));
    assert_ne!(first.trace, run(8, 3, 150, faults).trace);
    assert_eq!(frame::HEADER, 24);
}

/// How far a copy has been compared, which its connections do not outlive, and that what is told of it is
/// true: so many items, in the order of the walk, are as they should be.
#[test]
fn comparing_goes_on_where_a_connection_has_broken() {
    let mut went_on = 0;
    for seed in 1..=20 {
        let _told = Told(seed);
        let mut world = World::new(seed, 2, Faults::default());
        let mut dice = Dice::new(seed);
        let mut keys: Vec<Vec<u8>> = (0..60)
            .map(|key| format!("compared{key}").into_bytes())
            .collect();
        keys.sort_unstable_by_key(|key| place(key));
        for key in &keys {
            // Some are made good by segment, others by the log.
            let length = if dice.once_in(2) { 100_000 } else { 100 };
            world.nodes[0].data.write(key, vec![7; length]);
        }
        world.settle(seed);
        for entry in world.nodes[1].data.items.borrow_mut().values_mut() {
            let at = dice.roll(entry.value.len() as u64) as usize;
            entry.value[at] ^= 1;
        }
        let node = world.nodes[1].node.id;
        world.nodes[0].scrubbed.insert(node, Scrubbed::default());
        world.cut(0);
        let (mut before, mut cut_at) = (0, 0);
        for step in 0.. {
            assert!(step < 100_000, "it does not get on");
            world.now += 1 + dice.roll(3);
            world.dial();
            world.exchange();
            world.lead();
            let told = world.nodes[0].scrubbed[&node];
            let here = [0, 1].map(|node| world.nodes[node].data.items.borrow());
            if told.rounds > 0 {
                assert!(*here[0] == *here[1]);
                break;
            }
            assert!(told.items >= before, "it has begun anew");
            before = told.items;
            for key in &keys[..told.items as usize] {
                assert!(here[0].get(key) == here[1].get(key), "it has rotted");
            }
            drop(here);
            let some = told.items > cut_at && dice.once_in(2);
            if (some || dice.once_in(200)) && !world.wires.is_empty() {
                world.cut(0);
                went_on += u32::from(told.items > cut_at);
                cut_at = told.items;
                // The copy may have to be compared when it comes again.
                if dice.once_in(3) {
                    world.nodes[0].data.journal.close_rings();
                }
            }
        }
    }
    assert!(went_on > 50, "{went_on}");
}
