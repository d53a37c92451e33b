"""Random binary requests, valid and not."""

import struct

from .keys import size_at_a_limit, value

HEADER = struct.Struct(">BBHBBHIIQ")
REQUEST, ANSWER = 0x80, 0x81
EXPIRIES = [0, 0, 0, 1000, 86400, 2592000, 2592001, 2000000000, 2147483647, 2147483648, 0xFFFFFFFE]
DELTAS = [0, 1, 1, 2, 9, 100, 1 << 32, (1 << 64) - 1]
GETS = [0x00, 0x09, 0x0C, 0x0D]
GATS = [0x1C, 0x1D, 0x1E, 0x23, 0x24]
STORES = [0x01, 0x01, 0x01, 0x02, 0x03, 0x11, 0x11, 0x12, 0x13]
JOINS = [0x0E, 0x0F, 0x19, 0x1A]
COUNTS = [0x05, 0x06, 0x15, 0x16]
STATS = [b"settings", b"reset", b"detail on", b"detail off", b"detail dump", b"detail", b"nothing", b"item", b"d", b"detail x"]


def packet(opcode, extras=b"", key=b"", body=b"", cas=0, opaque=0, **lengths):
    """A request; `lengths` can say otherwise than what there is."""
    total = lengths.get("total", len(extras) + len(key) + len(body))
    head = HEADER.pack(lengths.get("magic", REQUEST), opcode, lengths.get("nkey", len(key)), lengths.get("nextras", len(extras)), 0, 0, total, opaque, cas)
    return head + extras + key + body


class Binary:
    """Makes requests for one run of the servers; the same methods as Text."""

    def __init__(self, random, keys, shrink=True, beside=None):
        self.random, self.keys, self.shrink = random, keys, shrink
        self.cas = beside.cas if beside else {}
        self.plain = [self.get] * 20 + [self.touch] * 6 + [self.store] * 30 + [self.join] * 8 + [self.count] * 12 + [self.delete] * 6 + [self.small] * 4

    def learn(self, answer):
        """Takes the cas ids of GETK answers."""
        at = 0
        while at + 24 <= len(answer) and answer[at] == ANSWER:
            _, opcode, key, extras, _, status, body, _, cas = HEADER.unpack_from(answer, at)
            if opcode in (0x0C, 0x0D) and status == 0:
                start = at + 24 + extras
                self.cas[answer[start : start + key]] = cas
            at += 24 + body

    def chance(self, odds):
        return self.random.random() < odds

    def opaque(self):
        return self.random.choice([0, 1, 0xDEADBEEF, self.random.randrange(1 << 32)])

    def unique(self, key):
        if not self.chance(0.2):
            return 0
        known = self.cas.get(key, 2)
        return known if self.chance(0.7) else max(known + self.random.choice([-1, 1, 7]), 0)

    def command(self):
        return self.plain[int(self.random.random() * len(self.plain))]()

    def get(self):
        return packet(self.random.choice(GETS), key=self.keys.read(), opaque=self.opaque())

    def touch(self):
        expiry = struct.pack(">I", self.random.choice(EXPIRIES))
        return packet(self.random.choice(GATS), expiry, self.keys.one(), opaque=self.opaque())

    def store(self):
        key = self.keys.one()
        flags = self.random.choice([0, 0, 0, 1, 255, 0xFFFFFFFF])
        extras = struct.pack(">II", flags, self.random.choice(EXPIRIES))
        return packet(self.random.choice(STORES), extras, key, self.keys.value_for(key), self.unique(key), self.opaque())

    def join(self):
        key = self.keys.one()
        return packet(self.random.choice(JOINS), b"", key, self.keys.value_for(key), self.unique(key), self.opaque())

    def count(self):
        key = self.keys.number() if not self.shrink or self.chance(0.8) else self.keys.one()
        if not self.shrink or self.chance(0.2):
            return packet(0x01, bytes(8), key, b"%d" % self.random.randrange(1000))
        initial, expiry = self.random.choice(DELTAS), self.random.choice([0, 0xFFFFFFFF, 1000])
        extras = struct.pack(">QQI", self.random.choice(DELTAS), initial, expiry)
        return packet(self.random.choice(COUNTS), extras, key, cas=self.unique(key), opaque=self.opaque())

    def delete(self):
        key = self.keys.one()
        return packet(self.random.choice([0x04, 0x14]), key=key, cas=self.unique(key), opaque=self.opaque())

    def small(self):
        return packet(self.random.choice([0x0A, 0x0B]), opaque=self.opaque())

    def lone(self):
        kind = self.random.random()
        if kind < 0.3:
            return packet(0x10, key=self.random.choice(STATS), opaque=self.opaque())
        if kind < 0.5:
            # Without extras and key memcached stays in step.
            return packet(self.random.choice([0x1B, 0x1F, 0x25, 0x30, 0x3D, 0x45, 0xFF]), body=value(self.random)[:500], opaque=self.opaque())
        if kind < 0.6:
            return packet(self.random.choice([0x20, 0x21, 0x22]), key=b"PLAIN", body=b"\0user\0pass") if self.chance(0.7) else packet(0x20)
        if kind < 0.7 and self.shrink:
            return packet(self.random.choice([0x08, 0x18]), self.random.choice([b"", bytes(4)]))
        key = self.keys.big()
        body = value(self.random, size_at_a_limit(self.random, key))
        return packet(self.random.choice([0x01, 0x02, 0x03, 0x11]), bytes(8), key, body, opaque=self.opaque())

    def wild(self):
        """Something wrong that ends the connection."""
        random = self.random
        key, eight, four = self.keys.one(), bytes(8), bytes(4)
        long = b"l" * random.choice([251, 255, 256, 1000])
        return random.choice([
            lambda: packet(0x07), lambda: packet(0x17), lambda: packet(0x00), lambda: packet(0x00, four, key), lambda: packet(0x00, b"", key, b"v"),
            lambda: packet(0x00, key=long), lambda: packet(0x01, eight, long, b"v"), lambda: packet(0x01, four, key, b"v"), lambda: packet(0x01, eight, b"", b"v"),
            lambda: packet(0x01, b"", key, b"v"), lambda: packet(0x04), lambda: packet(0x04, b"", key, b"v"), lambda: packet(0x05, eight, key),
            lambda: packet(0x05, bytes(20), b""), lambda: packet(0x05, bytes(20), key, b"v"), lambda: packet(0x08, b"", key), lambda: packet(0x08, b"123"),
            lambda: packet(0x0A, b"", key), lambda: packet(0x0B, b"", b"", b"v"), lambda: packet(0x0E, four, key, b"v"), lambda: packet(0x0E, b"", b"", b"v"),
            lambda: packet(0x10, four, b"items"), lambda: packet(0x1C, b"", key), lambda: packet(0x1D, four), lambda: packet(0x24, eight, key),
            lambda: packet(0x20, b"", key), lambda: packet(0x21), lambda: packet(0x22, four, b"PLAIN"),
            lambda: packet(0x01, eight, key, b"value", total=random.choice([0, 2, len(key) - 1, len(key) + 7])),
            lambda: packet(random.choice([0x01, 0x0E, 0x21]), eight, key, b"value", total=random.choice([(1 << 30) + 1, 1 << 31, (1 << 32) - 1])),
            lambda: packet(0x00, key=key, magic=random.choice([0x81, 0x00, 0x7F])),
            lambda: self.command()[: random.randrange(24)], lambda: self.store()[: random.randrange(60)],
        ])()  # fmt: skip
