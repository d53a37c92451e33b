#!/usr/bin/env python3
"""What clients must not send, sent to two servers; their answers are compared byte for byte.

    compat/hostile.py /usr/bin/memcached target/release/larder
    compat/hostile.py --show -k lengths /usr/bin/memcached target/release/larder
    compat/hostile.py --record /path/to/memcached-1.6.45

Each case is a connection of its own: the bytes are sent, at once and once more one at a time if there
are not many, the client says that it is done, and everything until the server hangs up counts. What is
deliberately answered otherwise has its reason in differences.md. Exits with 1 if anything else differs.
"""

import argparse
import hashlib
import os
import re
import socket
import struct
import sys

from differ.servers import Server

TABLE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "hostile.txt")
K250, K251 = b"k" * 250, b"k" * 251
NUL = b"\0"


def stores(verb, key, length, value, tail=b""):
    """A classic store, with the words that its verb wants."""
    cas = b" 1" if verb == b"cas" else b""
    return b"%s %s 0 0 %s%s%s\r\n%s\r\n" % (verb, key, length, cas, tail, value)


VERBS = [b"set", b"add", b"replace", b"append", b"prepend", b"cas"]
LENGTHS = [b"-1", b"-2", b"-2147483648", b"2147483645", b"2147483646", b"2147483647", b"2147483648"]
LENGTHS += [b"4294967295", b"4294967296", b"9223372036854775807", b"18446744073709551615"]
LENGTHS += [b"18446744073709551616", b"99999999999999999999", b"1x", b"x", b"", b"+1", b"0x1", b" ", b"1.5"]


def lengths():
    for verb in VERBS:
        for length in LENGTHS:
            if not length.startswith((b"214748364", b"42949")) or verb == b"set":
                yield stores(verb, b"a", length, b"x") + b"version\r\n"
    for length in LENGTHS:
        if length not in (b"2147483645",):
            yield b"ms a %s\r\nx\r\nversion\r\n" % length
            yield b"ms a %s q\r\nx\r\nmn\r\n" % length
    for number in LENGTHS:
        yield b"set a 0 0 1\r\n5\r\nincr a %s\r\ndecr a %s\r\nget a\r\n" % (number, number)
        yield b"set a 0 0 1\r\n5\r\ntouch a %s\r\nget a\r\n" % number
        yield b"set a 0 0 1\r\n5\r\ngat %s a\r\nget a\r\n" % number
        yield b"set a %s 0 1\r\n5\r\nget a\r\n" % number
        yield b"set a 0 %s 1\r\n5\r\nget a\r\n" % number
        yield b"set a 0 0 1\r\n5\r\ncas a 0 0 1 %s\r\n6\r\nget a\r\n" % number
        yield b"verbosity %s\r\nversion\r\n" % number
        for flag in b"TNRCEFJDMOSI":
            flag = bytes([flag])
            yield b"set a 0 0 1\r\n5\r\nmg a v %s%s\r\nma a %s%s\r\nmd a %s%s\r\nmn\r\n" % ((flag, number) * 3)
            yield b"ms a 1 %s%s\r\nx\r\nmn\r\n" % (flag, number)


def keys():
    for key in (K250, K251, b"k" * 1000):
        yield b"get %s\r\nversion\r\n" % key
        yield b"gets %s\r\nversion\r\n" % key
        yield b"gat 0 %s\r\nversion\r\n" % key
        yield b"delete %s\r\nversion\r\n" % key
        yield b"delete %s noreply\r\nversion\r\n" % key
        yield b"incr %s 1\r\nversion\r\n" % key
        yield b"decr %s 1 noreply\r\nversion\r\n" % key
        yield b"touch %s 0\r\nversion\r\n" % key
        for verb in VERBS:
            yield stores(verb, key, b"1", b"x") + b"version\r\n"
            yield stores(verb, key, b"1", b"x", b" noreply") + b"version\r\n"
        for meta in (b"mg %s v k", b"md %s", b"ma %s", b"me %s", b"mg %s b k", b"md %s q"):
            yield meta % key + b"\r\nmn\r\n"
        yield b"ms %s 1 k\r\nx\r\nmg %s v k\r\nmn\r\n" % (key, key)
        yield stores(b"set", key, b"1", b"x") + b"get %s\r\n" % key


def values():
    for length in (1, 10, 2000, 20000, 600000):
        value = b"v" * length
        for verb in VERBS:
            for given in (length - 1, length + 1, length + 2):
                yield stores(verb, b"a", b"%d" % given, value) + b"get a\r\nversion\r\n"
                yield stores(verb, b"a", b"%d" % given, value, b" noreply") + b"get a\r\nversion\r\n"
        for given in (length - 1, length + 1, length + 2):
            yield b"ms a %d\r\n%s\r\nmg a v\r\nmn\r\n" % (given, value)
            yield b"ms a %d q\r\n%s\r\nmg a v\r\nmn\r\n" % (given, value)
        # Cut off anywhere: nothing of it is kept.
        yield b"set a 0 0 3\r\nold\r\nset a 0 0 %d\r\n%s" % (length + 1, value)
    big = b"v" * (1 << 20)
    for verb in VERBS:
        yield b"set a 0 0 3\r\nold\r\n" + stores(verb, b"a", b"%d" % len(big), big) + b"get a\r\nversion\r\n"
        yield stores(verb, b"a", b"%d" % len(big), big, b" noreply") + b"get a\r\nversion\r\n"
    yield b"set a 0 0 3\r\nold\r\nms a %d\r\n%s\r\nmg a v\r\nmn\r\n" % (len(big), big)
    yield b"set a 0 0 3\r\nold\r\nms a %d q ME\r\n%s\r\nmg a v\r\nmn\r\n" % (len(big), big)


def lines():
    for start in (b"", b"get ", b"gets ", b"set ", b"mg ", b"x", b" "):
        for length in (2000, 2047, 2048, 2049, 5000):
            yield start + b"x" * (length - len(start))
            yield start + b"x" * (length - len(start)) + b"\r\nversion\r\n"
    for start in (b"get", b"get a", b"gets"):
        yield start + b" " * 3000
        yield start + b" " * 3000 + b"\r\nversion\r\n"
    for end in (b"\n", b"\r\n", b"\r\r\n", b"\n\r", b"\r", b" \r\n", b"\t\r\n", NUL + b"\r\n"):
        for line in (b"", b" ", b"get", b"get a", b"version", b"set a 0 0 1", b"mn", b"mg a v", b"quit", b"x"):
            yield line + end + b"version\r\n"
    for line in (b"GET a", b"get\ta", b"get a\tb", b"gett a", b"ge", b"set", b"set a", b"set a 0", b"set a 0 0"):
        yield line + b"\r\nversion\r\n"
    yield b"\r\n" * 50 + b"version\r\n"
    yield b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    yield b"POST / HTTP/1.0\r\n\r\n"
    yield b"x HTTP/1.0\r\nversion\r\n"
    yield b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\nversion\r\n"
    yield b"get " + b" ".join(b"k%d" % n for n in range(3000)) + b"\r\nversion\r\n"
    yield b"set k7 0 0 1\r\nx\r\nget " + b" ".join(b"k%d" % (n % 9) for n in range(20000)) + b"\r\nversion\r\n"
    yield b"get a b c d e f g h %s i\r\nversion\r\n" % K251


def nulls():
    for text in (NUL, NUL * 4, b"get a\0b", b"get \0", b"set a\0b 0 0 2", b"set a 0\0 0 2", b"set a 0 0 2\0"):
        yield text + b"\r\nxy\r\nversion\r\n"
        yield text + b"\n" + b"version\r\n"
    yield b"set a 0 0 3\r\n\0\0\0\r\nget a\r\nappend a 0 0 2\r\n\0\n\r\nget a\r\n"
    yield b"set a\0b 0 0 1\r\n1\r\nget a\0b\r\nincr a\0b 4\r\nget a\r\nmg a\0b v k\r\ndelete a\0b\r\n"
    yield b"mg a\0 v\r\nmg a \0\r\nmg a v\0\r\nms a\0b 1 T\0\r\nx\r\nmn\r\n"
    for byte in list(range(1, 9)) + [11, 12, 127, 160, 254, 255]:
        byte = bytes([byte])
        yield b"set %s 0 0 1\r\nx\r\nget %s\r\nmg %s v k\r\n%s\r\nversion\r\n" % ((byte,) * 4)
        yield b"set a%s 0%s 0 1%s\r\nx\r\nversion\r\n" % ((byte,) * 3)


def words():
    """Too few, too many, and the wrong ones."""
    for verb in (b"get", b"gets", b"gat", b"gats", b"touch", b"incr", b"decr", b"delete", b"cas", b"set"):
        for count in range(9):
            yield b" ".join([verb] + [b"1"] * count) + b"\r\nversion\r\n"
            yield b" ".join([verb] + [b"1"] * count + [b"noreply"]) + b"\r\nversion\r\n"
    for meta in (b"mg", b"ms", b"md", b"ma", b"mn", b"me"):
        for rest in (b"", b" ", b" a", b" a 1", b" a b", b" a 1 k O1 c", b" a q", b" a b c d", b" a !", b" a \xff"):
            yield meta + rest + b"\r\nmn\r\nversion\r\n"
        yield meta + b" a " + b" ".join(b"%c" % c for c in b"vfktcslhOqbuENTRIDJMSCFx") + b"\r\nmn\r\n"
        yield meta + b" a " + b" ".join([b"v"] * 30) + b"\r\nmn\r\n"
        yield meta + b" a O" + b"1" * 31 + b"\r\n" + meta + b" a O" + b"1" * 32 + b"\r\nmn\r\n"
        yield meta + b" %s b\r\nmn\r\n" % (b"YWJj" * 62)
        yield meta + b" YWJ b\r\n" + meta + b" YW== b k\r\n" + meta + b" ==== b\r\nmn\r\n"


def binary():
    def packet(opcode, extras=b"", key=b"", value=b"", **wrong):
        length = len(extras) + len(key) + len(value)
        return (
            struct.pack(
                ">BBHBBHI4s8s",
                wrong.get("magic", 0x80),
                opcode,
                wrong.get("key", len(key)),
                wrong.get("extras", len(extras)),
                wrong.get("type", 0),
                wrong.get("bucket", 0),
                wrong.get("body", length),
                b"opaq",
                bytes(8),
            )
            + extras
            + key
            + value
        )

    noop = packet(0x0A)
    for opcode in range(0x30):
        if opcode in (0x08, 0x10, 0x18, 0x20, 0x21, 0x22, 0x0B):
            continue
        yield packet(opcode) + noop
        yield packet(opcode, key=b"a") + noop
        yield packet(opcode, bytes(8), b"a", b"x") + noop
        yield packet(opcode, key=K251) + noop
        yield packet(opcode, key=b"a", body=0) + noop
        yield packet(opcode, body=0xFFFFFFFF) + noop
        yield packet(opcode, extras=b"12345678", key=b"a", body=3) + noop
    store = packet(0x01, bytes(8), b"a", b"value")
    yield store + packet(0x00, key=b"a", type=9, bucket=9) + packet(0x0C, key=b"a")
    yield store[:-1]
    yield store + packet(0x00, key=b"a", magic=0x81) + noop
    yield store + b"get a\r\n"
    yield packet(0x01, bytes(8), b"a", b"v" * (1 << 20)) + packet(0x00, key=b"a") + noop
    yield packet(0x05, bytes(19), b"n") + noop
    yield packet(0x0A, key=b"a") + noop


GROUPS = [lengths, keys, values, lines, nulls, words, binary]

def long_key(sent, original, ours):
    after = ours.rpartition(b"format\r\n")[2]
    return re.search(rb"[^ \r\n]{251}", sent) and original.endswith(b"\r\n\r\n" + after)


def unfinished(sent, original, ours):
    return original == b"" and sent.startswith((b"set a 0 0 3\r\nold\r\nset", b"\x80\x01"))


def unknown_opcode(sent, original, ours):
    return sent[:1] == b"\x80" and b"Unknown command" in original and ours.startswith(original)


def base64_alone(sent, original, ours):
    return re.search(rb"^me \S+ b\r", sent, re.MULTILINE) and b"EN\r\n" in original


# How memcached and Larder may differ: differences.md has the reasons.
REASONS = [
    ("a long key in a get throws earlier replies away, and an empty line follows", long_key),
    ("earlier replies are lost with a value that never comes, or a packet that is none", unfinished),
    ("the body of an unknown opcode is skipped twice", unknown_opcode),
    ("me heeds a b only if another word stands beside it", base64_alone),
]


def drained(connection):
    """Everything until the server hangs up."""
    got = bytearray()
    try:
        while part := connection.recv(1 << 18):
            got += part
    except ConnectionError:
        pass
    except TimeoutError:
        got += b"<silence>"
    return bytes(got)


def answer(server, pieces):
    with server.connect() as connection:
        connection.settimeout(5)
        try:
            # Without a pause the pieces might arrive as one.
            for piece in pieces:
                connection.sendall(piece)
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            # It has hung up already; what it said may still be read.
            pass
        return drained(connection)


def clear(server):
    """Forgets all items. CAS ids go on, at the same pace on both."""
    assert answer(server, [b"flush_all\r\n"]) == b"OK\r\n"


def cases(group):
    """What is sent in each case, and the pieces in which it is written."""
    for sent in group():
        yield sent, [sent]
        if len(sent) < 120:
            yield sent, [sent[at : at + 1] for at in range(len(sent))]


def name_of(pieces):
    """A short name for a case, by which its answer is found in a table."""
    return hashlib.blake2b(b"%d " % len(pieces) + b"".join(pieces), digest_size=6).hexdigest()


def replies(program, group):
    """A server's answers to the cases of a group. It is started anew, so that CAS ids begin at the same number."""
    server = Server(program)
    try:
        for _, pieces in cases(group):
            clear(server)
            yield answer(server, pieces)
        if not server.alive():
            raise SystemExit(f"{program} has died: {server.said()}")
    finally:
        server.stop()


def shown(reply):
    """An answer in a table: as it is, or what it begins with, its length and digest."""
    digest = hashlib.blake2b(reply, digest_size=12).hexdigest()
    return repr(reply) if len(reply) < 300 else f"{reply[:40]!r} {len(reply)} {digest}"


def reason_for(sent, original, ours):
    """Why the two may differ, or None."""
    return next((why for why, holds in REASONS if holds(sent, original, ours)), None)


def recorded():
    """Answers of memcached 1.6.45, as `shown`, by the names of cases."""
    with open(TABLE, encoding="ascii") as file:
        return dict(line.rstrip("\n").split(" ", 1) for line in file if not line.startswith("#"))


def record(program):
    """Writes what `recorded` reads."""
    with open(TABLE, "w", encoding="ascii") as file:
        file.write("# What memcached 1.6.45 answers to the cases of hostile.py; made by its --record.\n")
        for group in GROUPS:
            whole = None
            for (_, pieces), reply in zip(cases(group), replies(program, group), strict=True):
                # Most cases are answered the same whichever way they come.
                if len(pieces) == 1 or reply != whole:
                    file.write(f"{name_of(pieces)} {shown(reply)}\n")
                whole = reply if len(pieces) == 1 else whole


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("-k", metavar="GROUP", help="one group of cases: " + ", ".join(g.__name__ for g in GROUPS))
    parser.add_argument("--show", action="store_true", help="show excused differences as well")
    parser.add_argument("--record", action="store_true", help=f"write what the first server answers to {os.path.basename(TABLE)}")
    parser.add_argument("original")
    parser.add_argument("server", nargs="?")
    options = parser.parse_args()
    if options.record:
        return record(options.original)
    count = excused = differing = 0
    for group in GROUPS:
        if options.k not in (None, group.__name__):
            continue
        both = zip(cases(group), replies(options.original, group), replies(options.server, group), strict=True)
        for (sent, pieces), original, ours in both:
            count += 1
            if original == ours:
                continue
            reason = reason_for(sent, original, ours)
            excused += bool(reason)
            differing += not reason
            if not reason or options.show:
                how = " (byte by byte)" if len(pieces) > 1 else ""
                print(f"{group.__name__}: {brief(sent)}{how}")
                print(f"  original {brief(original)}\n  ours     {brief(ours)}")
                if reason:
                    print(f"  because: {reason}")
    print(f"{count} cases, {excused} differ as they should, {differing} differ unexplained")
    sys.exit(1 if differing else 0)


def brief(text):
    return repr(text) if len(text) < 160 else f"{text[:100]!r}…{text[-50:]!r} ({len(text)} bytes)"


if __name__ == "__main__":
    main()
