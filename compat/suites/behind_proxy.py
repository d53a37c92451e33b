"""memcached's own t/*.t against a proxy with one memcached behind it."""

import os
import sys

from . import peers, upstream
from .report import FAILED

name = "t-proxy"
about = "memcached's own t/*.t on a proxy with one memcached behind it"
tries_again = True

# The files about protocols and items. The others start memcached in ways that are no matter of a proxy's (as a
# daemon, with UDP, at its connection limit, restarted), or look at its slabs, LRU, settings and threads.
FILES = """
    ascii-auth ascii-auth2 binary binary-get bogus-commands cas chunked-items expirations flags flush-all
    getandtouch getset incrdecr issue_104 issue_108 issue_14 issue_152 issue_163 issue_183 issue_192 issue_22 issue_29
    issue_3 issue_41 issue_42 issue_50 issue_61 issue_68 issue_70 item_size_max line-lengths malicious-commands
    metaget multiversioning noreply quit stats-detail strtol-testing touch unixsocket
""".split()

_STATS = "the statistics of items, commands and settings are the server's; a proxy shows its own"
_CLOCK = "moves the clock of the server by a command that is for one server alone"

# Subtests (by description or number; None: all; "ends": the file stops early) that must differ, with the reason.
DIFFER = {
    "binary": ({"Stats not updated on a binary flush", "Stats not updated on a binary quiet flush"}, _STATS),
    "cas": ({"cas empty, throw error", "ends"}, "a line without its number is refused by the proxy, as by 1.6.45: once, and the value is skipped"),
    "expirations": (None, _CLOCK),
    "issue_104": ({4, 5, 6}, _STATS),
    "issue_163": ({4}, _STATS),
    "issue_183": ({5}, _STATS),
    "issue_22": ({43, 84}, _STATS),
    "issue_29": ({2, 4}, _STATS),
    "issue_42": ({11}, _STATS),
    "issue_61": ({7}, _STATS),
    "item_size_max": ({4, 5, 6, 7}, _STATS),
    "metaget": ({1, 150, 151, 152, 153}, f"a line that is too short is refused by the proxy, as by 1.6.45, with a CLIENT_ERROR; {_STATS}"),
    "stats-detail": ({4, "ends"}, _STATS),
    "strtol-testing": ({2}, "`slabs` is for one server alone"),
}

# One program in front of another, started and ended as one.
WRAPPER = '''#!{python}
import ctypes, os, signal, socket, subprocess, sys, time

own, servers = [], []
words = iter(sys.argv[1:])
for word in words:
    if word in ("-h", "-V", "-i"):
        os.execv({server!r}, [{server!r}, *sys.argv[1:]])
    if word == "-U":
        next(words)
    elif word in ("-p", "-s", "-l", "-a", "-B", "-Y"):
        own += [word, next(words)]
    elif word == "-u":
        value = next(words)
        own += [word, value]
        servers += [word, value]
    else:
        servers.append(word)
if not any(word in own for word in ("-p", "-s")):
    own += ["-p", "11211"]
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
tied = lambda: ctypes.CDLL(None).prctl(1, signal.SIGKILL)
started = subprocess.Popen([{server!r}, "-l", "127.0.0.1", "-p", str(port), "-U", "0", *servers], preexec_fn=tied)
while True:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
        break
    except ConnectionRefusedError:
        if started.poll() is not None:
            sys.exit(started.returncode)
        time.sleep(0.01)
os.execv({proxy!r}, [{proxy!r}, "proxy", *own, "-U", "0", "--servers", f"127.0.0.1:{{port}}"])
'''


def run(setting):
    peers.debian("perl")
    source = setting.source or peers.memcached_source()
    files = [file for file in FILES if os.path.exists(os.path.join(source, "t", f"{file}.t"))]
    if setting.files:
        files = [file for file in files if file in [wanted.removesuffix(".t") for wanted in setting.files]]
    os.makedirs(peers.WORK, exist_ok=True)
    program = os.path.join(peers.WORK, "behind-proxy")
    with open(program, "w", encoding="utf-8") as file:
        file.write(WRAPPER.format(python=sys.executable, server=os.path.join(source, "memcached-debug"), proxy=setting.subject))
    os.chmod(program, 0o755)

    # Where a file stops early for a known reason, nothing is gained by waiting.
    limits = {file: 15 for file, (subtests, _) in DIFFER.items() if "ends" in (subtests or ())}

    def good(file, result):
        return upstream.judge(file, None, result, {}, DIFFER, name).outcome != FAILED

    found = upstream.play_all(source, program, False, files, setting.jobs, limits, good, True)
    return [upstream.judge(file, None, found[file], {}, DIFFER, name) for file in files]
