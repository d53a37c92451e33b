"""Random commands of the classic text protocol, valid and not."""

import re

from .keys import Keys, VALUES, size_at_a_limit, value

SEEN = re.compile(rb"VALUE ([^ ]+) [0-9]+ [0-9]+ ([0-9]+)\r\n")
STORES = [b"set"] * 8 + [b"add"] * 2 + [b"replace"] * 2 + [b"append"] * 2 + [b"prepend"]

EXPIRIES = [b"0"] * 12 + [
    b"1000", b"86400", b"2592000", b"2592001", b"2000000000", b"2147483647", b"2147483648",
    b"4294967295", b"4294967296", b"-1", b"-2", b"-2147483648", b"-2147483649", b"-2592001", b"0100000",
]  # fmt: skip
ODD_NUMBERS = [
    b"-1", b"-0", b"+1", b"-", b"+", b"0x10", b"1e3", b"1.5", b"abc", b"1a", b"a1", b"00000000000000000000005",
    b"00000000005", b"000000000005", b"0000000000000000000005", b"0018446744073709551615",
    b"2147483645", b"2147483646", b"2147483647", b"2147483648", b"4294967295", b"4294967296", b"4294967297",
    b"9223372036854775807", b"9223372036854775808", b"18446744073709551615", b"18446744073709551616",
    b"4294968296", b"1000a", b"+1000", b"1000.5", b"00000000000000000001000", b"1000\x00", b"1000\t",
    b"99999999999999999999999999", b"\xff", b"1\x00", b"1\t", b"''",
]  # fmt: skip
FLAGS = [b"0"] * 8 + [b"1", b"32", b"255", b"65535", b"65536", b"2147483648", b"4294967295", b"007"]
ODD_FLAGS = [b"4294967296", b"18446744073709551615", b"18446744073709551616", b"-1", b"a", b"1a", b"+1", b"0x1"]
DELTAS = [b"0", b"1", b"1", b"1", b"2", b"9", b"10", b"99", b"1000", b"4294967296", b"007", b"9223372036854775807",
          b"9223372036854775808", b"18446744073709551615"]  # fmt: skip

# Words whose effect or answer is not a matter of the protocol; they are sent by themselves or not at all.
ADMIN = [
    b"verbosity 0", b"verbosity 0 noreply", b"verbosity", b"verbosity x", b"verbosity 0 1", b"verbosity 0 1 noreply",
    b"verbosity noreply", b"flush_all x", b"flush_all 1x", b"flush_all x noreply", b"flush_all 99999999999",
    b"cache_memlimit", b"cache_memlimit 7", b"cache_memlimit 1024", b"cache_memlimit x", b"cache_memlimit 1000000001",
    b"cache_memlimit 1024 noreply", b"cache_memlimit -1", b"cache_memlimit 4294967296", b"cache_memlimit 00000001024", b"cache_memlimit 000000001024", b"cache_memlimit 1024 x",
    b"shutdown", b"shutdown graceful", b"shutdown foo", b"shutdown a b",
    b"stats nothing", b"stats detail", b"stats detail x", b"stats detail on", b"stats detail on", b"stats detail off",
    b"stats reset", b"stats cachedump", b"stats cachedump 1", b"stats cachedump x 1", b"stats cachedump 1 x",
    b"stats cachedump 64 1", b"stats cachedump 255 0", b"stats cachedump 63 0", b"stats cachedump -1 0",
    b"stats sizes_enable", b"stats sizes_disable", b"stats noreply",
    b"slabs", b"slabs x", b"slabs reassign", b"slabs reassign 1", b"slabs reassign x 1", b"slabs reassign 1 1",
    b"slabs reassign 99 1", b"slabs reassign 1 99", b"slabs automove", b"slabs automove 0", b"slabs automove 1",
    b"slabs automove x", b"slabs automove ratio", b"slabs automove ratio 0.8", b"slabs automove ratio x",
    b"slabs automove window 10", b"slabs automove window", b"slabs automove foo 1", b"slabs automove 0 noreply",
    b"lru", b"lru x", b"lru mode", b"lru mode segmented", b"lru mode x", b"lru tune", b"lru tune 20 40 0.2 2.0",
    b"lru tune 50 40 0.2 2.0", b"lru tune 20 40 0 2.0", b"lru tune 20 40 x 2.0", b"lru tune 20 40 0.2",
    b"lru temp_ttl", b"lru temp_ttl x", b"lru temp_ttl -1", b"lru mode segmented noreply",
    b"lru_crawler", b"lru_crawler x", b"lru_crawler enable", b"lru_crawler sleep", b"lru_crawler sleep 100",
    b"lru_crawler sleep 1000001", b"lru_crawler sleep x", b"lru_crawler tocrawl", b"lru_crawler tocrawl 0",
    b"lru_crawler tocrawl x", b"lru_crawler crawl", b"lru_crawler crawl x", b"lru_crawler crawl 0", b"lru_crawler crawl 300",
    b"lru_crawler metadump", b"lru_crawler metadump x", b"lru_crawler mgdump", b"lru_crawler mgdump x",
    b"extstore", b"extstore x 1", b"watch x", b"refresh_certs x",
    b"debug", b"stat", b"ge", b"getx a", b"setx a 0 0 1", b"GET a", b"Set a 0 0 1", b"gatsx", b"touche", b"quit2",
    b"bogus", b"bogus noreply", b"bogus a b c noreply", b"noreply", b"a noreply", b"get", b"gets", b"gat", b"gats",
    b"gat 0", b"gats 0", b"get ", b"gets   ", b"gat  ", b"gat 0 ", b"set", b"set a", b"set a 0", b"set a 0 0", b"cas", b"incr", b"incr a", b"decr", b"decr a", b"delete", b"touch", b"touch a", b"incr a 1 1", b"delete a 0 0",
    b"delete a 0", b"delete a 10 noreply", b"delete a x", b"delete noreply", b"touch a 0 0", b"touch a noreply",
    b"incr noreply", b"incr a noreply", b"get noreply", b"gat 0 noreply", b"gat noreply a",
    b"", b" ", b"  ", b"   ", b"    ", b"a", b"ab", b"abc", b"abcd", b" get a", b"\tget a", b"get\ta", b"\x00", b"\x00\x00\x00\x00",
    b"get a\x00b", b"get a\rb", b"get \xff\xfe", b"\xff\xff\xff\xff", b"get a\x0bb", b"get  a   b  ", b"version x", b"version noreply",
]  # fmt: skip
CLOSING = [
    b"quit", b"quit x", b"quit noreply", b"GET / HTTP/1.1", b"get http://x HTTP/1.0", b"POST /x HTTP/1.1", b"x HTTP/", b"get a HTTP/1.1",
    b"a HTTP/2 b",
]  # fmt: skip


_TIMED = {b"set": 3, b"add": 3, b"replace": 3, b"append": 3, b"prepend": 3, b"cas": 3, b"touch": 2, b"gat": 1, b"gats": 1}
_NUMBER = re.compile(rb"[ \t]*[+]?([0-9]+)")
_FLAG = re.compile(rb"[TN]([0-9]+)")
_META = (b"mg", b"ms", b"md", b"ma")


def fleeting(command):
    """Whether an item may expire within the run, which the two servers would not do at the same moment."""
    words = [word for word in command.partition(b"\n")[0].split(b" ") if word]
    verb = words[0].lower() if words else b""
    if verb in _META:
        found = map(_FLAG.match, words[2:])
    else:
        place = _TIMED.get(verb, len(words))
        found = map(_NUMBER.match, words[place : place + 1])
    return any(number and 0 < int(number[1]) % (1 << 32) < 900 for number in found)


class Text:
    """Makes commands for one run of the servers. `cas` maps keys to ids seen in answers."""

    def __init__(self, random, keys: Keys, shrink=True):
        # What memcached's maintainer thread makes a matter of chance is only tried without it:
        # counters that get shorter, and flush_all, which looks at the heads of the queues it reorders.
        self.random = random
        self.shrink = shrink
        self.keys = keys
        self.cas = {}
        self.plain = (
            [self.get] * 18 + [self.gets] * 8 + [self.store] * 30 + [self.compare] * 7 + [self.count] * 13
            + [self.delete] * 6 + [self.touch] * 4 + [self.gat] * 7
        )  # fmt: skip

    def learn(self, answer):
        """Takes the cas ids out of an answer of the reference."""
        for key, unique in SEEN.findall(answer):
            self.cas[key] = int(unique)

    # Each method returns the bytes of one command that leaves the connection in step.

    def command(self):
        random = self.random.random
        return self.plain[int(random() * len(self.plain))]()

    def noreply(self, line, odds=0.12):
        return line + b" noreply\r\n" if self.random.random() < odds else line + b"\r\n"

    def some_keys(self):
        random = self.random.random
        if random() < 0.6:
            return self.keys.read()
        count = int(random() * 12) if random() < 0.95 else int(random() * 150)
        return b" ".join(self.keys.read() for _ in range(count + 1))

    def get(self):
        return b"get " + self.some_keys() + b"\r\n"

    def gets(self):
        return b"gets " + self.some_keys() + b"\r\n"

    def gat(self):
        word = b"gat " if self.random.random() < 0.5 else b"gats "
        keys = self.some_keys()
        while len(keys) > 1900:
            keys = self.keys.one()
        return word + self.expiry() + b" " + keys + b"\r\n"

    def expiry(self):
        return EXPIRIES[int(self.random.random() * len(EXPIRIES))]

    def flags(self):
        return FLAGS[int(self.random.random() * len(FLAGS))]

    def store(self):
        word = STORES[int(self.random.random() * len(STORES))]
        key = self.keys.one()
        body = self.keys.value_for(key)
        line = b"%b %b %b %b %d" % (word, key, self.flags(), self.expiry(), len(body))
        return self.noreply(line) + body + b"\r\n"

    def compare(self):
        key = self.keys.one()
        body = self.keys.value_for(key)
        known = self.cas.get(key, 2)
        unique = known if self.random.random() < 0.7 else known + self.random.choice([-1, 1, 7])
        line = b"cas %b %b %b %d %d" % (key, self.flags(), self.expiry(), len(body), max(unique, 0))
        return self.noreply(line) + body + b"\r\n"

    def count(self):
        if not self.shrink:
            key = self.keys.number()
            if self.random.random() < 0.2:
                body = b"%d" % self.random.randrange(1000)
                return self.noreply(b"set %b %b 0 %d" % (key, self.flags(), len(body))) + body + b"\r\n"
            return self.noreply(b"incr %b %b" % (key, self.random.choice(DELTAS[:9])))
        word = b"incr " if self.random.random() < 0.55 else b"decr "
        key = self.keys.number() if self.random.random() < 0.8 else self.keys.one()
        if self.random.random() < 0.15:
            body = self.random.choice(VALUES)
            return self.noreply(b"set %b %b 0 %d" % (key, self.flags(), len(body))) + body + b"\r\n"
        return self.noreply(word + key + b" " + self.random.choice(DELTAS))

    def delete(self):
        return self.noreply(b"delete " + self.keys.one())

    def touch(self):
        return self.noreply(b"touch " + self.keys.one() + b" " + self.expiry())

    # Commands that are sent by themselves.

    def lone(self):
        """One whole command whose answer may not be shared with others: admin words, odd numbers, large values."""
        random = self.random
        kind = random.random()
        if kind < 0.45:
            return random.choice(ADMIN) + b"\r\n"
        if kind < 0.75:
            while fleeting(command := self.odd_number()):
                pass
            return command
        if kind < 0.85:
            return self.large()
        if kind < 0.9:
            return b"stats" + random.choice([b"", b" ", b" settings", b" detail dump", b" reset"]) + b"\r\n"
        if kind < 0.93 and self.shrink:
            return random.choice([b"flush_all", b"flush_all 0", b"flush_all -1", b"flush_all -", b"flush_all noreply", b"flush_all 0 noreply"]) + b"\r\n"
        return self.long_line()

    def odd_number(self):
        """A command with one number out of the ordinary, and a body that does no harm as a command."""
        random = self.random
        key = self.keys.one()
        kind = random.random() if self.shrink else random.uniform(0.2, 1)
        odd = random.choice(ODD_NUMBERS)
        if kind < 0.2:
            return self.noreply(b"incr %b %b" % (key, odd))
        if kind < 0.4:
            return self.noreply(b"touch %b %b" % (key, odd))
        if kind < 0.5:
            return b"gat %b %b\r\n" % (odd, key)
        word = random.choice(STORES)
        if kind < 0.65:
            line = b"%b %b %b 0 5" % (word, key, random.choice(ODD_FLAGS))
        elif kind < 0.8:
            line = b"%b %b 0 %b 5" % (word, key, odd)
        elif kind < 0.97:
            line = b"cas %b 0 0 5 %b" % (key, odd)
        else:
            return b"cas %b 0 0 5\r\nabcde\r\n" % key
        return self.noreply(line) + b"abcde\r\n"

    def large(self):
        """Values near the sizes where something changes."""
        random = self.random
        key = self.keys.big()
        flags = self.flags()
        size = size_at_a_limit(random, key, flags != b"0")
        body = value(random, size)
        line = b"%b %b %b 0 %d" % (random.choice(STORES), key, flags, size)
        return self.noreply(line) + body + b"\r\n"

    def long_line(self):
        """Lines about as long as a line may be."""
        random = self.random
        kind = random.random()
        if kind < 0.4:
            return b"get " + b" ".join(self.keys.one() for _ in range(random.choice([24, 25, 100, 400]))) + b"\r\n"
        if kind < 0.6:
            spaces = b" " * random.choice([20, 2000])
            return random.choice([b"get", b"delete"]) + spaces + self.keys.one() + b"\r\n"
        key = b"l" * random.choice([249, 250, 251, 252, 1000])
        words = [b"delete %b", b"touch %b 0", b"incr %b 1", b"get %b", b"gets a %b", b"gat 0 %b", b"set %b 0 0 5", b"cas %b 0 0 5 1"]
        line = random.choice(words) % key
        body = b"abcde\r\n" if line.startswith((b"set", b"cas")) else b""
        return self.noreply(line) + body

    # Streams that end their connection.

    def wild(self):
        """A damaged command, which may swallow or close; it ends its connection."""
        while fleeting(command := self.damaged()):
            pass
        return command

    def damaged(self):
        random = self.random
        kind = random.random()
        if kind < 0.1:
            return random.choice(CLOSING) + b"\r\n"
        if kind < 0.35:
            return self.wrong_length()
        return self.harmed()

    def harmed(self):
        """A command with a word, a byte or a line end gone, doubled or changed, or cut off."""
        random = self.random
        while len(whole := self.command()) > 1000 or (not self.shrink and whole.startswith(b"incr")):
            pass
        line, ending, body = whole.partition(b"\r\n")
        kind = random.random()
        if kind < 0.3:
            words = line.split(b" ")
            place = random.randrange(len(words))
            how = random.random()
            if how < 0.3:
                del words[place]
            elif how < 0.5:
                words.insert(place, words[place])
            elif how < 0.8:
                words[place] = random.choice(ODD_NUMBERS)
            else:
                words.insert(place, random.choice([b"", b"0", b"noreply", b"\x00", b"x"]))
            line = b" ".join(words)
        elif kind < 0.6:
            place = random.randrange(len(line) + 1)
            what = random.choice([b"\x00", b"\t", b" ", b"\r", b"\n", b"\r\n", b"\x80", b"x", b"0", b"-", b"\x7f", b"\x1b"])
            line = line[:place] + what + line[place + random.randrange(2) :]
        elif kind < 0.7:
            line = line.upper() if random.random() < 0.5 else b" " + line
        elif kind < 0.85:
            ending = random.choice([b"\n", b"\r\r\n", b"\n\r\n", b" \r\n", b"\r", b"", b"\n\n"])
        else:
            whole = whole[: random.randrange(len(whole) + 1)]
            return whole
        return line + ending + body

    def wrong_length(self):
        random = self.random
        body = value(random)[:400]
        word = random.choice([*STORES, b"cas"])
        length = random.choice([len(body) - 1, len(body) + 1, len(body) + 2, len(body) + 3, 0, *map(int, [
            -1, -2, 1048487, 1048577, 1048576, 2000000, 2147483645, 2147483646, 2147483647, 2147483648, 4294967296, -2147483648,
        ])])  # fmt: skip
        line = b"%b %b 0 0 %d" % (word, self.keys.one(), length)
        if word == b"cas":
            line += b" 1"
        return self.noreply(line) + body + random.choice([b"\r\n", b"\r\n", b"\n", b"\r", b"", b"x\r\n", b"\r\nget k1\r\n"])
