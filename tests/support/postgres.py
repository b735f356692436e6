"""A private PostgreSQL server for the tests, and the fixture that gives each test a fresh database on each kind."""

from __future__ import annotations

import atexit
import functools
import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import psycopg
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

WATCH = 'trap "" HUP INT TERM; cat > /dev/null; kill -QUIT "$1"; while kill -0 "$1"; do sleep 0.1; done; rm -rf "$2"'
"""Waits for the end of its input, which is the end of the test process, however that dies; then clears up."""
DEFAULT_PORT = 5432
"""Of a socket's name too, and so of no importance where there is no port."""
APT_LINE = "sudo apt-get install -y postgresql"


class PostgresCluster:
    """One server in a temporary folder, reached through a unix socket alone, or on a loopback port too."""

    def __init__(self, binaries: Path, port: int | None = None) -> None:
        self.binaries = binaries
        self.port = port or DEFAULT_PORT
        self.folder = Path(tempfile.mkdtemp(prefix="igen-pg-", dir="/tmp"))
        # the server refuses to run as root, and must then be able to enter its folder
        self.user = "postgres" if os.geteuid() == 0 else None
        if self.user:
            account = pwd.getpwnam(self.user)
            os.chown(self.folder, account.pw_uid, account.pw_gid)
        self._run("initdb", "-D", self.data, "-U", "igen", "--auth=trust", "-E", "UTF8", "--no-sync")
        # fsync off: the tests' data need not survive the machine
        listen = "-c listen_addresses=''" if port is None else "-c listen_addresses=127.0.0.1"
        options = f"-k {self.folder} -p {self.port} {listen} -c fsync=off -c max_connections=200"
        self._run("pg_ctl", "-D", self.data, "-o", options, "-l", f"{self.folder}/log", "-w", "start")
        server = Path(self.data, "postmaster.pid").read_text().split()[0]
        self._watcher = subprocess.Popen(
            ["sh", "-c", WATCH, "sh", server, str(self.folder)],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def data(self) -> str:
        return f"{self.folder}/data"

    def create_database(self, like: str = "") -> str:
        """Make a database, empty or a copy of the one at the address `like`, and return its address."""
        name = f"t{uuid.uuid4().hex}"
        self._execute(f'CREATE DATABASE "{name}"' + (f' TEMPLATE "{name_in(like)}"' if like else ""))
        if self.port != DEFAULT_PORT:
            return f"postgresql://igen@127.0.0.1:{self.port}/{name}"
        return f"postgresql://igen@/{name}?host={quote(str(self.folder), safe='')}"

    def drop_database(self, url: str) -> None:
        self._execute(f'DROP DATABASE "{name_in(url)}" WITH (FORCE)')

    def stop(self) -> None:
        assert self._watcher.stdin is not None
        self._watcher.stdin.close()
        self._watcher.wait(timeout=30)

    def _execute(self, statement: str) -> None:
        with psycopg.connect(
            f"host={self.folder} port={self.port} user=igen dbname=postgres", autocommit=True
        ) as connection:
            connection.execute(statement.encode())

    def _run(self, program: str, *arguments: str) -> None:
        # output goes to a file: the server inherits it and would keep a pipe open for ever
        with tempfile.TemporaryFile() as output:
            done = subprocess.run(
                [str(self.binaries / program), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                user=self.user,
                cwd=self.folder,
                check=False,
            )
            if done.returncode:
                output.seek(0)
                pytest.fail(f"{program} failed:\n{output.read().decode(errors='replace')}")


def name_in(url: str) -> str:
    """The database's name in its address."""
    return url.split("?", maxsplit=1)[0].rsplit("/", maxsplit=1)[-1]


def find_binaries() -> Path:
    """The newest installed server's folder of programs."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("initdb")
    if not folders and not on_path:
        pytest.fail(f"PostgreSQL is not installed: {APT_LINE} (or set IGEN_TEST_POSTGRES=0 to leave its tests out)")
    return (folders[-1] if folders else Path(str(on_path))).parent


@functools.cache
def cluster() -> PostgresCluster:
    """The one server of this test process, started when first needed and stopped at its end."""
    server = PostgresCluster(find_binaries())
    atexit.register(server.stop)
    return server


def skip_if_unwanted() -> None:
    if os.environ.get("IGEN_TEST_POSTGRES") == "0":
        pytest.skip("IGEN_TEST_POSTGRES=0")


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of an empty database, on SQLite and on PostgreSQL."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/test.db"
        return
    skip_if_unwanted()
    url = cluster().create_database()
    yield url
    cluster().drop_database(url)
