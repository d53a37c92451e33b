#!/usr/bin/env python3
"""What a memcached says to each of many command lines, as the table that tests/options.rs holds Larder to.

    compat/command_lines.py /path/to/memcached-1.6.45 > tests/data/command_lines.txt

A line of the table: the arguments; `exits N` or `serves`; what is printed on standard error; of a program that
serves, the `stats settings` that are not the default's. Tabs stand between; `''` is an empty argument, `\\s` a
blank in one, FOLDER a directory with the files that `prepare` makes, PROGRAM the name that it was started by, and
WHY the words of a library.
"""

import os
import re
import socket
import subprocess
import sys
import tempfile
import time

PATIENCE = 20

# Every option and every name behind -o, with values in and out of its range; several at once where they meet.
LINES = r"""
-p 0 | -p 11311 | -p -1 | -p abc | -p 65535 | -p 65536 | -p 70000 | -p -2 | --port=5 | --port 5 | -p | -p '' | -p 1x | -p\s7
-U 0 | -U 11311 | -U 65536 | -U -2 | -U abc | -p 5 -U 6 | -U 6 -p 5 | --udp-port=7
-a 700 | -a 0777 | -a 9 | -a 888 | -a x | -a 1777 | --unix-mask=600 | -a
-A | --enable-shutdown | --enable-shutdown=1 | -AA
-m 64 | -m 100 | -m 0 | -m -1 | -m 1 | -m 2 | -m 3 | -m x | -m 64MB | --memory-limit=80 | --memory-limit | --memory=80 | --mem=80 | -m80
-M | --disable-evictions
-c 100 | -c 0 | -c -1 | -c x | -c 77x | --conn-limit=99 | --conn=98 | -c
-k | --lock-memory
-v | -vv | -vvv | --verbose | --verbose=7 | -v -v
-f 1.5 | -f 1 | -f 1.0 | -f 0.5 | -f x | -f -2 | -f 1.01 | -f 1e1 | -f 2x | --slab-growth-factor=1.1 | -f
-n 48 | -n 1 | -n 0 | -n -5 | -n x | -n 100 | -n 1024 | --slab-min-size=64 | -n
-t 1 | -t 0 | -t -1 | -t x | -t 65 | --threads=3 | -t
-D : | -D / | -D ab | -D '' | -D
-R 1 | -R 0 | -R -1 | -R x | -R 1000 | --max-reqs-per-event=7 | -R
-C | --disable-cas
-b 0 | -b 5 | -b -1 | -b x | --listen-backlog=9 | -b
-B auto | -B ascii | -B binary | -B http | -B '' | -B Auto | --protocol=ascii | --protocol=x | -B
-I 1m | -I 2m | -I 1M | -I 2048k | -I 2048K | -I 1k | -I 1000 | -I 1024 | -I 0 | -I -1 | -I x | -I 31m | -I 32m | -I 33m | -I 1g | -I 2g | -I 256k
-I 512k | -I 1536k | -I 1048576 | -I 1048577 | -I 1.5m | -I 3mb | --max-item-size=4m | -I | -m 4096 -I 1024m | -m 4096 -I 1025m | -m 4096 -I 1073741824
-I 128m -m 1024 | -I 3m -o slab_chunk_max=3 | -I 16k -o slab_chunk_max=16 | -I 16k -o slab_chunk_max=32 | -I 24k -o slab_chunk_max=16
-F | -X | -W | --disable-flush-all | --disable-dumping | --disable-watch | -FXW
-S | -S -B binary | -S -B ascii | -S -B auto | -S -U 5 | --enable-sasl
-Y FOLDER/users | -Y FOLDER/none | -Y FOLDER | -Y FOLDER/users -B ascii | -Y FOLDER/users -B binary | -Y FOLDER/users -B auto | -Y FOLDER/users -U 5
-Y FOLDER/empty | -Y FOLDER/malformed | -Y FOLDER/many | -Y FOLDER/long | -Y FOLDER/two | --auth-file=FOLDER/users | -Y
-N 1 | -N 4 | -N 5 | -N 0 | -N -1 | -N x | --napi-ids=2 | -N
-u | --user
-r | --enable-coredumps
-P FOLDER/pid | --pidfile=FOLDER/pid2 | -P
-x | -z | -q | -E | --foo | --foo=1 | --enable | --disable | -pq | stray | -- | -
-o no_such | -o no_such=1 | -o '' | -o , | -o modern,,modern | -o | --extended=modern | --extended | -o Modern | -o modern=1
-o maxconns_fast | -o no_maxconns_fast | -o maxconns_fast,no_maxconns_fast
-o hashpower=12 | -o hashpower=11 | -o hashpower=33 | -o hashpower=x | -o hashpower | -o hashpower=20 | -o hashpower=-1 | -o hashpower= | -o hashpower=13
-o no_hashexpand | -o hash_algorithm=jenkins | -o hash_algorithm=murmur3 | -o hash_algorithm=xxh3 | -o hash_algorithm=md5 | -o hash_algorithm | -o hash_algorithm=
-o hash_algorithm=Jenkins | -o slab_reassign | -o no_slab_reassign
-o slab_automove | -o slab_automove=0 | -o slab_automove=1 | -o slab_automove=2 | -o slab_automove=3 | -o slab_automove=-1 | -o slab_automove=x | -o no_slab_automove
-o slab_automove_ratio=0.5 | -o slab_automove_ratio=1 | -o slab_automove_ratio=0 | -o slab_automove_ratio=1.1 | -o slab_automove_ratio=-1 | -o slab_automove_ratio=x | -o slab_automove_ratio
-o slab_automove_window=3 | -o slab_automove_window=2 | -o slab_automove_window=1800 | -o slab_automove_window=1801 | -o slab_automove_window=x | -o slab_automove_window
-o slab_sizes=100-200-300 | -o slab_sizes=100-50 | -o slab_sizes=100-100 | -o slab_sizes=100-108 | -o slab_sizes=100-109 | -o slab_sizes=10 | -o slab_sizes=48 | -o slab_sizes=47
-o slab_sizes=600000 | -o slab_sizes=x | -o slab_sizes=100-x | -o slab_sizes=SIZES62 | -o slab_sizes=SIZES63 | -o slab_sizes=SIZES64 | -o slab_sizes=100--200
-o slab_chunk_max=512 | -o slab_chunk_max=1024 | -o slab_chunk_max=1025 | -o slab_chunk_max=256 | -o slab_chunk_max=3 | -o slab_chunk_max=-1 | -o slab_chunk_max=x
-o slab_chunk_max=1x | -o slab_chunk_max=16 | -o slab_chunk_max=1 | -o slab_chunk_max | -o slab_chunk_max=16384 | -o no_chunked_items | -o no_chunked_items -I 2m
-o track_sizes | -o tail_repair_time=10 | -o tail_repair_time=9 | -o tail_repair_time=x | -o tail_repair_time | -o tail_repair_time=0
-o lru_crawler | -o no_lru_crawler | -o lru_crawler_sleep=0 | -o lru_crawler_sleep=1000000 | -o lru_crawler_sleep=1000001 | -o lru_crawler_sleep=-1 | -o lru_crawler_sleep=x | -o lru_crawler_sleep
-o lru_crawler_tocrawl=0 | -o lru_crawler_tocrawl=9 | -o lru_crawler_tocrawl=4294967295 | -o lru_crawler_tocrawl=4294967296 | -o lru_crawler_tocrawl=-1 | -o lru_crawler_tocrawl=x | -o lru_crawler_tocrawl=9x | -o lru_crawler_tocrawl
-o lru_maintainer | -o no_lru_maintainer
-o hot_lru_pct=1 | -o hot_lru_pct=40 | -o hot_lru_pct=41 | -o hot_lru_pct=79 | -o hot_lru_pct=80 | -o hot_lru_pct=0 | -o hot_lru_pct=x | -o hot_lru_pct
-o warm_lru_pct=1 | -o warm_lru_pct=60 | -o warm_lru_pct=61 | -o warm_lru_pct=80 | -o warm_lru_pct=0 | -o warm_lru_pct=x | -o warm_lru_pct | -o hot_lru_pct=40,warm_lru_pct=40
-o hot_max_factor=0.1 | -o hot_max_factor=0 | -o hot_max_factor=-1 | -o hot_max_factor=x | -o hot_max_factor | -o warm_max_factor=3 | -o warm_max_factor=0 | -o warm_max_factor=x | -o warm_max_factor
-o temporary_ttl=5 | -o temporary_ttl=0 | -o temporary_ttl=x | -o temporary_ttl | -o no_lru_maintainer,temporary_ttl=5
-o idle_timeout=0 | -o idle_timeout=60 | -o idle_timeout=x | -o idle_timeout
-o watcher_logbuf_size=8 | -o watcher_logbuf_size=x | -o watcher_logbuf_size=-1 | -o watcher_logbuf_size=1x | -o watcher_logbuf_size
-o worker_logbuf_size=8 | -o worker_logbuf_size=x | -o worker_logbuf_size=-1 | -o worker_logbuf_size
-o read_buf_mem_limit=0 | -o read_buf_mem_limit=1 | -o read_buf_mem_limit=8 | -o read_buf_mem_limit=x | -o read_buf_mem_limit=-1 | -o read_buf_mem_limit
-o resp_obj_mem_limit=1 | -o resp_obj_mem_limit | -o inline_ascii_resp | -o no_inline_ascii_resp | -o modern | -o no_modern | -o no_modern,modern | -o no_modern,slab_chunk_max=16
-o slab_chunk_max=16,no_modern | -o sock_cookie_id=0 | -o sock_cookie_id=x
-o ssl_chain_cert=FOLDER/chain | -o ssl_chain_cert | -o ssl_key | -o ssl_key=FOLDER/key | -o ssl_ca_cert | -o ssl_ca_cert=FOLDER/ca
-o ssl_verify_mode=0 | -o ssl_verify_mode=3 | -o ssl_verify_mode=4 | -o ssl_verify_mode=-1 | -o ssl_verify_mode=x | -o ssl_verify_mode
-o ssl_keyformat=1 | -o ssl_keyformat=x | -o ssl_keyformat | -o ssl_ciphers | -o ssl_ciphers=ECDHE-RSA-AES128-GCM-SHA256
-o ssl_wbuf_size=32 | -o ssl_wbuf_size=x | -o ssl_wbuf_size=-1 | -o ssl_wbuf_size | -o ssl_session_cache
-o ssl_min_version=2 | -o ssl_min_version=3 | -o ssl_min_version=4 | -o ssl_min_version=-1 | -o ssl_min_version=x | -o ssl_min_version
-Z | -Z -o TLS | -Z -o TLS,ssl_verify_mode=0 | -Z -o TLS,ssl_verify_mode=1 | -Z -o TLS,ssl_verify_mode=2 | -Z -o TLS,ssl_verify_mode=3 | -Z -o TLS,ssl_min_version=3
-Z -o TLS,ssl_wbuf_size=64 | -Z -o TLS,ssl_session_cache | -Z -o TLS,ssl_ciphers=ECDHE-RSA-AES128-GCM-SHA256 | -Z -o TLS,ssl_ciphers=nonsense | -Z -o TLS,ssl_ca_cert=FOLDER/ca
-Z -o TLS,ssl_ca_cert=FOLDER/none | -Z -o ssl_chain_cert=FOLDER/none,ssl_key=FOLDER/key | -Z -o ssl_chain_cert=FOLDER/chain,ssl_key=FOLDER/none | -Z -o ssl_chain_cert=FOLDER/chain
-Z -o ssl_chain_cert=FOLDER/users,ssl_key=FOLDER/key | -Z -o ssl_chain_cert=FOLDER/chain,ssl_key=FOLDER/users | -Z -o ssl_chain_cert=FOLDER/chain,ssl_key=FOLDER/other | -Z -p 0 -o TLS | --enable-ssl -o TLS
-l 127.0.0.1 | -l 127.0.0.1:0 | -l 127.0.0.1,127.0.0.2 | -l 127.0.0.1;127.0.0.2 | -l 127.0.0.1 -l 127.0.0.2 | -l 127.0.0.1:abc | -l 127.0.0.1:
-l proto[ascii]:127.0.0.1 | -l proto[binary]:127.0.0.1 | -l proto[negotiating]:127.0.0.1 | -l proto[proxy]:127.0.0.1 | -l tag[db]:127.0.0.1 | -l tag[123456789]:127.0.0.1 | -l tag[]:127.0.0.1 | -l tag_b_:127.0.0.1
-l notls:127.0.0.1 | -l btls:127.0.0.1 | -l mtls:127.0.0.1 | -Z -o TLS -l notls:127.0.0.1 | -Z -o TLS -l mtls:127.0.0.1 | -Z -o TLS -l btls:127.0.0.1
-Y FOLDER/users -l proto[binary]:127.0.0.1 | -Y FOLDER/users -l proto[negotiating]:127.0.0.1 | -Y FOLDER/users -l proto[ascii]:127.0.0.1
-l 127.0.0.1:65536 | -l 127.0.0.1:-1 | -l *:0 | -l \s127.0.0.1 | --listen=127.0.0.1 | -l
-s FOLDER/none/socket | -s FOLDER | --unix-socket=FOLDER/other.sock | -s
"""


def lines():
    """The command lines, each a list of arguments."""
    for row in LINES.strip().splitlines():
        for line in row.split(" | "):
            yield line.split()


def written(folder, argument):
    """An argument as the program is given it."""
    if argument == "''":
        return ""
    for size in (62, 63, 64):
        argument = argument.replace(f"SIZES{size}", "-".join(str(100 + 10 * step) for step in range(size)))
    argument = argument.replace("TLS", "ssl_chain_cert=FOLDER/chain,ssl_key=FOLDER/key")
    return argument.replace(r"\s", " ").replace("FOLDER", folder)


def prepare(folder):
    """What the command lines name."""
    contents = {
        "users": "foo:bar\n", "empty": "", "malformed": "foo\n", "two": "a:b\nc:d\n", "long": "a:" + "b" * 300 + "\n",
        "many": "".join(f"user{number}:secret\n" for number in range(9)),
    }  # fmt: skip
    for name, content in contents.items():
        with open(os.path.join(folder, name), "w", encoding="ascii") as file:
            file.write(content)
    for key, certificate in (("key", "chain"), ("other", "ca")):
        command = f"openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -days 9 -keyout {key} -out {certificate}"
        subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)


def settings(connection):
    """What `stats settings` says, or nothing where that is not to be asked."""
    connection.sendall(b"stats settings\r\n")
    answer = b""
    while not answer.endswith(b"END\r\n"):
        part = connection.recv(1 << 16)
        answer += part
        if not part or answer.startswith((b"CLIENT_ERROR", b"ERROR")):
            return {}
    return dict(line[5:].split(b" ", 1) for line in answer.splitlines() if line.startswith(b"STAT ") and line.count(b" ") > 1)


def try_out(program, folder, arguments):
    """Runs it; returns its exit code or None if it serves, the settings, and what it has printed."""
    listens = any(argument.startswith(("-l", "--listen", "-s", "--unix-s")) for argument in arguments)
    path = os.path.join(folder, "socket")
    ports = os.path.join(folder, "ports")
    for left in (path, ports):
        if os.path.exists(left):
            os.unlink(left)
    base = ["-u", "root", "-p", "-1"] if listens else ["-u", "root", "-s", path]
    command = [program, *base, *(written(folder, argument) for argument in arguments)]
    printed = os.path.join(folder, "printed")
    with open(printed, "wb") as output:
        environment = {**os.environ, "MEMCACHED_PORT_FILENAME": ports}
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=output, env=environment, cwd=folder)
    deadline = time.monotonic() + PATIENCE
    shown = {}
    try:
        while child.poll() is None and time.monotonic() < deadline:
            if os.path.exists(path):
                with socket.socket(socket.AF_UNIX) as connection:
                    try:
                        connection.connect(path)
                        connection.settimeout(0.5)
                        shown = settings(connection)
                    except TimeoutError:
                        pass
                    except OSError:
                        time.sleep(0.01)
                        continue
                break
            if os.path.exists(ports) or os.path.exists(os.path.join(folder, "other.sock")):
                break
            time.sleep(0.005)
        status = child.poll()
    finally:
        child.kill()
        child.wait()
    other = os.path.join(folder, "other.sock")
    if os.path.exists(other):
        os.unlink(other)
    with open(printed, encoding="utf-8", errors="replace") as file:
        said = file.read()
    return status, shown, said.replace(folder, "FOLDER").replace(program, "PROGRAM")


def printed_by(arguments, said):
    """What of it is compared: not how busy it is with -v, nor what the system allows of -k."""
    if any(re.match("-+v|-k|--lock", argument) for argument in arguments):
        return ""
    said = re.sub(r"(?m)^[0-9A-F]{16}:error:.*\n", "", said)
    said = re.sub(r"(?m) : error:.*$", " : WHY", said)
    return said.removesuffix("\n").replace("\n", r"\n")


def main():
    program = os.path.abspath(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        prepare(folder)

        def named(shown):
            """The settings by name, without the one that every line has."""
            found = {name.decode(): value.decode("latin-1").replace(folder, "FOLDER") for name, value in shown.items()}
            found.pop("domain_socket", None)
            return found

        usual = named(try_out(program, folder, [])[1])
        for arguments in lines():
            status, shown, said = try_out(program, folder, arguments)
            columns = [" ".join(arguments), "serves" if status is None else f"exits {status}", printed_by(arguments, said)]
            columns += [f"{name}={value}" for name, value in named(shown).items() if value != usual.get(name)]
            print("\t".join(columns).rstrip("\t"), flush=True)


if __name__ == "__main__":
    main()
