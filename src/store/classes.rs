//! Sizes: memcached's slab classes, which the outside sees, and the bins that items live in.
//!
//! memcached cuts memory into chunks of a few dozen sizes, a quarter apart. Those sizes, and which
//! item belongs to which of them, are visible in `stats` and in commands, so they are computed here
//! as memcached computes them. Items really stand in slots of finer sizes, the bins: 8 bytes apart
//! at first, then about 8 per cent, and from some hundred bytes on such that a page of 64 KiB
//! divides into slots with little left over. Each bin belongs to one class.
//!
//! An item has fewer bytes here than in memcached ([`Classes::extra`]). All sizes handed to bins
//! are ours, without the 8 bytes that a value over [`COPY_MAX`] carries for its pins: bins of that
//! size have room for them set aside.
#![forbid(unsafe_code)]

use super::COPY_MAX;
use crate::settings;

/// How many bytes more memcached counts for an item than we do: 32 of header, the NUL behind the
/// key and the line end behind the value. The same with and without CAS.
/// Less what an item's check takes, if it has one: see [`Classes::extra`].
const MEMCACHED_EXTRA: usize = 35;

/// The largest item that stands in one slot; longer ones are chained.
pub const SLOT_TOTAL_MAX: usize = SLOT_MAX - EXTENSION;

/// What a bin grows by.
const PAGE: usize = 64 << 10;
/// The largest slot.
const SLOT_MAX: usize = 16 << 10;
/// What a value over [`COPY_MAX`] has beside header and key.
const EXTENSION: usize = 8;
/// What an item carries beside its header that can outlive a crash.
const CHECK: usize = 4;
/// Slot sizes are multiples of this, and so are memcached's chunk sizes.
const STEP: usize = 8;
/// memcached's item header, without CAS.
const MEMCACHED_HEADER: usize = 48;
const MEMCACHED_PAGE: usize = 1 << 20;
/// Classes are numbered from 1 to this.
const CLASS_MAX: usize = 63;
/// Slot sizes up to here are one `STEP` apart.
const FINE_MAX: usize = 256;
/// Beyond, a page is cut into so many slots, each as large as that allows.
const SLOTS_PER_PAGE: [u16; 50] = [
    238, 220, 204, 189, 175, 162, 150, 139, 129, 120, 111, 103, 95, 88, 82, 76, 70, 65, 61, 56, 52,
    48, 45, 42, 39, 36, 33, 31, 29, 27, 25, 23, 21, 20, 19, 18, 17, 16, 15, 14, 13, 12, 11, 10, 9,
    8, 7, 6, 5, 4,
];

/// The table of classes and bins; fixed once the server runs.
#[derive(Debug)]
pub struct Classes {
    /// Chunk sizes of memcached's classes, class 1 first.
    chunks: Vec<usize>,
    bins: Vec<Bin>,
    extra: usize,
    /// For sizes of 8k-7 to 8k bytes, at k: the bin of the smallest.
    first: Box<[u8; SLOT_MAX / STEP + 1]>,
    /// The largest item of each bin.
    most: Box<[u16; 256]>,
}

#[derive(Debug, Clone, Copy)]
struct Bin {
    slot: usize,
    /// The largest item.
    most: usize,
    class: u8,
}

impl Classes {
    pub fn new(settings: &settings::Store) -> Classes {
        let chunks = chunk_sizes(settings);
        let extra = MEMCACHED_EXTRA - if settings.crash_restart { CHECK } else { 0 };
        let bins = bins(&chunks, extra);
        let mut first = Box::new([0; SLOT_MAX / STEP + 1]);
        for (steps, first) in first.iter_mut().enumerate() {
            let smallest = (steps * STEP).saturating_sub(STEP - 1);
            *first = bins.partition_point(|bin| bin.most < smallest) as u8;
        }
        let mut most = Box::new([u16::MAX; 256]);
        for (most, bin) in most.iter_mut().zip(&bins) {
            *most = bin.most as u16;
        }
        Classes {
            chunks,
            bins,
            extra,
            first,
            most,
        }
    }

    /// How many bytes more memcached counts for an item than we do.
    #[inline]
    pub fn extra(&self) -> usize {
        self.extra
    }

    /// The bin of an item of `total` bytes; nothing if it must be chained.
    #[inline]
    pub fn bin_of(&self, total: usize) -> Option<u8> {
        if total > SLOT_TOTAL_MAX {
            return None;
        }
        // Two bins can meet within 8 bytes, where a class ends; never three.
        let bin = self.first[total.div_ceil(STEP)];
        Some(bin + u8::from(total > usize::from(self.most[usize::from(bin)])))
    }

    /// Fewer than 250.
    pub fn bin_count(&self) -> usize {
        self.bins.len()
    }

    /// Bytes of a bin's slots.
    pub fn bin_size(&self, bin: u8) -> usize {
        self.bins[usize::from(bin)].slot
    }

    /// The class that a bin's items belong to, 1 to 63.
    #[inline]
    pub fn class_of_bin(&self, bin: u8) -> u8 {
        self.bins[usize::from(bin)].class
    }

    /// The class of an item that memcached would count as `total` bytes. What is larger than the last
    /// class is chained there, and belongs to it.
    pub fn class_of_total(&self, total: usize) -> u8 {
        let smaller = self.chunks.partition_point(|&chunk| chunk < total);
        (smaller + 1).min(self.chunks.len()) as u8
    }

    /// The number of the last class.
    pub fn largest(&self) -> u8 {
        self.chunks.len() as u8
    }

    /// Bytes of a chunk of class 1 to [`Classes::largest`], as memcached counts.
    pub fn chunk_size(&self, class: u8) -> usize {
        self.chunks[usize::from(class) - 1]
    }

    /// Chunks that one of memcached's pages of 1 MiB holds.
    pub fn chunks_per_page(&self, class: u8) -> usize {
        MEMCACHED_PAGE / self.chunk_size(class)
    }
}

/// memcached's chunk sizes.
fn chunk_sizes(settings: &settings::Store) -> Vec<usize> {
    let largest = settings.slab_chunk_max;
    let mut sizes = Vec::new();
    if settings.slab_sizes.is_empty() {
        let end = largest as f64 / settings.growth_factor;
        let mut size = MEMCACHED_HEADER + settings.chunk_size;
        while sizes.len() < CLASS_MAX - 1 && (size as f64) < end {
            size = size.next_multiple_of(STEP);
            sizes.push(size);
            size = (size as f64 * settings.growth_factor) as usize;
        }
    } else {
        let listed = settings.slab_sizes.iter().take(CLASS_MAX - 1);
        sizes.extend(listed.map(|size| size.next_multiple_of(STEP)));
    }
    sizes.push(largest);
    sizes
}

/// The bins of all classes, smallest first.
fn bins(chunks: &[usize], extra: usize) -> Vec<Bin> {
    let fine = (3 * STEP..=FINE_MAX).step_by(STEP);
    let coarse = SLOTS_PER_PAGE
        .iter()
        .map(|&slots| PAGE / usize::from(slots) / STEP * STEP);
    let grid: Vec<usize> = fine.chain(coarse).collect();

    let mut bins: Vec<Bin> = Vec::new();
    let mut below = 0;
    for (at, &chunk) in chunks.iter().enumerate() {
        let class = (at + 1) as u8;
        let last = at + 1 == chunks.len();
        let most = match chunk.checked_sub(extra) {
            _ if last => SLOT_TOTAL_MAX,
            Some(most) => most.min(SLOT_TOTAL_MAX),
            None => continue,
        };
        if most <= below {
            continue;
        }
        let top = slot_for(most);
        let own = grid.iter().copied().filter(|&slot| {
            let worth_a_bin = top <= FINE_MAX || cost(top) > cost(slot) + top / 32;
            capacity(slot) > below && slot < top && worth_a_bin
        });
        for slot in own {
            bins.push(Bin {
                slot,
                most: capacity(slot),
                class,
            });
        }
        bins.push(Bin {
            slot: top,
            most,
            class,
        });
        below = most;
    }
    bins
}

/// Bytes of a page for each of its slots.
fn cost(slot: usize) -> usize {
    PAGE / (PAGE / slot)
}

/// The slot for an item of `total` bytes.
fn slot_for(total: usize) -> usize {
    let extension = if total > COPY_MAX { EXTENSION } else { 0 };
    (total + extension).next_multiple_of(STEP)
}

/// The largest item for a slot.
fn capacity(slot: usize) -> usize {
    if slot > COPY_MAX {
        (slot - EXTENSION).max(COPY_MAX)
    } else {
        slot
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Store;

    /// Settings, and the chunk sizes that memcached 1.6.45 prints with `-vv` for them.
    fn known_tables() -> Vec<(Store, Vec<usize>)> {
        let tables: Vec<(Store, &[usize])> = vec![
            (
                Store::default(),
                &[
                    96, 120, 152, 192, 240, 304, 384, 480, 600, 752, 944, 1184, 1480, 1856, 2320,
                    2904, 3632, 4544, 5680, 7104, 8880, 11104, 13880, 17352, 21696, 27120, 33904,
                    42384, 52984, 66232, 82792, 103496, 129376, 161720, 202152, 252696, 315872,
                    394840, 524288,
                ],
            ),
            (
                Store {
                    growth_factor: 1.1,
                    ..Store::default()
                },
                &[
                    96, 112, 128, 144, 160, 176, 200, 224, 248, 272, 304, 336, 376, 416, 464, 512,
                    568, 624, 688, 760, 840, 928, 1024, 1128, 1240, 1368, 1504, 1656, 1824, 2008,
                    2208, 2432, 2680, 2952, 3248, 3576, 3936, 4336, 4776, 5256, 5784, 6368, 7008,
                    7712, 8488, 9336, 10272, 11304, 12440, 13688, 15056, 16568, 18224, 20048,
                    22056, 24264, 26696, 29368, 32304, 35536, 39096, 43008, 524288,
                ],
            ),
            (
                Store {
                    growth_factor: 1.3333,
                    chunk_size: 7,
                    ..Store::default()
                },
                &[
                    56, 80, 112, 152, 208, 280, 376, 504, 672, 896, 1200, 1600, 2136, 2848, 3800,
                    5072, 6768, 9024, 12032, 16048, 21400, 28536, 38048, 50736, 67648, 90200,
                    120264, 160352, 213800, 285064, 380080, 524288,
                ],
            ),
            (
                Store {
                    growth_factor: 2.0,
                    chunk_size: 500,
                    ..Store::default()
                },
                &[
                    552, 1104, 2208, 4416, 8832, 17664, 35328, 70656, 141312, 524288,
                ],
            ),
            (
                Store {
                    growth_factor: 1.01,
                    chunk_size: 100,
                    ..Store::default()
                },
                &[
                    152, 160, 168, 176, 184, 192, 200, 208, 216, 224, 232, 240, 248, 256, 264, 272,
                    280, 288, 296, 304, 312, 320, 328, 336, 344, 352, 360, 368, 376, 384, 392, 400,
                    408, 416, 424, 432, 440, 448, 456, 464, 472, 480, 488, 496, 504, 512, 520, 528,
                    536, 544, 552, 560, 568, 576, 584, 592, 600, 608, 616, 624, 632, 640, 524288,
                ],
            ),
            (
                Store {
                    chunk_size: 600_000,
                    ..Store::default()
                },
                &[524288],
            ),
            (
                Store {
                    slab_chunk_max: 1 << 20,
                    ..Store::default()
                },
                &[
                    96, 120, 152, 192, 240, 304, 384, 480, 600, 752, 944, 1184, 1480, 1856, 2320,
                    2904, 3632, 4544, 5680, 7104, 8880, 11104, 13880, 17352, 21696, 27120, 33904,
                    42384, 52984, 66232, 82792, 103496, 129376, 161720, 202152, 252696, 315872,
                    394840, 493552, 616944, 771184, 1048576,
                ],
            ),
            (
                Store {
                    slab_chunk_max: 16 << 10,
                    growth_factor: 1.08,
                    ..Store::default()
                },
                &[
                    96, 104, 112, 120, 136, 152, 168, 184, 200, 216, 240, 264, 288, 312, 336, 368,
                    400, 432, 472, 512, 552, 600, 648, 704, 760, 824, 896, 968, 1048, 1136, 1232,
                    1336, 1448, 1568, 1696, 1832, 1984, 2144, 2320, 2512, 2712, 2928, 3168, 3424,
                    3704, 4000, 4320, 4672, 5048, 5456, 5896, 6368, 6880, 7432, 8032, 8680, 9376,
                    10128, 10944, 11824, 12776, 13800, 16384,
                ],
            ),
            (
                Store {
                    slab_chunk_max: 1 << 10,
                    chunk_size: 1,
                    ..Store::default()
                },
                &[
                    56, 72, 96, 120, 152, 192, 240, 304, 384, 480, 600, 752, 1024,
                ],
            ),
            (
                Store {
                    slab_sizes: vec![100, 200, 400, 800, 1024],
                    ..Store::default()
                },
                &[104, 200, 400, 800, 1024, 524288],
            ),
            (
                Store {
                    slab_sizes: vec![64, 73, 524_288],
                    ..Store::default()
                },
                &[64, 80, 524288, 524288],
            ),
        ];
        let mut tables: Vec<_> = tables
            .into_iter()
            .map(|(settings, sizes)| (settings, sizes.to_vec()))
            .collect();
        // A factor too small to grow: 62 times the same.
        let mut stuck = vec![96; 62];
        stuck.push(524_288);
        tables.push((
            Store {
                growth_factor: 1.01,
                ..Store::default()
            },
            stuck,
        ));
        tables
    }

    #[test]
    fn chunk_sizes_are_memcached_s() {
        for (settings, sizes) in known_tables() {
            assert_eq!(chunk_sizes(&settings), sizes);
        }
        let classes = Classes::new(&Store::default());
        assert_eq!(classes.largest(), 39);
        assert_eq!(classes.largest(), 39);
        assert_eq!(classes.chunk_size(1), 96);
        assert_eq!(classes.chunks_per_page(1), 10_922);
        assert_eq!(classes.chunk_size(39), 524_288);
        assert_eq!(classes.chunks_per_page(39), 2);
    }

    #[test]
    fn class_of_an_item_is_the_first_that_holds_it() {
        let classes = Classes::new(&Store::default());
        for (total, expected) in [
            (60, 1),
            (96, 1),
            (97, 2),
            (17_352, 24),
            (17_353, 25),
            (394_840, 38),
            (394_841, 39),
            (524_289, 39),
            (1 << 20, 39),
        ] {
            assert_eq!(classes.class_of_total(total), expected, "{total}");
        }
    }

    #[test]
    fn every_item_has_a_slot_that_holds_it_in_a_bin_of_its_class() {
        for (settings, sizes) in known_tables() {
            let classes = Classes::new(&settings);
            assert!(
                classes.bin_count() < 250,
                "{} bins for {sizes:?}",
                classes.bin_count()
            );
            let mut last = 0;
            for total in 17..=SLOT_TOTAL_MAX {
                let bin = classes.bin_of(total).expect("a bin");
                assert!(bin == last || bin == last + 1 || last == 0, "{total}");
                last = bin;
                let slot = classes.bin_size(bin);
                assert!(slot_for(total) <= slot, "{total} in {slot}");
                assert_eq!(slot % STEP, 0);
                assert_eq!(
                    classes.class_of_bin(bin),
                    classes.class_of_total(total + MEMCACHED_EXTRA),
                    "{total}"
                );
            }
            assert_eq!(usize::from(last) + 1, classes.bin_count());
            assert_eq!(classes.bin_size(last), SLOT_MAX);
            assert_eq!(classes.bin_of(SLOT_TOTAL_MAX + 1), None);
        }
    }

    #[test]
    fn little_is_wasted() {
        let classes = Classes::new(&Store::default());
        let (mut waste, mut cost) = (0.0_f64, 0.0);
        for total in 25..=SLOT_TOTAL_MAX {
            let bin = classes.bin_of(total).expect("a bin");
            let share = PAGE as f64 / (PAGE / classes.bin_size(bin)) as f64;
            waste += 1.0 - total as f64 / share;
            cost += 1.0;
            let limit = match total {
                0..FINE_MAX => 8.0 + 2.0,
                FINE_MAX..8192 => total as f64 * 0.16,
                _ => total as f64 * 0.26,
            };
            assert!(share - total as f64 <= limit, "{total} costs {share:.1}");
        }
        assert!(waste / cost < 0.09, "{:.3}", waste / cost);
    }

    #[test]
    fn pages_hold_as_many_items_as_planned() {
        let classes = Classes::new(&Store::default());
        // 20-byte keys with values of 10, 50, 100, 500, 1,024 and 4,096 bytes.
        for (value, slots) in [
            (10, 1170),
            (50, 682),
            (100, 455),
            (500, 120),
            (1024, 61),
            (4096, 15),
        ] {
            let bin = classes.bin_of(24 + 20 + value).expect("a bin");
            assert_eq!((PAGE / classes.bin_size(bin)), slots, "{value}");
        }
    }
}
