"""Keys and values the streams are made of."""


class Keys:
    """The keys of one connection, or of all: few enough to meet again."""

    def __init__(self, random, prefix=b"", apart=False):
        """With `apart` counters are only ever set to plain numbers."""
        self.random = random
        odd = [b"a", b"b", b"0", b"noreply", b"p:a", b"p:b", b"q:a", b"\x01\x02", b"t\tab", b"n\x00ul", b"c\rr", b"\xc3\xa9",
               b"\xff\xfe\xfd", b"%20", b"get"]  # fmt: skip
        long = [bytes([letter]) * size for letter, size in zip(b"ABCDEFGH", [30, 60, 100, 127, 200, 249, 250, 250])]
        small = [b"k%d" % number for number in range(60)]
        if prefix:
            odd, long = [], [key[:100] for key in long]
        self.numbers = [prefix + b"n%d" % number for number in range(12)]
        self.large = [prefix + b"big%d" % number for number in range(6)]
        everything = small * 4 + odd * 2 + long
        self.all = [prefix + key for key in everything] + ([] if apart else self.numbers)
        self.readable = self.all + self.numbers

    def one(self):
        return self.all[int(self.random.random() * len(self.all))]

    def read(self):
        return self.readable[int(self.random.random() * len(self.readable))]

    def value_for(self, key):
        """A value; short for a counter: ours counts in values of up to 8 KiB (differences.md)."""
        made = value(self.random)
        return made[:500] if key in self.numbers else made

    def number(self):
        return self.numbers[int(self.random.random() * len(self.numbers))]

    def big(self):
        return self.random.choice(self.large)

    def distinct(self):
        return list(dict.fromkeys(self.readable + self.large))


# Blank values are missing on purpose: memcached reads past them when it counts (security.md, own).
VALUES = [
    b"", b"0", b"1", b"9", b"10", b"99", b"100", b"12345", b"4294967295", b"18446744073709551614", b"18446744073709551615",
    b"18446744073709551616", b"99999999999999999999", b"100000000000000000000", b" 12", b"12 ", b"12a", b"a12", b"007", b"1e5",
    b"+5", b"0x10", b"12\x00", b"\x0012", b"9223372036854775807", b"9223372036854775808", b"\t7", b"7\t", b"1 2",
]  # fmt: skip

# Mostly letters, so that what is printed can be read; no line ends, no "-" (1.6.18 mistakes one behind a counter for its sign).
_LETTERS = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789" * 2 + b" \x00\t\r\x7f\x80\xfe\xff\x1b\\"
_POOL = bytes(_LETTERS[(number * number * 31 + number * 7) % len(_LETTERS)] for number in range(1 << 16)) * 40


def value(random, size=None):
    """A value; most are short, some hold line ends, zeros or numbers."""
    if size is None:
        kind = random.random()
        if kind < 0.15:
            return VALUES[int(random.random() * len(VALUES))]
        if kind < 0.2:
            return random.choice([b"\r\n", b"a\r\nb", b"END\r\n", b"\x00" * 9, b"x\r\n\r\ny", b"VALUE a 0 1\r\nx", b"\n\n"]) + b"z"
        if kind < 0.9:
            size = int(random.random() ** 2 * 200)
        elif kind < 0.99:
            size = int(random.random() * 1500)
        else:
            size = int(random.random() * 20000)
    start = int(random.random() * 65536)
    made = _POOL[start : start + size]
    return made if size > 3 or made.strip() else b"z" * size


def limit_value(key, flags):
    """The longest value a key of that length may have at the default item size, with cas ids."""
    return (1 << 20) - 48 - (key + 1) - 2 - 8 - (4 if flags else 0)


def size_at_a_limit(random, key, flags=False):
    """The size of a value near one where something changes."""
    size = random.choice([limit_value(len(key), flags), 16384, 524288 - 60, 8192, 100_000, random.randrange(1 << 20)])
    return size + random.choice([-8, -2, -1, 0, 0, 1, 2, 3, 8])
