#!/usr/bin/env python3
"""Items held, and resident memory per item, of one or two servers.

    compat/memory.py target/release/larder
    compat/memory.py -m 256 --values 10,1024 target/release/larder /usr/bin/memcached

For each value size a server is started on a loopback port and filled with 20-byte keys until it has
evicted for a while; then its items are counted and its resident memory is read. With a second server
to compare with, the items of the first are also given as a multiple; --check asks for the multiples
that Larder promises at -m 1024, and for no more memory per item, and exits with 1 if they are missed.
"""

import argparse
import os
import socket
import subprocess
import sys
import time

VALUES = [10, 50, 100, 500, 1024, 4096, 102400]
PROMISED = {10: 1.6, 50: 1.45, 100: 1.28, 500: 1.07, 1024: 1.03, 4096: 1.03, 102400: 1.0}
EVICTIONS = 20_000
BATCH_BYTES = 1 << 19


class Server:
    """A server on a port of its own, and one connection to it."""

    def __init__(self, program, megabytes, extra):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [program, "-l", "127.0.0.1", "-p", str(port), "-U", "0", "-m", str(megabytes)]
        if os.geteuid() == 0:
            command += ["-u", "root"]
        self.process = subprocess.Popen(command + extra)
        for _ in range(100):
            try:
                self.connection = socket.create_connection(("127.0.0.1", port))
                break
            except ConnectionRefusedError:
                time.sleep(0.05)
        else:
            sys.exit(f"{program} does not answer")
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.replies = self.connection.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.connection.close()
        self.process.terminate()
        self.process.wait()

    def stats(self):
        self.connection.sendall(b"stats\r\n")
        found = {}
        while (line := self.replies.readline().split()) != [b"END"]:
            if not line:
                sys.exit("the server closed the connection")
            found[line[1].decode()] = line[-1].decode()
        return found

    def resident(self):
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))

    def store(self, first, count, size):
        """Stores `count` items without a word, and waits until that is done."""
        tail = b" 0 0 %d noreply\r\n%s\r\n" % (size, value(size))
        batch = b"".join([b"set k%019d%s" % (n, tail) for n in range(first, first + count)])
        self.connection.sendall(batch + b"version\r\n")
        reply = self.replies.readline()
        if not reply.startswith(b"VERSION"):
            sys.exit(f"answered a set with {reply!r}")

    def holds(self, number, size):
        """Whether the item is there, and right."""
        self.connection.sendall(b"get k%019d\r\n" % number)
        head = self.replies.readline()
        if head == b"END\r\n":
            return False
        body = self.replies.read(size + 2)
        if body != value(size) + b"\r\n" or self.replies.readline() != b"END\r\n":
            sys.exit(f"item {number} came back wrong")
        return True


def value(size):
    return b"0123456789abcdef" * (size // 16) + b"v" * (size % 16)


def measure(program, megabytes, size, extra):
    with Server(program, megabytes, extra) as server:
        count = max(1, BATCH_BYTES // (size + 60))
        written = 0
        while True:
            server.store(written, count, size)
            written += count
            stats = server.stats()
            evictions = int(stats["evictions"])
            if evictions >= min(EVICTIONS, 1 + int(stats["curr_items"]) // 10):
                break
            if written * (size + 20) > megabytes << 22:
                sys.exit(f"{program}: no evictions after {written} items of {size} bytes")
        # The table may still be growing, and holds its old half until it is done.
        for _ in range(60):
            stats = server.stats()
            if stats.get("hash_is_expanding", "0") == "0":
                break
            time.sleep(0.5)
        items = int(stats["curr_items"])
        recent = min(1000, items // 10)
        lost = sum(not server.holds(number, size) for number in range(written - recent, written))
        return items, server.resident(), lost, recent


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("-m", type=int, default=1024, metavar="MB")
    parser.add_argument("--values", default=",".join(map(str, VALUES)), metavar="BYTES,...")
    parser.add_argument("--option", action="append", default=[], help="one more argument for both servers")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("server")
    parser.add_argument("other", nargs="?")
    options = parser.parse_args()

    programs = [options.server] + ([options.other] if options.other else [])
    missed = []
    print(f"-m {options.m}, 20-byte keys")
    print(f"{'value':>7} {'server':>12} {'items':>11} {'RSS MB':>8} {'B/item':>9} {'multiple':>9}  recent items lost")
    for size in map(int, options.values.split(",")):
        results = [measure(program, options.m, size, options.option) for program in programs]
        multiple = results[0][0] / results[1][0] if options.other else None
        for at, (program, (items, resident, lost, recent)) in enumerate(zip(programs, results)):
            shown = f"{multiple:.3f}" if at == 0 and multiple else ""
            print(
                f"{size:>7} {os.path.basename(program):>12} {items:>11,} {resident / (1 << 20):>8.1f}"
                f" {resident / items:>9.1f} {shown:>9}  {lost} of {recent}",
                flush=True,
            )
        if multiple and multiple < PROMISED.get(size, 0):
            missed.append(f"{size} bytes: {multiple:.3f} times the items, promised {PROMISED[size]}")
        if multiple and results[0][1] / results[0][0] > results[1][1] / results[1][0]:
            missed.append(f"{size} bytes: more resident memory per item")
    if options.check:
        if options.m != 1024 or not options.other:
            sys.exit("--check needs -m 1024 and a server to compare with")
        for line in missed:
            print("missed:", line)
        sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
