#![forbid(unsafe_code)]
//! The configuration file, in TOML. The manual page `larder-proxy.toml(5)` describes every field.

use std::net::SocketAddr;

use toml::de::DeTable;

use super::reader::{self, Found, Table, Value, unknown};
use super::routes::Routes;
use super::{
    ConfigError, EmptyTag, Forgotten, Health, HotKeys, KeyHash, KeyPart, Limits, Listener, Pool,
    PoolAuth, PoolTls, Proxy, RingKind, Route, RouteId, Scheme, Server, group, server,
};
use crate::settings::{Endpoint, EndpointTls};

const DAY_MS: u64 = 86_400_000;

/// What a file asks for.
///
/// # Errors
/// The first thing that is wrong with it, and where.
pub fn parse(text: &str) -> Result<Proxy, ConfigError> {
    let document = DeTable::parse(text).map_err(|error| reader::broken(text, &error))?;
    let top = Table::document(text, document.get_ref());

    let defaults = match top.get("defaults") {
        None => Pool::new(""),
        Some(value) => {
            let table = value.table()?;
            for own in ["servers", "srv", "groups", "etcd"] {
                if table.has(own) {
                    return Err(table.wrong(format!("`{own}` belongs to a pool")));
                }
            }
            let mut pool = Pool::new("");
            pool_fields(&table, &mut pool)?;
            table.done()?;
            pool
        }
    };

    let mut pools = Vec::new();
    let pools_value = top.needed("pools")?;
    for (name, value) in pools_value.table()?.entries() {
        pools.push(pool(name, &value, &defaults)?);
    }
    if pools.is_empty() {
        return Err(pools_value.wrong("a proxy needs a pool"));
    }

    let mut routes = Routes::new(&pools);
    if let Some(value) = top.get("routes") {
        for (name, value) in value.table()?.entries() {
            routes.name(name, value)?;
        }
    }
    let root = match top.get("route") {
        Some(value) => routes.build(&value)?,
        None if pools.len() == 1 => routes.add(Route::Pool { pool: 0 }, &pools_value)?,
        None => {
            return Err(
                top.wrong("`route` is missing: with several pools it says where requests go")
            );
        }
    };

    let mut listeners = Vec::new();
    if let Some(value) = top.get("listen") {
        for value in value.list()? {
            listeners.push(listener(&value, &mut routes, root)?);
        }
    }
    routes.rest_is_sound()?;

    let mut bounds = Limits::default();
    top.set("limits", &mut bounds, limits)?;
    let mut hot = HotKeys::default();
    top.set("hot_keys", &mut hot, hot_keys)?;
    let mut flush_all = true;
    top.set("flush_all", &mut flush_all, Value::flag)?;
    top.done()?;

    Ok(Proxy {
        listeners,
        routes: routes.into_nodes(),
        pools,
        root,
        limits: bounds,
        hot_keys: hot,
        flush_all,
    })
}

fn pool(name: &str, value: &Value<'_>, defaults: &Pool) -> Found<Pool> {
    let table = value.table()?;
    let mut pool = defaults.clone();
    name.clone_into(&mut pool.name);
    pool.groups = group::groups(&table)?;
    if let Some(groups) = &pool.groups {
        if let Some(value) = table.get("servers").or(table.get("srv")) {
            return Err(value.wrong("a pool has servers or groups, not both"));
        }
        let labels = groups.labels();
        pool_fields(&table, &mut pool)?;
        pool.scheme.fit(&labels);
        if let Some((_, text)) = pool.scheme.refusal(&labels) {
            return Err(table.wrong(text));
        }
        table.done()?;
        return Ok(pool);
    }
    match (table.get("servers"), table.get("srv")) {
        (Some(servers), None) => {
            let entries = servers.list()?;
            if entries.is_empty() {
                return Err(servers.wrong("a pool needs a server"));
            }
            for entry in &entries {
                let server = Server::parse(entry.text()?).map_err(|text| entry.wrong(text))?;
                pool.servers.push(server);
            }
            server::distinct(&pool.servers).map_err(|(at, text)| entries[at].wrong(text))?;
        }
        (None, Some(srv)) => {
            let name = srv.text()?;
            if name.is_empty() || name.contains(char::is_whitespace) {
                return Err(srv.wrong("a DNS name is expected"));
            }
            pool.srv = Some(name.to_owned());
        }
        (Some(_), Some(srv)) => {
            return Err(srv.wrong("a pool has `servers` or `srv`, not both"));
        }
        (None, None) => {
            return Err(table.wrong("`servers` is missing (or `srv`)"));
        }
    }
    pool_fields(&table, &mut pool)?;
    if pool.replicas > 1 && pool.srv.is_none() && pool.replicas > pool.servers.len() {
        return Err(table.wrong(format!(
            "{} replicas need as many servers; there are {}",
            pool.replicas,
            pool.servers.len()
        )));
    }
    pool.scheme.fit(&pool.servers);
    if let Some((at, text)) = pool.scheme.refusal(&pool.servers)
        && let Some(servers) = table.get("servers")
    {
        return Err(servers.list()?[at].wrong(text));
    }
    table.done()?;
    Ok(pool)
}

fn pool_fields(table: &Table<'_>, pool: &mut Pool) -> Found<()> {
    if let Some(value) = table.get("nameserver") {
        pool.nameservers.clear();
        for value in value.one_or_more()? {
            pool.nameservers.push(nameserver(&value)?);
        }
    }
    scheme_fields(table, &mut pool.scheme)?;
    let ms = |value: &Value<'_>| value.duration_ms(1..=DAY_MS);
    table.set("timeout", &mut pool.timeout_ms, ms)?;
    table.set("connect_timeout", &mut pool.connect_timeout_ms, ms)?;
    let count = |to| move |value: &Value<'_>| Ok(value.number(1..=to)? as usize);
    table.set("connections", &mut pool.connections, count(64))?;
    table.set("requests_max", &mut pool.requests_max, count(1 << 20))?;
    table.set("queue_bytes", &mut pool.queue_bytes, |value| {
        Ok(value.size(4096..=1 << 34)? as usize)
    })?;
    table.set("resolve", &mut pool.resolve_ms, |value| {
        value.duration_ms(0..=DAY_MS)
    })?;
    table.set("eject", &mut pool.eject, Value::flag)?;
    table.set("failover", &mut pool.failover, |value| {
        Ok(value.number(0..=8)? as usize)
    })?;
    table.set("failover_ttl", &mut pool.failover_ttl, Value::ttl)?;
    table.set("replicas", &mut pool.replicas, count(8))?;
    table.set("retry_deletes", &mut pool.retry_deletes, Value::flag)?;
    table.set("forgotten_deletes", &mut pool.forgotten_deletes, |value| {
        value.choice(
            "use of a server whose deletes have been forgotten",
            &[("flush", Forgotten::Flush), ("serve", Forgotten::Serve)],
        )
    })?;
    if let Some(value) = table.get("health") {
        health_fields(&value, &mut pool.health)?;
    }
    if let Some(value) = table.get("tls") {
        pool.tls = Some(tls(&value)?);
    }
    if let Some(value) = table.get("auth") {
        let table = value.table()?;
        pool.auth = Some(PoolAuth {
            user: table.needed("user")?.text()?.to_owned(),
            password_file: table.needed("password_file")?.text()?.into(),
        });
        table.done()?;
    }
    Ok(())
}

fn nameserver(value: &Value<'_>) -> Found<SocketAddr> {
    let text = value.text()?;
    let address = text
        .parse()
        .or_else(|_| text.parse().map(|address| SocketAddr::new(address, 53)));
    address.map_err(|_: std::net::AddrParseError| {
        value.wrong("an address is expected, as \"127.0.0.1:8600\"")
    })
}

fn scheme_fields(table: &Table<'_>, scheme: &mut Scheme) -> Found<()> {
    table.set("ring", &mut scheme.kind, |value| {
        value.choice("ring", &RingKind::NAMES)
    })?;
    if let Some(value) = table.get("points") {
        let RingKind::McproxyRing { points, .. } = &mut scheme.kind else {
            return Err(value.wrong("only the rings of memcached's proxy take a number of points"));
        };
        *points = value.number(4..=4096)? as u32;
        if *points % 4 != 0 {
            return Err(value.wrong("a multiple of 4 is expected: an MD5 gives four points"));
        }
    }
    if let Some(value) = table.get("hash") {
        let name = value.text()?;
        let hash = KeyHash::named(name).ok_or_else(|| {
            value.wrong(unknown(
                "hash",
                name,
                KeyHash::ALL.iter().map(|hash| hash.name()),
            ))
        })?;
        if !scheme.kind.takes_hash() {
            return Err(value.wrong("this ring has a hash of its own"));
        }
        scheme.key_hash = Some(hash);
    }
    if let Some(value) = table.get("seed") {
        value.text()?.clone_into(&mut scheme.seed);
    }
    let mut parts = Vec::new();
    if let Some(value) = table.get("hash_tag") {
        let &[open, close] = value.text()?.as_bytes() else {
            return Err(value.wrong("two bytes are expected, as \"{}\""));
        };
        let mut empty = EmptyTag::Whole;
        table.set("hash_tag_empty", &mut empty, |value| {
            value.choice(
                "use of an empty tag",
                &[("whole", EmptyTag::Whole), ("nothing", EmptyTag::Nothing)],
            )
        })?;
        parts.push((value, KeyPart::Tag { open, close, empty }));
    } else if let Some(value) = table.get("hash_tag_empty") {
        return Err(value.wrong("there is no `hash_tag`"));
    }
    for (name, make) in [
        ("hash_stop", KeyPart::Before as fn(Vec<u8>) -> KeyPart),
        ("hash_skip", KeyPart::After),
    ] {
        if let Some(value) = table.get(name) {
            let text = value.text()?;
            if text.is_empty() {
                return Err(value.wrong("it must not be empty"));
            }
            parts.push((value.clone(), make(text.into())));
        }
    }
    match parts.len() {
        0 => Ok(()),
        1 => {
            scheme.part = parts.remove(0).1;
            Ok(())
        }
        _ => Err(parts[1]
            .0
            .wrong("only one of `hash_tag`, `hash_stop` and `hash_skip` can apply")),
    }
}

fn health_fields(value: &Value<'_>, health: &mut Health) -> Found<()> {
    let table = value.table()?;
    let count = |from| move |value: &Value<'_>| Ok(value.number(from..=1_000_000)? as u32);
    let ms = |value: &Value<'_>| value.duration_ms(1..=DAY_MS);
    let share = |value: &Value<'_>| Ok(value.real(0.0..=1.0)? as f32);
    table.set("failures", &mut health.failures, count(1))?;
    table.set("failure_share", &mut health.failure_share, share)?;
    table.set("failure_sample", &mut health.failure_sample, count(1))?;
    table.set("probe", &mut health.probe_ms, ms)?;
    table.set("probe_timeout", &mut health.probe_timeout_ms, ms)?;
    table.set("jitter", &mut health.jitter, share)?;
    table.set("good_probes", &mut health.good_probes, count(1))?;
    table.set("half_open_share", &mut health.half_open_share, share)?;
    table.set("half_open", &mut health.half_open_ms, |value| {
        value.duration_ms(0..=DAY_MS)
    })?;
    table.set("flaps", &mut health.flaps, count(1))?;
    table.set("flap_window", &mut health.flap_window_ms, ms)?;
    table.set("backoff_max", &mut health.backoff_max_ms, ms)?;
    table.done()
}

fn tls(value: &Value<'_>) -> Found<PoolTls> {
    let mut tls = PoolTls {
        verify: true,
        ..PoolTls::default()
    };
    // `tls = true` is TLS with nothing to say about it.
    if let Ok(wanted) = value.flag() {
        return if wanted {
            Ok(tls)
        } else {
            Err(value.wrong("leave it out, or say `true` or a table"))
        };
    }
    let table = value.table()?;
    let path = |name| -> Found<Option<std::path::PathBuf>> {
        match table.get(name) {
            Some(value) => Ok(Some(value.text()?.into())),
            None => Ok(None),
        }
    };
    tls.ca = path("ca")?;
    tls.certificate = path("certificate")?;
    tls.key = path("key")?;
    if tls.certificate.is_some() != tls.key.is_some() {
        return Err(table.wrong("`certificate` and `key` come together"));
    }
    if let Some(value) = table.get("server_name") {
        tls.server_name = Some(value.text()?.to_owned());
    }
    table.set("verify", &mut tls.verify, Value::flag)?;
    table.done()?;
    Ok(tls)
}

fn limits(value: &Value<'_>) -> Found<Limits> {
    let mut limits = Limits::default();
    let table = value.table()?;
    let count = |value: &Value<'_>| Ok(value.number(1..=1 << 24)? as usize);
    let bytes = |value: &Value<'_>| Ok(value.size(4096..=1 << 40)? as usize);
    table.set("client_requests", &mut limits.client_requests, count)?;
    table.set("client_bytes", &mut limits.client_bytes, bytes)?;
    table.set("queue_bytes", &mut limits.queue_bytes, bytes)?;
    table.set("value_bytes", &mut limits.value_bytes, |value| {
        value.size(1..=1 << 40)
    })?;
    table.set("deletes", &mut limits.deletes, count)?;
    table.done()?;
    Ok(limits)
}

fn hot_keys(value: &Value<'_>) -> Found<HotKeys> {
    let mut hot = HotKeys::default();
    // `hot_keys = false` needs no table.
    if let Ok(enabled) = value.flag() {
        hot.enabled = enabled;
        return Ok(hot);
    }
    let table = value.table()?;
    table.set("reads_per_second", &mut hot.reads_per_second, |value| {
        Ok(value.number(1..=1 << 30)? as u32)
    })?;
    table.set("share", &mut hot.share, |value| {
        Ok(value.real(0.0..=1.0)? as f32)
    })?;
    table.set("cache", &mut hot.cache_ms, |value| {
        value.duration_ms(0..=60_000)
    })?;
    table.set("cache_value_bytes", &mut hot.cache_value_bytes, |value| {
        Ok(value.size(0..=1 << 20)? as usize)
    })?;
    table.set("cache_entries", &mut hot.cache_entries, |value| {
        Ok(value.number(0..=65_536)? as usize)
    })?;
    table.set("spread", &mut hot.spread, |value| {
        Ok(value.number(1..=8)? as usize)
    })?;
    table.set("spread_ttl", &mut hot.spread_ttl, Value::ttl)?;
    table.done()?;
    Ok(hot)
}

fn listener<'doc>(
    value: &Value<'doc>,
    routes: &mut Routes<'doc>,
    root: RouteId,
) -> Found<Listener> {
    let table = value.table()?;
    let mut endpoint = Endpoint {
        host: None,
        port: None,
        protocol: None,
        tls: EndpointTls::Default,
        tag: None,
        ack: None,
    };
    let address = table.needed("address")?;
    let text = address.text()?;
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, port),
        None => ("*", text),
    };
    endpoint.port = port.parse().ok().filter(|port| *port > 0);
    if endpoint.port.is_none() {
        return Err(address.wrong("an address and a port are expected, as \"127.0.0.1:11311\""));
    }
    let host = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    if host != "*" {
        endpoint.host = Some(host.to_owned());
    }
    if let Some(value) = table.get("tag") {
        let tag = value.text()?;
        if tag.is_empty() || tag.len() > 8 {
            return Err(value.wrong("a tag has 1 to 8 bytes"));
        }
        endpoint.tag = Some(tag.to_owned());
    }
    table.set("tls", &mut endpoint.tls, |value| {
        value.choice(
            "use of TLS",
            &[
                ("default", EndpointTls::Default),
                ("none", EndpointTls::Plain),
                ("basic", EndpointTls::Basic),
                ("mutual", EndpointTls::Mutual),
            ],
        )
    })?;
    let root = match table.get("route") {
        Some(value) => routes.build(&value)?,
        None => root,
    };
    table.done()?;
    Ok(Listener { endpoint, root })
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
