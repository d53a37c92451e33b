#!/usr/bin/env python3
"""Kills leaders behind a proxy: compat/failover_proxied.py target/release/larder [--full] [--port N]

What its clients see when the leader of a group is killed (kill -9) under load: for how long nothing is written and
nothing is read, and how many errors each of them gets. With etcd and leases of 2 s (--full: of 5 s as well, and
more kills), and without it, where the followers are read until an operator promotes one. One line for each, which
ends with ok or FAILED; the exit status is the number of failures.
"""

import argparse
import os
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time

import failover
from failover import Client, Etcd, Group, ended, patiently, started, told

# A client that was refused tries again after so long.
AGAIN = 0.01
WRITERS, READERS, KEYS = 4, 4, 200
# By how much longer than the lease nothing may be written, and for how long nothing may be read, in seconds.
SLACK, SILENCE = 2.5, 2.0


class One(threading.Thread):
    """A client of the proxy that does one thing again and again."""

    def __init__(self, port, attempt):
        super().__init__(daemon=True)
        self.port, self.attempt = port, attempt
        self.over, self.done, self.errors, self.said = threading.Event(), [], [], set()
        self.start()

    def run(self):
        client, count = None, 0
        while not self.over.is_set():
            try:
                client = client or Client(self.port, 5)
                reply = self.attempt(client, count)
                good = not isinstance(reply, bytes)
            except OSError as error:
                # Of a read: what stands in place of its value.
                good, reply = False, str(error).encode()
                if not reply.startswith(b"SERVER_ERROR "):
                    client = None
            count += 1
            now = time.monotonic()
            if good:
                self.done.append(now)
                time.sleep(0.001)
            else:
                self.errors.append(now)
                self.said.add(reply.split(b" ", 2)[-1].decode(errors="replace") if b"127.0.0.1" in reply else reply.decode(errors="replace"))
                time.sleep(AGAIN)

    def gap(self, since):
        """The longest time without success since then."""
        times = [since, *(at for at in self.done if at > since), time.monotonic()]
        return max(later - earlier for earlier, later in zip(times, times[1:]))


def write(client, count):
    reply = client.set(b"w%d" % (count % KEYS), b"x")
    return None if reply == b"STORED" else reply


def read(client, count):
    client.get(b"r%d" % (count % KEYS))


def clients(port):
    return [One(port, write) for _ in range(WRITERS)], [One(port, read) for _ in range(READERS)]


def finish(*lists):
    for one in [one for some in lists for one in some]:
        one.over.set()
    for one in [one for some in lists for one in some]:
        one.join(10)


def errors(some, since):
    return max(sum(at > since for at in one.errors) for one in some)


def proxy(larder, port, folder, pool):
    config = f"{folder}/proxy-{port}.toml"
    with open(config, "w") as file:
        file.write(f"[pools.main]\n{pool}\n")
    command = [larder, "proxy", "-u", "root", "-l", "127.0.0.1", "-p", str(port), "-t", "2", "-v", f"--config={config}"]
    return started(command, f"{folder}/proxy-{port}.log")


def fill(port):
    patiently(lambda: Client(port).set(b"r0", b"x") == b"STORED")
    client = Client(port)
    for number in range(KEYS):
        client.set(b"r%d" % number, b"x")


def elected(larder, group, base, folder, times):
    """The leader of a group is killed again and again, and comes back as a follower."""
    urls = ", ".join(f'"http://127.0.0.1:{port}"' for port in group.etcd.ports)
    port = base + 99
    front = proxy(larder, port, folder, f"etcd = {{ endpoints = [{urls}] }}")
    try:
        leader = group.whole(group.count)
        fill(port)
        unwritten, unread, refused, missed, said = [], [], [], [], set()
        for _ in range(times):
            writers, readers = clients(port)
            time.sleep(0.5)
            group.processes[leader].kill()
            killed = time.monotonic()
            group.processes[leader].wait()
            patiently(lambda: all(one.done and one.done[-1] > killed + 0.5 for one in writers + readers), 60)
            time.sleep(0.3)
            finish(writers, readers)
            unwritten.append(max(one.gap(killed) for one in writers))
            unread.append(max(one.gap(killed) for one in readers))
            refused.append(errors(writers, killed))
            missed.append(errors(readers, killed))
            said = said.union(*(one.said for one in writers + readers))
            group.start(leader)
            leader = group.whole(group.count)
    finally:
        ended(front)
    good = max(unwritten) <= group.ttl + SLACK and max(unread) <= SILENCE
    told(
        f"behind a proxy, etcd, TTL {group.ttl}",
        good,
        f"{times} kills: nothing written for {statistics.median(unwritten):.2f} s ({max(unwritten):.2f}), nothing read for {statistics.median(unread):.2f} s ({max(unread):.2f}); "
        f"errors per client: writes {max(refused)}, one each {AGAIN * 1000:.0f} ms, reads {max(missed)}",
    )
    print("  " + "; ".join(sorted(said)), file=sys.stderr)


def static(larder, base, folder):
    """Nobody is elected: followers are read until one is promoted."""
    ports, copies = [base + 1, base + 2, base + 3], [base + 41, base + 42, base + 43]
    nodes = []
    front = None
    try:
        for number in range(3):
            how = [f"--follow=127.0.0.1:{copies[0]}"] if number else ["--repl-recover=0"]
            command = [larder, "-u", "root", "-l", "127.0.0.1", "-p", str(ports[number]), "-m", "256", f"--repl-listen=127.0.0.1:{copies[number]}", *how]
            nodes.append(started(command, f"{folder}/static-{number}.log"))
        port = base + 98
        group = ", ".join(f'"127.0.0.1:{port}"' for port in ports)
        front = proxy(larder, port, folder, f"[pools.main.groups]\ng = [{group}]")
        fill(port)
        patiently(lambda: all(Client(at).get(b"r%d" % (KEYS - 1)) for at in ports[1:]))
        writers, readers = clients(port)
        time.sleep(0.5)
        nodes[0].kill()
        killed = time.monotonic()
        nodes[0].wait()
        time.sleep(3)
        alone = min(sum(killed + SILENCE < at for at in one.done) for one in readers)
        written = sum(at > killed + 0.1 for one in writers for at in one.done)
        unread, missed = max(one.gap(killed) for one in readers), errors(readers, killed)
        operator = Client(ports[1])
        operator.socket.sendall(b"repl promote --force\r\n")
        promoted = operator.line().startswith(b"OK")
        since = time.monotonic()
        patiently(lambda: all(one.done and one.done[-1] > since for one in writers))
        again = time.monotonic() - since
        time.sleep(0.2)
        unread = max(unread, *(one.gap(killed) for one in readers))
        finish(writers, readers)
    finally:
        ended(front)
        for node in nodes:
            ended(node)
    good = promoted and alone > 0 and written == 0 and unread <= SILENCE and again <= 2
    told(
        "behind a proxy, nobody is elected",
        good,
        f"followers are read after {unread:.2f} s, {missed} errors per client that reads; written again {again:.2f} s after repl promote",
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("larder")
    parser.add_argument("--full", action="store_true", help="leases of 5 s too, and ten kills each")
    parser.add_argument("--port", type=int, default=24000, help="the first of some 310")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = tempfile.mkdtemp(prefix="failover", dir=memory)
    larder, base = arguments.larder, arguments.port
    groups, done = [], False
    etcds = []
    try:
        for place, ttl in enumerate([2, 5] if arguments.full else [2]):
            # Of their own: a group that has been seen at etcd stays on the ring.
            inner = f"{folder}/{ttl}"
            os.mkdir(inner)
            etcds.append(Etcd(base + 300 + 8 * place, 3, inner))
            groups.append(Group(larder, base, place, 3, etcds[-1], ttl, "async", False, inner))
            elected(larder, groups[-1], base + place, inner, 10 if arguments.full else 2)
            groups[-1].stop()
            etcds[-1].stop()
        static(larder, base + 200, folder)
        done = True
    finally:
        for one in groups:
            one.stop()
        for etcd in etcds:
            etcd.stop()
        if done and not failover.FAILURES:
            shutil.rmtree(folder, ignore_errors=True)
    if failover.FAILURES:
        print(f"logs are in {folder}")
    return len(failover.FAILURES)


if __name__ == "__main__":
    sys.exit(main())
