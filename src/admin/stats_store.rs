#![forbid(unsafe_code)]
//! What `stats items`, `stats slabs` and `stats sizes` show, in memcached's order.

use crate::observe::counters::{CLASSES, Totals};
use crate::store::control::ClassState;

use super::stats::stat;
use super::{Emit, View};

/// Every class that exists, with its state.
fn classes<'v>(
    view: &'v View<'_>,
    totals: &'v Totals,
) -> impl Iterator<Item = (u8, ClassState)> + 'v {
    let now = view.clock.now();
    (1..CLASSES as u8).filter_map(move |class| {
        let held = totals.classes[usize::from(class)].bytes;
        Some((class, view.store.class(class, held, now)?))
    })
}

/// `stats items`
pub fn items(view: &View<'_>, emit: &mut Emit<'_>) {
    let totals = view.registry.totals();
    let tuning = view.store.tuning();
    for (class, state) in classes(view, &totals) {
        let counted = &totals.classes[usize::from(class)];
        let number = counted.items;
        if number == 0 {
            continue;
        }
        // The queues are counted roughly; what is in none of the others is cold.
        let hot = state.hot.items.min(number);
        let warm = state.warm.items.min(number - hot);
        let temporary = state.temp.items.min(number - hot - warm);
        let mut line = |name: &str, value: u64| {
            emit(
                format_args!("items:{class}:{name}"),
                format_args!("{value}"),
            );
        };
        line("number", number);
        if tuning.segmented {
            line("number_hot", hot);
            line("number_warm", warm);
            line("number_cold", number - hot - warm - temporary);
            if tuning.temporary_ttl.is_some() {
                line("number_temp", temporary);
            }
            line("age_hot", u64::from(state.hot.age));
            line("age_warm", u64::from(state.warm.age));
        }
        line("age", u64::from(state.cold.age));
        line("mem_requested", counted.bytes);
        line("evicted", counted.evicted);
        line("evicted_nonzero", counted.evicted_nonzero);
        line("evicted_time", u64::from(state.evicted_time));
        line("outofmemory", counted.outofmemory);
        line("tailrepairs", 0);
        line("reclaimed", counted.reclaimed);
        line("expired_unfetched", counted.expired_unfetched);
        line("evicted_unfetched", counted.evicted_unfetched);
        if tuning.segmented {
            line("evicted_active", 0);
        }
        line("crawler_reclaimed", counted.crawler_reclaimed);
        line("crawler_items_checked", counted.crawler_items_checked);
        line("lrutail_reflocked", 0);
        if tuning.segmented {
            line("moves_to_cold", counted.moves_to_cold);
            line("moves_to_warm", counted.moves_to_warm);
            line("moves_within_lru", counted.moves_within_lru);
            line("direct_reclaims", counted.direct_reclaims);
            line("hits_to_hot", counted.hits_to_hot);
            line("hits_to_warm", counted.hits_to_warm);
            line("hits_to_cold", counted.hits_to_cold);
            line("hits_to_temp", counted.hits_to_temp);
        }
    }
}

/// `stats slabs`
pub fn slabs(view: &View<'_>, emit: &mut Emit<'_>) {
    let totals = view.registry.totals();
    let tuning = view.store.tuning();
    let mut active = 0;
    for (class, state) in classes(view, &totals) {
        if state.pages == 0 {
            continue;
        }
        active += 1;
        let counted = &totals.classes[usize::from(class)];
        let mut line = |name: &str, value: u64| {
            emit(format_args!("{class}:{name}"), format_args!("{value}"));
        };
        line("chunk_size", state.chunk_size);
        line("chunks_per_page", state.chunks_per_page);
        line("total_pages", state.pages);
        line("total_chunks", state.chunks);
        line("used_chunks", state.used_chunks);
        line("free_chunks", state.free_chunks);
        line("free_chunks_end", 0);
        line("get_hits", counted.get_hits());
        line("cmd_set", counted.set_cmds);
        line("delete_hits", counted.delete_hits);
        line("incr_hits", counted.incr_hits);
        line("decr_hits", counted.decr_hits);
        line("cas_hits", counted.cas_hits);
        line("cas_badval", counted.cas_badval);
        line("touch_hits", counted.touch_hits);
    }
    stat!(emit, "active_slabs", active);
    // In whole pages of memcached, as it would have taken them; up to the limit those that are begun.
    let state = view.store.state();
    let bytes = state.page_bytes;
    let malloced = if bytes <= tuning.max_bytes {
        bytes.next_multiple_of(1 << 20)
    } else {
        bytes >> 20 << 20
    };
    stat!(emit, "total_malloced", state.taken + malloced);
}

/// `stats sizes`
pub fn sizes(view: &View<'_>, emit: &mut Emit<'_>) {
    match view.store.sizes() {
        Some(sizes) => {
            for (size, items) in sizes {
                stat!(emit, size, items);
            }
        }
        None => stat!(emit, "sizes_status", "disabled"),
    }
}
