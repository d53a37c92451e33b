"""Checks that the tool finds differences: the reference behind a proxy that spoils some answers."""

import socket
import threading

from . import rules, runner


class Spoiler:
    """A proxy in front of a server that alters one byte of what passes, once, far into the stream."""

    def __init__(self, port, after):
        self.upstream = port
        self.left = after
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def stop(self):
        self.listener.close()

    def _serve(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self.upstream))
            for source, target, spoil in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._copy, args=(source, target, spoil), daemon=True).start()

    def _copy(self, source, target, spoil):
        try:
            while data := source.recv(1 << 16):
                if spoil:
                    self.left -= len(data)
                    if self.left < 0 and len(data) > 20:
                        data = bytearray(data)
                        data[3] ^= 1
                        self.left = 1 << 60
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass


def run(program):
    """Returns an exit status."""
    from differential import known_rules, show

    programs = (program, program)
    known = known_rules(program, True)
    failures = 0

    sent, failure = runner.run_epoch(programs, (None, None), "self", 0, 5000, known, ["text"], {})
    print(f"same server, {sent} commands: {'DIFFERENT' if failure else 'same'}")
    failures += failure is not None

    wraps = (None, lambda port: Spoiler(port, 200_000))
    sent, failure = runner.run_epoch(programs, wraps, "self", 0, 20_000, known, ["text"], {})
    print(f"one byte altered: {'found' if failure else 'NOT FOUND'} after {sent} commands")
    failures += failure is None
    if failure:
        show(programs, wraps, known, failure)
    return 1 if failures else 0
