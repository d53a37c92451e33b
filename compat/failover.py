#!/usr/bin/env python3
"""Breaks groups of three nodes and etcd on purpose: compat/failover.py target/release/larder [--full] [--port N]

Real processes: three larders, three etcds, and a relay in front of each port whose connections can be cut. Each
line says what was done, what was seen, and ok or FAILED; the exit status is the number of failures. The short form
takes about a minute and a half with leases of 2 s; the full one has leases of 5 s and many kills.
"""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time


class Relay:
    """A port whose connections go to another, while it is whole."""

    def __init__(self, port, to):
        self.to, self.whole, self.pairs = to, True, []
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind(("127.0.0.1", port))
        self.listener.listen(64)
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            inner, _ = self.listener.accept()
            try:
                outer = socket.create_connection(("127.0.0.1", self.to), 2)
            except OSError:
                inner.close()
                continue
            for one, other in ((inner, outer), (outer, inner)):
                threading.Thread(target=self.pump, args=(one, other), daemon=True).start()

    def pump(self, one, other):
        try:
            while data := one.recv(65536):
                # What is cut says nothing: it neither refuses nor closes.
                while not self.whole:
                    time.sleep(0.02)
                other.sendall(data)
        except OSError:
            pass
        for end in (one, other):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


class Client:
    def __init__(self, port, timeout=2.0):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.socket.makefile("rb")

    def line(self):
        line = self.file.readline()
        if not line.endswith(b"\r\n"):
            raise OSError("the connection ended")
        return line[:-2]

    def set(self, key, value):
        self.socket.sendall(b"set %s 0 0 %d\r\n%s\r\n" % (key, len(value), value))
        return self.line()

    def get(self, key):
        self.socket.sendall(b"get %s\r\n" % key)
        head = self.line()
        if head == b"END":
            return None
        if not head.startswith(b"VALUE "):
            raise OSError(head.decode())
        value = self.line()
        assert self.line() == b"END"
        return value

    def stats(self):
        self.socket.sendall(b"stats replication\r\n")
        found = {}
        while (line := self.line()) != b"END":
            words = line.decode().split(" ", 2)
            found[words[1]] = words[2] if len(words) > 2 else ""
        return found


class Etcd:
    def __init__(self, base, count, folder):
        self.ports = [base + 2 * number for number in range(count)]
        self.folder, self.processes = folder, [None] * count
        for number in range(count):
            self.start(number)

    def start(self, number):
        url = [f"http://127.0.0.1:{port}" for port in self.ports]
        peer = [f"http://127.0.0.1:{port + 1}" for port in self.ports]
        cluster = ",".join(f"m{at}={address}" for at, address in enumerate(peer))
        log = open(f"{self.folder}/etcd{number}.log", "ab")
        self.processes[number] = subprocess.Popen(
            ["etcd", "--name", f"m{number}", "--data-dir", f"{self.folder}/etcd{number}",
                  "--listen-client-urls", url[number], "--advertise-client-urls", url[number],
                  "--listen-peer-urls", peer[number], "--initial-advertise-peer-urls", peer[number],
                  "--initial-cluster", cluster],
            stdout=log, stderr=log,
        )  # fmt: skip

    def leader(self):
        """The member that leads the others."""
        for number, port in enumerate(self.ports):
            done = subprocess.run(
                ["etcdctl", "--endpoints", f"127.0.0.1:{port}", "endpoint", "status", "-w", "fields"],
                env={**os.environ, "ETCDCTL_API": "3"}, capture_output=True, text=True, check=False,
            )  # fmt: skip
            fields = dict(line.split(" : ") for line in done.stdout.splitlines() if " : " in line)
            if fields and fields.get('"MemberID"') == fields.get('"Leader"'):
                return number
        return 0

    def signal(self, what):
        for process in self.processes:
            process.send_signal(what)

    def stop(self):
        for process in self.processes:
            process.kill()
            process.wait()


class Group:
    def __init__(self, larder, base, place, count, etcd, ttl, level, relayed, folder):
        self.larder, self.base, self.place, self.count, self.etcd = larder, base, place, count, etcd
        self.ttl, self.level, self.relayed, self.folder = ttl, level, relayed, folder
        self.name = f"g{place}"
        self.processes = [None] * count
        # In front of what others connect to at a node, and of what a node connects to at etcd. They cost time:
        # where that counts there are none.
        if relayed:
            self.inward = [Relay(self.copies(number) + 40, self.copies(number)) for number in range(count)]
            self.outward = [[Relay(self.way(number, at), port) for at, port in enumerate(etcd.ports)] for number in range(count)]
        for number in range(count):
            self.start(number)

    def port(self, number):
        return self.base + 4 * self.place + number

    def copies(self, number):
        return self.port(number) + 40

    def way(self, number, member):
        """What a node connects to for a member of etcd."""
        return self.base + 120 + 12 * self.place + 3 * number + member

    def start(self, number):
        ports = [self.way(number, at) if self.relayed else port for at, port in enumerate(self.etcd.ports)]
        urls = ",".join(f"http://127.0.0.1:{port}" for port in ports)
        log = open(f"{self.folder}/{self.name}-n{number}.log", "ab")
        self.processes[number] = subprocess.Popen(
            [self.larder, "-u", "root", "-l", "127.0.0.1", "-p", str(self.port(number)), "-t", "2", "-m", "256", "-v",
             f"--repl-listen=127.0.0.1:{self.copies(number)}", f"--repl-advertise=127.0.0.1:{self.copies(number) + (40 if self.relayed else 0)}",
             f"--repl-ack={self.level}", "--repl-recover=1000", f"--etcd={urls}", f"--node=n{number}",
             f"--group={self.name}", f"--etcd-ttl={self.ttl}"],
            stdout=log, stderr=log,
        )  # fmt: skip

    def leader(self, among=None, seconds=60):
        """The node that takes mutations, once there is one."""
        since = time.monotonic()
        while time.monotonic() < since + seconds:
            for number in among if among is not None else range(self.count):
                try:
                    # Longer than a leader without followers waits for them.
                    if Client(self.port(number), 1.5).set(b"probe", b"x") == b"STORED":
                        return number, time.monotonic() - since
                except OSError:
                    pass
            time.sleep(0.01)
        raise SystemExit(f"{self.name}: nobody leads within {seconds} s; see {self.folder}")

    def whole(self, count):
        """Waits until so many are in sync."""
        since = time.monotonic()
        while time.monotonic() < since + 60:
            number, _ = self.leader()
            try:
                if len(Client(self.port(number)).stats().get("in_sync_names", "").split()) == count:
                    return number
            except OSError:
                pass
            time.sleep(0.05)
        raise SystemExit(f"{self.name}: not all are in sync within 60 s; see {self.folder}")

    def fields(self, number, *names):
        stats = Client(self.port(number)).stats()
        return [stats[name] for name in names]

    def stop(self):
        for process in self.processes:
            process.kill()
            process.wait()


class Writer(threading.Thread):
    """Writes keys of its own, in order, to one node until that fails; remembers what was acknowledged."""

    def __init__(self, port, name):
        super().__init__(daemon=True)
        self.port, self.prefix = port, name
        self.done, self.times, self.stopped = [], [], False
        self.start()

    def run(self):
        try:
            client = Client(self.port, 5)
            number = 0
            while not self.stopped:
                key = b"%s-%d" % (self.prefix, number)
                if client.set(key, key) == b"STORED":
                    self.done.append(key)
                    self.times.append(time.monotonic())
                number += 1
        except OSError:
            pass


FAILURES = []


def told(name, good, seen):
    print(f"{name:34} {seen:84} {'ok' if good else 'FAILED'}", flush=True)
    if not good:
        FAILURES.append(name)


def kills(group, times, name, may_lose, full):
    """kill -9 of the leader under load."""
    took, lost, acknowledged, worst = [], 0, 0, 0.0
    for turn in range(times):
        leader = group.whole(group.count)
        writers = [Writer(group.port(leader), b"%d-%d" % (turn, at)) for at in range(4)]
        time.sleep(0.3)
        group.processes[leader].kill()
        killed = time.monotonic()
        group.processes[leader].wait()
        others = [number for number in range(group.count) if number != leader]
        heir, seconds = group.leader(others)
        took.append(seconds)
        for writer in writers:
            writer.join()
        client = Client(group.port(heir))
        for writer in writers:
            acknowledged += len(writer.done)
            for key, at in zip(writer.done, writer.times):
                if client.get(key) != key:
                    lost += 1
                    worst = max(worst, killed - at)
        group.start(leader)
    took.sort()
    # Only the full form is run on a machine that does nothing else.
    limit = group.ttl + 1 if full else 60
    seen = (
        f"{times} kills, new leader after {took[len(took) // 2]:.2f} s (at most {took[-1]:.2f} s), "
        f"{lost} of {acknowledged} acknowledged lost"
    )
    if may_lose:
        seen += f", the oldest {worst * 1000:.0f} ms before"
    told(name, took[-1] <= limit and (worst <= (0.1 if full else 1) if may_lose else lost == 0), seen)


def watched(group, seconds, meanwhile):
    """Writes to every node all the time; when each took something first and last, and how often a node refused
    that had led."""
    leader = group.whole(group.count)
    record = {number: [] for number in range(group.count)}
    over = threading.Event()

    def write(number):
        client, count = None, 0
        while not over.is_set():
            try:
                client = client or Client(group.port(number), 10)
                began = time.monotonic()
                reply = client.set(b"w%d" % (count % 50), b"x")
                record[number].append((began, time.monotonic(), reply))
            except OSError:
                client = None
                time.sleep(0.01)
            count += 1
            time.sleep(0.002)

    threads = [threading.Thread(target=write, args=(number,), daemon=True) for number in range(group.count)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    meanwhile(leader)
    time.sleep(seconds)
    over.set()
    return leader, record


def stored(record, number):
    return [(began, ended) for began, ended, reply in record[number] if reply == b"STORED"]


def refused(record, number):
    return sum(reply != b"STORED" for _, _, reply in record[number])


def cut_off(group):
    """The leader reaches neither etcd nor its followers; clients reach it."""

    def cut(leader):
        for relay in [group.inward[leader], *group.outward[leader]]:
            relay.whole = False

    leader, record = watched(group, group.ttl + 3, cut)
    last = max(ended for _, ended in stored(record, leader))
    others = [began for number in record if number != leader for began, _ in stored(record, number)]
    first = min(others, default=0)
    for relay in [group.inward[leader], *group.outward[leader]]:
        relay.whole = True
    told("leader cut off from all but clients", bool(others) and first > last, f"the new one takes mutations {first - last:.2f} s after the old one's last")  # fmt: skip
    group.whole(group.count)


def etcd_only(group):
    def cut(leader):
        for relay in group.outward[leader]:
            relay.whole = False

    before = group.fields(group.whole(group.count), "epoch")
    leader, record = watched(group, 3 * group.ttl, cut)
    after = group.fields(leader, "epoch", "fenced")
    for relay in group.outward[leader]:
        relay.whole = True
    failed = refused(record, leader)
    told("leader cut off from etcd alone", failed == 0 and after[0] == before[0], f"{3 * group.ttl} s, {len(stored(record, leader))} mutations taken, {failed} refused, epoch {before[0]} -> {after[0]}")  # fmt: skip


def etcd_gone(group, seconds):
    def kill_leader(_):
        number = group.etcd.leader()
        group.etcd.processes[number].kill()
        group.etcd.processes[number].wait()
        time.sleep(2 * group.ttl)
        group.etcd.start(number)

    before = group.fields(group.whole(group.count), "epoch")
    leader, record = watched(group, 1, kill_leader)
    after = group.fields(leader, "epoch")
    failed = refused(record, leader)
    told("etcd's own leader killed", failed == 0 and after == before, f"{len(stored(record, leader))} mutations taken, {failed} refused, epoch {before[0]} -> {after[0]}")  # fmt: skip

    def freeze(_):
        group.etcd.signal(signal.SIGSTOP)
        time.sleep(seconds)
        group.etcd.signal(signal.SIGCONT)

    leader, record = watched(group, 3, freeze)
    after = group.fields(leader, "epoch")
    failed = refused(record, leader)
    told(f"all of etcd stopped for {seconds} s", failed == 0 and after == before, f"{len(stored(record, leader))} mutations taken, {failed} refused, epoch {before[0]} -> {after[0]}")  # fmt: skip


def frozen(group):
    leader = group.whole(group.count)
    client = Client(group.port(leader), 10)
    assert client.set(b"k", b"before") == b"STORED"
    time.sleep(0.5)
    group.processes[leader].send_signal(signal.SIGSTOP)
    others = [number for number in range(group.count) if number != leader]
    heir, seconds = group.leader(others)
    # It is in the socket's buffer when the process wakes.
    client.socket.sendall(b"set k 0 0 5\r\nafter\r\n")
    group.processes[leader].send_signal(signal.SIGCONT)
    reply = client.line()
    value = Client(group.port(heir)).get(b"k")
    told("leader frozen past its lease", reply != b"STORED" and value == b"before", f"another led after {seconds:.2f} s; the first mutation after waking: {reply.decode()}")  # fmt: skip
    group.whole(group.count)


def rolling(group):
    """Every node is restarted under load, behind a client that knows what mcrouter knows of replies."""
    group.whole(group.count)
    over = threading.Event()
    seen = {"replies": 0, "bare": 0, "strange": 0, "gap": 0.0}

    def load():
        at, client, last = 0, None, time.monotonic()
        while not over.is_set():
            try:
                client = client or Client(group.port(at), 1)
                reply = client.set(b"r%d" % (seen["replies"] % 100), b"x")
                seen["replies"] += 1
                if reply == b"ERROR":
                    seen["bare"] += 1
                elif reply == b"STORED":
                    now = time.monotonic()
                    seen["gap"] = max(seen["gap"], now - last)
                    last = now
                    continue
                elif not reply.startswith(b"SERVER_ERROR "):
                    seen["strange"] += 1
            except OSError:
                pass
            # As a failover route does: the next one.
            at, client = (at + 1) % group.count, None

    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    for number in range(group.count):
        group.processes[number].terminate()
        group.processes[number].wait()
        group.start(number)
        group.whole(group.count)
    over.set()
    thread.join(5)
    told("rolling restart of all nodes", seen["bare"] == seen["strange"] == 0, f"{seen['replies']} replies, {seen['bare']} bare ERROR, {seen['strange']} not understood, no write for at most {seen['gap']:.2f} s")  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("larder")
    parser.add_argument("--full", action="store_true", help="leases of 5 s, 20 and 50 kills, etcd away for a minute")
    parser.add_argument("--port", type=int, default=23600, help="the first of some 210")
    arguments = parser.parse_args()
    # etcd waits for its disk at every step, and a busy one makes it miss its own elections.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = tempfile.mkdtemp(prefix="failover", dir=memory)
    ttl = 5 if arguments.full else 2
    etcd = Etcd(arguments.port + 200, 3, folder)
    groups, done = [], False

    def group(count, level, relayed=False):
        groups.append(Group(arguments.larder, arguments.port, len(groups), count, etcd, ttl, level, relayed, folder))
        return groups[-1]

    full = arguments.full
    try:
        one = group(3, "async")
        kills(one, 20 if full else 3, "kill -9, async", True, full)
        rolling(one)
        frozen(one)
        one.stop()
        one = group(2, "1")
        kills(one, 20 if full else 2, "kill -9, ack=1, two nodes", False, full)
        one.stop()
        one = group(3, "2pc")
        kills(one, 50 if full else 2, "kill -9, 2pc", False, full)
        one.stop()
        one = group(3, "async", relayed=True)
        for _ in range(10 if full else 1):
            cut_off(one)
        etcd_only(one)
        etcd_gone(one, 60 if full else 5)
        one.stop()
        one = group(3, "2pc", relayed=True)
        for _ in range(10 if full else 1):
            cut_off(one)
        etcd_only(one)
        done = True
    finally:
        for one in groups:
            one.stop()
        etcd.stop()
        if done and not FAILURES:
            shutil.rmtree(folder, ignore_errors=True)
    if FAILURES:
        print(f"logs are in {folder}")
    return len(FAILURES)


if __name__ == "__main__":
    sys.exit(main())
