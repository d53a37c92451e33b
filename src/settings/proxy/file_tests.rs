#![forbid(unsafe_code)]

use proptest::prelude::*;

use super::super::{
    Address, Command, Commands, Failure, McproxyLabels, Order, Rate, SpyLabels, Wait,
};
use super::*;

const FULL: &str = r##"
route = "front"
flush_all = false
hot_keys = { reads_per_second = 500, share = 0.1, cache = "50ms", spread = 4 }

[limits]
client_requests = 100
client_bytes = "2m"
value_bytes = 1_048_576

[[listen]]
address = "127.0.0.1:11311"
tag = "batch"
route = { limit = { to = "main", rate = 100.5, command = ["read", "delete"] } }

[[listen]]
address = "11312"
tls = "mutual"

[defaults]
timeout = "250ms"
health = { failures = 5, probe = "2s" }

[pools.main]
servers = ["10.0.0.1:11211:2 one", "[::1]:11212", "/run/three.sock"]
ring = "twemproxy"
hash = "md5"
hash_tag = "{}"
failover = 2
replicas = 2
tls = { ca = "/etc/ca.pem", server_name = "cache" }
auth = { user = "u", password_file = "/etc/p" }

[pools.gutter]
srv = "_memcache._tcp.cache.svc"
nameserver = ["127.0.0.1:8600", "::1"]
timeout = "1.5s"
ring = "mcproxy-evcache"
points = 40
hash_stop = "|#|"
tls = true

[routes.front]
match = [
  { prefix = ["user:", "u/"], to = "guarded" },
  { command = ["set", "delete"], listener = "batch", to = { fanout = ["main", "gutter"], wait = "majority" } },
]
otherwise = "main"

[routes.guarded]
failover = ["main", "gutter", { error = "gone" }]
on = ["down", "miss"]
ttl_max = "10s"
order = "key"
rate = 10
burst = 5

[routes.rest]
migrate = { from = "main", to = { random = ["gutter", "all"] }, start = 2026-11-25T09:00:00+01:00, over = "1d" }

[routes.all]
shadow = { main = { tier = { near = "main", far = "gutter", ttl = "5s" } }, copies = { null = true }, share = 0.5 }

[routes.more]
rewrite = { to = { warmup = { cold = "main", warm = "gutter", ttl = "1h" } }, strip = "a", prefix = "b", ttl = "1m" }

[routes.broken]
fault = { to = "main", share = 0.1, delay = "5ms", error = "made to fail" }
"##;

fn refused(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

#[test]
fn everything_there_is() {
    let proxy = parse(FULL).unwrap();
    assert!(!proxy.flush_all);
    assert_eq!(proxy.hot_keys.cache_ms, 50);
    assert_eq!(proxy.hot_keys.spread, 4);
    assert_eq!(proxy.limits.client_bytes, 2 << 20);
    assert_eq!(proxy.limits.value_bytes, 1 << 20);

    let [batch, second] = &proxy.listeners[..] else {
        panic!("{:?}", proxy.listeners);
    };
    assert_eq!(batch.endpoint.host.as_deref(), Some("127.0.0.1"));
    assert_eq!(batch.endpoint.port, Some(11311));
    assert_eq!(batch.endpoint.tag.as_deref(), Some("batch"));
    let Route::Limit { commands, rate, .. } = &proxy.routes[batch.root] else {
        panic!()
    };
    assert_eq!(*commands, Commands::READS.with(Command::Delete));
    assert_eq!(rate.unwrap().burst, 101);
    assert_eq!(second.endpoint.host, None);
    assert_eq!(second.endpoint.tls, EndpointTls::Mutual);
    assert_eq!(second.root, proxy.root);

    let main = proxy.pools.iter().find(|pool| pool.name == "main").unwrap();
    assert_eq!(main.timeout_ms, 250);
    assert_eq!(main.health.failures, 5);
    assert_eq!(main.health.probe_ms, 2000);
    assert_eq!(main.health.good_probes, 2);
    assert_eq!(main.servers[0].name.as_deref(), Some("one"));
    assert_eq!(main.servers[1].address, Address::tcp("::1", 11212));
    assert_eq!(main.scheme.kind, RingKind::Twemproxy);
    assert_eq!(main.scheme.key_hash, Some(KeyHash::Md5));
    assert_eq!((main.failover, main.replicas), (2, 2));
    assert_eq!(
        main.tls.as_ref().unwrap().server_name.as_deref(),
        Some("cache")
    );
    assert!(main.tls.as_ref().unwrap().verify);
    assert_eq!(main.auth.as_ref().unwrap().user, "u");

    let gutter = proxy
        .pools
        .iter()
        .find(|pool| pool.name == "gutter")
        .unwrap();
    assert_eq!(gutter.timeout_ms, 1500);
    assert_eq!(
        gutter.nameservers,
        [
            "127.0.0.1:8600".parse().unwrap(),
            "[::1]:53".parse().unwrap()
        ]
    );
    assert_eq!(gutter.srv.as_deref(), Some("_memcache._tcp.cache.svc"));
    assert_eq!(
        gutter.scheme.kind,
        RingKind::McproxyRing {
            labels: McproxyLabels::Evcache,
            points: 40
        }
    );
    assert_eq!(gutter.scheme.part, KeyPart::Before(b"|#|".into()));

    let Route::Match { rules, otherwise } = &proxy.routes[proxy.root] else {
        panic!()
    };
    assert_eq!(rules.len(), 3, "a rule for each prefix");
    assert_eq!(rules[1].prefix, b"u/");
    assert_eq!(rules[2].listener.as_deref(), Some("batch"));
    assert!(matches!(proxy.routes[*otherwise], Route::Pool { .. }));
    let Route::Failover {
        children,
        on,
        ttl_max,
        order,
        rate,
    } = &proxy.routes[rules[0].to]
    else {
        panic!()
    };
    assert_eq!(children.len(), 3);
    assert!(on.has(Failure::Miss) && on.has(Failure::Down) && !on.has(Failure::Error));
    assert_eq!((*ttl_max, *order), (Some(10), Order::Key));
    assert_eq!(
        *rate,
        Some(Rate {
            per_second: 10.0,
            burst: 5
        })
    );
    let Route::Fanout { wait, .. } = &proxy.routes[rules[2].to] else {
        panic!()
    };
    assert_eq!(*wait, Wait::Majority);
    assert!(proxy.routes.iter().any(|route| matches!(
        route,
        Route::Migrate {
            start: 1_795_593_600,
            length: 86_400,
            ..
        }
    )));
    for (id, route) in proxy.routes.iter().enumerate() {
        route.for_each_child(|child| assert!(child < id));
    }
}

#[test]
fn one_pool_needs_no_route() {
    let proxy = parse("[pools.a]\nservers = ['a']").unwrap();
    assert_eq!(proxy.routes, [Route::Pool { pool: 0 }]);
    assert_eq!(proxy.pools[0], {
        let mut pool = Pool::new("a");
        pool.servers.push(Server::new(Address::tcp("a", 11211)));
        pool
    });
}

#[test]
fn errors_name_line_and_field() {
    let pool = |fields: &str| format!("[pools.a]\nservers = [\"a\"]\n{fields}");
    for (text, expected) in [
        (
            "x = ",
            "line 1: string values must be quoted, expected literal string",
        ),
        ("", "`pools` is missing"),
        ("pools = 3", "line 1: pools: a table is expected, not 3"),
        ("[pools]", "line 1: pools: a proxy needs a pool"),
        (
            "[pools.a]",
            "line 1: pools.a: `servers` is missing (or `srv`)",
        ),
        (
            "[pools.a]\nservers = []",
            "line 2: pools.a.servers: a pool needs a server",
        ),
        (
            "[pools.a]\nservers = [\n \"a:1\",\n \"b:x\",\n]",
            "line 4: pools.a.servers[1]: `b:x`: the port must be 1 to 65535, not `x`",
        ),
        (
            "[pools.a]\nservers = ['a', 'a:11211']",
            "line 2: pools.a.servers[1]: `a:11211` is there twice",
        ),
        (
            "[pools.\"a b\"]\nservers = ['a']\nsrv = 'x'",
            "line 3: pools.\"a b\".srv: a pool has `servers` or `srv`, not both",
        ),
        (
            &pool("timout = '1s'"),
            "line 3: pools.a.timout: unknown field `timout`; did you mean `timeout`?",
        ),
        (
            &pool("timeout = 5"),
            "line 3: pools.a.timeout: a time with its unit, as \"250ms\", \"10s\", \"5m\", \"2h\" or \"1d\", is expected, not 5",
        ),
        (
            &pool("timeout = '2d'"),
            "line 3: pools.a.timeout: `2d` is outside of 1ms to 86400000ms",
        ),
        (
            &pool("queue_bytes = '1q'"),
            "line 3: pools.a.queue_bytes: a size, as 4096, \"64k\", \"16m\" or \"1g\", is expected, not \"1q\"",
        ),
        (
            &pool("failover = 9"),
            "line 3: pools.a.failover: a number from 0 to 8 is expected, not 9",
        ),
        (
            &pool("ring = 'ketma'"),
            "line 3: pools.a.ring: unknown ring `ketma`; there are libketama, libmemcached, modula, twemproxy, twemproxy-modula, mcproxy-ketama, mcproxy-default, mcproxy-twemproxy, mcproxy-evcache, spymemcached, spymemcached-lib, rj, jump, ch3",
        ),
        (
            &pool("hash = 'mumur'"),
            "line 3: pools.a.hash: unknown hash `mumur`; did you mean `murmur`?",
        ),
        (
            &pool("ring = 'jump'\nhash = 'md5'"),
            "line 4: pools.a.hash: this ring has a hash of its own",
        ),
        (
            "[pools.a]\nservers = ['a:1:1', 'b:1:2']\nring = 'jump'",
            "line 2: pools.a.servers[1]: this ring has no weights",
        ),
        (
            &pool("hash_tag = '{}'\nhash_skip = 'x'"),
            "line 4: pools.a.hash_skip: only one of `hash_tag`, `hash_stop` and `hash_skip` can apply",
        ),
        (
            &pool("ring = 'mcproxy-ketama'\npoints = 42"),
            "line 4: pools.a.points: a multiple of 4 is expected: an MD5 gives four points",
        ),
        (
            &pool("points = 40"),
            "line 3: pools.a.points: only the rings of memcached's proxy take a number of points",
        ),
        (
            &pool("replicas = 3"),
            "line 1: pools.a: 3 replicas need as many servers; there are 1",
        ),
        (
            &pool("health = { probes = 3 }"),
            "line 3: pools.a.health.probes: unknown field `probes`; did you mean `probe`?",
        ),
        (
            &pool("tls = { certificate = 'c' }"),
            "line 3: pools.a.tls: `certificate` and `key` come together",
        ),
        (
            &pool("auth = { user = 'u' }"),
            "line 3: pools.a.auth: `password_file` is missing",
        ),
        (
            "[defaults]\nservers = ['a']\n[pools.a]\nservers = ['a']",
            "line 1: defaults: `servers` belongs to a pool",
        ),
        (
            "[pools.a]\nservers = ['a']\n[pools.b]\nservers = ['b']",
            "`route` is missing: with several pools it says where requests go",
        ),
        (
            &pool("[limits]\nclient_bytes = 1"),
            "line 4: limits.client_bytes: 1 bytes are outside of 4096 to 1099511627776",
        ),
        (
            &pool("[[listen]]\naddress = 'x'"),
            "line 4: listen[0].address: an address and a port are expected, as \"127.0.0.1:11311\"",
        ),
    ] {
        assert_eq!(refused(text), expected, "of {text}");
    }
}

#[test]
fn errors_of_routes() {
    let with = |routes: &str| {
        format!(
            "route = 'main'\n[pools.a]\nservers = ['a']\n[pools.b]\nservers = ['b']\n[routes]\n{routes}"
        )
    };
    for (routes, expected) in [
        (
            "main = 'c'",
            "line 7: routes.main: unknown pool or route `c`; did you mean `a`?",
        ),
        (
            "main = { to = 'a' }",
            "line 7: routes.main: a route is one of pool, match, failover, fanout, random, tier, warmup, migrate, shadow, rewrite, limit, null, error, fault",
        ),
        (
            "main = { null = true, pool = 'a' }",
            "line 7: routes.main: a route is `pool` or `null`, not both",
        ),
        (
            "main = 'x'\nx = { failover = ['a', 'y'] }\ny = { random = ['x', 'b'] }",
            "line 9: routes.y.random[0]: routes lead in a circle: x -> y -> x",
        ),
        (
            "main = { pool = 'a' }\na = 'b'",
            "line 8: routes.a: `a` is the name of a pool already",
        ),
        (
            "main = { failover = ['a'], on = ['mis'] }",
            "line 7: routes.main.on[0]: unknown failure `mis`; did you mean `miss`?",
        ),
        (
            "main = { match = [{ to = 'a' }], otherwise = 'b' }",
            "line 7: routes.main.match[0]: a rule has a `prefix`, a `command` or a `listener`; `otherwise` has the rest",
        ),
        (
            "main = { match = [{ prefix = 'a b', to = 'a' }], otherwise = 'b' }",
            "line 7: routes.main.match[0].prefix: no key has this in it: at most 250 bytes, and neither blanks nor control characters",
        ),
        (
            "main = { match = [{ command = 'gets', to = 'a' }], otherwise = 'b' }",
            "line 7: routes.main.match[0].command: unknown command `gets`; did you mean `get`?",
        ),
        (
            "main = { match = [] }",
            "line 7: routes.main: `otherwise` is missing",
        ),
        (
            "main = { limit = { to = 'a' } }",
            "line 7: routes.main.limit: a limit has a `rate`, `in_flight` or both",
        ),
        (
            "main = { migrate = { from = 'a', to = 'b', start = 2026-11-25, over = '1h' } }",
            "line 7: routes.main.migrate.start: a moment, as 2026-11-25T09:00:00Z, is expected: with date, time and offset",
        ),
        (
            "main = { error = \"a\\nb\" }",
            "line 7: routes.main.error: a line of 1 to 200 bytes is expected",
        ),
        (
            "main = 'a'\nunused = { random = [] }",
            "line 8: routes.unused.random: 1 to 32 routes are expected",
        ),
        (
            "main = { tier = { near = 'a', far = 'b', ttl = '1.5s' } }",
            "line 7: routes.main.tier.ttl: a TTL is whole seconds",
        ),
    ] {
        assert_eq!(refused(&with(routes)), expected, "of {routes}");
    }
}

#[test]
fn trees_are_bounded() {
    let mut deep = "'a'".to_owned();
    for _ in 0..16 {
        deep = format!("{{ rewrite = {{ to = {deep}, prefix = 'x' }} }}");
    }
    let error = refused(&format!("route = {deep}\n[pools.a]\nservers = ['a']"));
    assert!(error.contains("routes lie more than 16 deep"), "{error}");

    let fan = |to: &str| format!("{{ fanout = [{}] }}", [to; 9].join(", "));
    let error = refused(&format!(
        "route = {}\n[pools.a]\nservers = ['a']",
        fan(&fan("'a'"))
    ));
    assert!(error.contains("sent 81 times; at most 64"), "{error}");
}

#[test]
fn the_weights_of_spymemcached_count_when_there_are_any() {
    for (weight, weighted) in [(1, false), (2, true)] {
        let text = format!(
            "defaults = {{ ring = 'spymemcached' }}\n[pools.a]\nservers = ['a:1:{weight}']"
        );
        let proxy = parse(&text).unwrap();
        assert_eq!(
            proxy.pools[0].scheme.kind,
            RingKind::Spymemcached {
                labels: SpyLabels::Spy,
                weighted
            }
        );
    }
}

/// The manual page is what users have: its examples work, and it leaves no field out.
#[test]
fn the_manual_is_right() {
    let manual = include_str!("../../../man/larder-proxy.toml.5");
    let mut examples = 0;
    for example in manual.split(".Bd -literal -offset indent\n").skip(1) {
        let (example, _) = example.split_once(".Ed").unwrap();
        if let Err(error) = parse(example) {
            panic!("{error} in\n{example}");
        }
        examples += 1;
    }
    assert!(examples >= 5);

    // Of every table: an unknown field names all that are known.
    let pool = "[pools.a]\nservers = ['a']\n";
    let unknown = [
        ("", "zzzzzzzz = 1"),
        ("", "[defaults]\nzzzzzzzz = 1"),
        (pool, "zzzzzzzz = 1"),
        (pool, "health = { zzzzzzzz = 1 }"),
        (pool, "tls = { zzzzzzzz = 1 }"),
        (
            pool,
            "auth = { user = '', password_file = '', zzzzzzzz = 1 }",
        ),
        (pool, "[limits]\nzzzzzzzz = 1"),
        (pool, "[hot_keys]\nzzzzzzzz = 1"),
        (pool, "[[listen]]\naddress = '1'\nzzzzzzzz = 1"),
        (
            pool,
            "[routes]\nr = { match = [], otherwise = 'a', zzzzzzzz = 1 }",
        ),
        (
            pool,
            "[routes]\nr = { match = [{ prefix = 'a', to = 'a', zzzzzzzz = 1 }], otherwise = 'a' }",
        ),
        (pool, "[routes]\nr = { failover = ['a'], zzzzzzzz = 1 }"),
        (pool, "[routes]\nr = { fanout = ['a'], zzzzzzzz = 1 }"),
        (
            pool,
            "[routes]\nr = { tier = { near = 'a', far = 'a', ttl = '1s', zzzzzzzz = 1 } }",
        ),
        (
            pool,
            "[routes]\nr = { warmup = { cold = 'a', warm = 'a', ttl = '1s', zzzzzzzz = 1 } }",
        ),
        (
            pool,
            "[routes]\nr = { migrate = { from = 'a', to = 'a', start = 2026-01-01T00:00:00Z, over = '1s', zzzzzzzz = 1 } }",
        ),
        (
            pool,
            "[routes]\nr = { shadow = { main = 'a', copies = 'a', share = 1, zzzzzzzz = 1 } }",
        ),
        (
            pool,
            "[routes]\nr = { rewrite = { to = 'a', zzzzzzzz = 1 } }",
        ),
        (
            pool,
            "[routes]\nr = { limit = { to = 'a', in_flight = 1, zzzzzzzz = 1 } }",
        ),
        (
            pool,
            "[routes]\nr = { fault = { to = 'a', error = 'x', zzzzzzzz = 1 } }",
        ),
    ];
    for (before, after) in unknown {
        let text = if before.is_empty() {
            format!("{after}\n{pool}")
        } else {
            format!("{before}{after}")
        };
        let message = refused(&text);
        let Some((_, fields)) = message.split_once("unknown field `zzzzzzzz`; there are ") else {
            panic!("{message}");
        };
        for field in fields.split(", ") {
            let words =
                manual.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
            assert!(
                words.clone().any(|word| word == field),
                "{field} is not in the manual"
            );
        }
    }
    for (name, _) in RingKind::NAMES {
        assert!(manual.contains(name), "{name} is not in the manual");
    }
    for hash in KeyHash::ALL {
        assert!(
            manual.contains(hash.name()),
            "{} is not in the manual",
            hash.name()
        );
    }
    for command in Command::ALL {
        assert!(manual.contains(command.name()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// A file with a few bytes changed is read or refused, and nothing else.
    #[test]
    fn no_file_does_harm(
        changes in prop::collection::vec((any::<prop::sample::Index>(), ".{0,3}"), 1..6)
    ) {
        let mut text = FULL.to_owned();
        for (at, put) in changes {
            let at = at.index(text.len());
            if text.is_char_boundary(at) && text.is_char_boundary(at + 1) {
                text.replace_range(at..=at, &put);
            }
        }
        if let Err(error) = parse(&text) {
            let lines = text.matches('\n').count() + 1;
            prop_assert!(error.line.is_none_or(|line| (1..=lines).contains(&line)), "{}", error);
            prop_assert!(!error.message.is_empty());
        }
    }
}
