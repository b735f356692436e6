"""Backup and restore as operators run them: both kinds of database, a folder and a real S3, and what is refused."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select

from gateway.firstkey import initialise
from gateway.ids import new_id, new_picture_name
from models.db import Database, utc_now
from models.migrations import check_schema, downgrade
from models.store import content_key, open_store
from models.tables import ApiKey, Generation, GenerationState, Picture, User
from scripts.archiving.archive import ArchiveError, verify
from tests.support.database import migrated_sqlite, plain_logs  # noqa: F401 - fixtures
from tests.support.gateway_process import GatewayProcess, plain_environment
from tests.support.postgres import cluster, database_url  # noqa: F401 - a fixture
from tests.support.s3 import ACCESS_ID, ACCESS_SECRET, S3Server

if TYPE_CHECKING:
    from collections.abc import Iterator

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@dataclass
class Site:
    """One installation: its database, its store, and the commands run on it."""

    home: Path
    database: str
    store: str
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, command: str, *options: str | Path, path: str | None = None) -> tuple[int, str]:
        environment = plain_environment(
            IGEN_HOME=str(self.home),
            IGEN_DATABASE_URL=self.database,
            IGEN_STORE_URL=self.store,
            **self.environment,
        )
        if path is not None:
            environment["PATH"] = path
        done = subprocess.run(
            [sys.executable, "-m", f"scripts.{command}", *options],
            cwd=SCRIPTS.parent,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        return done.returncode, done.stdout + done.stderr

    async def fill(self, count: int) -> list[str]:
        """A first user and `count` pictures, of which rows and objects are there; the keys."""
        db, store = Database(self.database), open_store(self.store)
        try:
            await initialise(db, self.home)
            async with db.read() as session:
                owner = (await session.scalars(select(User))).first()
                key = (await session.scalars(select(ApiKey))).first()
            assert owner is not None
            assert key is not None
            keys = []
            for number in range(count):
                object_key = content_key(f"{number:064x}", ".png")
                await store.put(object_key, f"picture {number}".encode() * 50, media_type="image/png")
                keys.append(object_key)
                async with db.write() as session:
                    for row in picture_rows(owner.id, key.id, object_key, number):
                        session.add(row)
                        await session.flush()
        finally:
            await db.close()
        return keys

    async def pictures(self) -> dict[str, bytes]:
        """Every picture that a row names, with its object."""
        db, store = Database(self.database), open_store(self.store)
        try:
            await check_schema(db)
            async with db.read() as session:
                keys = list(await session.scalars(select(Picture.object_key)))
            return {key: await store.get(key) for key in keys}
        finally:
            await db.close()


def picture_rows(owner: str, key_id: str, object_key: str, number: int) -> list[Generation | Picture]:
    now = utc_now()
    generation = Generation(
        id=new_id("gen"),
        owner_id=owner,
        key_id=key_id,
        request_hash="0" * 64,
        request_id=f"req-{number}",
        input={"prompt": f"no. {number}"},
        state=GenerationState.COMPLETED.value,
        backend="http://nowhere",
        backend_kind="selfhosted",
        lease_owner="nobody",
        lease_expires_at=now,
        fence=1,
        created_at=now,
    )
    picture = Picture(
        id=new_id("pic"),
        name=new_picture_name(),
        owner_id=owner,
        generation_id=generation.id,
        position=0,
        object_key=object_key,
        sha256="0" * 64,
        bytes=1,
        width=1,
        height=1,
        created_at=now,
    )
    return [generation, picture]


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def sqlite_site(tmp_path: Path) -> Site:
    home = tmp_path / "home"
    return Site(home, f"sqlite:///{home}/igen.db", f"file://{home}/store")


def empty_copy(site: Site, folder: Path) -> Site:
    """Another installation of the same kind, with nothing in it."""
    home = folder / "other"
    store = site.store.replace("/igen?", "/other?") if site.store.startswith("s3:") else f"file://{home}/store"
    database = f"sqlite:///{home}/igen.db" if site.database.startswith("sqlite") else cluster().create_database()
    return Site(home, database, store, site.environment)


@pytest.mark.parametrize("kind", ["folder", "s3"])
async def test_there_and_back(
    kind: str,
    database_url: str,  # noqa: F811 - the fixture
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = Site(tmp_path / "home", database_url, f"file://{tmp_path}/home/store")
    if kind == "s3":
        site.store = request.getfixturevalue("s3").store_url(bucket=f"b{os.urandom(4).hex()}")
        site.environment = {"AWS_ACCESS_KEY_ID": ACCESS_ID, "AWS_SECRET_ACCESS_KEY": ACCESS_SECRET}
        for name, value in site.environment.items():
            monkeypatch.setenv(name, value)
    await site.fill(5)
    before = await site.pictures()
    archive = tmp_path / "backup.tar"

    code, told = site.run("backup", "--out", archive)
    assert code == 0, told
    assert "5 objects" in told
    assert archive.stat().st_mode & 0o077 == 0
    assert not list(tmp_path.glob(".igen-backup*"))

    other = empty_copy(site, tmp_path)
    code, told = other.run("restore", archive)
    assert code == 0, told
    assert await other.pictures() == before
    assert len(before) == 5

    code, told = other.run("restore", archive)
    assert code == 2
    assert "not empty" in told
    await other.fill(8)
    assert len(await other.pictures()) == 8
    code, told = other.run("restore", archive, "--force")
    assert code == 0, told
    assert await other.pictures() == before


async def test_objects_are_those_of_the_database_although_a_sweeper_deletes(
    sqlite_site: Site, tmp_path: Path
) -> None:
    """Rows and objects go while the backup runs: what the saved rows name is saved."""
    from scripts.archiving.saving import save

    keys = await sqlite_site.fill(30)
    store, db = open_store(sqlite_site.store), Database(sqlite_site.database)
    count = 0

    def told(_: int) -> None:
        nonlocal count
        count += 1

    class Sweeping:
        """The store, from which another picture and its row vanish at each object that is read."""

        def __getattr__(self, name: str) -> object:
            return getattr(store, name)

        async def get_file(self, key: str, path: Path) -> int:
            if keys:
                victim = keys.pop()
                async with db.write() as session:
                    row = (await session.scalars(select(Picture).where(Picture.object_key == victim))).one()
                    await session.delete(row)
                await store.delete(victim)
            return await store.get_file(key, path)

    header = await save(sqlite_site.database, Sweeping(), tmp_path / "b.tar", told)  # type: ignore[arg-type]
    await db.close()
    assert header.missing == []
    assert verify(tmp_path / "b.tar") == header
    assert count < 30
    other = empty_copy(sqlite_site, tmp_path)
    code, told_text = other.run("restore", tmp_path / "b.tar")
    assert code == 0, told_text
    assert await other.pictures() == await sqlite_site.pictures()


async def test_an_object_that_is_really_lost_is_named(sqlite_site: Site, tmp_path: Path) -> None:
    keys = await sqlite_site.fill(3)
    await open_store(sqlite_site.store).delete(keys[1])
    code, told = sqlite_site.run("backup", "--out", tmp_path / "b.tar")
    assert code == 1
    assert keys[1] in told
    assert verify(tmp_path / "b.tar").missing == [keys[1]]


async def test_a_damaged_or_cut_backup_is_refused_and_nothing_changes(sqlite_site: Site, tmp_path: Path) -> None:
    await sqlite_site.fill(3)
    good = tmp_path / "good.tar"
    assert sqlite_site.run("backup", "--out", good)[0] == 0
    data = bytearray(good.read_bytes())
    with tarfile.open(good) as tar:
        inside = next(info for info in tar if info.name.startswith("objects/"))
    data[inside.offset_data] ^= 1
    (tmp_path / "bad.tar").write_bytes(data)
    (tmp_path / "cut.tar").write_bytes(good.read_bytes()[: len(data) // 2])
    (tmp_path / "text.tar").write_text("hello " * 1000)
    other = empty_copy(sqlite_site, tmp_path)
    for name, what in (("cut", "breaks off"), ("text", "no backup"), ("none", "no such file")):
        with pytest.raises(ArchiveError, match=what):
            verify(tmp_path / f"{name}.tar")
    code, told = other.run("restore", tmp_path / "bad.tar")
    assert code == 2, told
    assert f"{inside.name} is damaged" in told
    assert not other.home.exists()


async def test_another_kind_of_database_and_a_newer_version_are_refused(sqlite_site: Site, tmp_path: Path) -> None:
    await sqlite_site.fill(1)
    archive = tmp_path / "b.tar"
    assert sqlite_site.run("backup", "--out", archive)[0] == 0
    other = empty_copy(sqlite_site, tmp_path)
    other.database = "postgresql://igen@127.0.0.1:1/igen"
    code, told = other.run("restore", archive)
    assert code == 2
    assert "the backup is of sqlite" in told

    newer = tmp_path / "newer"
    with tarfile.open(archive) as tar:
        tar.extractall(newer, filter="data")
    header = (newer / "backup.json").read_text()
    (newer / "backup.json").write_text(header.replace('"revision": "', '"revision": "f00f'))
    with tarfile.open(tmp_path / "newer.tar", "w") as tar:
        for path in sorted(newer.rglob("*")):
            if path.is_file():
                tar.add(path, str(path.relative_to(newer)))
    other = empty_copy(sqlite_site, tmp_path)
    code, told = other.run("restore", tmp_path / "newer.tar")
    assert code == 2
    assert "does not know" in told


async def test_an_older_database_is_migrated(sqlite_site: Site, tmp_path: Path) -> None:
    await sqlite_site.fill(2)
    db = Database(sqlite_site.database)
    await downgrade(db, "-1")
    await db.close()
    archive = tmp_path / "b.tar"
    code, told = sqlite_site.run("backup", "--out", archive)
    assert code == 0, told
    other = empty_copy(sqlite_site, tmp_path)
    code, told = other.run("restore", archive)
    assert code == 0, told
    assert len(await other.pictures()) == 2  # it also checks the revision


def test_beside_a_running_gateway(tmp_path: Path) -> None:
    """A backup goes on beside it; a restore over it is refused, even with --force."""
    with GatewayProcess(tmp_path / "home") as gateway:
        site = Site(gateway.home, f"sqlite:///{gateway.home}/igen.db", f"file://{gateway.home}/store")
        asyncio.run(site.fill(2))
        code, told = site.run("backup", "--out", tmp_path / "b.tar")
        assert code == 0, told
        code, told = site.run("restore", tmp_path / "b.tar", "--force")
        assert code == 2, told
        assert "Stop IGen" in told
    code, told = site.run("restore", tmp_path / "b.tar", "--force")
    assert code == 0, told


def test_what_is_not_there_is_said(sqlite_site: Site, tmp_path: Path) -> None:
    code, told = sqlite_site.run("backup", "--out", tmp_path / "b.tar")
    assert code == 4
    assert "there is no" in told
    (tmp_path / "there.tar").write_text("")
    code, told = sqlite_site.run("backup", "--out", tmp_path / "there.tar")
    assert code == 2
    assert "never overwritten" in told
    assert {path.name for path in tmp_path.iterdir()} <= {"there.tar", "home"}


def test_without_postgresqls_programs(tmp_path: Path) -> None:
    if os.environ.get("IGEN_TEST_POSTGRES") == "0":
        pytest.skip("IGEN_TEST_POSTGRES=0")
    site = Site(tmp_path / "home", cluster().create_database(), f"file://{tmp_path}/store")
    asyncio.run(site.fill(1))
    empty = tmp_path / "bin"
    empty.mkdir()
    code, told = site.run("backup", "--out", tmp_path / "b.tar", path=str(empty))
    assert code == 4
    assert "pg_dump is not installed" in told
    assert not (tmp_path / "b.tar").exists()


def test_a_client_of_an_older_postgresql_is_told(tmp_path: Path) -> None:
    if os.environ.get("IGEN_TEST_POSTGRES") == "0":
        pytest.skip("IGEN_TEST_POSTGRES=0")
    site = Site(tmp_path / "home", cluster().create_database(), f"file://{tmp_path}/store")
    asyncio.run(site.fill(1))
    old = tmp_path / "bin" / "pg_dump"
    old.parent.mkdir()
    old.write_text(
        "#!/bin/sh\n"
        "echo 'pg_dump: error: aborting because of server version mismatch' >&2\n"
        "echo 'pg_dump: detail: server version: 17.11; pg_dump version: 15.18' >&2\n"
        "exit 1\n"
    )
    old.chmod(0o755)
    code, told = site.run("backup", "--out", tmp_path / "b.tar", path=f"{old.parent}:{os.environ['PATH']}")
    assert code == 4
    assert "pg_dump: error: aborting because of server version mismatch" in told
    assert "postgresql-client" in told
    assert not (tmp_path / "b.tar").exists()


def test_verify_names_the_member(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        shutil.copy(__file__, tmp_path / "file")
        tar.add(tmp_path / "file", "../escape")
    with pytest.raises(ArchiveError, match="escape"):
        verify(tmp_path / "x.tar")
