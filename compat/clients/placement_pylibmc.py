"""Stores keys of stdin, or counts those that are missing: placement_pylibmc.py store|missing BEHAVIOR SERVER..."""

import sys

import pylibmc

what, behavior, *servers = sys.argv[1:]
# The weights of servers are honoured when the behavior comes first: so it is with a constructor.
client = pylibmc.Client(servers, behaviors={behavior: True})
keys = sys.stdin.read().split("\n")
bad = 0
for key in keys:
    if what == "store":
        if not client.set(key, key.encode()):
            sys.exit(f"{key} is not stored")
    elif (found := client.get(key)) is None:
        bad += 1
    elif found != key and found != key.encode():
        sys.exit(f"{key}: {found!r}")
print(bad)
