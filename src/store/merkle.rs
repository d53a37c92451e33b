#![forbid(unsafe_code)]
//! Segment trees of values: BLAKE3, which is a Merkle tree itself.
//!
//! A value is cut into segments of 64 KiB. Each has a digest, the chaining value of its subtree; the
//! root over them is the plain BLAKE3 hash of the value, so that anybody can compute it from a copy.
//! Who has the digests can tell which segment of a copy differs, and can check a segment by itself.

use blake3::Hasher;
use blake3::hazmat::{HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};

/// Bytes of a segment, but for the last.
pub const SEGMENT: usize = 64 << 10;

/// Bytes of a digest.
pub const DIGEST: usize = 32;

pub type Digest = [u8; DIGEST];

/// The digests of a value, in order, and their root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    pub root: Digest,
    pub leaves: Vec<Digest>,
}

/// How many segments a value of so many bytes has; an empty one has one.
pub fn segments(length: usize) -> usize {
    length.div_ceil(SEGMENT).max(1)
}

/// Bytes of the digests of a value of so many bytes: the root, and one for each segment.
pub fn bytes_for(length: usize) -> usize {
    (1 + segments(length)) * DIGEST
}

/// The root of a value that is at hand.
pub fn root(value: &[u8]) -> Digest {
    *blake3::hash(value).as_bytes()
}

/// The digest of segment number `index`, from 0 on, of a value of `count` segments. That of the only
/// segment is the root.
pub fn leaf(index: usize, count: usize, segment: &[u8]) -> Digest {
    if count == 1 {
        return root(segment);
    }
    let mut hasher = Hasher::new();
    hasher.set_input_offset((index * SEGMENT) as u64);
    hasher.update(segment);
    hasher.finalize_non_root()
}

/// The root over all digests of a value. There must be one at least.
pub fn root_of(leaves: &[Digest]) -> Digest {
    match leaves {
        [] => root(&[]),
        [only] => *only,
        _ => {
            let (left, right) = halves(leaves);
            *merge_subtrees_root(&subtree(left), &subtree(right), Mode::Hash).as_bytes()
        }
    }
}

fn subtree(leaves: &[Digest]) -> Digest {
    match leaves {
        [only] => *only,
        _ => {
            let (left, right) = halves(leaves);
            merge_subtrees_non_root(&subtree(left), &subtree(right), Mode::Hash)
        }
    }
}

/// The left half has as many as the largest power of two that leaves something for the right one.
fn halves(leaves: &[Digest]) -> (&[Digest], &[Digest]) {
    leaves.split_at(leaves.len().next_power_of_two() / 2)
}

impl Tree {
    /// As it is laid down: the root, then the others.
    pub fn bytes(&self) -> impl Iterator<Item = &Digest> {
        std::iter::once(&self.root).chain(&self.leaves)
    }

    /// Reads what [`bytes`](Tree::bytes) gave. Nothing if the root does not go with the others.
    pub fn read(bytes: &[u8]) -> Option<Tree> {
        let mut digests = bytes.chunks_exact(DIGEST).map(|digest| {
            let mut copy = [0; DIGEST];
            copy.copy_from_slice(digest);
            copy
        });
        let root = digests.next()?;
        let leaves: Vec<Digest> = digests.collect();
        (root_of(&leaves) == root).then_some(Tree { root, leaves })
    }

    /// The segments whose digests differ from those of another copy, of this length or another one.
    pub fn differing<'t>(&'t self, other: &'t Tree) -> impl Iterator<Item = usize> + 't {
        let most = self.leaves.len().max(other.leaves.len());
        (0..most).filter(|&index| self.leaves.get(index) != other.leaves.get(index))
    }
}

/// Bytes that are gathered before they are hashed, a part of a segment. The hash goes through so many
/// at once in less than half the time that it needs for what a chunk holds, or what a socket gives.
const STAGE: usize = 16 << 10;

/// Computes the tree of a value as it arrives.
pub struct Builder {
    leaves: Vec<Digest>,
    hasher: Hasher,
    /// What has been gathered: fewer than [`STAGE`] bytes.
    staged: Vec<u8>,
    /// Bytes of the segment that is being hashed, gathered ones included.
    filled: usize,
    /// There will be one segment only, whose digest is another one then.
    single: bool,
}

impl Builder {
    /// For a value of `length` bytes.
    pub fn new(length: usize) -> Builder {
        Builder::resume(length, Vec::with_capacity(segments(length)))
    }

    /// Goes on behind full segments whose digests are known; only of a value that had several.
    pub fn resume(length: usize, leaves: Vec<Digest>) -> Builder {
        let mut builder = Builder {
            leaves,
            hasher: Hasher::new(),
            staged: Vec::with_capacity(STAGE.min(length)),
            filled: 0,
            single: segments(length) == 1,
        };
        builder.begin_segment();
        builder
    }

    fn begin_segment(&mut self) {
        // Its `reset` would keep the offset.
        self.hasher = Hasher::new();
        if !self.single {
            let offset = self.leaves.len() * SEGMENT;
            self.hasher.set_input_offset(offset as u64);
        }
        self.filled = 0;
    }

    fn end_segment(&mut self) {
        self.hasher.update(&self.staged);
        self.staged.clear();
        self.leaves.push(if self.single {
            *self.hasher.finalize().as_bytes()
        } else {
            self.hasher.finalize_non_root()
        });
    }

    /// The next bytes of the value.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.filled == SEGMENT {
                self.end_segment();
                self.begin_segment();
            }
            // Parts end where segments do.
            let n = bytes.len().min(STAGE - self.staged.len());
            if n == STAGE {
                self.hasher.update(&bytes[..n]);
            } else {
                self.staged.extend_from_slice(&bytes[..n]);
                if self.staged.len() == STAGE {
                    self.hasher.update(&self.staged);
                    self.staged.clear();
                }
            }
            self.filled += n;
            bytes = &bytes[n..];
        }
    }

    /// The tree of what has come.
    pub fn finish(mut self) -> Tree {
        if self.filled > 0 || self.leaves.is_empty() {
            self.end_segment();
        }
        Tree {
            root: root_of(&self.leaves),
            leaves: self.leaves,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(length: usize) -> Vec<u8> {
        (0..length as u64)
            .map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
            .collect()
    }

    fn tree(value: &[u8], step: usize) -> Tree {
        let mut builder = Builder::new(value.len());
        for part in value.chunks(step) {
            builder.update(part);
        }
        builder.finish()
    }

    #[test]
    fn the_root_is_the_plain_hash_whatever_the_length_and_the_pieces() {
        for segments in [0, 1, 2, 3, 4, 5, 7, 8, 9] {
            for more in [0, 1, 1023, 1024, 1025, SEGMENT - 1] {
                let value = value(segments * SEGMENT + more);
                for step in [1000, 16_368, SEGMENT, usize::MAX] {
                    let tree = tree(&value, step);
                    assert_eq!(tree.root, root(&value), "{} bytes by {step}", value.len());
                    assert_eq!(tree.leaves.len(), super::segments(value.len()));
                }
            }
        }
    }

    #[test]
    fn the_empty_value_has_the_published_root() {
        let hex: String = root(&[]).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
        );
    }

    #[test]
    fn a_changed_byte_shows_in_its_segment_alone() {
        let mut copy = value(5 * SEGMENT + 77);
        let before = tree(&copy, SEGMENT);
        for (at, segment) in [
            (0, 0),
            (SEGMENT - 1, 0),
            (SEGMENT, 1),
            (5 * SEGMENT + 76, 5),
        ] {
            copy[at] ^= 1;
            let after = tree(&copy, SEGMENT);
            assert_ne!(after.root, before.root);
            assert_eq!(before.differing(&after).collect::<Vec<_>>(), [segment]);
            for (index, part) in copy.chunks(SEGMENT).enumerate() {
                let right = leaf(index, 6, part) == before.leaves[index];
                assert_eq!(right, index != segment);
            }
            copy[at] ^= 1;
        }
    }

    #[test]
    fn a_longer_value_goes_on_behind_its_full_segments() {
        let whole = value(7 * SEGMENT + 5);
        for known in 0..7 {
            let leaves = tree(&whole, SEGMENT).leaves[..known].to_vec();
            let mut builder = Builder::resume(whole.len(), leaves);
            builder.update(&whole[known * SEGMENT..]);
            assert_eq!(builder.finish().root, root(&whole));
        }
    }
}
