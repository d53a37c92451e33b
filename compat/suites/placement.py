"""Which server has a key: clients and other proxies on one side, `larder proxy` on the other.

Ten thousand keys are stored by the one and read by the other, over the same five memcacheds. A key that
is chosen differently is a miss.
"""

import os
import random
import shutil
import socket
import subprocess
import tempfile
import time

from differ.servers import Server

from . import peers
from .clients import _pylibmc
from .report import FAILED, PASSED, Case

name = "placement"
about = "larder proxy, pylibmc and nutcracker choose the same server for 10,000 keys"

KEYS = 10_000
SERVERS = 5
CLIENT = os.path.join(peers.HERE, "clients", "placement_pylibmc.py")


def keys(seed):
    """Keys as programs make them, of all lengths."""
    draw = random.Random(seed)
    shapes = ["user:%d", "session_%08x", "%d", "a:very:long:prefix:of:a:key:%d:profile", "k%d"]
    made = {draw.choice(shapes) % draw.randrange(1 << 31) for _ in range(KEYS * 2)}
    return sorted(made)[:KEYS]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Process:
    """A proxy on a port of its own."""

    def __init__(self, command, port):
        self.port = port
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                return
            except ConnectionRefusedError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.log.seek(0)
                    raise SystemExit(f"{command[0]} does not serve: {self.log.read()[-800:]!r}") from None
                time.sleep(0.01)

    def stop(self):
        self.process.kill()
        self.process.wait()
        self.log.close()


def store(port, wanted):
    """Stores each key with itself as its value."""
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        replies = connection.makefile("rb")
        for at in range(0, len(wanted), 100):
            some = wanted[at : at + 100]
            connection.sendall(b"".join(b"set %s 0 0 %d\r\n%s\r\n" % (key, len(key), key) for key in map(str.encode, some)))
            for key in some:
                if (line := replies.readline()) != b"STORED\r\n":
                    raise SystemExit(f"set {key}: {line!r}")


def missing(port, wanted):
    """How many keys are not there with themselves as their values."""
    absent = 0
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        replies = connection.makefile("rb")
        for at in range(0, len(wanted), 100):
            some = wanted[at : at + 100]
            connection.sendall(b"".join(b"get %s\r\n" % key.encode() for key in some))
            for key in some:
                line = replies.readline()
                if line == b"END\r\n":
                    absent += 1
                    continue
                value = replies.readline()
                if value != key.encode() + b"\r\n" or replies.readline() != b"END\r\n":
                    raise SystemExit(f"get {key}: {line!r} {value!r}")
    return absent


def flush(servers):
    for server in servers:
        with server.connect() as connection:
            connection.sendall(b"flush_all\r\n")
            connection.recv(100)


def larder(setting, servers, weights, *options):
    port = free_port()
    listed = ",".join(f"127.0.0.1:{server.port}:{weight}" for server, weight in zip(servers, weights, strict=True))
    command = [setting.subject, "proxy", "-l", "127.0.0.1", "-p", str(port), "-t", "2", "--servers", listed, *options]
    return Process(command + (["-u", "root"] if os.geteuid() == 0 else []), port)


def nutcracker(servers, weights, directory, distribution):
    port = free_port()
    path = os.path.join(directory, "nutcracker.yml")
    with open(path, "w", encoding="utf-8") as file:
        file.write(f"pool:\n  listen: 127.0.0.1:{port}\n  hash: fnv1a_64\n  distribution: {distribution}\n  servers:\n")
        for server, weight in zip(servers, weights, strict=True):
            file.write(f"   - 127.0.0.1:{server.port}:{weight}\n")
    command = ["nutcracker", "-c", path, "-a", "127.0.0.1", "-s", str(free_port()), "-p", os.path.join(directory, "pid")]
    return Process(command, port)


def pylibmc(python, what, behaviors, servers, weights):
    listed = [f"127.0.0.1:{server.port}:{weight}" for server, weight in zip(servers, weights, strict=True)]
    done = subprocess.run(
        [*python, CLIENT, what, behaviors, *listed], input="\n".join(keys(1)), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"pylibmc: {done.stderr[-800:]}")
    return int(done.stdout)


def both_ways(case, servers, proxy, other_stores, other_misses):
    """What one side stores the other must find."""
    wanted = keys(1)
    try:
        flush(servers)
        other_stores(wanted)
        here = missing(proxy.port, wanted)
        flush(servers)
        store(proxy.port, wanted)
        there = other_misses(wanted)
    finally:
        proxy.stop()
    if here or there:
        return Case(name, case, FAILED, f"of {KEYS} keys {here} are missed through larder, {there} by the other")
    return Case(name, case, PASSED)


def run(setting):
    python = _pylibmc()
    if not shutil.which("nutcracker"):
        peers.debian("nutcracker")
    cases = []
    reference = setting.reference or peers.memcached()
    servers = [Server(reference) for _ in range(SERVERS)]
    try:
        for weights in ([1] * SERVERS, range(1, SERVERS + 1)):
            shape = "equal" if len(set(weights)) == 1 else "weighted"
            for behaviors, options in (
                ("ketama_weighted", []),
                ("ketama", ["--ring", "libmemcached"]),
            ):
                proxy = larder(setting, servers, weights, *options)
                cases.append(
                    both_ways(
                        f"pylibmc {behaviors}, {shape}", servers, proxy,
                        lambda _, kind=behaviors, weights=weights: pylibmc(python, "store", kind, servers, weights),
                        lambda _, kind=behaviors, weights=weights: pylibmc(python, "missing", kind, servers, weights),
                    )
                )  # fmt: skip
            for distribution, ring in (("ketama", "twemproxy"), ("modula", "twemproxy-modula")):
                with tempfile.TemporaryDirectory() as directory:
                    other = nutcracker(servers, weights, directory, distribution)
                    try:
                        cases.append(
                            both_ways(
                                f"nutcracker {distribution}, {shape}", servers, larder(setting, servers, weights, "--ring", ring),
                                lambda wanted, other=other: store(other.port, wanted),
                                lambda wanted, other=other: missing(other.port, wanted),
                            )
                        )  # fmt: skip
                    finally:
                        other.stop()
    finally:
        for server in servers:
            server.stop()
    return cases
