#!/usr/bin/env python3
"""Measures larder proxy side by side with nutcracker: the same three servers, the same ring, the same requests.

    benches/proxy.py --larder target/release/larder [--seconds 2] [--rounds 5] [--lua memcached]

With --lua, a memcached that was built with --enable-proxy, its own proxy takes part, and larder proxy a second time with
the ring of that, which spends less on a key than nutcracker's.

What is compared is the processor time that the proxy has spent per request, as the kernel accounts for it in
nanoseconds, and the time one client waits for one get (median). All proxies have one thread; they are driven in turn,
A B A B, and each answer is checked for its length before it is counted. Needs nutcracker and memcached.
"""

import argparse
import os
import selectors
import statistics
import tempfile
import time

from fleet import Fleet, await_gets, connect, free_port

KEYS, VALUE = 20_000, b"v" * 100

# name: clients, keys per request, requests that a client sends at once
WORKLOADS = {
    "get, 16 pipelined": (50, 1, 16),
    "get, 100 pipelined": (10, 1, 100),
    "get of 10 keys": (50, 10, 1),
    "get of 100 keys": (50, 100, 1),
    "get of 10 keys, 8 pipelined": (20, 10, 8),
    "get": (50, 1, 1),
    "set, 16 pipelined": (50, 0, 16),
}


def processor_time(process):
    """Nanoseconds, all threads."""
    total = 0
    for thread in os.listdir(f"/proc/{process.pid}/task"):
        with open(f"/proc/{process.pid}/task/{thread}/schedstat") as file:
            total += int(file.read().split()[0])
    return total


def key(number):
    return b"key_%016d" % (number % KEYS)


def batch(seed, keys, depth):
    """Bytes to send, and the length of the right answer."""
    sent, answer = [], 0
    for nth in range(depth):
        first = seed * 7919 + nth * 104_729
        if keys == 0:
            sent.append(b"set %s 0 0 %d\r\n%s\r\n" % (key(first), len(VALUE), VALUE))
            answer += len(b"STORED\r\n")
        else:
            asked = [key(first + 31 * each) for each in range(keys)]
            sent.append(b"get " + b" ".join(asked) + b"\r\n")
            answer += sum(len(b"VALUE %s 0 %d\r\n%s\r\n" % (each, len(VALUE), VALUE)) for each in asked) + 5
    return b"".join(sent), answer


def drive(port, workload, seconds):
    """Requests answered by then."""
    clients, keys, depth = workload
    batches = [batch(seed, keys, depth) for seed in range(200)]
    selector = selectors.DefaultSelector()
    for number in range(clients):
        connection = connect(port)
        selector.register(connection, selectors.EVENT_READ, [number, 0])
    done, running = 0, clients
    end = time.monotonic() + seconds
    for each in selector.get_map().values():
        sent, each.data[1] = batches[each.data[0] % 200]
        each.fileobj.sendall(sent)
    while running:
        for each, _ in selector.select():
            part = each.fileobj.recv(1 << 20)
            if not part:
                raise SystemExit("the proxy has hung up")
            each.data[1] -= len(part)
            if each.data[1] < 0:
                raise SystemExit(f"too long an answer: {part[-200:]!r}")
            if each.data[1] == 0:
                done += depth
                if time.monotonic() >= end:
                    selector.unregister(each.fileobj)
                    each.fileobj.close()
                    running -= 1
                    continue
                each.data[0] += 50
                sent, each.data[1] = batches[each.data[0] % 200]
                each.fileobj.sendall(sent)
    return done


def waits(port, count):
    """Microseconds that one client waits for one get, again and again."""
    connection = connect(port)
    found = []
    for seed in range(count):
        sent, _ = batch(seed, 1, 1)
        answer = b""
        began = time.perf_counter_ns()
        connection.sendall(sent)
        while not answer.endswith(b"END\r\n"):
            answer += connection.recv(4096)
        found.append((time.perf_counter_ns() - began) / 1000)
    connection.close()
    return found


LUA = """
function mcp_config_pools()
  local servers = {{}}
  for number, port in ipairs({{ {ports} }}) do
    servers[number] = mcp.backend("s" .. number, "127.0.0.1", port)
  end
  return mcp.pool(servers)
end

function mcp_config_routes(pool)
  local route = mcp.funcgen_new()
  local handle = route:new_handle(pool)
  route:ready({{ f = function(context)
    return function(request)
      return context:enqueue_and_wait(request, handle)
    end
  end }})
  mcp.attach(mcp.CMD_ANY_STORAGE, route)
end
"""


def fill(port):
    connection = connect(port)
    for number in range(KEYS):
        connection.sendall(b"set %s 0 0 %d\r\n%s\r\n" % (key(number), len(VALUE), VALUE))
        if (answer := connection.recv(100)) != b"STORED\r\n":
            raise SystemExit(f"cannot fill the servers: {answer!r}")
    connection.close()


def row(name, found, unit):
    """A line with each proxy's figure, and behind each of ours its ratio to the one before."""
    cells = [f"{found[0]:9.2f} {unit}"]
    for nth in range(1, len(found)):
        cells.append(f"{found[nth]:9.2f} {unit}")
        if nth % 2:
            cells.append(f"{found[nth] / found[nth - 1]:6.2f}")
    print(f"{name:32} " + " ".join(cells))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--larder", default="target/release/larder")
    parser.add_argument("--nutcracker", default="nutcracker")
    parser.add_argument("--memcached", default="memcached")
    parser.add_argument("--lua", metavar="MEMCACHED", help="a memcached with its own proxy, which then takes part")
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", help="workloads whose name has this")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Fleet() as fleet:
        servers = [free_port() for _ in range(3)]
        for port in servers:
            fleet.serve(arguments.memcached, port, "-t", 1, "-m", 256)
        lua = ["lua", "larder, jump"] if arguments.lua else []
        ports = {name: free_port() for name in ("nutcracker", "larder", *lua)}
        config = os.path.join(folder, "nutcracker.yml")
        with open(config, "w") as file:
            file.write(f"all:\n  listen: 127.0.0.1:{ports['nutcracker']}\n  hash: md5\n  distribution: ketama\n  servers:\n")
            file.writelines(f"   - 127.0.0.1:{port}:1\n" for port in servers)
        command = [arguments.nutcracker, "-c", config, "-s", free_port(), "-o", os.path.join(folder, "log")]
        proxies = {"nutcracker": fleet.start(command)}
        behind = ",".join(f"127.0.0.1:{port}" for port in servers)
        for name, ring in ("larder", ["twemproxy", "--hash", "md5"]), ("larder, jump", ["jump"]):
            if name in ports:
                proxies[name] = fleet.proxy(arguments.larder, ports[name], "-t", 1, "--servers", behind, "--ring", *ring)
        if arguments.lua:
            config = os.path.join(folder, "proxy.lua")
            with open(config, "w") as file:
                file.write(LUA.format(ports=", ".join(map(str, servers))))
            options = ["-U", 0, "-t", 1, "-o", f"proxy_config={config}"]
            proxies["lua"] = fleet.serve(arguments.lua, ports["lua"], *options)
        for port in [*servers, *ports.values()]:
            # As many keys as no server is spared by.
            await_gets(port, map(key, range(100)))
        # Servers have to have the keys by both rings.
        fill(ports["nutcracker"])
        if arguments.lua:
            fill(ports["lua"])
        print(f"{'processor time per request':32} " + " ".join(f"{name:>12}" + " " * 7 * (nth % 2) for nth, name in enumerate(ports)))
        for name, workload in WORKLOADS.items():
            if arguments.only and arguments.only not in name:
                continue
            spent = {who: [] for who in ports}
            for _ in range(arguments.rounds):
                for who, port in ports.items():
                    before = processor_time(proxies[who])
                    done = drive(port, workload, arguments.seconds)
                    spent[who].append((processor_time(proxies[who]) - before) / done / 1000)
            row(name, [statistics.median(spent[who]) for who in ports], "us")
        waited = {who: [] for who in ports}
        for _ in range(arguments.rounds * 4):
            for who, port in ports.items():
                waited[who] += waits(port, 500)
        direct = statistics.median(waits(servers[0], 2000))
        medians = [statistics.median(waited[who]) for who in ports]
        row("one get, median wait", medians, "us")
        row("of which the proxy adds", [median - direct for median in medians], "us")


if __name__ == "__main__":
    main()
