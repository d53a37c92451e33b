"""Every command of pylibmc, in text and in binary, or with a password."""

import sys
import time

import pylibmc
import tap
from tap import calls, gone, ok, same

SERVER = f"{sys.argv[1]}:{sys.argv[2]}"
USERS = dict(zip(("username", "password"), sys.argv[3:]))


def storing(client, name, binary):
    def is_(what, came, wanted):
        same(f"{name} {what}", came, wanted)

    is_("flush_all", client.flush_all(), True)
    is_("get absent", client.get("absent"), None)
    is_("get with a default", client.get("absent", 7), 7)
    is_("set", client.set("a", "text"), True)
    is_("get", client.get("a"), "text")
    for label, value in {"bytes": b"\x00\r\n\xff", "number": 12345, "float": 2.5, "true": True, "list": [1, {"a": None}], "none": None}.items():
        is_(f"set {label}", (client.set("v", value), client.get("v")), (True, value))
    is_("add existing", client.add("a", "2"), False)
    is_("add", client.add("c", "3"), True)
    is_("replace", client.replace("c", "4"), True)
    calls(f"{name} replace absent", lambda: client.replace("absent", "4"), pylibmc.NotFound if binary else False)
    is_("append", client.append("c", "5"), True)
    is_("prepend", client.prepend("c", "3"), True)
    calls(f"{name} append absent", lambda: client.append("absent", "5"), False)
    is_("get what was joined", client.get("c"), "345")
    is_("get_multi", client.get_multi(["a", "c", "absent"]), {"a": "text", "c": "345"})
    is_("get_multi with a prefix", client.get_multi(["x", "y"], key_prefix="none"), {})
    is_("set_multi", client.set_multi({"m1": 1, "m2": "two"}, time=100), [])
    is_("set_multi with a prefix", client.set_multi({"p1": 1}, key_prefix="p:"), [])
    is_("get after set_multi", client.get_multi(["m1", "m2", "p:p1"]), {"m1": 1, "m2": "two", "p:p1": 1})
    if binary:
        is_("add_multi", client.add_multi({"m1": 9, "m9": 9}), ["m1"])
    is_("incr", (client.set("n", 1), client.incr("n")), (True, 2))
    is_("incr by", client.incr("n", 40), 42)
    is_("decr", client.decr("n"), 41)
    is_("decr by", client.decr("n", 100), 0)
    calls(f"{name} incr absent", lambda: client.incr("absent"), pylibmc.NotFound)
    calls(f"{name} incr a word", lambda: client.incr("a"), pylibmc.UnknownReadFailure if binary else pylibmc.ClientError)
    if not binary:
        is_("incr_multi", client.incr_multi(["n", "m1"], delta=2), None)
        is_("after incr_multi", client.get_multi(["n", "m1"]), {"n": 2, "m1": 3})
    is_("touch", client.touch("a", 100), True)
    is_("touch absent", client.touch("absent", 100), False)
    is_("delete", client.delete("a"), True)
    is_("delete absent", client.delete("a"), False)
    is_("delete_multi", client.delete_multi(["m1", "m2"]), True)
    is_("delete_multi with some absent", client.delete_multi(["m1", "c"]), False)
    is_("set with one second", client.set("short", "s", time=1), True)
    gone(f"{name} it expires", lambda: client.get("short"))
    is_("large value", (client.set("big", "x" * 900_000), len(client.get("big"))), (True, 900_000))
    calls(f"{name} too large a value", lambda: client.set("big", b"y" * 1_100_000), pylibmc.TooBig)
    is_("compressed", (client.set("big", "z" * 2_000_000, min_compress_len=1000), client.get("big") == "z" * 2_000_000), (True, True))
    is_("longest key", (client.set("k" * 249, "v"), client.get("k" * 249)), (True, "v"))
    calls(f"{name} get_stats", lambda: len(client.get_stats()), 1)
    ok(f"{name} statistics", int(client.get_stats()[0][1]["curr_items"]) > 0)
    many = {f"many{number}": number for number in range(300)}
    is_("300 values", client.set_multi(many), [])
    is_("get 300", client.get_multi(list(many)), many)
    is_("flush_all with a delay", client.flush_all(time=1), True)
    gone(f"{name} it is flushed", lambda: client.get("many1"))
    time.sleep(1.1)  # what is stored in the second of a flush goes with it
    client.disconnect_all()
    is_("after disconnect_all", client.set("a", 1), True)


def with_cas(client, name):
    client.set("c", "1")
    value, unique = client.gets("c")
    same(f"{name} gets", value, "1")
    same(f"{name} cas", client.cas("c", "2", unique), True)
    same(f"{name} cas again", client.cas("c", "3", unique), False)
    calls(f"{name} cas absent", lambda: client.cas("absent", "3", unique), pylibmc.NotFound)
    same(f"{name} after cas", client.get("c"), "2")
    same(f"{name} gets absent", client.gets("absent"), (None, None))



def main():
    if USERS:
        client = pylibmc.Client([SERVER], binary=True, **USERS)
        storing(client, "binary", True)
        for name, users in {"wrong password": {"username": USERS["username"], "password": "wrong"}, "nobody": {"username": "x", "password": "y"}}.items():
            try:
                came = pylibmc.Client([SERVER], binary=True, **users).set("a", 1)
            except pylibmc.Error:
                came = "refused"
            same(name, came, "refused")
        return
    storing(pylibmc.Client([SERVER]), "text", False)
    storing(pylibmc.Client([SERVER], behaviors={"no_block": True, "tcp_nodelay": True}), "text no_block", False)
    storing(pylibmc.Client([SERVER], binary=True), "binary", True)
    with_cas(pylibmc.Client([SERVER], behaviors={"cas": True}), "text")
    with_cas(pylibmc.Client([SERVER], binary=True, behaviors={"cas": True}), "binary")
    with_cas(pylibmc.ThreadMappedPool(pylibmc.Client([SERVER], behaviors={"cas": True})).master, "pool")


tap.run(main)
