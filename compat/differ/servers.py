"""Starting the two servers, and talking to both at once."""

import os
import re
import select
import socket
import subprocess
import tempfile
import time

TIMEOUT = 15
BINARY_NOOP = b"\x80\x0a" + bytes(10) + b"\xffend" + bytes(8)
BINARY_NOOP_REPLY = b"\x81\x0a" + bytes(10) + b"\xffend" + bytes(8)


class Silence(Exception):
    """A server did not finish its answer in time; what it did say is the argument."""


class Server:
    """One server process on a loopback port of its own."""

    def __init__(self, program, options=(), wrap=None, environment=None):
        self.program = program
        self.directory = tempfile.TemporaryDirectory(prefix="differ")
        self.log = open(os.path.join(self.directory.name, "log"), "w+b")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [program, "-l", "127.0.0.1", "-p", str(self.port), "-U", "0"]
        command += ["-m", "1024", "-t", "2", *options]
        if os.geteuid() == 0:
            command += ["-u", "root"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, env={**os.environ, **(environment or {})}
        )
        self.wrap = wrap(self.port) if wrap else None
        self._wait()
        # One that speaks binary only is not asked in text.
        self.version = b"" if "-S" in options else self._version()
        self.marker = b"VERSION " + self.version + b"\r\n"
        self.connections = {}

    def _wait(self):
        deadline = time.monotonic() + TIMEOUT
        while True:
            try:
                # Not by way of a wrap, which answers before the server does.
                socket.create_connection(("127.0.0.1", self.port), TIMEOUT).close()
                return
            except ConnectionRefusedError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"{self.program} does not serve: {self.said()}") from None
                time.sleep(0.005)

    def _version(self):
        with self.connect() as connection:
            connection.sendall(b"version\r\n")
            reply = connection.makefile("rb").readline()
        found = re.fullmatch(rb"VERSION (\S+)\r\n", reply)
        if not found:
            raise SystemExit(f"{self.program} answers 'version' with {reply!r}")
        return found.group(1)

    def connect(self):
        port = self.wrap.port if self.wrap else self.port
        connection = socket.create_connection(("127.0.0.1", port), TIMEOUT)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def connection(self, number):
        """A lasting connection, opened when first asked for."""
        if number not in self.connections:
            self.connections[number] = self.connect()
        return self.connections[number]

    def drop(self, number):
        connection = self.connections.pop(number, None)
        if connection:
            connection.close()

    def said(self):
        self.log.seek(0)
        return self.log.read()[-2000:].decode("latin-1")

    def alive(self):
        return self.process.poll() is None

    def stop(self):
        for connection in self.connections.values():
            connection.close()
        self.process.kill()
        self.process.wait()
        if self.wrap:
            self.wrap.stop()
        self.log.close()
        self.directory.cleanup()


def read_until(connection, ending):
    """Reads until the answer ends with `ending`, which is cut off."""
    got = bytearray()
    try:
        while not got.endswith(ending):
            part = connection.recv(1 << 18)
            if not part:
                raise Silence(bytes(got) + b"<closed>")
            got += part
    except TimeoutError:
        raise Silence(bytes(got) + b"<silence>") from None
    except ConnectionError:
        raise Silence(bytes(got) + b"<closed>") from None
    return bytes(got[: -len(ending)])


def read_to_end(connection):
    """Reads until the server closes."""
    got = bytearray()
    try:
        while part := connection.recv(1 << 18):
            got += part
    except TimeoutError:
        raise Silence(bytes(got) + b"<silence>") from None
    except ConnectionError:
        pass
    return bytes(got)


class Pair:
    """The reference and the subject, started alike."""

    def __init__(self, programs, options=(), wraps=(None, None)):
        self.servers = []
        # Milliseconds without a word after which a server is taken to wait for more.
        self.patience = 3
        try:
            for program, wrap in zip(programs, wraps, strict=True):
                self.servers.append(Server(program, options, wrap))
        except BaseException:
            self.stop()
            raise

    def stop(self):
        for server in self.servers:
            server.stop()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def restart_connection(self, number):
        for server in self.servers:
            server.drop(number)

    def ask(self, number, pieces, binary=False):
        """Sends a pipeline on a lasting connection, and reads both answers."""
        self.tell(number, pieces, binary)
        return self.hear(number, binary)

    def tell(self, number, pieces, binary=False):
        marker = BINARY_NOOP if binary else b"version\r\n"
        connections = [server.connection(number) for server in self.servers]
        *first, last = pieces
        for piece in first:
            _send(connections, piece)
        _send(connections, last + marker)

    def hear(self, number, binary=False):
        answers = []
        for server in self.servers:
            ending = BINARY_NOOP_REPLY if binary else server.marker
            try:
                answers.append(read_until(server.connection(number), ending))
            except Silence as silence:
                answers.append(silence.args[0])
        if any(answer.endswith((b"<closed>", b"<silence>")) for answer in answers):
            self.restart_connection(number)
        return answers

    def ask_and_leave(self, pieces):
        """Sends bytes on new connections, ends them, and reads what is answered until they close."""
        connections = [server.connect() for server in self.servers]
        answers = []
        for piece in pieces:
            _send(connections, piece)
        got = self._settle(connections)
        for connection in connections:
            try:
                connection.shutdown(socket.SHUT_WR)
            except OSError:
                pass
        for connection in connections:
            try:
                answers.append(bytes(got[connection]) + read_to_end(connection))
            except Silence as silence:
                answers.append(bytes(got[connection]) + silence.args[0])
            connection.close()
        return answers


    def _settle(self, connections):
        """Waits until both servers have had their say.

        memcached forgets what it has not sent yet when the end of the input interrupts a value.
        """
        poll = select.poll()
        for connection in connections:
            poll.register(connection, select.POLLIN)
        waiting = {connection.fileno(): connection for connection in connections}
        got = {connection: bytearray() for connection in connections}
        while ready := poll.poll(self.patience):
            for number, _ in ready:
                connection = waiting[number]
                try:
                    part = connection.recv(1 << 18)
                except ConnectionError:
                    part = b""
                got[connection] += part
                if not part:
                    poll.unregister(connection)
                    del waiting[number]
            if not waiting:
                break
        return got


def _send(connections, piece):
    for connection in connections:
        try:
            connection.sendall(piece)
        except (ConnectionError, TimeoutError):
            pass  # the answer, or its absence, tells
