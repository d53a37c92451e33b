"""Servers and proxies that a measurement starts, and that end with it."""

import os
import signal
import socket
import subprocess
import time

# Who is started as root has to be told to stay it, memcached and Larder alike.
USER = ["-u", "root"] if os.geteuid() == 0 else []
PATIENCE = 10


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def connect(port):
    """A connection to one who may be about to listen."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            connection = socket.create_connection(("127.0.0.1", port), 60)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise SystemExit(f"nobody serves at {port}") from None
            time.sleep(0.01)


def await_gets(port, keys):
    """Returns when a proxy answers gets of all these keys: one that listens may not have reached its servers yet."""
    deadline = time.monotonic() + PATIENCE
    with connect(port) as connection:
        replies = connection.makefile("rb")
        for key in keys:
            while True:
                connection.sendall(b"get %s\r\n" % key)
                line = replies.readline()
                if line == b"END\r\n":
                    break
                if not line.startswith(b"SERVER_ERROR") or time.monotonic() > deadline:
                    raise SystemExit(f"the proxy at {port} answers a get with {line!r}")
                time.sleep(0.01)


class Fleet:
    """Processes, killed at the end of a `with`."""

    def __init__(self):
        self.processes = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.send_signal(signal.SIGKILL)
            process.wait()

    def start(self, command):
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.processes.append(subprocess.Popen([str(word) for word in command], **quiet))
        return self.processes[-1]

    def serve(self, program, port, *options):
        """A memcached, Larder, or proxy of either, at a port of this machine's own."""
        return self.start([program, "-l", "127.0.0.1", "-p", port, *options, *USER])

    def proxy(self, larder, port, *options):
        return self.start([larder, "proxy", "-l", "127.0.0.1", "-p", port, *options, *USER])
