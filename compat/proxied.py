#!/usr/bin/env python3
"""Sends the same random requests to one server and to a proxy with five such servers behind it.

    compat/proxied.py --reference /usr/bin/memcached --proxy target/release/larder --commands 500000

The servers run without CAS ids (-C), which are a matter of each server's own; what only one server can
answer (stats, crawlers, slabs, ...) is left out. See compat/differential.py, whose runner this is.
"""

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed

from differ import rules, runner, servers

BEHIND = 5
# What is a server's own affair, or ends it.
OWN = (
    b"stats", b"lru", b"slabs", b"watch", b"shutdown", b"extstore", b"cache_memlimit", b"verbosity", b"version",
    b"refresh_certs", b"debug", b"misbehave", b"flush_all", b"me ",
)  # fmt: skip
# The same in binary: flush, version, stat, verbosity, and the quiet flush. A flush counts in seconds, which do not
# begin at the same moment on six servers.
OWN_BINARY = (b"\x08", b"\x0b", b"\x10", b"\x18", b"\x1b")

# All that nutcracker knows; it hangs up on anything else, and answers the keys of a get server by server.
NUTCRACKER = re.compile(
    rb"(?:gets? K|(?:set|add|replace|append|prepend) K \d+ \d+ \d+ ?R\r\n.*|cas K \d+ \d+ \d+ \d+R\r\n.*"
    rb"|(?:incr|decr) K \d+R|delete KR|touch K \d+R)\r\n".replace(b"K", rb"[^\x00-\x20]{1,250}").replace(b"R", rb"(?: noreply)?"),
    re.DOTALL,
)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Fleet:
    """Four more servers like the one at `port`, and a proxy in front of the five."""

    proxy = by = None

    def __init__(self, program, options, port):
        self.log = tempfile.TemporaryFile()
        self.folder = tempfile.TemporaryDirectory(prefix="proxied")
        self.processes = []
        ports = [port]
        user = ["-u", "root"] if os.geteuid() == 0 else []
        for _ in range(BEHIND - 1):
            ports.append(free_port())
            self._start([program, "-l", "127.0.0.1", "-p", str(ports[-1]), "-U", "0", "-m", "1024", "-t", "2", *options, *user])
        self.port = free_port()
        behind = [f"127.0.0.1:{port}" for port in ports]
        # A machine that is busy otherwise is no difference.
        if self.by == "nutcracker":
            lines = [f"   - {each}:1\n" for each in behind]
            text = f"all:\n  listen: 127.0.0.1:{self.port}\n  hash: md5\n  distribution: ketama\n  servers:\n"
            config = self._file("".join([text, *lines]))
            self._start([self.proxy, "-c", config, "-s", str(free_port())])
        else:
            config = self._file(f'[pools.all]\nservers = {json.dumps(behind)}\ntimeout = "60s"\nhealth = {{ probe_timeout = "60s" }}\n')
            self._start([self.proxy, "proxy", "-l", "127.0.0.1", "-p", str(self.port), "-t", "2", "--config", config, *user])
        for each in [*ports[1:], self.port]:
            self._wait(each)

    def _file(self, text):
        path = os.path.join(self.folder.name, "config")
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        return path

    def _start(self, command):
        self.processes.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log))

    def _wait(self, port):
        deadline = time.monotonic() + servers.TIMEOUT
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), servers.TIMEOUT).close()
                return
            except ConnectionRefusedError:
                if time.monotonic() > deadline:
                    raise SystemExit(f"nobody serves at {port}") from None
                time.sleep(0.005)

    def stop(self):
        for process in self.processes:
            process.kill()
            process.wait()
        self.log.close()
        self.folder.cleanup()


class Subject(servers.Server):
    """A server that may have a fleet around it."""

    behind = None

    def __init__(self, program, options=(), wrap=None):
        if wrap is Fleet:
            behind = self.behind or program
            super().__init__(behind, options, lambda port: Fleet(behind, options, port))
            # The proxy answers this itself, or one of the servers does.
            self.version = self._version()
            self.marker = b"VERSION " + self.version + b"\r\n"
        else:
            super().__init__(program, options, wrap)


class Epoch(runner.Epoch):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.options = [*self.options, "-C"]

    def special(self, command):
        return self.forbidden(command) or super().special(command)

    def forbidden(self, command):
        own = command[1:2] in OWN_BINARY if command.startswith(b"\x80") else command.lstrip(b" ").startswith(OWN)
        unknown = Fleet.by == "nutcracker" and not NUTCRACKER.fullmatch(command)
        return own or unknown or super().forbidden(command)


def play(reference, proxy, by, behind, seed, number, commands, dialects):
    servers.Server, runner.Epoch = Subject, Epoch
    Fleet.proxy, Fleet.by, Subject.behind = proxy, by, behind
    found = subprocess.run([reference, "-V"], capture_output=True, check=True).stdout.split()
    known = rules.applicable(found[1], True)
    explained = {}
    programs, wraps = (reference, reference), (None, Fleet)
    sent, failure = runner.run_epoch(programs, wraps, seed, number, commands, known, dialects, explained)
    if failure:
        print(f"DIFFERENCE: seed {seed}, epoch {number}, options {failure.options}")
        for line in failure.steps[-1].lines:
            for piece in line[2][:8]:
                print(f"  sent {piece[:600]!r}")
        reference_said, proxy_said = failure.difference.answers
        pairs = enumerate(zip(reference_said, proxy_said, strict=False))
        at = next((i for i, (a, b) in pairs if a != b), min(len(reference_said), len(proxy_said)))
        print(f"  server: ...{reference_said[max(at - 80, 0) : at + 200]!r} ({len(reference_said)} bytes)")
        print(f"  proxy:  ...{proxy_said[max(at - 80, 0) : at + 200]!r} ({len(proxy_said)} bytes)")
        sys.stdout.flush()
    return sent, explained, bool(failure)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", default="/usr/bin/memcached")
    parser.add_argument("--proxy", default="target/release/larder")
    parser.add_argument("--by", choices=["larder", "nutcracker"], default="larder", help="what kind of proxy it is")
    parser.add_argument("--behind", metavar="SERVER", help="the servers behind the proxy, if they are not like the reference")
    parser.add_argument("--commands", type=int, default=500_000)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--epoch", type=int, help="play this epoch only")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--dialect", default="text", help="text, meta, binary, or several with commas")
    arguments = parser.parse_args()
    size = min(arguments.commands, runner.EPOCH)
    count = -(-arguments.commands // size)
    numbers = [arguments.epoch] if arguments.epoch is not None else list(range(count))
    dialects = arguments.dialect.split(",")
    began = time.monotonic()
    sent, explained, failed = 0, {}, 0
    with ProcessPoolExecutor(arguments.jobs) as pool:
        work = [
            pool.submit(play, arguments.reference, arguments.proxy, arguments.by, arguments.behind, arguments.seed, number, size, dialects)
            for number in numbers
        ]
        for future in as_completed(work):
            done, why, bad = future.result()
            sent += done
            failed += bad
            for name, times in why.items():
                explained[name] = explained.get(name, 0) + times
    print(
        f"proxied: {sent} commands ({arguments.dialect}) through a proxy with {BEHIND} servers, seed {arguments.seed}, "
        f"{failed} unexplained differences, {explained or 'none'} explained, {time.monotonic() - began:.0f} s"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
