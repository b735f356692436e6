"""What every object store promises, over a local folder and a real S3 server; then the faults of each."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from models.settings import SettingsError
from models.store import (
    InvalidKeyError,
    LocalObjects,
    NewObject,
    ObjectMissingError,
    ObjectStore,
    S3Objects,
    StoreError,
    check_key,
    content_key,
    open_store,
)
from models.store.base import PIECE_BYTES
from tests.support.origin import Origin, answer_with
from tests.support.s3 import ACCESS_ID, ACCESS_SECRET, S3Server

PNG = "image/png"
BAD_KEYS = [
    *("", "/", "/etc/passwd", "a//b", "a/", "../a", "a/../b", "a/..", ".", "./a", ".tmp/x", "a/.b"),
    *("%2e%2e/a", "%252e%252e/a", "a%2fb", "a\\..\\b", "a\0b", "a\n", "a b", "ä.png", "a:b", "a#1"),
    *("x" * 201, "/".join(["a" * 99] * 6), "~", "a?b", "a*"),
]


async def put(store: ObjectStore, key: str, data: bytes) -> None:
    await store.put(key, data, media_type=PNG)


async def keys(store: ObjectStore, prefix: str = "") -> set[str]:
    return {key async for key in store.list(prefix)}


class TestEveryStore:
    async def test_gives_back_what_was_put(self, store: ObjectStore) -> None:
        data = os.urandom(3_000_000)  # more than one of S3's chunks and of a pipe's buffer
        await put(store, "objects/ab/cd/x.png", data)
        assert await store.get("objects/ab/cd/x.png") == data

    async def test_a_file_is_adopted_and_borrowed(self, store: ObjectStore, tmp_path: Path) -> None:
        data, file, again = os.urandom(300_000), tmp_path / "fetched", tmp_path / "again"
        file.write_bytes(data)
        for _ in range(2):  # over itself as well
            await store.adopt_file("sources/ab/x.bin", file, media_type=PNG)
            assert await keys(store) == {"sources/ab/x.bin"}
        file.unlink()
        assert await store.get("sources/ab/x.bin") == data
        await store.borrow_file("sources/ab/x.bin", again)
        await store.delete("sources/ab/x.bin")
        assert again.read_bytes() == data
        with pytest.raises(ObjectMissingError):
            await store.borrow_file("sources/ab/x.bin", tmp_path / "none")
        with pytest.raises(ObjectMissingError):
            await store.borrow_file("none/of/it", tmp_path / "none")

    async def test_many_files_are_adopted(self, store: ObjectStore, tmp_path: Path) -> None:
        files = [NewObject(f"outputs/{number % 3}/{number}", tmp_path / str(number), PNG) for number in range(20)]
        for file in files:
            file.path.write_bytes(file.key.encode())
        await store.adopt_files([])
        for _ in range(2):  # over themselves as well
            await store.adopt_files(files)
        assert [await store.get(file.key) for file in files] == [file.key.encode() for file in files]
        assert await keys(store) == {file.key for file in files}
        with pytest.raises(InvalidKeyError):
            await store.adopt_files([NewObject("../etc/passwd", files[0].path, PNG)])

    async def test_the_sizes_of_many(self, store: ObjectStore) -> None:
        wanted = {f"many/{number:02}": number for number in range(40)}
        for key, size in wanted.items():
            await put(store, key, b"x" * size)
        assert await store.sizes([*wanted, "many/none", "no/folder"]) == wanted
        assert await store.sizes([]) == {}
        with pytest.raises(InvalidKeyError):
            await store.sizes(["../etc/passwd"])

    async def test_files_go_in_and_out_in_pieces(self, store: ObjectStore, tmp_path: Path) -> None:
        data = os.urandom(PIECE_BYTES + 4_000_000)
        (tmp_path / "in").write_bytes(data)
        await store.put_file("runs/1/feed", tmp_path / "in", media_type=PNG)
        assert await store.get_file("runs/1/feed", tmp_path / "out") == len(data)
        assert (tmp_path / "out").read_bytes() == data
        (tmp_path / "in").write_bytes(b"")
        await store.put_file("runs/1/feed", tmp_path / "in", media_type=PNG)
        assert await store.get_file("runs/1/feed", tmp_path / "out") == 0
        with pytest.raises(ObjectMissingError):
            await store.get_file("runs/1/none", tmp_path / "out")
        with pytest.raises(InvalidKeyError):
            await store.put_file("../etc", tmp_path / "in", media_type=PNG)

    async def test_empty_object(self, store: ObjectStore) -> None:
        await put(store, "empty", b"")
        assert await store.get("empty") == b""
        assert await store.get_range("empty", 0, 10) == b""

    async def test_put_replaces(self, store: ObjectStore) -> None:
        await put(store, "k", b"a longer first one")
        await put(store, "k", b"second")
        assert await store.get("k") == b"second"

    @pytest.mark.parametrize(
        ("start", "end", "expected"),
        [
            (0, 5, b"01234"),
            (3, 4, b"3"),
            (8, 99, b"89"),
            (4, 4, b""),
            (10, 12, b""),
            (50, 60, b""),
            (0, 10, b"0123456789"),
        ],
    )
    async def test_range(self, store: ObjectStore, start: int, end: int, expected: bytes) -> None:
        await put(store, "k", b"0123456789")
        assert await store.get_range("k", start, end) == expected

    @pytest.mark.parametrize(("start", "end"), [(-1, 3), (4, 3)])
    async def test_no_range(self, store: ObjectStore, start: int, end: int) -> None:
        with pytest.raises(ValueError, match="not a byte range"):
            await store.get_range("k", start, end)

    async def test_head(self, store: ObjectStore) -> None:
        await put(store, "k", b"0123456789")
        info = await store.head("k")
        assert info.size == 10
        assert info.etag.startswith('"')
        assert info.etag.endswith('"')
        assert abs((datetime.now(UTC) - info.last_modified).total_seconds()) < 30
        await put(store, "k", b"9876543210")
        assert (await store.head("k")).etag != info.etag

    async def test_missing(self, store: ObjectStore) -> None:
        await put(store, "folder/k", b"x")
        for key in ("nothing", "folder", "folder/k/below", "folder/other"):
            assert not await store.exists(key)
            for read in (store.get, store.head, lambda key: store.get_range(key, 0, 1)):
                with pytest.raises(ObjectMissingError) as caught:
                    await read(key)
                assert caught.value.status == 404

    async def test_delete_twice(self, store: ObjectStore) -> None:
        await put(store, "folder/k", b"x")
        assert await store.exists("folder/k")
        await store.delete("folder/k")
        await store.delete("folder/k")
        await store.delete("never/was")
        assert not await store.exists("folder/k")

    async def test_list(self, store: ObjectStore) -> None:
        assert await keys(store) == set()
        for key in ("a/b/1", "a/b/2", "a/c", "ab", "z"):
            await put(store, key, b"x")
        assert await keys(store) == {"a/b/1", "a/b/2", "a/c", "ab", "z"}
        assert await keys(store, "a") == await keys(store, "a/") == {"a/b/1", "a/b/2", "a/c"}
        assert await keys(store, "nothing") == set()

    async def test_check_leaves_nothing(self, store: ObjectStore) -> None:
        await store.check()
        assert await keys(store) == set()

    @pytest.mark.parametrize("key", BAD_KEYS)
    async def test_bad_keys(self, store: ObjectStore, key: str) -> None:
        for call in (store.get, store.head, store.delete):
            with pytest.raises(InvalidKeyError):
                await call(key)
        with pytest.raises(InvalidKeyError):
            await store.get_range(key, 0, 1)
        with pytest.raises(InvalidKeyError):
            await put(store, key, b"")
        assert not await store.exists(key)
        if key.strip("/"):
            with pytest.raises(InvalidKeyError):
                await keys(store, key + "/x")

    async def test_concurrent_writers_leave_one_whole_object(self, store: ObjectStore) -> None:
        bodies = [bytes([number]) * 200_000 for number in range(8)]
        await asyncio.gather(*(put(store, "k", body) for body in bodies))
        assert await store.get("k") in bodies


def test_good_keys() -> None:
    for key in ("a", "_a/-b", "generated/AbC-_9.png", "x" * 200, "a.b/c..d"):
        assert check_key(key) == key


def test_content_key() -> None:
    digest = hashlib.sha256(b"picture").hexdigest()
    assert content_key(digest, ".png") == f"objects/{digest[:2]}/{digest[2:4]}/{digest}.png"
    for bad in (
        (digest.upper(), ".png"),
        (digest[:-1], ".png"),
        (digest + "\n", ".png"),
        (digest, "/../x"),
        (digest, "png"),
    ):
        with pytest.raises(ValueError, match="must be"):
            content_key(*bad)


class TestOpen:
    def test_folders(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        for url, path in [
            (f"file://{tmp_path}/a%20b", tmp_path / "a b"),
            (f"file://localhost{tmp_path}/c", tmp_path / "c"),
            ("file://var/pictures", tmp_path / "var/pictures"),
            ("file:var/pictures", tmp_path / "var/pictures"),
        ]:
            store = open_store(url)
            assert isinstance(store, LocalObjects)
            assert store.root == path
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        "url",
        [
            *(
                "",
                "pictures",
                "/srv/pictures",
                "http://host/x",
                "gs://bucket",
                "file://",
                "file:///x?a=1",
                "file:///a%00",
            ),
            *("s3://", "s3:///prefix", "s3://b?endpoint=ftp://x", "s3://b?secret_access_key=hunter2", "s3://[x"),
            *("s3://id:hunter2@bucket", "s3://b/..", "s3://b/%2e%2e", "s3://b?endpoint="),
        ],
    )
    def test_wrong_urls_name_the_variable_and_hide_the_value(self, url: str) -> None:
        with pytest.raises(SettingsError, match=r"^IGEN_STORE_URL: ") as caught:
            open_store(url)
        assert "hunter2" not in str(caught.value)


class TestLocal:
    @pytest.fixture
    def local(self, tmp_path: Path) -> LocalObjects:
        return LocalObjects(tmp_path / "pictures")

    async def test_modes(self, local: LocalObjects) -> None:
        before = os.umask(0)
        try:
            await put(local, "a/b", b"x")
        finally:
            os.umask(before)
        assert (local.root / "a/b").stat().st_mode & 0o777 == 0o640
        assert {path.stat().st_mode & 0o777 for path in (local.root, local.root / "a")} == {0o750}

    async def test_links_lead_nowhere(self, local: LocalObjects, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "secret").write_bytes(b"secret")
        await put(local, "a/b", b"x")
        (local.root / "folder").symlink_to(outside)
        (local.root / "file").symlink_to(outside / "secret")
        (local.root / "a/up").symlink_to("..")
        for key in ("folder/secret", "file", "a/up/a/b"):
            with pytest.raises(ObjectMissingError):
                await local.get(key)
            await local.delete(key)
        with pytest.raises(StoreError):
            await put(local, "folder/new", b"x")
        assert await keys(local) == {"a/b"}
        assert [path.name for path in outside.iterdir()] == ["secret"]
        await put(local, "file", b"own")
        assert (outside / "secret").read_bytes() == b"secret"
        assert await local.get("file") == b"own"

    async def test_pipes_are_no_objects(self, local: LocalObjects) -> None:
        await put(local, "a", b"x")
        os.mkfifo(local.root / "pipe")
        try:
            with pytest.raises(ObjectMissingError):
                await asyncio.wait_for(local.get("pipe"), 5)
        finally:
            os.close(os.open(local.root / "pipe", os.O_RDWR | os.O_NONBLOCK))  # frees a thread that waits on it
        assert await keys(local) == {"a"}

    @pytest.mark.parametrize("moment", ["before the file is on the disk", "before the rename"])
    async def test_kill_mid_write(self, local: LocalObjects, moment: str) -> None:
        await put(local, "k", b"old")
        hook = "fsync" if moment.startswith("before the file") else "rename"
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD_THAT_STOPS_MID_WRITE, str(local.root), hook],
            stdout=subprocess.PIPE,
        )
        assert child.stdout is not None
        with child.stdout:
            assert child.stdout.readline() == b"mid-write\n"
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert await local.get("k") == b"old"
        assert await keys(local) == {"k"}
        leftovers = list((local.root / ".tmp").iterdir())
        assert len(leftovers) == 1
        await local.check()
        assert list((local.root / ".tmp").iterdir()) == leftovers  # it may be another process's write under way
        two_hours_ago = time.time() - 7200
        os.utime(leftovers[0], (two_hours_ago, two_hours_ago))
        await local.check()
        assert list((local.root / ".tmp").iterdir()) == []

    @pytest.mark.parametrize(
        ("code", "message"),
        [(errno.ENOSPC, "full"), (errno.EDQUOT, "quota"), (errno.EROFS, "read-only"), (errno.EIO, "not available")],
    )
    async def test_a_disk_that_fails(
        self, local: LocalObjects, monkeypatch: pytest.MonkeyPatch, code: int, message: str
    ) -> None:
        await put(local, "k", b"old")

        def fail(_fd: int) -> None:
            raise OSError(code, os.strerror(code), str(local.root))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            with pytest.raises(StoreError, match=message) as caught:
                await put(local, "k", b"new")
            with pytest.raises(StoreError, match=message):
                await local.check()
        assert caught.value.status == 503
        assert str(local.root) not in caught.value.message
        assert await local.get("k") == b"old"
        assert list((local.root / ".tmp").iterdir()) == []

    async def test_no_name_is_given_before_all_bytes_are_on_the_disk(
        self, local: LocalObjects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        files = [NewObject(f"{folder}/new/{folder}", tmp_path / folder, PNG) for folder in "abc"]
        for file in files:
            file.path.write_bytes(b"data")
        done: list[tuple[str, str]] = []
        sync, link = os.fsync, os.link

        def synced(fd: int) -> None:
            done.append(("sync", str(Path(f"/proc/self/fd/{fd}").readlink()).removeprefix(f"{local.root}/")))
            sync(fd)

        def linked(old: Path, new: str, **where: int) -> None:
            done.append(("name", new))
            link(old, new, dst_dir_fd=where["dst_dir_fd"], follow_symlinks=False)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", synced)
            patch.setattr(os, "link", linked)
            await local.adopt_files(files)
        assert [what for what, _ in done[:6]] == 3 * ["sync"] + 3 * ["name"]
        assert [name for _, name in done[:3]] == [str(file.path) for file in files]
        folders = {str(local.root), *"abc", "a/new", "b/new", "c/new"}
        assert {name for _, name in done[6:]} == folders, "and each folder with something new in it, once"
        assert len(done) == 6 + len(folders)

    async def test_an_adopted_file_replaces_what_has_its_name_and_is_an_objects(
        self, local: LocalObjects, tmp_path: Path
    ) -> None:
        await put(local, "a/b", b"old")
        for name in "bc":
            (tmp_path / name).write_bytes(name.encode())
            (tmp_path / name).chmod(0o600)
        await local.adopt_files([NewObject(f"a/{name}", tmp_path / name, PNG) for name in "bc"])
        assert [await local.get(f"a/{name}") for name in "bc"] == [b"b", b"c"]
        assert {(local.root / "a" / name).stat().st_mode & 0o777 for name in "bc"} == {0o640}
        assert list((local.root / ".tmp").iterdir()) == []

    async def test_a_file_that_is_gone_leaves_nothing_behind(self, local: LocalObjects, tmp_path: Path) -> None:
        (tmp_path / "there").write_bytes(b"data")
        with pytest.raises(StoreError):
            await local.adopt_files([NewObject(name, tmp_path / name, PNG) for name in ("there", "gone")])
        assert list(local.root.rglob("*")) == []

    async def test_a_root_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(StoreError):
            await LocalObjects(tmp_path / "file/pictures").check()


CHILD_THAT_STOPS_MID_WRITE = """
import os, sys, time, asyncio
from pathlib import Path
from models.store import LocalObjects
def stop(*_, **__):
    print("mid-write", flush=True)
    time.sleep(60)
setattr(os, sys.argv[2], stop)
asyncio.run(LocalObjects(Path(sys.argv[1])).put("k", b"new" * 100_000, media_type="image/png"))
"""


CHILD_THAT_ENDS_AT_ONCE = """
import asyncio, contextlib
from models.store import StoreError, open_store
async def main():
    store = open_store("s3://b?endpoint=http://127.0.0.1:9", access_key_id="a", secret_access_key="b", timeout_s=2)
    with contextlib.suppress(StoreError):
        await store.get("k")
asyncio.run(main())
"""


def flaky_s3(url: str, timeout_s: float = 6.0) -> ObjectStore:
    return open_store(
        f"s3://pictures?endpoint={url}", access_key_id=ACCESS_ID, secret_access_key=ACCESS_SECRET, timeout_s=timeout_s
    )


class TestS3:
    async def test_media_type_is_kept(self, s3_server: S3Server) -> None:
        store = open_store(s3_server.store_url(), access_key_id=ACCESS_ID, secret_access_key=ACCESS_SECRET)
        assert isinstance(store, S3Objects)
        await store.put("typed", b"x", media_type="image/webp")
        found = store._store.get("typed")
        assert found.attributes["Content-Type"] == "image/webp"

    async def test_credentials_from_the_environment(
        self, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_ID)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", ACCESS_SECRET)
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")  # the URL's endpoint wins
        await open_store(s3_server.store_url()).check()

    async def test_wrong_credentials(self, s3_server: S3Server) -> None:
        store = open_store(s3_server.store_url(), access_key_id=ACCESS_ID, secret_access_key="wrong-secret")
        with pytest.raises(StoreError, match="refused the server's credentials") as caught:
            await put(store, "k", b"x")
        assert caught.value.status == 503
        with pytest.raises(StoreError, match="credentials"):
            await store.get("k")

    async def test_killed_in_mid_use(self, tmp_path: Path) -> None:
        with S3Server(tmp_path) as server:
            store = flaky_s3(server.endpoint)
            await put(store, "k", b"x")
            server.kill()
            for call in (put(store, "k", b"y"), store.get("k"), store.head("k"), store.delete("k"), keys(store)):
                started = time.monotonic()
                with pytest.raises(StoreError) as caught:
                    await call
                assert time.monotonic() - started < 15
                assert caught.value.status == 503
                assert "127.0.0.1" not in caught.value.message

    async def test_a_5xx_and_a_silence_are_tried_again(self) -> None:
        good = answer_with(b"body", 'ETag: "1"', "Last-Modified: Sat, 21 Nov 2026 16:00:00 GMT")
        async with Origin() as origin:

            async def answer(_seen: object, writer: asyncio.StreamWriter) -> None:
                match len(origin.seen):
                    case 1:
                        writer.write(answer_with(b"", status="503 Slow Down"))
                    case 2:
                        await asyncio.sleep(60)
                    case _:
                        writer.write(good)

            origin.answers["/pictures/k"] = answer
            store = flaky_s3(origin.url(""), timeout_s=6)
            assert await store.get("k") == b"body"
            assert len(origin.seen) == 3

    async def test_a_delete_is_tried_again(self) -> None:
        async with Origin() as origin:

            async def answer(_seen: object, writer: asyncio.StreamWriter) -> None:
                status = "503 Slow Down" if len(origin.seen) == 1 else "204 No Content"
                writer.write(answer_with(b"", status=status))

            origin.answers["/pictures/k"] = answer
            await flaky_s3(origin.url("")).delete("k")
            assert [seen.method for seen in origin.seen] == ["DELETE", "DELETE"]

    async def test_a_black_hole_ends_in_bounded_time(self) -> None:
        async def never(_seen: object, _writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(60)

        async with Origin({"/pictures/k": never, "/pictures": never}) as origin:
            store = flaky_s3(origin.url(""), timeout_s=1.5)
            for call in (store.get("k"), put(store, "k", b"x"), store.delete("k"), keys(store)):
                started = time.monotonic()
                with pytest.raises(StoreError):
                    await call
                assert time.monotonic() - started < 10

    async def test_a_call_that_never_ends_is_given_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("obstore.head", lambda *_: time.sleep(5))
        started = time.monotonic()
        with pytest.raises(StoreError, match="in time"):
            await flaky_s3("http://127.0.0.1:9", timeout_s=0.3).head("k")
        assert time.monotonic() - started < 4

    def test_a_process_ends_well_right_after_a_call(self) -> None:
        command = [sys.executable, "-c", CHILD_THAT_ENDS_AT_ONCE]
        children = [subprocess.Popen(command) for _ in range(3)]
        assert [child.wait() for child in children] == [0] * 3

    async def test_forbidden_is_not_tried_again(self) -> None:
        async with Origin({"/pictures/k": answer_with(b"<Error/>", status="403 Forbidden")}) as origin:
            with pytest.raises(StoreError, match="credentials"):
                await flaky_s3(origin.url("")).get("k")
            assert len(origin.seen) == 1
