#!/usr/bin/env python3
"""What replication costs and how fast copies are: compat/replication.py target/release/larder [port]

Runs leaders and followers on the loopback, ports from 28001 on, and prints figures. Times on the wall mean
something on a machine that does nothing else; CPU times of each side, read from its threads, mean
something on any. What nodes and networks do that fail is measured by `cargo test --test failures --
--ignored --nocapture --test-threads=1`.
"""
import glob
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import threading
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


class Writer:
    """Another process that sends so many sets without replies per second to a node, in bursts of 5 ms."""

    def __init__(self, node, rate, keys=ITEMS, length=100):
        reading, writing = os.pipe()
        self.pid, self.pipe = os.fork(), reading
        if self.pid:
            os.close(writing)
            os.read(reading, 1)
            return
        value = b"y" * length
        lines = [b"set key%08d 0 0 %d noreply\r\n%s\r\n" % (key, length, value) for key in range(keys)]
        random.shuffle(lines)
        burst = max(rate // 200, 1)
        parts = [b"".join(lines[first : first + burst]) for first in range(0, keys, burst)]
        client = socket.create_connection(("127.0.0.1", node.port))
        ended = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: ended.set())
        os.write(writing, b"!")
        began, sent = time.time(), 0
        while not ended.is_set():
            for _ in range(10):
                client.sendall(parts[sent % len(parts)])
                sent += 1
            behind = began + sent * burst / rate - time.time()
            if behind > 0:
                time.sleep(behind)
        client.sendall(b"mn\r\n")
        client.recv(100)
        os.write(writing, b"%d %f" % (sent * burst, time.time() - began))
        os._exit(0)

    def end(self):
        """How many it has sent, all taken in by now, and in how many seconds."""
        os.kill(self.pid, signal.SIGTERM)
        sent, took = os.read(self.pipe, 100).split()
        os.waitpid(self.pid, 0)
        os.close(self.pipe)
        return int(sent), float(took)


def synchronised(first, second):
    """Whether all digests of the copy are the leader's."""
    before = second.told()
    first.client.sendall(b"repl verify\r\n")
    first.client.recv(100)
    for _ in range(2000):
        told = second.told()
        equal = int(told["digests_equal"]) - int(before["digests_equal"])
        differed = int(told["digests_differed"]) - int(before["digests_differed"])
        if equal + differed >= 64:
            return differed == 0
        time.sleep(0.005)
    return False


def full(port, rate=50_000, count=1_000_000):
    """An empty follower comes while the leader is written to."""
    first = leader(port)
    value = b"x" * 100
    for at in range(0, count, 5000):
        first.client.sendall(b"".join(b"set key%08d 0 0 100 noreply\r\n%s\r\n" % (n, value) for n in range(at, at + 5000)))
    first.client.sendall(b"mn\r\n")
    first.client.recv(100)
    for number in range(3):
        writer = Writer(first, rate, count)
        time.sleep(3)
        before, nodes = first.told()["records"], [first.threads(), {}]
        began = time.time()
        second = follower(port + 1 + number, port)
        while second.told()["whole_partitions"] != "64":
            time.sleep(0.002)
        took = time.time() - began
        mutations = int(first.told()["records"]) - int(before)
        sent, seconds = writer.end()
        used = {name: now - nodes[0].get(name, 0) for name, now in first.threads().items()}
        caught_up(first, second)
        equal = synchronised(first, second)
        print(
            f"full synchronisation of {count} items: {took:.2f} s, {mutations / took / 1e3:.0f} k mutations/s meanwhile"
            f" (the writer: {sent / seconds / 1e3:.0f}), digests {'equal' if equal else 'DIFFER'};"
            f" the leader's copying took {used.get('replication', 0):.2f} s of CPU,"
            f" applying {second.threads().get('replication', 0):.2f}",
            flush=True,
        )
        second.kill()
        time.sleep(0.3)
    first.kill()


def lags(first, second, samples, pause):
    """How long after its answer a mutation can be read from the copy, seconds."""
    found = []
    for number in range(samples):
        first.client.sendall(b"set lag 0 0 8\r\n%08d\r\n" % number)
        first.client.recv(100)
        began = time.perf_counter()
        while True:
            second.client.sendall(b"get lag\r\n")
            if b"%08d" % number in second.client.recv(100):
                break
        found.append(time.perf_counter() - began)
        time.sleep(random.random() * 2 * pause)
    return sorted(found)


def lag(port):
    """How far a copy is behind."""
    first = leader(port)
    second = follower(port + 1, port)
    while second.told()["in_sync"] != "1":
        time.sleep(0.02)
    bare = []
    for _ in range(2000):
        began = time.perf_counter()
        second.client.sendall(b"get lag\r\n")
        second.client.recv(100)
        bare.append(time.perf_counter() - began)
    bare = statistics.median(bare)
    print(f"lag, seen by a client for whom a get takes {bare * 1e6:.0f} us:")

    def show(name, found):
        p50, p99 = (found[len(found) * share // 100] for share in (50, 99))
        print(f"    {name}: p50 {p50 * 1e6:.0f} us, p99 {p99 * 1e6:.0f} us", flush=True)

    for _ in range(3):
        show("idle", lags(first, second, 2000, 0.002))
    lines = payload(100)
    for _ in range(3):
        began = time.time()
        sets(first, lines)
        caught_up(first, second)
    most = ITEMS / (time.time() - began)
    for _ in range(3):
        writer = Writer(first, int(most / 2))
        time.sleep(1)
        found = lags(first, second, 1000, 0.002)
        sent, seconds = writer.end()
        show(f"{sent / seconds / 1e3:.0f} k mutations/s, half of what goes through", found)
    first.kill()
    second.kill()


def stopped(port, timed=200_000, pairs=5, rate=100_000):
    """What a follower that is stopped costs the leader: A B A B, with the follower running and stopped, some
    ten seconds each."""
    first = leader(port, "--repl-ring=1024")
    second = follower(port + 1, port)
    while second.told()["in_sync"] != "1":
        time.sleep(0.02)
    value = b"z" * 100
    # The whole ring has been written to before.
    for _ in range(25):
        sets(first, payload(100))
    caught_up(first, second)
    print(f"a follower stopped, {rate / 1e3:.0f} k mutations/s besides {timed} that are timed:")
    ratios, costs = [], []
    writer = Writer(first, rate)
    time.sleep(1)

    def window(name):
        before, records = first.threads(), int(first.told()["records"])
        times = []
        start = time.perf_counter()
        for number in range(timed):
            began = time.perf_counter()
            first.client.sendall(b"set timed%03d 0 0 100\r\n%s\r\n" % (number % 1000, value))
            first.client.recv(100)
            times.append(time.perf_counter() - began)
        took = time.perf_counter() - start
        after, records = first.threads(), int(first.told()["records"]) - records
        times.sort()
        p50, p99 = (times[len(times) * share // 100] * 1e6 for share in (50, 99))
        used = {thread: (after[thread] - before.get(thread, 0)) / records * 1e6 for thread in ("worker", "replication")}
        print(
            f"    {name}, {took:.1f} s: p50 {p50:.0f} us, p99 {p99:.0f} us; us of CPU for one mutation:"
            f" worker {used['worker']:.2f}, copying {used['replication']:.2f}",
            flush=True,
        )
        return p99, used["worker"]

    for _ in range(pairs):
        running = window("running")
        second.process.send_signal(signal.SIGSTOP)
        still = window("stopped")
        second.process.send_signal(signal.SIGCONT)
        ratios.append(still[0] / running[0])
        costs.append(still[1] / running[1])
        caught = time.time()
        while int(second.told()["records"]) + rate // 10 < int(first.told()["records"]):
            time.sleep(0.01)
        print(f"        caught up after {time.time() - caught:.2f} s")
        time.sleep(1)
    sent, took = writer.end()
    caught_up(first, second)
    told = first.told()
    print(
        f"    p99 stopped to running: {', '.join(f'{ratio:.2f}' for ratio in ratios)}, median"
        f" {statistics.median(ratios):.2f}; the worker's CPU: median {statistics.median(costs):.2f};"
        f" {sent / took / 1e3:.0f} k/s; pressed back {told.get('pressed_back')}, full {told.get('full_syncs')},"
        f" compared {told.get('diff_syncs')}, digests {'equal' if synchronised(first, second) else 'DIFFER'}"
    )
    first.kill()
    second.kill()


PARTS = {
    "streams": lambda: (streams(BASE, 100), streams(BASE + 10, 1000)),
    "closed": lambda: closed_loop(BASE + 20),
    "levels": lambda: levels(BASE + 30),
    "full": lambda: full(BASE + 40),
    "lag": lambda: lag(BASE + 50),
    "stopped": lambda: stopped(BASE + 60),
}

if __name__ == "__main__":
    for part in sys.argv[3:] or PARTS:
        PARTS[part]()
