#!/usr/bin/env python3
"""Breaks groups of three nodes and etcd on purpose: compat/failover.py target/release/larder [--full] [--port N]

Real processes: three larders, three etcds, and a relay in front of each port whose connections can be cut. Each
line says what was done, what was seen, and ok or FAILED; the exit status is the number of failures. The short form
takes about a minute and a half with leases of 2 s; the full one has leases of 5 s and many kills, and takes half an
hour. Whatever becomes of this script, what it has started ends with it.
"""

import argparse
import ctypes
import json
import os
import random
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1


def started(command, log):
    """A process that does not outlive this one: one left behind would be taken for a part of the next run."""
    with open(log, "ab") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, preexec_fn=lambda: LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        )  # fmt: skip
    return process


def ended(process):
    if process is not None:
        process.kill()
        process.wait()


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
    scheme, options, secured = "http", [], []

    def __init__(self, base, count, folder):
        self.ports = [base + 2 * number for number in range(count)]
        self.folder, self.processes = folder, [None] * count
        for number in range(count):
            self.start(number)

    def start(self, number):
        url = [f"{self.scheme}://127.0.0.1:{port}" for port in self.ports]
        peer = [f"http://127.0.0.1:{port + 1}" for port in self.ports]
        cluster = ",".join(f"m{at}={address}" for at, address in enumerate(peer))
        self.processes[number] = started(
            ["etcd", "--name", f"m{number}", "--data-dir", f"{self.folder}/etcd{number}",
                  "--listen-client-urls", url[number], "--advertise-client-urls", url[number],
                  "--listen-peer-urls", peer[number], "--initial-advertise-peer-urls", peer[number],
                  "--initial-cluster", cluster, "--initial-cluster-token", self.folder,
                  *self.secured],
            f"{self.folder}/etcd{number}.log",
        )  # fmt: skip

    def term(self):
        """Rises whenever its members choose a leader; leases then last for their whole time again."""
        for port in self.ports:
            try:
                request = urllib.request.Request(f"http://127.0.0.1:{port}/v3/maintenance/status", b"{}")
                with urllib.request.urlopen(request, timeout=2) as answer:
                    return int(json.load(answer)["raftTerm"])
            except OSError:
                pass
        return 0

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
            ended(process)


class Secure(Etcd):
    """One member, for those only who show a certificate of the authority, and a user's password."""

    scheme = "https"

    def __init__(self, base, folder):
        self.files = f"{folder}/secure"
        os.mkdir(self.files)
        self.make("ca", "-x509", "-subj", "/CN=authority")
        # The gateway inside etcd is a client of its own, with the server's certificate.
        self.signed("etcd", "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth")
        self.signed("node", "extendedKeyUsage=clientAuth")
        for name, password in (("user", "larder:se:cret"), ("wrong", "larder:other")):
            with open(self.file(name), "w") as file:
                file.write(password + "\n")
        self.secured = [
            f"--cert-file={self.file('etcd.crt')}", f"--key-file={self.file('etcd.key')}",
            f"--trusted-ca-file={self.file('ca.crt')}", "--client-cert-auth", "--auth-token-ttl=2",
        ]  # fmt: skip
        self.options = self.shown("node")
        super().__init__(base, 1, self.files)
        for line in (
            "user add root:root", "role add root", "user grant-role root root", "role add cache",
            "role grant-permission --prefix=true cache readwrite /larder/", "user add larder:se:cret",
            "user grant-role larder cache", "auth enable",
        ):  # fmt: skip
            self.control(line)

    def file(self, name):
        return f"{self.files}/{name}"

    def shown(self, name, user="user"):
        return [
            f"--etcd-ca={self.file('ca.crt')}", f"--etcd-cert={self.file(name + '.crt')}",
            f"--etcd-key={self.file(name + '.key')}", f"--etcd-user-file={self.file(user)}",
        ]  # fmt: skip

    def make(self, name, *how):
        out = f"{name}.crt" if "-x509" in how else f"{name}.csr"
        subprocess.run(
            ["openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                  "-keyout", self.file(f"{name}.key"), "-out", self.file(out), *how],
            capture_output=True, check=True,
        )  # fmt: skip

    def signed(self, name, extensions):
        # Without a name: etcd takes that for a user's where it is not the gateway that asks.
        self.make(name, "-subj", "/O=larder")
        with open(self.file("extensions"), "w") as file:
            file.write(extensions + "\n")
        subprocess.run(
            ["openssl", "x509", "-req", "-in", self.file(f"{name}.csr"), "-CA", self.file("ca.crt"),
                  "-CAkey", self.file("ca.key"), "-CAcreateserial", "-days", "2",
                  "-extfile", self.file("extensions"), "-out", self.file(f"{name}.crt")],
            capture_output=True, check=True,
        )  # fmt: skip

    def control(self, line):
        command = [
            "etcdctl", f"--endpoints=https://127.0.0.1:{self.ports[0]}", f"--cacert={self.file('ca.crt')}",
            f"--cert={self.file('node.crt')}", f"--key={self.file('node.key')}", *line.split(),
        ]  # fmt: skip
        since = time.monotonic()
        while True:
            done = subprocess.run(command, env={**os.environ, "ETCDCTL_API": "3"}, capture_output=True, text=True, check=False)  # fmt: skip
            if done.returncode == 0:
                return
            if time.monotonic() > since + 20:
                raise SystemExit(f"etcdctl {line}: {done.stderr}")
            time.sleep(0.2)


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

    def start(self, number, *options):
        ports = [self.way(number, at) if self.relayed else port for at, port in enumerate(self.etcd.ports)]
        urls = ",".join(f"{self.etcd.scheme}://127.0.0.1:{port}" for port in ports)
        self.processes[number] = started(
            [self.larder, "-u", "root", "-l", "127.0.0.1", "-p", str(self.port(number)), "-t", "2", "-m", "256", "-v",
             f"--repl-listen=127.0.0.1:{self.copies(number)}", f"--repl-advertise=127.0.0.1:{self.copies(number) + (40 if self.relayed else 0)}",
             f"--repl-ack={self.level}", "--repl-recover=1000", f"--etcd={urls}", f"--node=n{number}",
             f"--group={self.name}", f"--etcd-ttl={self.ttl}", *self.etcd.options, *options],
            f"{self.folder}/{self.name}-n{number}.log",
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
            ended(process)


class Stream:
    """One connection of a load: registers that are set to one version after another, or read."""

    def __init__(self, port, names):
        self.socket = socket.create_connection(("127.0.0.1", port), 5)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.names, self.rest = names, b""

    def send(self, data):
        self.socket.sendall(data)

    def lines(self):
        data = self.socket.recv(1 << 18)
        if not data:
            raise OSError("the connection ended")
        *lines, self.rest = (self.rest + data).split(b"\r\n")
        return lines


class Setter(Stream):
    """Each register has one writer, so what may be read is between what was acknowledged and what was sent."""

    def __init__(self, port, names):
        super().__init__(port, names)
        self.sent = 0
        # By register: the last version that was acknowledged, and the highest that was read.
        self.acknowledged, self.seen = [0] * len(names), [0] * len(names)
        # By version: when the replies came.
        self.times = [0.0]
        self.waits, self.count = 0, 0

    def begin(self):
        self.sent += 1
        value = b"%032d" % self.sent
        self.send(b"".join(b"set %s 0 0 32\r\n%s\r\n" % (name, value) for name in self.names))
        self.waits = 0

    def ready(self):
        now = time.monotonic()
        if len(self.times) == self.sent:
            self.times.append(now)
        for line in self.lines():
            if line == b"STORED":
                self.acknowledged[self.waits] = self.sent
                self.count += 1
            elif not line.startswith(b"SERVER_ERROR "):
                raise SystemExit(f"a set was answered with {line}")
            self.waits += 1
        if self.waits == len(self.names):
            self.begin()


class Getter(Stream):
    def __init__(self, port, setters):
        super().__init__(port, [])
        self.setters, self.count, self.wrong = setters, 0, 0

    def begin(self):
        self.of = random.choice(self.setters)
        self.least = [max(pair) for pair in zip(self.of.acknowledged, self.of.seen)]
        self.found = []
        self.send(b"get " + b" ".join(self.of.names) + b"\r\n")

    def ready(self):
        self.found += self.lines()
        if not self.found or self.found[-1] != b"END":
            return
        found = versions(self.found)
        for at, name in enumerate(self.of.names):
            version = found.get(name, 0)
            self.wrong += not self.least[at] <= version <= self.of.sent
            self.of.seen[at] = max(self.of.seen[at], version)
        self.count += len(self.of.names)
        self.begin()


def versions(lines):
    """What a get of many keys has found."""
    return {lines[at].split(b" ")[1]: int(lines[at + 1]) for at in range(0, len(lines) - 1, 2)}


class Load(threading.Thread):
    """Sets and reads registers of its own at one node until that fails; remembers what was acknowledged and seen."""

    SETTERS, REGISTERS, GETTERS = 64, 8, 4

    def __init__(self, port, name):
        super().__init__(daemon=True)
        self.setters = [
            Setter(port, [b"%s-%d-%d" % (name, at, register) for register in range(self.REGISTERS)])
            for at in range(self.SETTERS)
        ]
        self.getters = [Getter(port, self.setters) for _ in range(self.GETTERS)]
        self.selector = selectors.DefaultSelector()
        for stream in [*self.setters, *self.getters]:
            self.selector.register(stream.socket, selectors.EVENT_READ, stream)
            stream.begin()
        self.start()

    def run(self):
        while self.selector.get_map():
            for key, _ in self.selector.select():
                try:
                    key.data.ready()
                except OSError:
                    # What the others have still to read is read.
                    self.selector.unregister(key.fileobj)

    def acknowledged(self):
        return sum(setter.count for setter in self.setters)


FAILURES = []


def told(name, good, seen):
    print(f"{name:34} {seen:84} {'ok' if good else 'FAILED'}", flush=True)
    if not good:
        FAILURES.append(name)


def registers(client, names):
    client.socket.sendall(b"get " + b" ".join(names) + b"\r\n")
    lines = []
    while not lines or lines[-1] != b"END":
        lines.append(client.line())
    return versions(lines)


class Tally:
    """What became of what was acknowledged and seen."""

    def __init__(self):
        self.acknowledged, self.read, self.lost, self.gone, self.strange = 0, 0, 0, 0, 0
        self.oldest, self.doubtful, self.resolved, self.differ = 0.0, 0, 0.0, 0

    def take(self, load, level, client, killed, led):
        """After a kill, at the node that leads since."""
        expected = {}
        self.acknowledged += load.acknowledged()
        self.read += sum(getter.count for getter in load.getters)
        self.strange += sum(getter.wrong for getter in load.getters)
        doubtful = []
        for setter in load.setters:
            found = registers(client, setter.names)
            for at, name in enumerate(setter.names):
                version, acknowledged = found.get(name, 0), setter.acknowledged[at]
                if version < acknowledged:
                    self.lost += acknowledged - version
                    self.oldest = max(self.oldest, killed - setter.times[version + 1])
                self.gone += version < setter.seen[at] and setter.seen[at] > acknowledged
                self.strange += version > setter.sent
                expected[name] = version
                if setter.sent > acknowledged:
                    doubtful.append((name, setter.sent + 1))
        self.doubtful += len(doubtful)
        if level != "2pc":
            return expected
        # Whether it has come to be is settled when the next writer of it is let in.
        while doubtful:
            client.socket.sendall(b"".join(b"set %s 0 0 32\r\n%032d\r\n" % one for one in doubtful))
            replies = [client.line() for _ in doubtful]
            for (name, version), reply in zip(doubtful, replies):
                if reply == b"STORED":
                    expected[name] = version
                elif not reply.startswith(b"SERVER_ERROR 307") or time.monotonic() > led + 30:
                    raise SystemExit(f"a register in doubt: {reply}")
            doubtful = [one for one, reply in zip(doubtful, replies) if reply != b"STORED"]
        self.resolved = max(self.resolved, time.monotonic() - led)
        return expected

    def compare(self, group, load, expected):
        """Once all are in sync: all nodes hold the same, or do so as soon as they have caught up."""
        for number in range(group.count):
            client, since = Client(group.port(number)), time.monotonic()
            for setter in load.setters:
                while wrong := sum(
                    version != expected[name]
                    for name, version in {**dict.fromkeys(setter.names, 0), **registers(client, setter.names)}.items()
                ):
                    if time.monotonic() > since + 10:
                        self.differ += wrong
                        break
                    time.sleep(0.02)


def kills(group, times, full, each=2000):
    """kill -9 of the leader under load, once so many mutations have been acknowledged."""
    name = f"kill -9, {group.level}"
    took, tally, term = [], Tally(), group.etcd.term()
    leader = group.whole(group.count)
    for turn in range(times):
        load = Load(group.port(leader), b"%d" % turn)
        while load.acknowledged() < each and load.is_alive():
            time.sleep(0.005)
        time.sleep(random.random() / 10)
        group.processes[leader].kill()
        killed = time.monotonic()
        group.processes[leader].wait()
        others = [number for number in range(group.count) if number != leader]
        heir, _ = group.leader(others)
        led = time.monotonic()
        took.append(led - killed)
        load.join()
        expected = tally.take(load, group.level, Client(group.port(heir)), killed, led)
        group.start(leader)
        leader = group.whole(group.count)
        tally.compare(group, load, expected)
        chosen = group.etcd.term() - term
        if took[-1] > group.ttl + 1 or full and turn % 10 == 9:
            print(f"  {turn + 1} of {name}: {took[-1]:.2f} s, {tally.acknowledged} acknowledged; etcd has chosen a leader {chosen} times", flush=True)  # fmt: skip
    took.sort()
    # Only the full form is run on a machine that does nothing else.
    limit = group.ttl + 1 if full else 60
    if group.level == "async":
        kept = tally.oldest <= (0.1 if full else 1)
    else:
        # With a number, what is not acknowledged yet may be read and be gone.
        kept = tally.lost == 0 and (tally.gone == 0 or group.level != "2pc")
    seen = (
        f"{times} kills of one of {group.count}, leases of {group.ttl} s, new leader after {took[len(took) // 2]:.2f} s (at most {took[-1]:.2f} s), "
        f"{tally.lost} of {tally.acknowledged} acknowledged lost"
    )
    if group.level == "async":
        seen += f", the oldest {tally.oldest * 1000:.0f} ms before"
    if group.level == "2pc":
        seen += (
            f", {tally.gone} of {tally.read} reads seen and gone, "
            f"{tally.doubtful} in doubt settled after {tally.resolved:.2f} s at most"
        )
    seen += f", {tally.strange} impossible reads, {tally.differ} different elsewhere"
    good = took[-1] <= limit and kept and tally.strange == tally.differ == 0 and (tally.resolved <= 1 or not full)
    told(name, good, seen)


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


def cut_off(group, times):
    """The leader reaches neither etcd nor its followers; clients reach it."""

    def cut(leader):
        for relay in [group.inward[leader], *group.outward[leader]]:
            relay.whole = False

    gaps, nobody = [], 0
    for _ in range(times):
        leader, record = watched(group, group.ttl + 3, cut)
        last = max(ended for _, ended in stored(record, leader))
        others = [began for number in record if number != leader for began, _ in stored(record, number)]
        if others:
            gaps.append(min(others) - last)
        nobody += not others
        for relay in [group.inward[leader], *group.outward[leader]]:
            relay.whole = True
        group.whole(group.count)
    overlaps = sum(gap <= 0 for gap in gaps)
    # On a machine that does much else the next one may need longer than is watched.
    good = overlaps == 0 and gaps and nobody <= times / 10
    told(f"leader cut off from all, {group.level}", good, f"{times} times, {overlaps} overlaps: the new one takes mutations {min(gaps, default=0):.2f} to {max(gaps, default=0):.2f} s after the old one's last, {nobody} times nobody yet")  # fmt: skip


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


def secured(larder, base, folder):
    """Servers and a proxy at an etcd that wants TLS, certificates and a user."""
    etcd = Secure(base + 306, folder)
    group = Group(larder, base, 9, 2, etcd, 2, "async", False, folder)
    proxy = None
    try:
        leader = group.whole(2)
        config = etcd.file("proxy.toml")
        with open(config, "w") as file:
            file.write(
                f'[pools.main]\netcd = {{ endpoints = ["https://127.0.0.1:{etcd.ports[0]}"], ca = "{etcd.file("ca.crt")}", '
                f'certificate = "{etcd.file("node.crt")}", key = "{etcd.file("node.key")}", user_file = "{etcd.file("user")}" }}\n'
            )
        command = [larder, "proxy", "-u", "root", "-l", "127.0.0.1", "-p", str(base + 99), f"--config={config}"]
        proxy = started(command, etcd.file("proxy.log"))
        client = patiently(lambda: Client(base + 99))
        before = patiently(lambda: client.set(b"k", b"before") == b"STORED")
        group.processes[leader].kill()
        group.processes[leader].wait()
        heir, _ = group.leader([1 - leader])
        after = patiently(lambda: Client(base + 99).set(b"k", b"after") == b"STORED")
        kept = Client(group.port(heir)).get(b"k")
        # Its last options count.
        group.start(leader, *etcd.shown("node", "wrong"))
        time.sleep(3)
        wrong = Client(group.port(leader)).stats()
        refused = wrong.get("leader_name") is None
        for options in ([f"--etcd-ca={etcd.file('node.crt')}"], ["-u", "root"]):
            group.processes[leader].kill()
            group.processes[leader].wait()
            # Another authority than etcd's; and no client's certificate at all.
            if options[0] == "-u":
                etcd.options = [f"--etcd-ca={etcd.file('ca.crt')}", f"--etcd-user-file={etcd.file('user')}"]
            group.start(leader, *options)
            time.sleep(2)
            refused = refused and Client(group.port(leader)).stats().get("etcd_reached") == "0"
    finally:
        group.stop()
        ended(proxy)
        etcd.stop()
    good = before and after and kept == b"after" and refused
    told("etcd with TLS and users", good, f"the proxy followed to another leader: {kept == b'after'}; without certificate or password nobody takes part: {refused}")  # fmt: skip


def patiently(attempt, seconds=20):
    """What an attempt gives as soon as it gives anything."""
    since = time.monotonic()
    while time.monotonic() < since + seconds:
        try:
            if found := attempt():
                return found
        except OSError:
            pass
        time.sleep(0.02)
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("larder")
    parser.add_argument("--full", action="store_true", help="leases of 5 s, 20 and 50 kills, etcd away for a minute")
    parser.add_argument("--port", type=int, default=23600, help="the first of some 310")
    parser.add_argument("--only", default="", help="those parts whose names begin so: kills, rolling, frozen, cut, secure")
    arguments = parser.parse_args()
    for port in range(arguments.port, arguments.port + 310):
        with socket.socket() as free:
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                free.bind(("127.0.0.1", port))
            except OSError as error:
                raise SystemExit(f"port {port}: {error}; give others with --port") from error
    # `finally` below is for that, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))
    # etcd waits for its disk at every step, and a busy one makes it miss its own elections.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = tempfile.mkdtemp(prefix="failover", dir=memory)
    full = arguments.full
    short, ttl = 2, 5 if full else 2
    groups, done = [], False
    etcd = Etcd(arguments.port + 300, 3, folder)

    def wanted(part):
        return part.startswith(arguments.only)

    def group(count, level, ttl=ttl, relayed=False):
        for one in groups:
            one.stop()
        groups.append(Group(arguments.larder, arguments.port, len(groups), count, etcd, ttl, level, relayed, folder))
        return groups[-1]

    try:
        if wanted("kills-async"):
            one = group(3, "async")
            kills(one, 20 if full else 3, full)
            if full:
                kills(group(3, "async", short), 20, full)
        if wanted("kills-2pc"):
            kills(group(3, "2pc"), 50 if full else 2, full, 20_500 if full else 2000)
        if wanted("kills-one"):
            kills(group(2, "1"), 20 if full else 2, full)
        if wanted("rolling") or wanted("frozen"):
            one = group(3, "async")
            rolling(one)
            frozen(one)
        if wanted("cut"):
            one = group(3, "async", short, relayed=True)
            cut_off(one, 25 if full else 1)
            etcd_only(one)
            etcd_gone(one, 60 if full else 5)
            one = group(3, "2pc", short, relayed=True)
            cut_off(one, 25 if full else 1)
            etcd_only(one)
        if wanted("secure"):
            secured(arguments.larder, arguments.port, folder)
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
