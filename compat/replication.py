#!/usr/bin/env python3
"""What replication costs and how fast copies are: compat/replication.py target/release/larder [port]

Runs leaders and followers on the loopback, ports from 28001 on, and prints figures. Times on the wall mean
something on a machine that does nothing else; CPU times of each side, read from its threads, mean
something on any. What nodes and networks do that fail is measured by `cargo test --test failures --
--ignored --nocapture --test-threads=1`.
"""
import glob
import socket
import subprocess
import sys
import time

LARDER = sys.argv[1]
BASE = int(sys.argv[2]) if len(sys.argv) > 2 else 28001
ITEMS = 300_000
SINGLE = 30_000
CLIENTS = 50


class Node:
    """A server, and a client of it."""

    def __init__(self, port, *options):
        line = [LARDER, "-l", "127.0.0.1", "-p", str(port), "-t", "1", "-m", "2048", *options]
        self.port = port
        self.process = subprocess.Popen(line)
        for _ in range(400):
            try:
                self.client = socket.create_connection(("127.0.0.1", port))
                self.client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return
            except OSError:
                time.sleep(0.02)
        raise SystemExit("the server does not start")

    def kill(self):
        self.process.kill()
        self.process.wait()

    def told(self):
        """What `stats replication` says; of followers by the last word."""
        self.client.sendall(b"stats replication\r\n")
        reply = b""
        while not reply.endswith(b"END\r\n"):
            reply += self.client.recv(65536)
        words = (line.split(" ") for line in reply.decode().split("\r\n"))
        return {word[1].split(":")[-1]: word[2] for word in words if len(word) > 2}

    def follow(self, address):
        self.client.sendall(b"repl follow %s\r\n" % address.encode())
        self.client.recv(100)

    def threads(self):
        """CPU seconds by the names of its threads."""
        used = {}
        for task in glob.glob(f"/proc/{self.process.pid}/task/*"):
            with open(f"{task}/comm") as comm, open(f"{task}/schedstat") as stat:
                name = comm.read().strip().split("-")[0]
                used[name] = used.get(name, 0) + int(stat.read().split()[0]) / 1e9
        return used


def leader(port, *options):
    return Node(port, f"--repl-listen=127.0.0.1:{port + 100}", "--repl-recover=0", *options)


def follower(port, of, *options):
    return Node(port, f"--follow=127.0.0.1:{of + 100}", *options)


def caught_up(first, second):
    while True:
        told = second.told()
        if told["whole_partitions"] == "64" and told["records"] == first.told()["records"]:
            return
        time.sleep(0.002)


def payload(length):
    value = b"x" * length
    lines = [b"set key%08d 0 0 %d noreply\r\n%s\r\n" % (n, length, value) for n in range(ITEMS)]
    return [b"".join(lines[first : first + 5000]) for first in range(0, ITEMS, 5000)]


def sets(node, lines):
    for part in lines:
        node.client.sendall(part)
    node.client.sendall(b"mn\r\n")
    while b"MN" not in node.client.recv(4096):
        pass


def measure(name, count, nodes, work):
    """Prints how long it takes, and the CPU time of each node's threads for one of `count`."""
    before = [node.threads() for node in nodes]
    began = time.time()
    work()
    wall = time.time() - began
    shown = []
    for node, was in zip(nodes, before):
        used = {thread: (now - was.get(thread, 0)) / count * 1e6 for thread, now in node.threads().items()}
        shown.append(", ".join(f"{thread} {us:.2f}" for thread, us in used.items() if us > 0.02))
    print(f"{name}: {wall:.2f} s, {count / wall / 1e3:.0f} k/s; us of CPU for one: {' | '.join(shown)}", flush=True)


def singles(node, name, others=()):
    """One mutation after another, each waiting for its answer."""
    value = b"x" * 100
    times = []

    def work():
        for number in range(SINGLE):
            began = time.perf_counter()
            node.client.sendall(b"set key%08d 0 0 100\r\n%s\r\n" % (number, value))
            node.client.recv(100)
            times.append(time.perf_counter() - began)

    measure(name, SINGLE, [node, *others], work)
    times.sort()
    print(f"    p50 {times[SINGLE // 2] * 1e6:.0f} us, p99 {times[SINGLE * 99 // 100] * 1e6:.0f} us", flush=True)


def closed_loop(port):
    """Clients that each send one mutation and wait for its answer, as most load generators do."""
    print(f"values of 100 bytes, {CLIENTS} clients that wait for each answer:")
    plain, first = Node(port), leader(port + 1)
    second = follower(port + 2, port + 1)
    while second.told()["in_sync"] != "1":
        time.sleep(0.02)
    value = b"x" * 100
    clients = {node: [socket.create_connection(("127.0.0.1", node.port)) for _ in range(CLIENTS)] for node in (plain, first)}

    def work(node):
        for number in range(0, ITEMS // 3, CLIENTS):
            for at, client in enumerate(clients[node]):
                client.sendall(b"set key%08d 0 0 100\r\n%s\r\n" % (number + at, value))
            for client in clients[node]:
                client.recv(100)

    for _ in range(3):
        measure("no log", ITEMS // 3, [plain], lambda: work(plain))
        measure("one follower", ITEMS // 3, [first, second], lambda: work(first))
    for node in (plain, first, second):
        node.kill()


def streams(port, length):
    lines = payload(length)
    # So much that all of it is there for the tail; memory that has been touched before is written to
    # from the second time on, as it is by a leader that runs for long.
    ring = f"--repl-ring={ITEMS * (length + 60) * 5 // 4 >> 20}"
    print(f"values of {length} bytes, requests without replies:")
    plain = Node(port)
    sets(plain, lines)
    for _ in range(3):
        measure("no log", ITEMS, [plain], lambda: sets(plain, lines))
    plain.kill()
    first = leader(port + 1, ring)
    sets(first, lines)
    for _ in range(3):
        measure("a log, no follower", ITEMS, [first], lambda: sets(first, lines))
    second = follower(port + 2, port + 1, ring)
    measure("full synchronisation", ITEMS, [first, second], lambda: caught_up(first, second))

    def both():
        sets(first, lines)
        caught_up(first, second)

    for _ in range(4):
        measure("one follower, until it has all", ITEMS, [first, second], both)
    second.follow("127.0.0.1:1")
    time.sleep(0.2)
    sets(first, lines)

    def tail():
        second.follow(f"127.0.0.1:{port + 101}")
        caught_up(first, second)

    measure("all of it from the log", ITEMS, [first, second], tail)
    first.kill()
    second.kill()


def levels(port):
    print("values of 100 bytes, one request after another:")
    plain = Node(port)
    pairs = []
    for number, level in enumerate(("async", "1", "2pc")):
        at = port + 1 + 2 * number
        first = leader(at, f"--repl-ack={level}")
        second = follower(at + 1, at)
        while second.told()["in_sync"] != "1":
            time.sleep(0.02)
        pairs.append((level, first, second))
    for _ in range(2):
        singles(plain, "no log")
        for level, first, second in pairs:
            singles(first, f"--repl-ack={level}", [second])
    plain.kill()
    for _, first, second in pairs:
        first.kill()
        second.kill()


if __name__ == "__main__":
    streams(BASE, 100)
    streams(BASE + 10, 1000)
    closed_loop(BASE + 20)
    levels(BASE + 30)
