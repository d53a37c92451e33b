//! Rings of points.
#![forbid(unsafe_code)]

use super::{Member, Met, RingError, labels};
use crate::hash::hashkit;
use crate::settings::proxy::{KeyHash, McproxyLabels, POINTS_MAX, RingKind};

/// Points of a server of average weight, in every program but one.
const USUAL_POINTS: u32 = 160;
/// libmemcached's `KETAMA`.
const FEWER_POINTS: u32 = 100;

/// Points in order. Values and owners apart: a search touches values alone.
#[derive(Debug, Clone)]
pub(super) struct Continuum {
    pub(super) values: Box<[u32]>,
    pub(super) owners: Box<[u16]>,
    /// Servers that have a point.
    pub(super) distinct: usize,
    /// Values fall into equal ranges, about as many as there are points: where the points of each
    /// begin, and the end. Points are spread evenly enough that a search ends after a look or two.
    starts: Box<[u32]>,
    shift: u32,
}

impl Continuum {
    /// Of points with equal values the first one given is met first.
    fn new(mut points: Vec<(u32, u16)>) -> Continuum {
        points.sort_by_key(|&(value, _)| value);
        let bits = usize::BITS - points.len().leading_zeros();
        let shift = 32 - bits.clamp(1, 31);
        let ranges = 1_u64 << (32 - shift);
        let starts = (0..=ranges)
            .map(|range| {
                let from = range << shift;
                points.partition_point(|&(value, _)| u64::from(value) < from) as u32
            })
            .collect();
        let mut met = Met::default();
        Continuum {
            distinct: points.iter().filter(|(_, owner)| met.add(*owner)).count(),
            values: points.iter().map(|&(value, _)| value).collect(),
            owners: points.iter().map(|&(_, owner)| owner).collect(),
            starts,
            shift,
        }
    }

    /// Whether one server has all keys: then nobody needs to hash.
    #[inline]
    pub(super) fn is_one(&self) -> bool {
        self.distinct == 1
    }

    /// The first point not below a hash; past the last one, the first of all.
    #[inline]
    pub(super) fn find(&self, hash: u32) -> usize {
        let range = (hash >> self.shift) as usize;
        let from = self.starts[range] as usize;
        let to = self.starts[range + 1] as usize;
        let at = from + self.values[from..to].partition_point(|&value| value < hash);
        if at == self.values.len() { 0 } else { at }
    }
}

/// How a label becomes points.
#[derive(Clone, Copy)]
enum PointHash {
    /// Four per label.
    Md5,
    /// One per label.
    One(KeyHash),
}

/// The points of the servers in `live`.
pub(super) fn build(
    kind: RingKind,
    key_hash: KeyHash,
    members: &[Member],
    live: &[usize],
) -> Result<Continuum, RingError> {
    let heavy = live.iter().any(|&index| members[index].weight() > 1);
    // libmemcached takes a weight above 1 for a wish to have the weighted ring.
    let kind = match kind {
        RingKind::LibmemcachedKetama if heavy => RingKind::Libketama,
        kind => kind,
    };
    let total: u64 = live
        .iter()
        .map(|&index| u64::from(members[index].weight()))
        .sum();
    let weighted = |index: usize| weighted_points(members[index].weight(), total, live.len());
    let count = |index: usize| match kind {
        RingKind::McproxyRing { points, .. } => points,
        RingKind::LibmemcachedKetama => FEWER_POINTS,
        RingKind::Spymemcached {
            weighted: false, ..
        } => USUAL_POINTS,
        RingKind::Rj => rj_points(members[index].weight(), total, live.len()),
        _ => weighted(index),
    };
    let point_hash = match kind {
        RingKind::LibmemcachedKetama => PointHash::One(key_hash),
        RingKind::Spymemcached { .. } if key_hash != KeyHash::Md5 => PointHash::One(key_hash),
        RingKind::McproxyRing {
            labels: McproxyLabels::Default,
            ..
        } => PointHash::One(KeyHash::Xxh3),
        _ => PointHash::Md5,
    };
    if let (RingKind::McproxyRing { points, .. }, PointHash::Md5) = (kind, point_hash)
        && (points % 4 != 0 || points == 0)
    {
        return Err(RingError::NotInFours(points));
    }

    let mut order = live.to_vec();
    match kind {
        RingKind::Twemproxy => labels::sort_as_twemproxy(&mut order, members),
        // A map of points: who comes last takes the place.
        RingKind::Spymemcached { .. } => order.reverse(),
        _ => {}
    }
    let needed: usize = order.iter().map(|&index| count(index) as usize).sum();
    if needed > POINTS_MAX {
        return Err(RingError::TooManyPoints(needed));
    }
    if needed == 0 {
        return Err(RingError::NotInFours(0));
    }
    let mut points = Vec::with_capacity(needed);
    for &index in &order {
        let prefix = labels::label(kind, &members[index]);
        let owner = index as u16;
        match point_hash {
            PointHash::Md5 => {
                for number in 0..count(index) / 4 {
                    let words = hashkit::md5_words(format!("{prefix}-{number}").as_bytes());
                    points.extend(words.map(|value| (value, owner)));
                }
            }
            PointHash::One(function) => {
                for number in 0..count(index) {
                    let label = format!("{prefix}-{number}");
                    points.push((hashkit::hash(function, 0, label.as_bytes()), owner));
                }
            }
        }
    }
    Ok(Continuum::new(points))
}

/// A server's points as libmemcached and twemproxy compute them. Every step rounds to 32 bits: with
/// 25 servers alike that makes 156 points, not 160.
fn weighted_points(weight: u32, total: u64, servers: usize) -> u32 {
    let share = weight as f32 / total as f32;
    let labels = share * USUAL_POINTS as f32 / 4.0 * servers as f32 + 1e-10;
    labels.floor() as u32 * 4
}

/// The same by the original library, which multiplies in 64 bits and rounds once.
fn rj_points(weight: u32, total: u64, servers: usize) -> u32 {
    let share = weight as f32 / total as f32;
    let labels = (f64::from(share) * 40.0 * servers as f64) as f32;
    labels.floor() as u32 * 4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_per_server_as_recorded() {
        let text = include_str!("../../../tests/data/ketama/points_formula.csv");
        let mut checked = 0;
        for line in text.lines().skip(1) {
            let cells: Vec<u64> = line.split(',').map(|cell| cell.parse().unwrap()).collect();
            let (servers, weight, total) = (cells[0] as usize, cells[1] as u32, cells[2]);
            let points = weighted_points(weight, total, servers);
            assert_eq!(u64::from(points), cells[3], "{line}");
            let points = rj_points(weight, total, servers);
            assert_eq!(u64::from(points), cells[4], "{line}");
            checked += 1;
        }
        assert_eq!(checked, 855);
    }

    #[test]
    fn searches_are_lower_bounds() {
        for values in [
            vec![5, 5, 9, 1 << 31, u32::MAX],
            vec![0],
            vec![7, 8, 9, 10, 11, 12, 13],
            (0..1000).map(|n| n * 4_294_967).collect(),
        ] {
            let points = values.iter().map(|&value| (value, 0)).collect();
            let continuum = Continuum::new(points);
            let hashes = values
                .iter()
                .flat_map(|&value: &u32| [value.wrapping_sub(1), value, value.wrapping_add(1)]);
            for hash in hashes {
                let plain = values.iter().position(|&value| value >= hash).unwrap_or(0);
                assert_eq!(continuum.find(hash), plain, "{hash} among {values:?}");
            }
        }
    }
}
