"""memcached's test files by class, and where they must not pass as they stand, with the reason."""

# What each group asks of a server.
FILES = {
    # Answers of the protocols, and nothing else.
    "protocol": """
        ascii-auth ascii-auth2 binary-get bogus-commands cas chunked-items daemonize dash-M flags flush-all getandtouch
        getset incrdecr issue_108 issue_152 issue_192 issue_3 issue_41 issue_50 issue_68 issue_70 malicious-commands
        maxconns metaget multiversioning noreply quit shutdown stats-detail strtol-testing touch udp unixsocket
    """.split(),
    # Certain statistics, settings or options besides.
    "statistics": """
        00-startup binary binary-sasl expirations idle-timeout issue_104 issue_183 issue_61 issue_67 item_size_max
        stats-conns watcher watcher_connid ssl_cert_refresh ssl_ports ssl_proto_version ssl_session_resumption
        ssl_settings ssl_verify_modes
    """.split(),
    # Figures of memcached's slab allocator and LRU to the byte.
    "figures": """
        64bit conn-limits dyn-maxbytes evictions issue_14 issue_163 issue_22 issue_29 issue_42 lru lru-crawler
        lru-maintainer restart slabs-cas slabs-mover slabs-reassign-chunked slabs-reassign2 slabs_reassign stats
    """.split(),
    # Skip themselves, or look at the source tree.
    "none": "issue_140 issue_260 refhang slabhang line-lengths misbehave".split(),
}

# Not run: (pattern, reason).
OUT = [
    (r".*extstore.*", "extstore: Larder keeps items in memory only"),
    (r"proxy.*", "memcached's own proxy, configured in Lua; `larder proxy` is another one"),
    (r"whitespace", "looks at memcached's source files"),
]

# These disturb others: fixed ports, a thousand connections, seconds that are counted.
SLOW = {"issue_67", "maxconns"}

# Subtests (by description or number; None: all; "ends": the file stops early) in which 1.6.45 itself answers
# differently from what the suite of that version wants.
NEWER = {
    "1.6.18": {
        "cas": ({"cas empty, throw error", "ends"}, "a cas line without its number: 1.6.45 answers once and skips the value, the test waits for a second error"),
        "flush-all": ({"failed to set value after flush with no CAS at least once"}, "1.6.45 always keeps what is set after a flush, without CAS ids, too"),
        "issue_3": ({"invalid delete", "Failed to add after failed silent delete."}, "1.6.45 takes and ignores words behind `delete KEY 0`"),
        "lru-crawler": ({"metadump all returns all items", "metadump hash returns all items"}, "since 1.6.43 a dump begins with OK"),
        "metaget": ({"error from blank command"}, "since 1.6.40 a line that is too short is a CLIENT_ERROR"),
        "slabs-reassign-chunked": ({"some reassign evictions happened"}, "1.6.45 counts no evictions for want of memory while a page moves"),
        "slabs-reassign2": ({2, 3, 4, 5}, "1.6.45 moves pages back to the pool at another pace, and counts no evictions meanwhile"),
        "stats": ({"expected count of stats values"}, "1.6.45 has one statistic more"),
        "shutdown": ({"error when shutdown is not enabled"}, "1.6.45 says SERVER_ERROR: where 1.6.18 said ERROR:"),
    },
}

_ROOM = "Larder holds more items in the same memory, so that nothing has to be evicted yet"
_CHUNKS = "values over 16 KiB, and only they, are chained, in chunks of one pool for all classes"
_CLOCK = "the LRU is kept as a clock: what was read once outlives what was never read"

# Deliberate or harmless differences of Larder's own, whatever the version of the suite.
OURS = {
    "64bit": ({6}, f"wants all of a long value in one class; Larder's has its ends in small ones. {_CHUNKS}"),
    "binary-sasl": ({6}, "PLAIN is the one mechanism; CRAM-MD5 would need the passwords in the clear"),
    "conn-limits": ({1, 2, 3, 4}, "memcached refuses 500 answers at once within 32 KiB of response objects; Larder has none, and answers"),
    "dyn-maxbytes": ({"check evicted", "stats slabs total_malloced increased"}, f"{_ROOM}, and one more needs no page"),
    "issue_22": ({41, 84}, _ROOM),
    "stats-conns": ({"ends"}, "asks for UDP on every address, which Larder refuses without -o udp_public"),
    "lru": ({107, 108, 146, 150, "ends"}, f"{_ROOM}; {_CLOCK}"),
    "slabs-mover": (
        {"fill and move pages", "chunked items", "test locked", "expired items", "reflocked items", "ends"},
        # fill: 11 pages free in the end, not 10, for a class that had a little over a page keeps the little.
        # chunked: the emptiest page goes, not the oldest, so that newer items can go and few chunks have to be
        # rescued; the two parts of 30 kB lie in slots of two sizes. locked, reflocked: a page with an item that
        # cannot be moved is left, and another one goes, where memcached's mover waits and counts its rounds.
        f"wants the page mover to take the oldest page and to wait for its locked items; Larder's takes another page. {_CHUNKS}",
    ),
    "slabs-reassign-chunked": (
        {"some chunk rescues happened", "evictions were less than 2000", "some reassign chunk rescues happened",
         "were able to fetch back 2/3rds of 8k keys"},
        f"wants 11 kB to be chained in chunks of 4 KiB, which the values of 3 kB then use. {_CHUNKS}",
    ),
    "slabs_reassign": ({"slab 31 pagecount changed", "slab 25 pagecount changed", "slab rebalancer started"},
                       f"moves pages between classes that share one pool, and asks again within the 100 ms in which Larder's begins. {_CHUNKS}"),
}  # fmt: skip

# Options without which Larder refuses what the file asks for.
ADDED = {"stats-conns": ("-o udp_public", "UDP on every address has to be allowed")}
