"""What changed in memcached between 1.6.18, Debian's, and 1.6.45, as far as random commands meet it.

Against a 1.6.18 such commands are not sent, or their answers are compared more loosely; against a 1.6.45
nothing of this applies. Each entry has the reason.
"""

import re

ERRORS = re.compile(rb"(?m)^(?:CLIENT_ERROR|SERVER_ERROR|ERROR)[^\n]*\n")
LARGE = re.compile(rb"[0-9]{19}")
NUMBER = re.compile(rb"-?[0-9]{1,10}")
# Words of which 1.6.45 wants a decimal that fits into 32 bits.
TIMED = {b"touch": 2, b"gat": 1, b"gats": 1, b"flush_all": 1}


# A cas id no item has. 1.6.18 gives an id to what is stored, 1.6.45 to what might be: no id of the one fits the other.
UNKNOWN = 10**15
IDS = re.compile(rb"(?m)^(VALUE [^ \n]+ \d+ \d+) \d+(?=\r\n)|(?<= c)\d+(?=[ \r])")
RETUNED = re.compile(rb"STAT (?:slab_automove_window|client_flags_size|num_napi_ids) [^\n]*\n")


class Unknown(dict):
    """In place of the ids that were learnt."""

    def get(self, key, default=None):
        return UNKNOWN

    def __setitem__(self, key, value):
        pass


def is_old(version):
    return version.startswith(b"1.6.18")


def without_ids(answer):
    """An answer whose cas ids are not compared."""
    if not answer.startswith(b"\x81"):
        return IDS.sub(lambda found: (found[1] or b"") + b"#", RETUNED.sub(b"", answer))
    answer = answer.replace(b"1.6.18", b"1.6.45")
    made, at = bytearray(answer), 0
    while at + 24 <= len(answer) and answer[at] == 0x81:
        made[at + 16 : at + 24] = bytes(8)
        at += 24 + int.from_bytes(answer[at + 8 : at + 12], "big")
    return bytes(made)


def same_but_for_texts(reference, subject):
    """Since 1.6.40 text is parsed by what parses for the proxy: many errors have other words. Cas ids are given at other times."""
    reference, subject = without_ids(reference), without_ids(subject)
    return ERRORS.sub(b"<error>\n", reference) == ERRORS.sub(b"<error>\n", subject)


def odd_time(words):
    """1.6.45 wants times as decimals of 32 bits; 1.6.18 takes what strtol takes."""
    place = TIMED.get(words[0])
    if place is None or len(words) <= place or words[place] == b"noreply":
        return False
    return not NUMBER.fullmatch(words[place]) or not -(1 << 31) <= int(words[place]) < 1 << 31


def odd_delta(words):
    """1.6.45 wants what is counted by as decimals of up to 20 digits."""
    return words[0] in (b"incr", b"decr") and len(words) > 2 and not re.fullmatch(rb"[0-9]{1,20}", words[2])


def long_delete(words):
    """1.6.45 ignores words behind a key to be deleted."""
    return words[0] == b"delete" and len(words) > 2


def odd_store(words):
    """Where a number of a store is wrong, 1.6.45 skips the value, and 1.6.18 takes it for commands."""
    if words[0] not in (b"set", b"add", b"replace", b"append", b"prepend", b"cas"):
        return False
    numbers = words[2:6] if words[0] == b"cas" else words[2:5]
    if len(numbers) < (4 if words[0] == b"cas" else 3) or len(words[1]) > 250:
        return True
    flags, expiry, length, *unique = numbers
    if not all(number.isdigit() for number in (flags, length, *unique)) or not NUMBER.fullmatch(expiry):
        return True
    if unique and not UNKNOWN // 2 < int(unique[0]) < 1 << 64:
        return True
    return int(flags) >= 1 << 32 or not -(1 << 31) <= int(expiry) < 1 << 31 or len(length) > 7


LIMITS = {b"T": 1 << 31, b"N": 1 << 31, b"R": 1 << 31, b"F": 1 << 32, b"C": 1 << 64, b"J": 1 << 64, b"D": 1 << 64}


def new_flag(words):
    """Flags that 1.6.18 does not know (E, x, C of mg, s of ms, N of appended values) or answers otherwise (h), and numbers it takes more freely."""
    if words[0] not in (b"mg", b"ms", b"md", b"ma"):
        return False
    flags = words[3:] if words[0] == b"ms" else words[2:]
    if words[0] == b"ms" and not (len(words) > 2 and words[2].isdigit() and len(words[2]) < 8):
        return True
    letters = [flag[:1] for flag in flags]
    if words[0] == b"ma" and (b"q" in letters or b"T" in letters):
        return True
    if words[0] == b"ms" and b"N" in letters or len(flags) > 15 or len(set(letters)) < len(letters):
        return True
    if len(words) < 2 or len(words[1]) > 250:
        return True
    for flag in flags:
        letter, rest = flag[:1], flag[1:]
        if letter in b"ExIh" or (letter == b"C" and words[0] == b"mg") or (letter == b"s" and words[0] == b"ms"):
            return True
        if not letter.isalpha() or (letter == b"M" and (len(rest) != 1 or words[0] in (b"mg", b"md"))) or (letter == b"O" and len(rest) > 31):
            return True
        if limit := LIMITS.get(letter):
            digits = rest.removeprefix(b"-") if limit == 1 << 31 else rest
            if not digits.isdigit() or len(rest) > (20 if limit == 1 << 64 else 11) or int(digits) >= limit or (letter == b"C" and int(digits) < UNKNOWN // 2):
                return True
    return False


KNOWN = b"set add replace append prepend cas get gets gat gats incr decr delete touch flush_all verbosity cache_memlimit".split()


def other(words):
    """Commands whose answers are of another kind, or that are none: 1.6.45 heeds noreply behind those, too."""
    if words[-1] == b"noreply" and (words[0] not in KNOWN or len(words) == 2 or words[0] in (b"touch", b"incr", b"decr") and len(words) == 3):
        return True
    if words[0] == b"stats" and words[1:2] and words[1].startswith(b"sizes_"):
        return True
    if words[0] in (b"get", b"gets") and len(words) < 2 or words[0] in (b"gat", b"gats") and len(words) < 3:
        return True
    return words[0] in (b"lru_crawler", b"watch", b"shutdown", b"me", b"slabs", b"lru", b"verbosity", b"cache_memlimit", b"refresh_certs")


UNLIKE = [odd_time, odd_delta, long_delete, odd_store, new_flag, other]


def changed(command):
    """Whether a command is one that 1.6.45 takes otherwise than 1.6.18."""
    # 1.6.18 takes a minus anywhere behind a number over 2^63 for its sign, which no memory is without.
    if LARGE.search(command):
        return True
    if command.startswith(b"\x80"):
        if command[1:2] in (b"\x05", b"\x06", b"\x15", b"\x16") and any(byte > 0x3F for byte in command[24:25] + command[32:33]):
            return True
        # 1.6.45 refuses bodies of more than 1 GiB, and answers to SASL where there is none.
        return int.from_bytes(command[8:12], "big") > 1 << 30 or b"\x20" <= command[1:2] <= b"\x22"
    if command.startswith(b" "):
        return True
    # A line ended at its first zero byte.
    if b"\0" in command.partition(b"\n")[0]:
        return True
    words = [word for word in command.partition(b"\n")[0].removesuffix(b"\r").split(b" ") if word]
    return bool(words) and any(unlike(words) for unlike in UNLIKE)
