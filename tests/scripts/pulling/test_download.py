from __future__ import annotations

import hashlib
import random
import resource
import shutil
from collections import namedtuple
from typing import TYPE_CHECKING

import pytest

from scripts.pulling import download
from scripts.pulling.download import ATTEMPTS, Downloader, InterruptedPullError, MissingError, PullError, open_session
from tests.support.flaky_origin import FlakyOrigin
from tests.support.hub import FakeHub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

DATA = random.Random(1).randbytes(300_000)
DIGEST = hashlib.sha256(DATA).hexdigest()
PATH = "/model.safetensors"


@pytest.fixture
def origin() -> Iterator[FlakyOrigin]:
    server = FlakyOrigin()
    server.files[PATH] = DATA
    yield server
    server.close()


@pytest.fixture
async def downloader(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Downloader]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    async with open_session() as session:
        yield Downloader(session, pause_s=0.001)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "sub" / "model.safetensors"


def unseen(done: int, total: int | None) -> None:
    """A meter that nobody looks at."""


def leftovers(target: Path) -> set[str]:
    return {path.name for path in target.parent.iterdir()}


async def test_a_file_is_fetched_checked_and_named(origin: FlakyOrigin, downloader: Downloader, target: Path) -> None:
    told: list[tuple[int, int | None]] = []
    found = await downloader.fetch(origin.url + PATH, target, lambda done, total: told.append((done, total)))
    assert (found.sha256, found.size, target.read_bytes()) == (DIGEST, len(DATA), DATA)
    assert leftovers(target) == {"model.safetensors"}
    assert (told[0], told[-1]) == ((0, len(DATA)), (len(DATA), len(DATA)))
    again = await downloader.fetch(origin.url + PATH, target, unseen)
    assert (again, len(origin.requests)) == (found, 1)


async def test_a_connection_that_breaks_is_taken_up_where_it_broke(
    origin: FlakyOrigin, downloader: Downloader, target: Path
) -> None:
    origin.faults.cut_after = [100_000, 0, 50_000]
    found = await downloader.fetch(origin.url + PATH, target, unseen, sha256=DIGEST)
    assert found.sha256 == DIGEST
    assert [item.range for item in origin.requests] == [None, "bytes=100000-", "bytes=100000-", "bytes=150000-"]


async def test_what_came_outlives_the_call(origin: FlakyOrigin, downloader: Downloader, target: Path) -> None:
    origin.faults.cut_after = [100_000, *[0] * ATTEMPTS]
    with pytest.raises(InterruptedPullError, match=r"100000 bytes are kept, the same command goes on from there"):
        await downloader.fetch(origin.url + PATH, target, unseen)
    assert not target.exists()
    origin.faults.cut_after.clear()
    origin.requests.clear()
    assert (await downloader.fetch(origin.url + PATH, target, unseen)).sha256 == DIGEST
    assert [item.range for item in origin.requests] == ["bytes=100000-"]


async def test_an_origin_that_ignores_ranges_is_begun_anew(
    origin: FlakyOrigin, downloader: Downloader, target: Path
) -> None:
    origin.faults.cut_after, origin.faults.ignores_range = [100_000], True
    assert (await downloader.fetch(origin.url + PATH, target, unseen)).sha256 == DIGEST
    assert target.read_bytes() == DATA


async def test_a_range_other_than_asked_for_is_not_believed(
    origin: FlakyOrigin, downloader: Downloader, target: Path
) -> None:
    origin.faults.cut_after, origin.faults.wrong_range = [100_000], True
    assert (await downloader.fetch(origin.url + PATH, target, unseen)).sha256 == DIGEST
    assert [item.range for item in origin.requests] == [None, "bytes=100000-", None]


async def test_halves_of_two_versions_are_never_joined(
    origin: FlakyOrigin, downloader: Downloader, target: Path
) -> None:
    origin.faults.cut_after = [100_000, *[0] * ATTEMPTS]
    with pytest.raises(InterruptedPullError):
        await downloader.fetch(origin.url + PATH, target, unseen)
    origin.faults.cut_after.clear()
    origin.files[PATH] = DATA[::-1]
    await downloader.fetch(origin.url + PATH, target, unseen)
    assert target.read_bytes() == DATA[::-1]


@pytest.mark.parametrize("is_told", [True, False])
async def test_without_a_mark_only_a_known_digest_allows_going_on(
    origin: FlakyOrigin, downloader: Downloader, target: Path, is_told: bool
) -> None:
    origin.faults.cut_after, origin.faults.no_etag = [100_000], True
    await downloader.fetch(origin.url + PATH, target, unseen, sha256=DIGEST if is_told else None)
    assert [item.range for item in origin.requests] == [None, "bytes=100000-" if is_told else None]


async def test_a_process_that_ended_before_the_check_has_only_the_check_left(
    origin: FlakyOrigin, downloader: Downloader, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Downloader, "_check", killed)
        with pytest.raises(KeyboardInterrupt):
            await downloader.fetch(origin.url + PATH, target, unseen)
    origin.requests.clear()
    assert (await downloader.fetch(origin.url + PATH, target, unseen)).sha256 == DIGEST
    assert [item.range for item in origin.requests] == [f"bytes={len(DATA)}-"]


async def test_a_file_that_became_shorter_is_begun_anew(
    origin: FlakyOrigin, downloader: Downloader, target: Path
) -> None:
    origin.faults.cut_after = [100_000, *[0] * ATTEMPTS]
    with pytest.raises(InterruptedPullError):
        await downloader.fetch(origin.url + PATH, target, unseen)
    origin.faults.cut_after.clear()
    origin.files[PATH] = DATA[:50_000]
    await downloader.fetch(origin.url + PATH, target, unseen)
    assert target.read_bytes() == DATA[:50_000]


async def test_a_wrong_digest_is_not_kept(origin: FlakyOrigin, downloader: Downloader, target: Path) -> None:
    with pytest.raises(PullError, match=f"model.safetensors has SHA-256 {DIGEST}, expected {'0' * 64}; not kept"):
        await downloader.fetch(origin.url + PATH, target, unseen, sha256="0" * 64)
    assert leftovers(target) == set()


async def test_servers_that_are_busy_are_asked_again(
    origin: FlakyOrigin, downloader: Downloader, target: Path
) -> None:
    origin.faults.statuses = [503, 429, 500]
    assert (await downloader.fetch(origin.url + PATH, target, unseen)).sha256 == DIGEST
    origin.faults.statuses = [502] * ATTEMPTS
    target.unlink()
    with pytest.raises(InterruptedPullError, match="the origin answered 502; 0 bytes are kept"):
        await downloader.fetch(origin.url + PATH, target, unseen)


@pytest.mark.parametrize(("status", "reason"), [(401, "HF_TOKEN"), (403, "accept its terms"), (418, "answered 418")])
async def test_a_refusal_is_told_at_once(
    origin: FlakyOrigin, downloader: Downloader, target: Path, status: int, reason: str
) -> None:
    origin.faults.statuses = [status]
    with pytest.raises(PullError, match=reason):
        await downloader.fetch(origin.url + PATH, target, unseen)
    assert len(origin.requests) == 1


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("org/nothing/resolve/main/model_index.json", "no checkpoint of this name, or it is private"),
        (f"org/name/resolve/{'b' * 40}/model_index.json", "no such commit"),
    ],
)
async def test_what_the_hub_says_of_a_name_or_a_commit_is_told(
    tmp_path: Path, downloader: Downloader, target: Path, path: str, reason: str
) -> None:
    hub = FakeHub(tmp_path, "org/name", "a" * 40)
    try:
        with pytest.raises(PullError, match=reason):
            await downloader.fetch(f"{hub.url}/{path}", target, unseen)
    finally:
        hub.close()


async def test_what_is_not_there_and_who_does_not_answer_are_told_apart(
    origin: FlakyOrigin, downloader: Downloader, target: Path
) -> None:
    with pytest.raises(MissingError):
        await downloader.fetch(f"{origin.url}/nothing.safetensors", target, unseen)
    gone = FlakyOrigin()
    gone.close()
    with pytest.raises(InterruptedPullError, match="Cannot connect"):
        await downloader.fetch(gone.url + PATH, target, unseen)


async def test_room_on_the_disk_is_looked_for_first(
    origin: FlakyOrigin, downloader: Downloader, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")  # noqa: PYI024 - as the library's own
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, download.RESERVE_BYTES + len(DATA) - 1))
    with pytest.raises(PullError, match=r"GB free, and .* are needed; make room"):
        await downloader.fetch(origin.url + PATH, target, unseen)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, download.RESERVE_BYTES + len(DATA)))
    await downloader.fetch(origin.url + PATH, target, unseen)


async def test_a_disk_that_takes_no_more_keeps_what_it_has(
    origin: FlakyOrigin, downloader: Downloader, target: Path
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))  # a real write error, as from a full disk
    try:
        with pytest.raises(PullError, match=r"cannot be written: File too large; the same command goes on"):
            await downloader.fetch(origin.url + PATH, target, unseen)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    origin.requests.clear()
    assert (await downloader.fetch(origin.url + PATH, target, unseen)).sha256 == DIGEST
    assert origin.requests[0].range is not None
