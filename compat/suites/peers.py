"""Installs what the suites compare with, where it is absent."""

import functools
import glob
import os
import re
import shutil
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
WORK = os.path.join(HERE, "work")


class Missing(Exception):
    """A peer cannot be had; the argument says which and why."""


def run(command, tries=1, accept=(0,), **options):
    """Runs a command quietly; Missing with the end of its output when it fails."""
    for attempt in range(tries):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, **options)
        if done.returncode in accept:
            return done.stdout.decode("utf-8", "replace")
        if attempt + 1 < tries:
            time.sleep(5 * (attempt + 1))
    said = done.stdout.decode("utf-8", "replace").strip()[-1500:]
    raise Missing(f"{' '.join(command[:6])}: exit {done.returncode}: {said}")


def _root(command):
    return command if os.geteuid() == 0 else ["sudo", "-n", *command]


APT = ["-o", "Acquire::Retries=5", "-o", "DPkg::Lock::Timeout=300", "-y", "-qq"]


@functools.cache
def apt_update():
    run(_root(["apt-get", *APT, "update"]), tries=4)


def installed(package):
    asked = subprocess.run(["dpkg-query", "-W", "-f", "${Status}", package], capture_output=True, check=False)
    return asked.stdout == b"install ok installed"


def debian(*packages):
    """Installs Debian packages, without starting the services in them."""
    absent = [package for package in packages if not installed(package)]
    if not absent:
        return
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    command = _root(["apt-get", *APT, "install", "--no-install-recommends", *absent])
    try:
        run(command, env=environment)
    except Missing:
        apt_update()
        run(command, tries=4, env=environment)


def memcached():
    """Debian's memcached."""
    debian("memcached")
    return "/usr/bin/memcached"


def _sources():
    """The system's own package sources, asked for source packages."""
    found = []
    for path in ["/etc/apt/sources.list", *sorted(glob.glob("/etc/apt/sources.list.d/*.list"))]:
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                found += re.sub(r"^deb(-src)?\s", "deb-src ", file.read(), flags=re.MULTILINE).splitlines()
    stanzas = []
    for path in sorted(glob.glob("/etc/apt/sources.list.d/*.sources")):
        with open(path, encoding="utf-8") as file:
            stanzas.append(re.sub(r"^Types:.*$", "Types: deb-src", file.read(), flags=re.MULTILINE))
    return "\n".join(dict.fromkeys(found)) + "\n", stanzas


def _source_options():
    """Options that give apt a configuration of our own, below compat/work, which knows source packages."""
    own = os.path.join(WORK, "apt")
    for directory in ("sources.list.d", "lists/partial", "cache/archives/partial"):
        os.makedirs(os.path.join(own, directory), exist_ok=True)
    lines, stanzas = _sources()
    with open(os.path.join(own, "sources.list"), "w", encoding="utf-8") as file:
        file.write(lines)
    for number, stanza in enumerate(stanzas):
        with open(os.path.join(own, f"sources.list.d/{number}.sources"), "w", encoding="utf-8") as file:
            file.write(stanza)
    return [
        "-o", f"Dir::Etc::sourcelist={own}/sources.list", "-o", f"Dir::Etc::sourceparts={own}/sources.list.d",
        "-o", f"Dir::State::lists={own}/lists", "-o", f"Dir::Cache={own}/cache", "-o", "Acquire::Retries=5",
        "-o", "Acquire::Languages=none", "-o", "APT::Sandbox::User=root", "-qq",
    ]  # fmt: skip


def debian_source(package, upstream=False):
    """Debian's source package, unpacked; returns its directory. With `upstream` only the original archive, unpatched."""
    target = os.path.join(WORK, "source", package)
    done = os.path.join(target, "unpacked")
    if not os.path.exists(done):
        debian("dpkg-dev", "ca-certificates")
        shutil.rmtree(target, ignore_errors=True)
        os.makedirs(target)
        options = _source_options()
        fetch = ["apt-get", *options, "source", *(["--tar-only"] if upstream else []), package]
        # One repository that cannot be reached must not hinder the others: update warns, and source tells.
        subprocess.run(["apt-get", *options, "update"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        run(fetch, tries=4, cwd=target)
        for archive in glob.glob(os.path.join(target, "*.orig.tar.*")) if upstream else []:
            if not archive.endswith(".asc"):
                run(["tar", "-xf", archive, "-C", target])
        with open(done, "w", encoding="utf-8"):
            pass
    there = [path for path in glob.glob(os.path.join(target, f"{package}-*")) if os.path.isdir(path)]
    if len(there) != 1:
        raise Missing(f"apt-get source {package} left {there} in {target}")
    return there[0]


@functools.cache
def memcached_source():
    """memcached's source with memcached-debug, memcached, timedrun and testapp built in it."""
    source = debian_source("memcached")
    wanted = ["memcached-debug", "memcached", "timedrun", "testapp"]
    if not all(os.path.exists(os.path.join(source, name)) for name in wanted):
        debian("gcc", "make", "pkg-config", "libc6-dev", "libevent-dev", "libsasl2-dev", "libssl-dev")
        environment = {**os.environ, "CFLAGS": "-O1 -g -Wno-error"}
        run(["./configure", "--enable-sasl", "--enable-sasl-pwdb", "--enable-tls"], cwd=source, env=environment)
        run(["make", f"-j{os.cpu_count()}", *wanted], cwd=source)
    return source


@functools.cache
def libmemcached_tests():
    """The build directory of libmemcached with its test program."""
    source = debian_source("libmemcached", upstream=True)
    target = os.path.join(WORK, "libmemcached")
    if not os.path.exists(os.path.join(target, "test", "runtests")):
        debian("cmake", "g++", "make", "bison", "flex", "libsasl2-dev", "libsasl2-modules", "pkg-config")
        options = {
            "BUILD_TESTING": "ON", "ENABLE_SASL": "ON", "ENABLE_MEMASLAP": "OFF", "BUILD_DOCS": "OFF", "CMAKE_UNITY_BUILD": "ON",
            "CMAKE_BUILD_TYPE": "None", "CMAKE_C_FLAGS": "-O1", "CMAKE_CXX_FLAGS": "-O0", "MEMCACHED_BINARY": "/bin/false",
        }  # fmt: skip
        run(["cmake", "-S", source, "-B", target, *(f"-D{name}={value}" for name, value in options.items())])
        run(["make", "-C", target, f"-j{os.cpu_count()}", "runtests"])
    return target


@functools.cache
def python(*packages, compiled=()):
    """A Python with these packages from PyPI, in an environment of its own; those in `compiled` are built here."""
    venv = os.path.join(WORK, "venv")
    program = os.path.join(venv, "bin", "python")
    if not os.path.exists(program):
        try:
            run([sys.executable, "-m", "venv", venv])
        except Missing:
            shutil.rmtree(venv, ignore_errors=True)
            debian("python3-venv")
            run([sys.executable, "-m", "venv", venv])
    there = run([program, "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check"]).lower().replace("_", "-")
    absent = [package for package in packages if f"{package.lower()}==" not in there]
    if absent:
        only = [f"--no-binary={','.join(compiled)}"] if compiled else []
        run([program, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--retries", "5", *only, *absent], tries=3)
    return program


@functools.cache
def node(*packages):
    """The directory in whose node_modules these npm packages are, and the program to run them with."""
    if not shutil.which("node"):
        debian("nodejs")
    directory = os.path.join(WORK, "node")
    os.makedirs(directory, exist_ok=True)
    absent = [package for package in packages if not os.path.isdir(os.path.join(directory, "node_modules", package))]
    if absent:
        if not shutil.which("npm"):
            debian("npm")
        run(["npm", "install", "--no-audit", "--no-fund", "--prefix", directory, *absent], tries=3)
    return directory
