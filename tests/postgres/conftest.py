"""A real PostgreSQL server, made in a temporary folder. It needs PostgreSQL's programs: see .ci/run."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import pytest_socket

HERE = Path(__file__).parent
PASSWORD = "the-database-password"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.enable_socket)


def _program(name: str) -> str | None:
    debian = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(debian[-1]) if debian else None)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """URL of a database, with its password."""
    if not installed():
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    pytest_socket.enable_socket()
    with running_postgres() as url:
        yield url


def installed() -> bool:
    """Whether PostgreSQL's programs are here."""
    return _program("initdb") is not None and _program("postgres") is not None


@contextmanager
def running_postgres(*, fsync: bool = False) -> Iterator[str]:
    """Starts a server, which need not wait for the disk; gives the URL of a database, with its password."""
    initdb, postgres = _program("initdb"), _program("postgres")
    assert initdb is not None
    assert postgres is not None
    # Not pytest's own folder: another user must reach it, since PostgreSQL refuses to run as root.
    folder = Path(tempfile.mkdtemp(prefix="trim-postgres-"))
    user = {}
    if os.geteuid() == 0:
        owner = pwd.getpwnam("postgres")
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        user = {"user": owner.pw_uid, "group": owner.pw_gid}
    (folder / "password").write_text(PASSWORD)
    made = [initdb, "-D", str(folder / "data"), "-U", "trim", "--auth=scram-sha-256", "--no-sync"]
    subprocess.run(
        [*made, f"--pwfile={folder / 'password'}"], check=True, capture_output=True, cwd=folder, **user
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["-h", "127.0.0.1", "-p", str(port), "-k", str(folder), *([] if fsync else ["-F"])]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [postgres, "-D", str(folder / "data"), *options], stdout=log, stderr=log, cwd=folder, **user
        )
    try:
        _wait(server, folder, port)
        yield f"postgresql://trim:{PASSWORD}@127.0.0.1:{port}/postgres"
    finally:
        server.terminate()
        server.wait(20)
        shutil.rmtree(folder)


def _wait(server: subprocess.Popen[bytes], folder: Path, port: int) -> None:
    import psycopg
    from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

    def connect() -> None:
        if server.poll() is not None:
            pytest.fail(f"PostgreSQL ended: {(folder / 'log').read_text('utf-8', 'replace')[-2000:]}")
        psycopg.connect(f"postgresql://trim:{PASSWORD}@127.0.0.1:{port}/postgres", connect_timeout=5).close()

    Retrying(
        retry=retry_if_exception_type(psycopg.OperationalError),
        wait=wait_fixed(0.1),
        stop=stop_after_delay(60),
        reraise=True,
    )(connect)


@pytest.fixture
def database(postgres_url) -> Iterator[str]:
    """A database of its own."""
    import psycopg

    name = f"runs_{os.urandom(4).hex()}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield postgres_url.removesuffix("postgres") + name
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
