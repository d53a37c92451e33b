#![forbid(unsafe_code)]
//! What `stats`, `stats settings` and `stats conns` show, in memcached's order. Numbers of things
//! that do not exist here are 0.

use std::path::Path;

use crate::observe::board::Row;
use crate::settings::{HashAlgorithm, LARDER_VERSION, MEMCACHED_VERSION};

use super::{Emit, View};

/// Emits one line: a name and a value that can be displayed.
macro_rules! stat {
    ($emit:expr, $name:expr, $value:expr) => {
        $emit(format_args!("{}", $name), format_args!("{}", $value))
    };
    ($emit:expr, $name:expr, $format:literal, $($value:expr),+) => {
        $emit(format_args!("{}", $name), format_args!($format, $($value),+))
    };
}
pub(super) use stat;

fn yes(flag: bool) -> &'static str {
    if flag { "yes" } else { "no" }
}

fn path(path: &Option<impl AsRef<Path>>, missing: &str) -> String {
    match path {
        Some(path) => path.as_ref().display().to_string(),
        None => missing.to_owned(),
    }
}

/// Seconds of processor time the process has used, in user and in system mode.
fn processor_time() -> (f64, f64) {
    // Fields 14 and 15, in ticks of which Linux shows 100 a second; the name in field 2 may
    // contain anything, but ends at the last parenthesis.
    let read = || -> Option<(f64, f64)> {
        let text = std::fs::read_to_string("/proc/self/stat").ok()?;
        let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
        let mut seconds = || Some(fields.next()?.parse::<f64>().ok()? / 100.0);
        Some((seconds()?, seconds()?))
    };
    read().unwrap_or((0.0, 0.0))
}

/// `stats`
pub fn general(view: &View<'_>, emit: &mut Emit<'_>) {
    let settings = view.settings;
    let totals = view.registry.totals();
    let general = &totals.general;
    let tuning = view.store.tuning();
    let state = view.store.state();
    let over = |pick: fn(&crate::observe::counters::ClassTotals) -> u64| totals.over_classes(pick);
    let listeners = view.board.listeners();
    let open = view.admission.open();

    stat!(emit, "pid", std::process::id());
    stat!(emit, "uptime", view.clock.uptime());
    stat!(emit, "time", view.clock.unix_now());
    stat!(emit, "version", MEMCACHED_VERSION);
    // Some clients want this line to be there.
    stat!(emit, "libevent", "none");
    stat!(emit, "pointer_size", usize::BITS);
    let (user, system) = processor_time();
    stat!(emit, "rusage_user", "{:.6}", user);
    stat!(emit, "rusage_system", "{:.6}", system);
    stat!(emit, "max_connections", settings.server.max_connections);
    // memcached counts its listening sockets, all but one.
    let current = open + listeners.saturating_sub(1);
    stat!(emit, "curr_connections", current);
    let total = general.total_connections + listeners as u64;
    stat!(emit, "total_connections", total);
    if settings.server.maxconns_fast {
        stat!(emit, "rejected_connections", general.rejected_connections);
    }
    stat!(emit, "connection_structures", open + listeners);
    stat!(emit, "response_obj_oom", general.response_obj_oom);
    stat!(emit, "response_obj_count", general.response_obj_count);
    stat!(emit, "response_obj_bytes", general.response_obj_bytes);
    stat!(emit, "read_buf_count", general.read_buf_count);
    stat!(emit, "read_buf_bytes", general.read_buf_bytes);
    stat!(emit, "read_buf_bytes_free", 0);
    stat!(emit, "read_buf_oom", general.read_buf_oom);
    stat!(emit, "reserved_fds", settings.server.threads * 5);
    stat!(emit, "cmd_get", general.get_cmds);
    stat!(emit, "cmd_set", over(|class| class.set_cmds));
    stat!(emit, "cmd_flush", general.flush_cmds);
    stat!(emit, "cmd_touch", general.touch_cmds);
    stat!(emit, "cmd_meta", general.meta_cmds);
    stat!(emit, "get_hits", over(|class| class.get_hits()));
    stat!(emit, "get_misses", general.get_misses);
    stat!(emit, "get_expired", general.get_expired);
    stat!(emit, "get_flushed", general.get_flushed);
    stat!(emit, "delete_misses", general.delete_misses);
    stat!(emit, "delete_hits", over(|class| class.delete_hits));
    stat!(emit, "incr_misses", general.incr_misses);
    stat!(emit, "incr_hits", over(|class| class.incr_hits));
    stat!(emit, "decr_misses", general.decr_misses);
    stat!(emit, "decr_hits", over(|class| class.decr_hits));
    stat!(emit, "cas_misses", general.cas_misses);
    stat!(emit, "cas_hits", over(|class| class.cas_hits));
    stat!(emit, "cas_badval", over(|class| class.cas_badval));
    stat!(emit, "touch_hits", over(|class| class.touch_hits));
    stat!(emit, "touch_misses", general.touch_misses);
    stat!(emit, "store_too_large", general.store_too_large);
    stat!(emit, "store_no_memory", general.store_no_memory);
    stat!(emit, "auth_cmds", general.auth_cmds);
    stat!(emit, "auth_errors", general.auth_errors);
    if settings.server.idle_timeout > 0 {
        stat!(emit, "idle_kicks", general.idle_kicks);
    }
    stat!(emit, "bytes_read", general.bytes_read);
    stat!(emit, "bytes_written", general.bytes_written);
    stat!(emit, "limit_maxbytes", tuning.max_bytes);
    stat!(
        emit,
        "accepting_conns",
        u8::from(view.admission.accepting())
    );
    stat!(emit, "listen_disabled_num", view.admission.suspensions());
    stat!(
        emit,
        "time_in_listen_disabled_us",
        view.admission.suspended_us()
    );
    stat!(emit, "threads", settings.server.threads);
    stat!(emit, "conn_yields", general.conn_yields);
    stat!(emit, "hash_power_level", state.hash_power);
    stat!(emit, "hash_bytes", state.hash_bytes);
    stat!(emit, "hash_is_expanding", u8::from(state.hash_expanding));
    if settings.store.slab_reassign {
        stat!(emit, "slab_reassign_rescues", state.reassign_rescues);
        stat!(
            emit,
            "slab_reassign_chunk_rescues",
            state.reassign_chunk_rescues
        );
        stat!(
            emit,
            "slab_reassign_inline_reclaim",
            state.reassign_inline_reclaim
        );
        stat!(emit, "slab_reassign_busy_items", state.reassign_busy_items);
        stat!(
            emit,
            "slab_reassign_busy_deletes",
            state.reassign_busy_deletes
        );
        stat!(emit, "slab_reassign_busy_nomem", state.reassign_busy_nomem);
        stat!(emit, "slab_reassign_last_busy_status", "none");
        stat!(
            emit,
            "slab_reassign_running",
            u8::from(state.reassign_running)
        );
        stat!(emit, "slabs_moved", state.slabs_moved);
    }
    if tuning.crawler {
        stat!(emit, "lru_crawler_running", u8::from(state.crawler_running));
        stat!(emit, "lru_crawler_starts", state.crawler_starts);
    }
    if settings.store.lru_maintainer {
        stat!(emit, "lru_maintainer_juggles", state.maintainer_juggles);
    }
    stat!(emit, "malloc_fails", state.malloc_fails);
    stat!(emit, "log_worker_dropped", totals.log_dropped);
    stat!(emit, "log_worker_written", totals.log_written);
    stat!(emit, "log_watcher_skipped", view.watchers.skipped());
    stat!(emit, "log_watcher_sent", view.watchers.sent());
    stat!(emit, "log_watchers", view.watchers.count());
    if settings.tls.enabled {
        if settings.tls.session_cache {
            stat!(emit, "ssl_new_sessions", general.ssl_new_sessions);
        }
        stat!(emit, "ssl_handshake_errors", general.ssl_handshake_errors);
        stat!(emit, "ssl_proto_errors", general.ssl_proto_errors);
        let age = view.clock.now().saturating_sub(view.certificates_read);
        stat!(emit, "time_since_server_cert_refresh", age);
    }
    stat!(emit, "unexpected_napi_ids", 0);
    stat!(emit, "round_robin_fallback", 0);
    stat!(emit, "bytes", over(|class| class.bytes));
    stat!(emit, "curr_items", over(|class| class.items));
    stat!(emit, "total_items", general.total_items);
    stat!(emit, "slab_global_page_pool", state.free_pages);
    stat!(
        emit,
        "expired_unfetched",
        over(|class| class.expired_unfetched)
    );
    stat!(
        emit,
        "evicted_unfetched",
        over(|class| class.evicted_unfetched)
    );
    if tuning.segmented {
        stat!(emit, "evicted_active", 0);
    }
    stat!(emit, "evictions", over(|class| class.evicted));
    stat!(emit, "reclaimed", over(|class| class.reclaimed));
    stat!(
        emit,
        "crawler_reclaimed",
        over(|class| class.crawler_reclaimed)
    );
    stat!(
        emit,
        "crawler_items_checked",
        over(|class| class.crawler_items_checked)
    );
    stat!(emit, "lrutail_reflocked", 0);
    if tuning.segmented {
        stat!(emit, "moves_to_cold", over(|class| class.moves_to_cold));
        stat!(emit, "moves_to_warm", over(|class| class.moves_to_warm));
        stat!(
            emit,
            "moves_within_lru",
            over(|class| class.moves_within_lru)
        );
        stat!(emit, "direct_reclaims", over(|class| class.direct_reclaims));
        stat!(emit, "lru_bumps_dropped", 0);
    }
}

/// `stats settings`
pub fn settings(view: &View<'_>, emit: &mut Emit<'_>) {
    let settings = view.settings;
    let (store, listen, server) = (&settings.store, &settings.listen, &settings.server);
    let tuning = view.store.tuning();
    stat!(emit, "maxbytes", tuning.max_bytes);
    stat!(emit, "maxconns", server.max_connections);
    stat!(emit, "tcpport", listen.tcp_port);
    stat!(emit, "udpport", listen.udp_port);
    stat!(
        emit,
        "inter",
        listen.interfaces.as_deref().unwrap_or("NULL")
    );
    stat!(emit, "verbosity", view.verbosity);
    stat!(emit, "oldest", tuning.oldest);
    stat!(emit, "evictions", if store.evict { "on" } else { "off" });
    stat!(emit, "domain_socket", path(&listen.unix_socket, "NULL"));
    stat!(emit, "umask", "{:o}", listen.unix_mask);
    stat!(
        emit,
        "shutdown_command",
        yes(settings.security.shutdown_command)
    );
    stat!(emit, "growth_factor", "{:.2}", store.growth_factor);
    stat!(emit, "chunk_size", store.chunk_size);
    stat!(emit, "num_threads", server.threads);
    // Of several addresses each is served by one thread.
    let several = listen.endpoints.len() > 1;
    let per_socket = if several { 1 } else { server.threads };
    stat!(emit, "num_threads_per_udp", per_socket);
    stat!(emit, "stat_key_prefix", char::from(store.prefix_delimiter));
    let wanted = view.registry.taps().wanted();
    let detail = wanted & crate::observe::events::DETAIL != 0;
    stat!(emit, "detail_enabled", yes(detail));
    stat!(emit, "reqs_per_event", server.requests_per_event);
    stat!(emit, "cas_enabled", yes(store.cas));
    stat!(emit, "tcp_backlog", listen.backlog);
    stat!(emit, "binding_protocol", listen.protocol.name());
    stat!(emit, "auth_enabled_sasl", yes(settings.security.sasl));
    stat!(
        emit,
        "auth_enabled_ascii",
        path(&settings.security.auth_file, "no")
    );
    stat!(emit, "item_size_max", store.item_size_max);
    stat!(emit, "maxconns_fast", yes(server.maxconns_fast));
    stat!(emit, "hashpower_init", store.hash_power);
    stat!(emit, "slab_reassign", yes(store.slab_reassign));
    stat!(emit, "slab_automove", tuning.automove);
    stat!(emit, "slab_automove_ratio", "{:.2}", tuning.automove_ratio);
    stat!(emit, "slab_automove_window", tuning.automove_window);
    stat!(emit, "slab_chunk_max", store.slab_chunk_max);
    stat!(emit, "lru_crawler", yes(tuning.crawler));
    stat!(emit, "lru_crawler_sleep", tuning.crawler_sleep);
    stat!(emit, "lru_crawler_tocrawl", tuning.crawler_tocrawl);
    stat!(emit, "tail_repair_time", settings.inert.tail_repair_time);
    stat!(emit, "flush_enabled", yes(store.flush_enabled));
    stat!(emit, "dump_enabled", yes(store.dump_enabled));
    let hash = match store.hash_algorithm {
        None => "murmur3",
        Some(HashAlgorithm::Jenkins) => "jenkins",
        Some(HashAlgorithm::Murmur3) => "murmur3",
        Some(HashAlgorithm::Xxh3) => "xxh3",
    };
    stat!(emit, "hash_algorithm", hash);
    stat!(emit, "lru_maintainer_thread", yes(store.lru_maintainer));
    stat!(emit, "lru_segmented", yes(tuning.segmented));
    stat!(emit, "hot_lru_pct", tuning.hot_lru_pct);
    stat!(emit, "warm_lru_pct", tuning.warm_lru_pct);
    stat!(emit, "hot_max_factor", "{:.2}", tuning.hot_max_factor);
    stat!(emit, "warm_max_factor", "{:.2}", tuning.warm_max_factor);
    stat!(emit, "temp_lru", yes(tuning.temporary_ttl.is_some()));
    stat!(emit, "temporary_ttl", tuning.temporary_ttl.unwrap_or(61));
    stat!(emit, "idle_timeout", server.idle_timeout);
    stat!(emit, "watcher_logbuf_size", settings.watch.watcher_buffer);
    stat!(emit, "worker_logbuf_size", settings.watch.worker_buffer);
    stat!(emit, "read_buf_mem_limit", server.read_buffer_limit);
    stat!(emit, "track_sizes", yes(store.track_sizes));
    stat!(emit, "inline_ascii_response", "no");
    stat!(
        emit,
        "drop_privileges",
        yes(settings.process.drop_privileges)
    );
    let tls = &settings.tls;
    stat!(emit, "ssl_enabled", yes(tls.enabled));
    stat!(emit, "ssl_chain_cert", path(&tls.chain_cert, "(null)"));
    stat!(emit, "ssl_key", path(&tls.key, "(null)"));
    // OpenSSL's flags, as memcached shows them: peer, fail without a certificate, once.
    let flags = [0, 1, 3, 7].get(tls.verify_mode as usize).unwrap_or(&0);
    stat!(emit, "ssl_verify_mode", flags);
    stat!(emit, "ssl_keyformat", tls.key_format);
    stat!(
        emit,
        "ssl_ciphers",
        tls.ciphers.as_deref().unwrap_or("NULL")
    );
    stat!(emit, "ssl_ca_cert", path(&tls.ca_cert, "NULL"));
    stat!(emit, "ssl_wbuf_size", tls.write_buffer);
    stat!(emit, "ssl_session_cache", yes(tls.session_cache));
    stat!(emit, "ssl_kernel_tls", yes(tls.kernel_tls));
    let version = ["tlsv1.0", "tlsv1.1", "tlsv1.2", "tlsv1.3"];
    let version = version.get(tls.min_version as usize).unwrap_or(&"tlsv1.2");
    stat!(emit, "ssl_min_version", version);
    stat!(emit, "num_napi_ids", settings.inert.napi_ids);
    stat!(emit, "memory_file", path(&store.memory_file, "(null)"));
    stat!(emit, "client_flags_size", 4);
}

/// `stats conns`
pub fn connections(view: &View<'_>, emit: &mut Emit<'_>) {
    let now = view.clock.now();
    view.board.each(|number, row: &Row| {
        let mut line = |name: &str, value: &dyn std::fmt::Display| {
            emit(format_args!("{number}:{name}"), format_args!("{value}"));
        };
        if row.address.starts_with("udp") {
            line("UDP", &"UDP");
        }
        line("addr", &row.address);
        if let Some(listener) = &row.listener {
            line("listen_addr", listener);
        }
        line("state", &row.state());
        line("secs_since_last_cmd", &now.saturating_sub(row.last()));
    });
}

/// `stats larder`: what memcached does not have. Plain `stats` keeps to memcached's lines, which
/// some programs count.
pub fn larder(view: &View<'_>, emit: &mut Emit<'_>) {
    let state = view.store.state();
    stat!(emit, "larder_version", LARDER_VERSION);
    if let Some(began) = view.store.began() {
        stat!(emit, "restart", began.how);
        stat!(emit, "restart_items", began.items);
        stat!(emit, "restart_lost", began.lost);
        stat!(emit, "restart_milliseconds", began.milliseconds);
    }
    if view.settings.store.total_memory.is_some() {
        stat!(emit, "item_budget", view.store.budget());
    }
    let verified = view.store.verified();
    stat!(emit, "verified_bytes", verified.bytes);
    stat!(emit, "scrub_passes", verified.passes);
    stat!(emit, "values_damaged", verified.bad);
    stat!(emit, "page_bytes", state.page_bytes);
    stat!(emit, "index_bytes", state.hash_bytes);
    stat!(emit, "connections", view.admission.open());
}

#[cfg(test)]
mod tests {
    #[test]
    fn processor_time_is_read() {
        let (user, system) = super::processor_time();
        assert!((0.0..1e6).contains(&user) && (0.0..1e6).contains(&system));
    }
}
