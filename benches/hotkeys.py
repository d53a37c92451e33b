#!/usr/bin/env python3
"""Measures what fifty keys that take nine of ten reads do to five servers behind a proxy.

    benches/hotkeys.py --larder target/release/larder [--seconds 6]

Half of the fifty keys sit on one server. What is shown is the busiest server's reads to a fair share of what all of them
get, as their own statistics count: without anything done about hot keys, with answers given again by the proxy, and with
reads spread over several servers because none may be kept.
"""

import argparse
import os
import random
import selectors
import subprocess
import tempfile
import time

from fleet import Fleet, connect, free_port

SERVERS, HOT, CLIENTS, DEPTH = 5, 50, 16, 50
MODES = {
    "nothing is done": "hot_keys = false",
    "kept by the proxy": "",
    "spread over servers": 'hot_keys = { cache = "0s" }',
}


def reads(port):
    with connect(port) as connection:
        connection.sendall(b"stats\r\n")
        said = b""
        while not said.endswith(b"END\r\n"):
            said += connection.recv(65536)
    return int(next(line.split()[2] for line in said.split(b"\r\n") if line.startswith(b"STAT cmd_get ")))


def hot_keys(larder, behind):
    """Fifty keys, half of them on the first server."""
    names = [f"user:{number}" for number in range(1000)]
    command = [larder, "proxy", "--servers", behind, "--where", "-"]
    said = subprocess.run(command, input="\n".join(names), capture_output=True, text=True, check=True).stdout.splitlines()
    first = behind.split(",")[0]
    at_home = [name for name, line in zip(names, said, strict=True) if line.split()[2] == first]
    elsewhere = [name for name in names if name not in set(at_home)]
    return at_home[: HOT // 2] + elsewhere[: HOT // 2]


def load(port, hot, seconds, chance):
    """Reads until the time is over; returns how many."""
    selector = selectors.DefaultSelector()

    def batch():
        keys = [chance.choice(hot) if chance.random() < 0.9 else f"cold:{chance.randrange(1_000_000)}" for _ in range(DEPTH)]
        return "".join(f"get {key}\r\n" for key in keys).encode()

    for _ in range(CLIENTS):
        connection = connect(port)
        selector.register(connection, selectors.EVENT_READ, [0])
        connection.sendall(batch())
    done, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        for ready, _ in selector.select(1):
            # Values hold no END of their own.
            ready.data[0] += ready.fileobj.recv(1 << 18).count(b"END\r\n")
            if ready.data[0] >= DEPTH:
                done += ready.data[0]
                ready.data[0] = 0
                ready.fileobj.sendall(batch())
    for each in list(selector.get_map().values()):
        each.fileobj.close()
    return done


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--larder", default="target/release/larder")
    parser.add_argument("--seconds", type=float, default=6)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Fleet() as fleet:
        ports = [free_port() for _ in range(SERVERS)]
        for port in ports:
            fleet.serve(arguments.larder, port, "-U", 0, "-t", 1, "-m", 64)
        behind = ",".join(f"127.0.0.1:{port}" for port in ports)
        hot = hot_keys(arguments.larder, behind)
        for name, setting in MODES.items():
            config = os.path.join(folder, "proxy.toml")
            listed = ", ".join(f'"{server}"' for server in behind.split(","))
            with open(config, "w") as file:
                file.write(f'{setting}\n[pools.all]\nservers = [{listed}]\ntimeout = "20s"\n')
            port = free_port()
            proxy = fleet.proxy(arguments.larder, port, "-t", 2, "--config", config)
            with connect(port) as filler:
                for key in hot:
                    filler.sendall(f"set {key} 0 0 100\r\n{'v' * 100}\r\n".encode())
                    filler.recv(100)
            chance = random.Random(7)
            # The first seconds are for finding out which keys they are.
            load(port, hot, 3, chance)
            before = [reads(each) for each in ports]
            done = load(port, hot, arguments.seconds, chance)
            got = [reads(each) - had for each, had in zip(ports, before, strict=True)]
            print(f"{name:20} {done:8} reads, {sum(got):8} of servers {got}, the busiest {max(got) * SERVERS / sum(got):.2f} of a fair share")
            proxy.kill()


if __name__ == "__main__":
    main()
