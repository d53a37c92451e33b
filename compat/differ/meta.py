"""Random meta commands, valid and not."""

import base64
import re

from .keys import size_at_a_limit, value
from .text import ODD_NUMBERS, Text

KEYED = re.compile(rb"^(?:HD|VA [0-9]+)((?: [^ \r\n]+)*)\r\n", re.MULTILINE)
LASTING = [b"0", b"-1", b"1000", b"86400", b"2592000", b"2592001", b"2000000000", b"2147483647", b"-2147483648"]
PLAIN = {
    b"g": [b"c", b"f", b"h", b"k", b"l", b"q", b"s", b"t", b"u", b"v", b"v", b"v", b"I", b"x", b"P", b"L5"],
    b"s": [b"c", b"k", b"q", b"s", b"I", b"f", b"h", b"t", b"v", b"x", b"P1", b"L"],
    b"d": [b"k", b"q", b"I", b"x", b"c", b"f", b"s", b"t", b"v", b"u"],
    b"a": [b"c", b"k", b"q", b"t", b"v", b"v", b"I", b"x", b"f", b"s", b"h"],
}
MODES = {b"s": b"EAPRSSS", b"a": b"ID+-"}
LINES = [
    b"mn", b"mn x", b"mn b k O1", b"mn  ", b"mg", b"ms", b"md", b"ma", b"me", b"mg ", b"ms k1", b"ms k1 ", b"ms k1 x", b"ms k1 -1", b"ms k1 2147483646",
    b"mg k1 z", b"mg k1 !", b"mg k1 v v", b"mg k1 \x80", b"mg k1 {", b"mg k1 [", b"mg k1 _", b"mg k1 `", b"mg k1 ^", b"mg k1 \\", b"mg k1 9",
    b"mg k1 A", b"mg k1 B", b"mg k1 G", b"mg k1 K", b"mg k1 Q", b"mg k1 U", b"mg k1 V", b"mg k1 W", b"mg k1 X", b"mg k1 Y", b"mg k1 Z",
    b"mg k1 S", b"mg k1 S1", b"mg k1 a", b"mg k1 d", b"mg k1 e", b"mg k1 g", b"mg k1 i", b"mg k1 j", b"mg k1 m", b"mg k1 n", b"mg k1 o",
    b"mg k1 p", b"mg k1 r", b"mg k1 w", b"mg k1 y", b"mg k1 M", b"mg k1 O", b"mg k1 O v", b"mg k1 L", b"mg k1 P", b"mg k1 k O k", b"ma n1 M", b"ma n1 MX",
    b"ma n1 Mi", b"ma n1 Md", b"ma n1 MINCR", b"ma n1 Mdecr", b"ma n1 M1", b"md k1 MX", b"mg k1 MX", b"ma n1 !", b"ma n1 z", b"ma n1 v v", b"ma", b"ma n1 q q",
    b"mg # b", b"mg YQ b", b"mg YQ== b k", b"mg YQ== b v k", b"mg Y b", b"mg ==== b", b"mg Y*Q=*= b k", b"mg YWI= b k", b"md YQ== b k", b"ma YQ== b k", b"ma # b",
    b"me k1", b"me k1 b", b"me YQ== b", b"me YQ== b b", b"me # b", b"me # b b", b"me k1 v", b"me k1 v b", b"me k1 x y z", b"mx k1", b"m", b"mgx k1", b"mg\tk1", b"MG k1",
    b"mg k1 noreply", b"ms k1 0 noreply\r\n", b"md k1 noreply", b"mg k1 v noreply", b" mg k1",
    b"mg k1 a b c d e f g h i j k l m n o p q r", b"mg k1 a b c d e f g h i j k l m n o p q r s", b"mg k1 a b c d e f g h i j k l m n o p q r s t u",
    b"ma n1 a b c d e f g h i j k l m n o p q r s t u", b"md k1 1 2 3 4 5 6 7 8 9 0 A B C D E F G H I J",
]  # fmt: skip


class Meta(Text):
    """Makes meta commands; keys and cas ids are shared with the text of the same run."""

    def __init__(self, random, keys, shrink=True, beside=None):
        super().__init__(random, keys, shrink)
        if beside:
            self.cas = beside.cas
        self.plain = [self.mg] * 30 + [self.ms] * 30 + [self.md] * 8 + [self.ma] * 12 + [self.me] * 3 + [self.mn] * 2

    def learn(self, answer):
        super().learn(answer)
        for flags in KEYED.findall(answer):
            found = {token[:1]: token[1:] for token in flags.split(b" ") if token}
            if b"k" in found and b"b" not in found and found.get(b"c", b"").isdigit():
                self.cas[found[b"k"]] = int(found[b"c"])

    def chance(self, odds):
        return self.random.random() < odds

    def key(self, key):
        """The key as it is written, and the flag that goes with it."""
        if len(key) < 180 and self.chance(0.15):
            return base64.b64encode(key), [b"b"]
        return key, []

    def unique(self, key):
        known = self.cas.get(key, 2)
        return b"%d" % max(known if self.chance(0.7) else known + self.random.choice([-1, 1, 7, -100]), 0)

    def flags(self, command, key):
        random = self.random
        count = random.choice([0, 1, 1, 2, 3, 5])
        flags = list(dict.fromkeys(random.choice(PLAIN[command]) for _ in range(count)))
        if self.chance(0.25):
            flags.append(b"O" + random.choice([b"", b"1", b"opaque", b"x" * 31, b"\xff", b"123456"]))
        if self.chance(0.2):
            flags.append(b"C" + self.unique(key))
        if self.chance(0.1):
            flags.append(b"E" + random.choice([b"0", b"1", b"77", b"99999999", b"18446744073709551615"]))
        if self.chance(0.25):
            flags.append(b"T" + random.choice(LASTING))
        if self.chance(0.15):
            flags.append(b"N" + random.choice(LASTING))
        if self.chance(0.12):
            flags.append(b"R" + random.choice([b"0", b"30", b"2000", b"100000", b"-1"]))
        if self.chance(0.2):
            flags.append(b"F" + random.choice([b"0", b"1", b"255", b"4294967295"]))
        if command == b"a" or self.chance(0.05):
            if self.chance(0.4):
                flags.append(b"D" + random.choice([b"0", b"1", b"5", b"100", b"18446744073709551615"]))
            if self.chance(0.4):
                flags.append(b"J" + random.choice([b"0", b"13", b"18446744073709551615"]))
        mode = MODES.get(command)
        if mode and self.chance(0.5):
            flags.append(b"M" + bytes([random.choice(mode)]) + (b"word" if self.chance(0.05) else b""))
        return flags

    def line(self, command, key, extra=b""):
        written, coded = self.key(key)
        flags = self.flags(command, key) + coded
        self.random.shuffle(flags)
        # The second of two that begin alike would be an error; those have their own place.
        flags = list({flag[:1]: flag for flag in flags}.values())
        return b" ".join([b"m" + command, written, *([extra] if extra else []), *flags])

    def mg(self):
        return self.line(b"g", self.keys.read()) + b"\r\n"

    def ms(self):
        key = self.keys.one()
        body = self.keys.value_for(key)
        return self.line(b"s", key, b"%d" % len(body)) + b"\r\n" + body + b"\r\n"

    def md(self):
        return self.line(b"d", self.keys.one()) + b"\r\n"

    def ma(self):
        key = self.keys.number() if not self.shrink or self.chance(0.8) else self.keys.one()
        if not self.shrink or self.chance(0.2):
            body = b"%d" % self.random.randrange(1000)
            return b"ms %b %d\r\n%b\r\n" % (key, len(body), body)
        return self.line(b"a", key) + b"\r\n"

    def me(self):
        written, coded = self.key(self.keys.read())
        return b" ".join([b"me", written, *coded, *coded]) + b"\r\n"

    def mn(self):
        return b"mn\r\n"

    def lone(self):
        random = self.random
        kind = random.random()
        if kind < 0.4:
            return random.choice(LINES) + b"\r\n"
        if kind < 0.75:
            return self.odd_flag()
        if kind < 0.85:
            return self.long_word()
        return self.large()

    def odd_flag(self):
        """One argument out of the ordinary."""
        random = self.random
        command = random.choice([b"g", b"s", b"d", b"a"])
        odd = [number for number in ODD_NUMBERS if b" " not in number and number != b"1\t"]
        flag = random.choice([b"T", b"N", b"R", b"C", b"E", b"F", b"J", b"D"]) + random.choice([*odd, b""])
        # What would expire within the run would not expire at the same moment.
        if flag[:1] in b"TNR" and re.fullmatch(rb"[TNR][+]?0*[0-9]{1,3}([^0-9].*)?", flag, re.DOTALL):
            flag = flag[:1] + b"x"
        flags = [flag] + [random.choice([b"v", b"k", b"q", b"s"])] * random.randrange(2)
        random.shuffle(flags)
        key = self.keys.one() if command != b"a" else self.keys.number()
        if command == b"s":
            return b"ms %b 5 %b\r\nabcde\r\n" % (key, b" ".join(flags))
        if command == b"a" and not self.shrink:
            command = b"g"
        return b"m%b %b %b\r\n" % (command, key, b" ".join(flags))

    def long_word(self):
        random = self.random
        key = b"l" * random.choice([249, 250, 251, 252, 1000])
        coded = base64.b64encode(b"l" * random.choice([184, 186, 187, 188, 189, 300]))
        opaque = b"O" + b"o" * random.choice([30, 31, 32, 33, 100])
        return random.choice([
            b"mg %b v" % key, b"md %b q" % key, b"ma %b" % key, b"me %b" % key, b"ms %b 5\r\nabcde" % key, b"ms %b 5 q\r\nabcde" % key,
            b"mg %b b k" % coded, b"ms %b 5 b k\r\nabcde" % coded, b"md %b b k" % coded, b"mg none v %b" % opaque, b"md none %b k" % opaque,
            b"mg none %b q" % opaque, b"mg k1 " + b" ".join([b"v"] * 30),
        ]) + b"\r\n"  # fmt: skip

    def large(self):
        random = self.random
        key = self.keys.big()
        size = size_at_a_limit(random, key)
        return b"ms %b %d s %b\r\n%b\r\n" % (key, size, random.choice([b"", b"q", b"k", b"O9", b"ME", b"MA"]), value(random, size))

    def damaged(self):
        """No store: one whose value never comes uses up a cas id in memcached and none in ours, which all that follows would show."""
        while (damaged := self.harmed()).lstrip().lower().startswith(b"ms") or b"\nms" in damaged:
            pass
        return damaged
