"""Every command of python-binary-memcached, with or without a password."""

import sys

import bmemcached
import tap
from bmemcached.exceptions import MemcachedException
from tap import calls, gone, ok, same

SERVER = f"{sys.argv[1]}:{sys.argv[2]}"
USERS = sys.argv[3:]


def storing(client, name):
    def is_(what, came, wanted):
        same(f"{name} {what}", came, wanted)

    client.flush_all()
    is_("get absent", client.get("absent"), None)
    is_("get with a default", client.get("absent", 3), 3)
    is_("set", client.set("a", "text"), True)
    is_("get", client.get("a"), "text")
    for label, value in {"bytes": b"\x00\r\n\xff", "number": 12345, "list": [1, {"a": None}], "empty": ""}.items():
        is_(f"set {label}", (client.set("v", value), client.get("v")), (True, value))
    is_("set compressed", (client.set("z", "z" * 100_000, compress_level=6), client.get("z")), (True, "z" * 100_000))
    value, unique = client.gets("a")
    is_("gets", (value, unique > 0), ("text", True))
    is_("get with cas", client.get("a", get_cas=True), ("text", unique))
    is_("cas", client.cas("a", "new", unique), True)
    is_("cas again", client.cas("a", "newer", unique), False)
    is_("after cas", client.get("a"), "new")
    is_("cas absent", client.cas("absent", "x", unique), False)
    is_("add existing", client.add("a", "2"), False)
    is_("add", client.add("c", "3"), True)
    is_("replace", client.replace("c", "4"), True)
    is_("replace absent", client.replace("absent", "4"), False)
    is_("set_multi", client.set_multi({"m1": "1", "m2": "2"}), [])
    is_("get_multi", client.get_multi(["m1", "m2", "absent"]), {"m1": "1", "m2": "2"})
    is_("get_multi with cas", {k: v[0] for k, v in client.get_multi(["m1", "m2"], get_cas=True).items()}, {"m1": "1", "m2": "2"})
    is_("incr creates", client.incr("n", 1), 0)
    is_("incr", client.incr("n", 41), 41)
    is_("incr with a default", client.incr("n2", 1, default=10), 10)
    is_("decr", client.decr("n", 1), 40)
    is_("decr below zero", client.decr("n", 100), 0)
    if hasattr(client, "touch"):
        is_("touch", client.touch("a", 100), True)
        is_("touch absent", client.touch("absent", 100), False)
    is_("delete", client.delete("a"), True)
    is_("delete absent", client.delete("a"), True)
    _, unique = client.gets("c")
    is_("delete with the wrong cas", client.delete("c", cas=unique + 1), False)
    is_("delete with cas", client.delete("c", cas=unique), True)
    is_("delete_multi", client.delete_multi(["m1", "m2"]), True)
    is_("set with one second", client.set("short", "s", time=1), True)
    gone(f"{name} it expires", lambda: client.get("short"))
    is_("large value", (client.set("big", b"x" * 900_000, compress_level=0), len(client.get("big"))), (True, 900_000))
    calls(f"{name} too large a value", lambda: client.set("big", b"x" * 1_100_000, compress_level=0), MemcachedException)
    is_("longest key", (client.set("k" * 250, "v"), client.get("k" * 250)), (True, "v"))
    many = {f"many{number}": str(number) for number in range(300)}
    is_("300 values", client.set_multi(many), [])
    is_("get 300", client.get_multi(list(many)), many)
    stats = client.stats()
    ok(f"{name} stats", len(next(iter(stats.values()))) > 50, stats)
    ok(f"{name} stats settings", "maxconns" in next(iter(client.stats("settings").values())))
    is_("flush_all", client.flush_all(), True)
    is_("flushed", client.get("many1"), None)
    client.disconnect_all()
    is_("after disconnect_all", client.set("a", "1"), True)


def main():
    storing(bmemcached.Client([SERVER], *USERS), "Client")
    storing(bmemcached.ReplicatingClient([SERVER], *USERS), "ReplicatingClient")
    storing(bmemcached.DistributedClient([SERVER], *USERS), "DistributedClient")
    if USERS:
        calls("wrong password", lambda: bmemcached.Client([SERVER], USERS[0], "wrong").get("a"), MemcachedException)
        calls("nobody", lambda: bmemcached.Client([SERVER], "nobody", USERS[1]).get("a"), MemcachedException)
        calls("without a password", lambda: bmemcached.Client([SERVER]).set("a", 1), MemcachedException)
    else:
        calls("password where none is wanted", lambda: bmemcached.Client([SERVER], "a", "b").set("a", "1"), True)


tap.run(main)
