"""Client libraries: a script for each, in compat/clients, uses every command the library has.

A script is called with host, port and, for a server that demands them, user and password. It prints lines
of TAP, 'ok 1 - name' or 'not ok 1 - name: what came instead'.
"""

import os
import re
import shutil
import sysconfig

from differ.servers import Server

from . import peers, processes
from .report import FAILED, Case, compare

HERE = os.path.join(peers.HERE, "clients")
USER, PASSWORD = "larder", "wordlarder"


def read(status, out, errors):
    """Results by name; a script that ends badly adds one."""
    found = {}
    for line in out.splitlines():
        if named := re.match(r"(not )?ok \d+ - ([^:]+)(?:: (.*))?", line):
            found[named[2]] = (named[3] or "fails") if named[1] else None
    if status != 0 and not any(found.values()):
        found["end"] = f"exit status {status} after {len(found)} tests: {errors.strip()[-400:]}"
    elif not found:
        found["end"] = f"no test was run: {errors.strip()[-400:]}"
    return found


class Client:
    """A suite made of one library.

    peers: installs the library, and returns the command the script is run with
    sasl: whether there is a second run against a server that demands a password
    """

    def __init__(self, name, about, script, install, sasl=False, plain=True):
        self.name, self.about, self.script, self.install = name, about, script, install
        self.sasl, self.plain = sasl, plain

    def play(self, command, program, users=None):
        options, environment, words = ["-m", "256"], {}, []
        if users:
            options, words = [*options, "-S"], [USER, PASSWORD]
            environment = {"MEMCACHED_SASL_PWDB": users, "SASL_CONF_PATH": os.path.join(HERE, "sasl")}
        server = Server(program, options, environment=environment)
        try:
            found = read(*processes.play([*command, "127.0.0.1", str(server.port), *words], HERE, 120, self.environment()))
            if not server.alive():
                found["alive"] = f"the server died: {server.said()}"
        finally:
            server.stop()
        return {(f"SASL {name}" if users else name): result for name, result in found.items()}

    def environment(self):
        return {"NODE_PATH": os.path.join(peers.WORK, "node", "node_modules"), "GO111MODULE": "off", "GOPATH": GOPATH}

    def run(self, setting):
        command = [*self.install(), *([os.path.join(HERE, self.script)] if self.script else [])]
        cases = []
        if self.plain:
            before = None if setting.skip_reference else self.play(command, setting.reference or peers.memcached())
            cases += compare(self.name, before, self.play(command, setting.subject), strict=True)
        if self.sasl:
            # Debian's memcached is built without password files: the one built from its source has them.
            peers.debian("libsasl2-modules")
            source = setting.source or peers.memcached_source()
            users = os.path.join(peers.WORK, "users")
            with open(users, "w", encoding="utf-8") as file:
                file.write("".join(f"{USER}{at}:{PASSWORD}\n" for at in (f"@{os.uname().nodename}", "")))
            before = None if setting.skip_reference else self.play(command, os.path.join(source, "memcached"), users)
            cases += compare(self.name, before, self.play(command, setting.subject, users), strict=True)
        if not cases:
            cases.append(Case(self.name, "run", FAILED, "no test was run"))
        return cases


GOPATH = "/usr/share/gocode"


def _pip(*packages):
    return lambda: [peers.python(*packages)]


def _pylibmc():
    peers.debian("gcc", "libc6-dev", "libmemcached-dev", "zlib1g-dev", "libsasl2-2", "libsasl2-modules")
    if not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")):
        peers.debian("python3-dev")
    # The wheel on PyPI brings a libsasl2 that does not find the system's mechanisms.
    return [peers.python("pylibmc", compiled=("pylibmc",))]


def _debian(program, *packages):
    def install():
        peers.debian(*packages)
        return [program]

    return install


def _node():
    peers.node("memjs")
    return ["node"]


def _go():
    if not shutil.which("go"):
        peers.debian("golang-go")
    peers.debian("golang-github-bradfitz-gomemcache-dev")
    program = os.path.join(peers.WORK, "gomemcache")
    environment = {**os.environ, "GO111MODULE": "off", "GOPATH": GOPATH, "GOFLAGS": "", "CGO_ENABLED": "0"}
    peers.run(["go", "build", "-o", program, os.path.join(HERE, "gomemcache.go")], env=environment)
    return [program]


ALL = [
    Client("pymemcache", "pymemcache (Python, text)", "with_pymemcache.py", _pip("pymemcache")),
    Client("pylibmc", "pylibmc (Python over libmemcached, text, binary and SASL)", "with_pylibmc.py", _pylibmc, sasl=True),
    Client("bmemcached", "python-binary-memcached (binary, and SASL)", "with_bmemcached.py", _pip("python-binary-memcached"), sasl=True),
    Client("dalli", "dalli (Ruby, binary and meta, and SASL)", "with_dalli.rb", _debian("ruby", "ruby", "ruby-dalli"), sasl=True),
    Client("php", "php-memcached (PHP over libmemcached, text and binary, and SASL)", "with_memcached.php",
           _debian("php", "php-cli", "php-memcached"), sasl=True),
    Client("memjs", "memjs (Node.js, binary, and SASL)", "with_memjs.js", _node, sasl=True),
    Client("gomemcache", "gomemcache (Go, text)", None, _go),
    Client("perl", "Cache::Memcached and Cache::Memcached::Fast (Perl, text)", "with_memcached.pl",
           _debian("perl", "perl", "libcache-memcached-perl", "libcache-memcached-fast-perl")),
]  # fmt: skip
