"""Every command of pymemcache: Client, PooledClient and HashClient."""

import sys

import tap
from pymemcache.client.base import Client, PooledClient
from pymemcache.client.hash import HashClient
from pymemcache.exceptions import MemcacheClientError, MemcacheError, MemcacheIllegalInputError, MemcacheServerError, MemcacheUnknownCommandError
from pymemcache.serde import pickle_serde
from tap import calls, gone, ok, same

SERVER = (sys.argv[1], int(sys.argv[2]))


def storing(client, name, longest=250, flushed=True):
    def same_(what, came, wanted):
        same(f"{name} {what}", came, wanted)

    same_("flush_all", client.flush_all(), flushed)
    same_("get absent", client.get("absent"), None)
    same_("get with a default", client.get("absent", "none"), "none")
    same_("set", client.set("a", "1", noreply=False), True)
    same_("set without reply", client.set("b", b"\x00\r\n\xff", noreply=True), True)
    same_("get", client.get("a"), b"1")
    same_("get bytes", client.get("b"), b"\x00\r\n\xff")
    same_("add existing", client.add("a", "2", noreply=False), False)
    same_("add", client.add("c", "3", noreply=False), True)
    same_("replace", client.replace("c", "4", noreply=False), True)
    same_("replace absent", client.replace("absent", "4", noreply=False), False)
    same_("append", client.append("c", "5", noreply=False), True)
    same_("prepend", client.prepend("c", "3", noreply=False), True)
    same_("append absent", client.append("absent", "5", noreply=False), False)
    same_("prepend absent", client.prepend("absent", "5", noreply=False), False)
    same_("get what was joined", client.get("c"), b"345")
    same_("get_many", client.get_many(["a", "c", "absent"]), {"a": b"1", "c": b"345"})
    same_("get_multi", client.get_multi([]), {})
    value, unique = client.gets("c")
    same_("gets", value, b"345")
    same_("cas", client.cas("c", "6", unique, noreply=False), True)
    same_("cas again", client.cas("c", "7", unique, noreply=False), False)
    same_("cas absent", client.cas("absent", "7", unique, noreply=False), None)
    same_("gets absent", client.gets("absent"), (None, None))
    same_("set_many", client.set_many({"m1": "x", "m2": "y"}, noreply=False), [])
    same_("set_multi without reply", client.set_multi({"m3": "z"}, noreply=True), [])
    same_("get_many after set_many", client.get_many(["m1", "m2", "m3"]), {"m1": b"x", "m2": b"y", "m3": b"z"})
    same_("gets_many", {key: value for key, (value, _) in client.gets_many(["m1", "m2"]).items()}, {"m1": b"x", "m2": b"y"})
    same_("incr", client.incr("a", 41), 42)
    same_("decr", client.decr("a", 2), 40)
    same_("decr below zero", client.decr("a", 100), 0)
    same_("incr absent", client.incr("absent", 1), None)
    same_("decr absent", client.decr("absent", 1), None)
    same_("incr without reply", client.incr("a", 5, noreply=True), None)
    same_("incr after it", client.incr("a", 1), 6)
    calls(f"{name} incr a word", lambda: client.incr("m1", 1), MemcacheClientError)
    same_("touch", client.touch("m1", 100, noreply=False), True)
    same_("touch absent", client.touch("absent", 100, noreply=False), False)
    same_("delete", client.delete("m1", noreply=False), True)
    same_("delete absent", client.delete("m1", noreply=False), False)
    same_("delete without reply", client.delete("m2", noreply=True), True)
    same_("delete_many", client.delete_many(["m3", "absent"], noreply=False), True)
    same_("delete_multi", client.delete_multi(["a"], noreply=True), True)
    same_("get what was deleted", client.get_many(["m1", "m2", "m3", "a"]), {})
    same_("set with one second", client.set("short", "s", expire=1, noreply=False), True)
    gone(f"{name} it expires", lambda: client.get("short"))
    same_("set long ago", client.set("past", "s", expire=-1, noreply=False), True)
    same_("it is gone", client.get("past"), None)
    same_("empty value", (client.set("empty", b"", noreply=False), client.get("empty")), (True, b""))
    same_("longest key", (client.set("k" * longest, "v", noreply=False), client.get("k" * longest)), (True, b"v"))
    calls(f"{name} too long a key", lambda: client.set("k" * 251, "v"), MemcacheIllegalInputError)
    big = bytes(range(256)) * 3500
    same_("large value", (client.set("big", big, noreply=False), client.get("big") == big), (True, True))
    calls(f"{name} too large a value", lambda: client.set("big", b"x" * 1_100_000, noreply=False), MemcacheServerError)
    same_("it removed the old one", client.get("big"), None)
    many = {f"many{number}": str(number) * 20 for number in range(500)}
    same_("500 values", client.set_many(many, noreply=False), [])
    same_("get 500", client.get_many(list(many)), {key: value.encode() for key, value in many.items()})


def commands(client):
    same("version", client.version()[:4], b"1.6.")
    stats = client.stats()
    same("stats", (type(stats[b"pid"]), stats[b"curr_items"] > 0), (int, True))
    ok("stats settings", "maxconns" in {key.decode() for key in client.stats("settings")})
    ok("stats items", any(key.startswith(b"items:") for key in client.stats("items")))
    ok("stats slabs", b"active_slabs" in client.stats("slabs"))
    ok("stats sizes", isinstance(client.stats("sizes"), dict))
    same("cache_memlimit", client.cache_memlimit(128), True)
    same("flags", (client.set("f", "v", flags=77, noreply=False), client.get("f")), (True, b"v"))
    calls("raw_command", lambda: client.raw_command(b"mn"), b"MN")
    calls("raw_command with an ending", lambda: client.raw_command(b"get f", b"END\r\n"), b"VALUE f 77 1\r\nv\r\n")
    calls("unknown command", lambda: client.raw_command(b"nonsense"), MemcacheUnknownCommandError)
    same("verbosity", client.raw_command(b"verbosity 0"), b"OK")
    same("meta set and get", (client.raw_command(b"ms q 2 T60\r\nhi"), client.raw_command(b"mg q s v t", b"\r\n")[:7]), (b"HD", b"VA 2 s2"))
    same("flush_all with a delay", client.flush_all(delay=1, noreply=False), True)
    gone("it is flushed", lambda: client.get("f"))
    calls("unknown statistics", lambda: client.stats("nonsense"), MemcacheUnknownCommandError)
    same("quit", client.quit(), None)
    same("after quit", client.get("f"), None)
    try:
        came = client.shutdown()
    except MemcacheError:
        came = "refused"
    same("shutdown", came, "refused")
    same("after shutdown", client.set("f", "v", noreply=False), True)


def pickled(client):
    value = {"list": [1, 2.5, "three", None], "bytes": b"\x00"}
    same("pickled set", client.set("p", value, noreply=False), True)
    same("pickled get", client.get("p"), value)
    same("pickled number", (client.set("n", 7, noreply=False), client.get("n")), (True, 7))
    same("pickled text", (client.set("t", "ä", noreply=False), client.get("t")), (True, "ä"))


def main():
    storing(Client(SERVER), "Client")
    storing(PooledClient(SERVER, max_pool_size=3), "PooledClient")
    storing(HashClient([SERVER]), "HashClient", flushed=None)
    storing(Client(SERVER, key_prefix=b"pre:", default_noreply=False), "prefixed", longest=246)
    pickled(Client(SERVER, serde=pickle_serde))
    same("unicode key", Client(SERVER, allow_unicode_keys=True).set("ключ", "v", noreply=False), True)
    same("unicode key read", Client(SERVER, allow_unicode_keys=True).get("ключ"), b"v")
    commands(Client(SERVER, timeout=5))


tap.run(main)
