#![forbid(unsafe_code)]
//! What `stats items`, `stats slabs` and `stats sizes` show, in memcached's order.

use crate::observe::counters::CLASSES;
use crate::store::control::ClassState;

use super::stats::stat;
use super::{Emit, View};

/// Every class that exists, with its state.
fn classes(view: &View<'_>) -> impl Iterator<Item = (u8, ClassState)> {
    let now = view.clock.now();
    (1..CLASSES as u8).filter_map(move |class| Some((class, view.store.class(class, now)?)))
}

/// `stats items`
pub fn items(view: &View<'_>, emit: &mut Emit<'_>) {
    let totals = view.registry.totals();
    let tuning = view.store.tuning();
    for (class, state) in classes(view) {
        let number = state.hot.items + state.warm.items + state.cold.items + state.temp.items;
        if number == 0 {
            continue;
        }
        let counted = &totals.classes[usize::from(class)];
        let mut line = |name: &str, value: u64| {
            emit(
                format_args!("items:{class}:{name}"),
                format_args!("{value}"),
            );
        };
        line("number", number);
        if tuning.segmented {
            line("number_hot", state.hot.items);
            line("number_warm", state.warm.items);
            line("number_cold", state.cold.items);
            if tuning.temporary_ttl.is_some() {
                line("number_temp", state.temp.items);
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
    let mut active = 0;
    for (class, state) in classes(view) {
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
    stat!(emit, "total_malloced", view.store.state().page_bytes);
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
