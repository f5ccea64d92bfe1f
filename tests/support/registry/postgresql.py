"""A real PostgreSQL for tests, as fast as one can be that need not outlive them."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

_NEW = ("-U", "loragate", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
_QUICK = ("fsync=off", "full_page_writes=off", "synchronous_commit=off", "listen_addresses=")


def binaries() -> Path | None:
    """The folder of its programs; Debian keeps them out of the PATH."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "postgres").exists()), None)


@contextmanager
def running(programs: Path) -> Iterator[str]:
    """Yields the URL of a server's databases, without a database's name: `…/?host=…`."""
    # Not below pytest's own folder: PostgreSQL refuses to run as root, and others may not enter.
    folder = Path(tempfile.mkdtemp(prefix="loragate-pg-"))
    owner = _somebody_else() if os.geteuid() == 0 else None
    if owner is not None:
        shutil.chown(folder, owner.pw_uid, owner.pw_gid)
    run_as: dict[str, Any] = {}
    if owner is not None:
        run_as = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
    data = folder / "data"
    subprocess.run(
        [programs / "initdb", "-D", data, *_NEW],
        check=True,
        stdout=subprocess.DEVNULL,
        **run_as,
    )
    settings = [word for setting in _QUICK for word in ("-c", setting)]
    server = subprocess.Popen(
        [programs / "postgres", "-D", data, "-k", folder, *settings],
        stderr=subprocess.DEVNULL,
        **run_as,
    )
    try:
        _await(folder)
        yield f"postgresql+psycopg://loragate@/{{}}?host={folder}"
    finally:
        server.send_signal(signal.SIGINT)  # on SIGTERM it would wait for its clients
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        shutil.rmtree(folder, ignore_errors=True)


def execute(url: str, statement: str) -> None:
    """Outside any transaction, as CREATE DATABASE wants it."""
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(statement.encode())


def end_connections(url: str) -> None:
    """All others to the URL's database: what a failover or a proxy's idle timeout does."""
    execute(
        url,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )


@contextmanager
def unreachable(url: str) -> Iterator[None]:
    """Within it nobody gets a connection to the URL's database, and all that were are ended."""
    name = url.partition("@/")[2].partition("?")[0]
    server = url.replace(f"/{name}?", "/postgres?")
    execute(server, f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS false")
    ended = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
    execute(server, ended)
    try:
        yield
    finally:
        execute(server, f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS true")


def _somebody_else() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise RuntimeError("there is no user to run PostgreSQL as")


def _await(folder: Path) -> None:
    until = time.monotonic() + 30
    while True:
        try:
            psycopg.connect(f"host={folder} user=loragate dbname=postgres").close()
        except psycopg.OperationalError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)
        else:
            return
