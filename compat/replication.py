#!/usr/bin/env python3
"""What replication costs and how fast copies are: compat/replication.py target/release/larder [port]

Runs a leader and a follower on the loopback, ports from 28001 on, and prints figures. They mean something
on a machine that does nothing else.
"""
import socket
import subprocess
import sys
import time

LARDER = sys.argv[1]
BASE = int(sys.argv[2]) if len(sys.argv) > 2 else 28001
ITEMS = 300_000


def start(port, *options):
    line = [LARDER, "-l", "127.0.0.1", "-p", str(port), "-t", "2", "-m", "1024", *options]
    process = subprocess.Popen(line)
    for _ in range(400):
        try:
            return process, socket.create_connection(("127.0.0.1", port))
        except OSError:
            time.sleep(0.02)
    raise SystemExit("the server does not start")


def told(client, name):
    client.sendall(b"stats replication\r\n")
    reply = b""
    while not reply.endswith(b"END\r\n"):
        reply += client.recv(65536)
    for line in reply.decode().split("\r\n"):
        words = line.split(" ")
        if len(words) > 2 and (words[1] == name or words[1].endswith(":" + name)):
            return words[2]
    return None


def same(leader, follower):
    return told(follower, "records") == told(leader, "records")


def cpu(process):
    with open(f"/proc/{process.pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


def sets(client, count):
    value = b"x" * 100
    began = time.time()
    for first in range(0, count, 1000):
        lines = (b"set key%08d 0 0 100 noreply\r\n%s\r\n" % (first + n, value) for n in range(1000))
        client.sendall(b"".join(lines))
    client.sendall(b"mn\r\n")
    while b"MN" not in client.recv(4096):
        pass
    return time.time() - began


def cost(name, process, client):
    before = cpu(process)
    wall = sets(client, ITEMS)
    used = (cpu(process) - before) / ITEMS * 1e6
    print(f"{name}: {used:.2f} us of CPU for a set, {wall:.2f} s")


def leader(port, *options):
    return start(port, f"--repl-listen=127.0.0.1:{port + 100}", "--repl-recover=0", *options)


def follower(port, of, *options):
    return start(
        port, f"--repl-listen=127.0.0.1:{port + 100}", f"--follow=127.0.0.1:{of + 100}", *options
    )


def main():
    process, client = start(BASE)
    sets(client, ITEMS)
    cost("off", process, client)
    process.kill()

    process, client = leader(BASE + 1, "--repl-ring=512")
    sets(client, ITEMS)
    cost("a log, no follower", process, client)
    began = time.time()
    copy, reader = follower(BASE + 2, BASE + 1, "--repl-ring=512")
    while told(reader, "whole_partitions") != "64" or not same(client, reader):
        time.sleep(0.01)
    print(f"full synchronisation of {ITEMS} items: {time.time() - began:.2f} s")
    began = time.time()
    cost("one follower", process, client)
    while not same(client, reader):
        time.sleep(0.005)
    print(f"all of it there: {ITEMS / (time.time() - began):.0f} records a second")
    reader.sendall(b"repl follow 127.0.0.1:1\r\n")
    reader.recv(100)
    sets(client, ITEMS)
    began = time.time()
    reader.sendall(b"repl follow 127.0.0.1:%d\r\n" % (BASE + 101))
    reader.recv(100)
    while not same(client, reader):
        time.sleep(0.005)
    print(f"{ITEMS} records from the log: {time.time() - began:.2f} s")
    process.kill()
    copy.kill()

    for number, level in enumerate(("1", "2pc")):
        port = BASE + 10 + 10 * number
        process, client = leader(port, f"--repl-ack={level}")
        copy, reader = follower(port + 1, port)
        while told(client, "in_sync") != "1":
            time.sleep(0.02)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        times = []
        for key in range(3000):
            began = time.perf_counter()
            client.sendall(b"set k%d 0 0 5\r\nvalue\r\n" % key)
            client.recv(100)
            times.append(time.perf_counter() - began)
        times.sort()
        half, most = times[len(times) // 2] * 1e6, times[len(times) * 99 // 100] * 1e6
        print(f"--repl-ack={level}: p50 {half:.0f} us, p99 {most:.0f} us")
        process.kill()
        copy.kill()


if __name__ == "__main__":
    main()
