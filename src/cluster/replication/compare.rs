#![forbid(unsafe_code)]
//! How two copies find what differs between them, with few bytes.
//!
//! ```text
//! copy                                source
//!   NODES, of each partition ─────────▶  compares
//!          ◀───────────────────────────  LEAVESREQUEST, under the nodes that differ
//!   LEAVES ───────────────────────────▶  compares
//!          ◀───────────────────────────  LISTREQUEST, for the leaves that differ; LISTEND
//!   LIST: what it has in those; LISTEND ▶  compares with what it has
//!          ◀───────────────────────────  CHUNK: what the copy has not; DROP: what the source has not
//! ```
//! All digests but those of nodes are cut down to three bytes.

use std::ops::Range;

use super::message::{Leaves, put_short, shorts};
use crate::store::journal::{self, FANOUT, LEAVES, NODES, Row, short};

/// Bytes of a list in one frame, about.
const LIST: usize = 256 << 10;

fn is_in(leaves: &Leaves, leaf: usize) -> bool {
    leaves[leaf / 64] & 1 << (leaf % 64) != 0
}

/// The leaves of a set, in order.
pub fn each_leaf(leaves: &Leaves) -> impl Iterator<Item = usize> {
    (0..LEAVES).filter(|&leaf| is_in(leaves, leaf))
}

/// The nodes under which rows differ, a bit for each.
pub fn differing_nodes(ours: &Row, theirs: &[u32; NODES]) -> u64 {
    let ours = journal::nodes(ours);
    let differ = (0..NODES).filter(|&node| ours[node] != theirs[node]);
    differ.fold(0, |nodes, node| nodes | 1 << node)
}

/// The leaves under nodes, in order.
fn under(nodes: u64) -> impl Iterator<Item = usize> {
    let nodes = (0..NODES).filter(move |node| nodes & 1 << node != 0);
    nodes.flat_map(|node| node * FANOUT..(node + 1) * FANOUT)
}

/// What a copy tells of the leaves under some nodes.
pub fn tell_leaves(row: &Row, nodes: u64) -> Vec<u8> {
    let mut told = Vec::new();
    for leaf in under(nodes) {
        put_short(&mut told, short(row[leaf], 0));
    }
    told
}

/// Which of those leaves differ. Nothing: as many as that were not asked for.
pub fn differing_leaves(ours: &Row, nodes: u64, told: &[u8]) -> Option<Box<Leaves>> {
    if told.len() != nodes.count_ones() as usize * FANOUT * 3 {
        return None;
    }
    let mut differ = Box::new(Leaves::default());
    for (leaf, theirs) in under(nodes).zip(shorts(told)) {
        if short(ours[leaf], 0) != theirs {
            differ[leaf / 64] |= 1 << (leaf % 64);
        }
    }
    Some(differ)
}

/// What a copy has in the leaves of a partition that it is asked about.
pub struct Listing {
    leaves: Leaves,
    salt: u64,
    items: Vec<Listed>,
}

#[derive(Clone, Copy)]
struct Listed {
    leaf: u32,
    short: u32,
    digest: u64,
    /// Where it is found again, as [`Data`](super::data::Data) has it.
    spot: u64,
}

impl Listing {
    pub fn new(leaves: Leaves, salt: u64) -> Listing {
        Listing {
            leaves,
            salt,
            items: Vec::new(),
        }
    }

    /// Whether it is about this place.
    pub fn wants(&self, place: u64) -> bool {
        is_in(&self.leaves, journal::leaf(place))
    }

    pub fn push(&mut self, place: u64, digest: u64, spot: u64) {
        self.items.push(Listed {
            leaf: journal::leaf(place) as u32,
            short: short(digest, self.salt),
            digest,
            spot,
        });
    }

    /// Calls `say` with lists, and the first leaf of each. From here on items have numbers.
    pub fn tell(&mut self, mut say: impl FnMut(usize, &[u8])) {
        self.items
            .sort_unstable_by_key(|item| (item.leaf, item.short));
        let mut rest = &self.items[..];
        let (mut first, mut list) = (0, Vec::new());
        for leaf in each_leaf(&self.leaves) {
            if list.len() >= LIST {
                say(first, &list);
                list.clear();
                first = leaf;
            }
            let here = rest
                .iter()
                .take_while(|item| item.leaf == leaf as u32)
                .count();
            let (items, others) = rest.split_at(here);
            rest = others;
            let mut count = here;
            while count >= 0x80 {
                list.push(count as u8 | 0x80);
                count >>= 7;
            }
            list.push(count as u8);
            for item in items {
                put_short(&mut list, item.short);
            }
        }
        say(first, &list);
    }

    /// Digests and spots of the items whose bits are set.
    pub fn named<'l>(&'l self, bits: &'l [u8]) -> impl Iterator<Item = (u64, u64)> + 'l {
        let named = move |at: &usize| {
            bits.get(at / 8)
                .is_some_and(|eight| eight & 1 << (at % 8) != 0)
        };
        let numbers = (0..self.items.len()).filter(named);
        numbers.map(|at| (self.items[at].digest, self.items[at].spot))
    }
}

/// What a source has been told of a partition.
pub struct Theirs {
    leaves: Box<Leaves>,
    salt: u64,
    shorts: Vec<u32>,
    /// The source has them as well.
    found: Vec<bool>,
    /// Where the items of a leaf begin; of the next one, those end.
    starts: Vec<u32>,
}

impl Theirs {
    /// Nothing so far.
    pub fn new(leaves: Box<Leaves>, salt: u64) -> Theirs {
        Theirs {
            leaves,
            salt,
            shorts: Vec::new(),
            found: Vec::new(),
            starts: vec![0],
        }
    }

    /// Takes a list in. Nothing: it is not what was asked for.
    pub fn take(&mut self, first: usize, mut list: &[u8]) -> Option<()> {
        if first > LEAVES || first + 1 < self.starts.len() {
            return None;
        }
        self.pass(first);
        while !list.is_empty() {
            let leaf = self.starts.len() - 1;
            if leaf >= LEAVES {
                return None;
            }
            if is_in(&self.leaves, leaf) {
                let mut count = 0usize;
                for shift in (0..).step_by(7) {
                    let (byte, rest) = list.split_first()?;
                    list = rest;
                    count |= usize::from(byte & 0x7f) << shift;
                    if byte & 0x80 == 0 {
                        break;
                    }
                    if shift == 21 {
                        return None;
                    }
                }
                let (items, rest) = list.split_at_checked(count * 3)?;
                self.shorts.extend(shorts(items));
                list = rest;
            }
            self.pass(leaf + 1);
        }
        Some(())
    }

    /// The leaves before this one have been told.
    fn pass(&mut self, leaf: usize) {
        self.starts.resize(leaf + 1, self.shorts.len() as u32);
        self.found.resize(self.shorts.len(), false);
    }

    /// Whether an item is one that the copy lacks, in a leaf that differs.
    pub fn lacks(&mut self, place: u64, digest: u64) -> bool {
        let leaf = journal::leaf(place);
        if !is_in(&self.leaves, leaf) {
            return false;
        }
        let short = short(digest, self.salt);
        let known = self.range(leaf).find(|&at| self.shorts[at] == short);
        if let Some(at) = known {
            self.found[at] = true;
        }
        known.is_none()
    }

    fn range(&self, leaf: usize) -> Range<usize> {
        let start = |leaf: usize| {
            self.starts
                .get(leaf)
                .map_or(self.shorts.len(), |at| *at as usize)
        };
        start(leaf)..start(leaf + 1)
    }

    /// A bit for each item of the copy that has not been found here; nothing if all have.
    pub fn strangers(&self) -> Option<Vec<u8>> {
        if self.found.iter().all(|found| *found) {
            return None;
        }
        let eights = self.found.chunks(8);
        let bits = eights.map(|eight| {
            let strangers = (0..eight.len()).filter(|&at| !eight[at]);
            strangers.fold(0, |bits, at| bits | 1 << at)
        });
        Some(bits.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::journal::place;

    /// Items with digests, of one partition as far as leaves go.
    fn items(numbers: Range<u64>) -> Vec<(u64, u64)> {
        let item = |number: u64| {
            let place = place(&number.to_le_bytes());
            (place, journal::item_digest(place, number, 0, 0, 0))
        };
        numbers.map(item).collect()
    }

    fn row(items: &[(u64, u64)]) -> Row {
        let mut row = [0; LEAVES];
        for (place, digest) in items {
            row[journal::leaf(*place)] ^= digest;
        }
        row
    }

    #[test]
    fn what_differs_is_found_and_nothing_else_is_told() {
        let (ours, theirs) = (items(0..3000), items(20..3030));
        let (our_row, their_row) = (row(&ours), row(&theirs));
        let nodes = differing_nodes(&our_row, &journal::nodes(&their_row));
        let told = tell_leaves(&their_row, nodes);
        assert_eq!(differing_leaves(&our_row, nodes, &told[1..]), None);
        let leaves = differing_leaves(&our_row, nodes, &told).unwrap();
        let exact: Vec<usize> = (0..LEAVES)
            .filter(|&leaf| our_row[leaf] != their_row[leaf])
            .collect();
        assert_eq!(each_leaf(&leaves).collect::<Vec<_>>(), exact);
        assert_eq!(differing_nodes(&our_row, &journal::nodes(&our_row)), 0);

        let mut listing = Listing::new(*leaves, 5);
        for (number, (place, digest)) in theirs.iter().enumerate() {
            if listing.wants(*place) {
                listing.push(*place, *digest, number as u64);
            }
        }
        let mut known = Theirs::new(leaves, 5);
        listing.tell(|first, list| known.take(first, list).unwrap());
        let lacking = ours.iter().filter(|(at, digest)| known.lacks(*at, *digest));
        assert!(lacking.eq(&ours[..20]), "the copy lacks the first ones");
        let strangers = known.strangers().unwrap();
        let mut named: Vec<u64> = listing.named(&strangers).map(|(_, spot)| spot).collect();
        named.sort_unstable();
        assert_eq!(named, (2980..3010).collect::<Vec<_>>());
    }

    #[test]
    fn lists_that_were_not_asked_for_are_refused() {
        let mut leaves = Box::new(Leaves::default());
        leaves[0] = 0b1010;
        let fresh = || Theirs::new(leaves.clone(), 0);
        assert!(fresh().take(0, &[1, 7, 7, 7, 0]).is_some());
        assert!(fresh().take(0, &[1, 7, 7]).is_none(), "cut short");
        assert!(fresh().take(0, &[0, 0, 0]).is_none(), "beyond the leaves");
        assert!(fresh().take(0, &[0x80; 9]).is_none(), "no number");
        assert!(fresh().take(LEAVES + 1, &[]).is_none());
        let mut twice = fresh();
        assert!(twice.take(0, &[0]).is_some());
        assert!(twice.take(0, &[0]).is_none(), "a leaf twice");
        assert!(twice.take(3, &[0x81, 0]).is_none(), "more than there are");
        assert_eq!(fresh().strangers(), None);
        // A leaf with very many.
        let mut listing = Listing::new(*leaves, 0);
        let at = (0..)
            .map(|n: u64| n << 48)
            .find(|&at| journal::leaf(at) == 3);
        for digest in 0..100_000 {
            listing.push(at.unwrap(), digest << 20, digest);
        }
        let mut known = fresh();
        listing.tell(|first, list| known.take(first, list).unwrap());
        assert_eq!(known.shorts.len(), 100_000);
    }
}
