"""Each fault that an operator can have, and what the doctor says of it; and of what is sound that it is."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from aiohttp import web
from redis import Redis
from rq import Queue, Worker

from compositor.queue import COMPOSE
from gateway.firstkey import initialise
from gateway.settings import BackendKind, GatewaySettings
from models.db import Database
from models.migrations import downgrade
from scripts.diagnosing import backend, machine, objects, outside, queues, rows
from scripts.diagnosing.finding import State, clock
from scripts.supervise.redis_server import find_redis
from tests.support.database import database, migrated_sqlite, plain_logs  # noqa: F401 - fixtures
from tests.support.fake_backend import FakeBackend
from tests.support.gateway_process import GatewayProcess, plain_environment
from tests.support.postgres import database_url  # noqa: F401 - a fixture
from tests.support.stack import free_ports

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator

    from scripts.diagnosing.finding import Finding

ROOT = Path(__file__).resolve().parents[2]


async def all_of(findings: AsyncIterator[Finding]) -> list[Finding]:
    return [finding async for finding in findings]


def wrong(findings: Iterable[Finding]) -> list[Finding]:
    found = [finding for finding in findings if finding.state in (State.FAULT, State.WARNING)]
    assert all(finding.mend for finding in found), found
    return found


def the_fault(findings: Iterable[Finding], text: str, state: State = State.FAULT) -> Finding:
    (found,) = wrong(findings)
    assert found.state is state, found
    assert text in f"{found.told} {found.mend}", found
    return found


def doctor(*options: str, **environment: str) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "scripts.doctor", "--json", *options],
        cwd=ROOT,
        env=plain_environment(**environment),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_a_running_gateway_without_redis(tmp_path: Path) -> None:
    with GatewayProcess(tmp_path / "home") as gateway:
        code, told = doctor(**{k: v for k, v in gateway.environment.items() if k.startswith("IGEN_")})
    assert code == 1
    faults = {finding["part"]: finding for finding in told["findings"] if finding["state"] == "fault"}
    assert set(faults) == {"redis", "reconciler"}  # it runs without either
    assert "IGEN_REDIS_URL" in faults["redis"]["mend"]
    assert {finding["part"] for finding in told["findings"] if finding["state"] == "ok"} >= {
        *("settings", "home", "first key", "database", "backend", "fonts", "ports", "public address"),
    }
    (store,) = [finding for finding in told["findings"] if finding["part"] == "store"]
    assert store["state"] == "skipped"  # nothing was drawn yet


def test_wrong_variables_are_named_and_secrets_are_not_shown(tmp_path: Path) -> None:
    code, told = doctor(IGEN_HOME=str(tmp_path), IGEN_PORT="http", IGEN_DATABASE_URL="mysql://u:hunter2@h/d")
    assert code == 1
    said = " ".join(finding["told"] for finding in told["findings"])
    assert "IGEN_PORT" in said
    assert "IGEN_DATABASE_URL" in said
    assert "hunter2" not in json.dumps(told)


class TestMachine:
    def test_no_home(self, tmp_path: Path) -> None:
        the_fault(machine.check_home(tmp_path / "none"), "there is no folder")

    def test_root_in_another_users_home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class Other(NamedTuple):
            st_uid: int
            st_mode: int = stat.S_IFDIR

        assert not list(machine.check_owner(tmp_path, os.geteuid()))
        assert not list(machine.check_owner(tmp_path / "none", 0))
        monkeypatch.setattr(Path, "stat", lambda _, **__: Other(10001))
        the_fault(machine.check_owner(tmp_path, 0), "as 10001")
        assert not list(machine.check_owner(tmp_path, 10002))  # `home` says whether it can be written

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
    def test_root_leaves_another_users_home_alone(self, tmp_path: Path) -> None:
        os.chown(tmp_path, 10001, 10001)
        code, told = doctor(IGEN_HOME=str(tmp_path))
        assert code == 1
        assert [finding["part"] for finding in told["findings"]] == ["settings", "home"]
        assert not list(tmp_path.iterdir())

    def test_open_home(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o755)
        the_fault(machine.check_home(tmp_path), "chmod 700", State.WARNING)

    def test_unwritable_home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> int:
            raise PermissionError(13, "Permission denied")

        tmp_path.chmod(0o700)
        monkeypatch.setattr(Path, "write_bytes", refuse)
        the_fault(machine.check_home(tmp_path), "cannot write")

    @pytest.mark.parametrize(("free", "state"), [(2**20, State.FAULT), (2**30, State.WARNING), (2**40, State.OK)])
    def test_disk(self, free: int, state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class Usage(NamedTuple):
            total: int
            free: int

        monkeypatch.setattr("scripts.diagnosing.machine.shutil.disk_usage", lambda _: Usage(2**41, free))
        finding = machine.check_disk("disk", tmp_path)
        assert finding.state is state
        assert bool(finding.mend) is (state is not State.OK)

    def test_first_key(self, tmp_path: Path) -> None:
        the_fault([machine.check_first_key(tmp_path)], "gateway init", State.WARNING)
        (tmp_path / "first-key").write_text("igen_x")
        (tmp_path / "first-key").chmod(0o644)
        the_fault([machine.check_first_key(tmp_path)], "chmod 600")
        (tmp_path / "first-key").chmod(0o600)
        assert machine.check_first_key(tmp_path).state is State.OK

    def test_a_port_taken_by_another_program(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            monkeypatch.setenv("IGEN_PORT", str(port))
            monkeypatch.setenv("IGEN_INFERENCE_PORT", str(free_ports(1)[0]))
            loaded, _ = machine.load_all()
            assert loaded is not None
            findings = list(machine.check_free_ports(loaded, gateway_runs=False, backend_runs=False))
            the_fault(findings, f"port {port} is taken")
            assert not wrong(machine.check_free_ports(loaded, gateway_runs=True, backend_runs=False))


class TestRows:
    async def test_good_and_with_a_key_that_does_not_work(self, database_url: str, tmp_path: Path) -> None:  # noqa: F811
        db = Database(database_url)
        await initialise(db, tmp_path)
        assert not wrong(await all_of(rows.check_database(database_url, tmp_path, runs=False)))
        the_fault(await all_of(rows.check_database(database_url, tmp_path, runs=True)), "compositor reconcile")
        (tmp_path / "first-key").write_text("igen_" + "a" * 12 + "_" + "b" * 43)
        the_fault(
            await all_of(rows.check_database(database_url, tmp_path, runs=False)), "gateway init", State.WARNING
        )
        await downgrade(db, "-1")
        await db.close()
        the_fault(await all_of(rows.check_database(database_url, tmp_path, runs=False)), "gateway migrate")

    async def test_not_there(self, tmp_path: Path) -> None:
        address = f"sqlite:///{tmp_path}/none.db"
        the_fault(await all_of(rows.check_database(address, tmp_path, runs=False)), "there is no")
        assert not list(tmp_path.iterdir())
        address = f"postgresql://igen:hunter2@127.0.0.1:{free_ports(1)[0]}/igen"
        found = the_fault(await all_of(rows.check_database(address, tmp_path, runs=False)), "PostgreSQL runs")
        assert "hunter2" not in f"{found}"

    async def test_no_database_at_all(self, tmp_path: Path) -> None:
        (tmp_path / "igen.db").write_text("this is a letter" * 1000)
        the_fault(
            await all_of(rows.check_database(f"sqlite:///{tmp_path}/igen.db", tmp_path, runs=False)), "not a database"
        )

    def test_clocks(self) -> None:
        assert clock("x", 1.0).state is State.OK
        assert clock("x", -5.0).state is State.WARNING
        assert clock("x", 60.0).state is State.FAULT


@contextmanager
def redis_server(folder: Path, *options: str) -> Iterator[str]:
    program, (port,) = find_redis(), free_ports(1)
    assert program is not None
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder), *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.kill()
        process.wait()


class TestQueues:
    def test_as_it_should_be_with_and_without_workers(self, tmp_path: Path) -> None:
        with redis_server(tmp_path, "--appendonly", "yes") as address:
            assert not wrong(queues.check_redis(address, runs=False))
            the_fault(queues.check_redis(address, runs=True), "compositor worker")
            connection = Redis.from_url(address)
            worker = Worker([Queue(COMPOSE, connection=connection)], connection=connection)
            worker.register_birth()
            assert not wrong(queues.check_redis(address, runs=True))
            connection.hset(worker.key, "last_heartbeat", "2020-01-01T00:00:00.000000Z")
            the_fault(queues.check_redis(address, runs=True), "1 silent")
            connection.close()

    def test_one_that_forgets(self, tmp_path: Path) -> None:
        options = ("--maxmemory-policy", "allkeys-lru", "--maxmemory", "100mb")
        with redis_server(tmp_path, *options) as address:
            persistence, memory = wrong(queues.check_redis(address, runs=False))
        assert "appendonly yes" in persistence.mend
        assert "noeviction" in memory.mend

    def test_nearly_full(self, tmp_path: Path) -> None:
        with redis_server(tmp_path, "--appendonly", "yes", "--maxmemory", "100kb") as address:
            the_fault(queues.check_redis(address, runs=False), "maxmemory", State.WARNING)

    def test_not_there_and_refused(self, tmp_path: Path) -> None:
        the_fault(queues.check_redis(f"redis://127.0.0.1:{free_ports(1)[0]}/0", runs=False), "does not answer")
        the_fault(queues.check_redis(None, runs=True), "IGEN_REDIS_URL")
        assert not wrong(queues.check_redis(None, runs=False))
        with redis_server(tmp_path, "--requirepass", "secret") as address:
            the_fault(queues.check_redis(address.replace("//", "//:wrong@"), runs=False), "password")
            (finding,) = wrong(queues.check_redis(address, runs=False))
            assert "password" in finding.mend or "uthentication" in finding.told


class TestStore:
    async def test_good(self, tmp_path: Path) -> None:
        (tmp_path / "store").mkdir()
        assert not wrong(await all_of(objects.check_store(f"file://{tmp_path}/store")))

    async def test_not_made_yet(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (finding,) = await all_of(objects.check_store(f"file://{tmp_path}/home/store"))
        assert finding.state is State.SKIPPED
        assert not list(tmp_path.iterdir()), "what root makes here, IGen's own user could not write"
        monkeypatch.setattr("scripts.diagnosing.objects.os.access", lambda *_: False)
        the_fault(await all_of(objects.check_store(f"file://{tmp_path}/home/store")), str(tmp_path))

    async def test_a_file_in_its_place(self, tmp_path: Path) -> None:
        (tmp_path / "store").write_text("")
        the_fault(await all_of(objects.check_store(f"file://{tmp_path}/store")), "this user's to write")

    async def test_no_s3_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
        monkeypatch.setattr(objects, "TIMEOUT_S", 1.0)
        address = f"s3://bucket/x?endpoint=http://127.0.0.1:{free_ports(1)[0]}"
        found = the_fault(await all_of(objects.check_store(address)), "bucket exists")
        assert "hunter2" not in f"{found}"

    async def test_no_address(self) -> None:
        the_fault(await all_of(objects.check_store("ftp://x")), "IGEN_STORE_URL")


class TestBackend:
    @pytest.fixture
    async def fake(self) -> AsyncIterator[FakeBackend]:
        fake = FakeBackend()
        await fake.start()
        yield fake
        await fake.stop()

    @pytest.fixture
    def target(self, fake: FakeBackend) -> backend.Target:
        return backend.Target(fake.url, fake.key, BackendKind.SELFHOSTED, ours=False)

    async def test_good(self, target: backend.Target) -> None:
        assert not wrong(await all_of(backend.check_backend(target, runs=True)))

    async def test_wrong_key(self, target: backend.Target) -> None:
        refused = replace(target, key="other")
        the_fault(await all_of(backend.check_backend(refused, runs=True)), "IGEN_INFERENCE_KEY")
        refused = replace(refused, kind=BackendKind.RUNPOD)
        the_fault(await all_of(backend.check_backend(refused, runs=True)), "RunPod key")

    async def test_wrong_endpoint(self, target: backend.Target) -> None:
        elsewhere = replace(target, url=target.url.replace("igen", "other"))
        the_fault(await all_of(backend.check_backend(elsewhere, runs=True)), "knows no such endpoint")

    async def test_not_there(self, target: backend.Target) -> None:
        gone = replace(target, url=f"http://127.0.0.1:{free_ports(1)[0]}/v2/igen")
        the_fault(await all_of(backend.check_backend(gone, runs=True)), "IGEN_BACKEND_URL")
        own = replace(gone, ours=True)
        assert not wrong(await all_of(backend.check_backend(own, runs=False)))

    @pytest.mark.parametrize(
        ("workers", "state", "text"),
        [
            ({"throttled": 2, "idle": 0}, State.WARNING, "no GPU of these types"),
            ({"unhealthy": 1}, State.FAULT, "worker's log"),
            ({"idle": 0}, State.WARNING, "loading"),
        ],
    )
    async def test_workers(self, workers: dict[str, int], state: State, text: str) -> None:
        async with served(lambda _: web.json_response({"jobs": {}, "workers": workers})) as url:
            target = backend.Target(url, "k", BackendKind.SELFHOSTED, ours=False)
            the_fault(await all_of(backend.check_backend(target, runs=True)), text, state)

    async def test_another_program_there(self) -> None:
        async with served(lambda _: web.Response(text="<html>It works!")) as url:
            target = backend.Target(url, "k", BackendKind.SELFHOSTED, ours=False)
            the_fault(await all_of(backend.check_backend(target, runs=True)), "not as a generator does")

    @pytest.mark.parametrize(
        ("answer", "device", "text"),
        [
            ('print(\'{"cuda": false, "version": "2"}\')', "cuda", "IGEN_DEVICE is cuda"),
            ("import no_such_torch", "cuda", "no_such_torch"),
            ('print(\'{"cuda": true, "version": "2", "name": "H100", "gib": 80}\')', "cuda", ""),
        ],
    )
    async def test_gpu(self, answer: str, device: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("IGEN_DEVICE", device)
        monkeypatch.setattr(backend, "ASK_TORCH", answer)
        loaded, _ = machine.load_all()
        assert loaded is not None
        findings = await all_of(backend.check_gpu(loaded))
        if text:
            the_fault(findings, text)
        else:
            assert "H100" in findings[0].told

    async def test_sdxl_on_a_cpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("IGEN_DEVICE", "cpu")
        monkeypatch.setenv("IGEN_CHECKPOINT", "stabilityai/stable-diffusion-xl-base-1.0")
        loaded, _ = machine.load_all()
        assert loaded is not None
        the_fault(await all_of(backend.check_gpu(loaded)), "RunPod", State.WARNING)


class served:  # noqa: N801 - used as `async with`
    """A program that answers everything alike."""

    def __init__(self, answer: Any) -> None:
        self.app = web.Application()
        self.app.router.add_get("/{path:.*}", self._answer)
        self.answer = answer

    async def _answer(self, request: web.Request) -> web.Response:
        response: web.Response = self.answer(request)
        return response

    async def __aenter__(self) -> str:
        self.runner = web.AppRunner(self.app)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self.runner.addresses[0][1]}"

    async def __aexit__(self, *_: object) -> None:
        await self.runner.cleanup()


class TestOutside:
    async def test_a_wildcard_without_a_public_address(self) -> None:
        settings = GatewaySettings(bind="0.0.0.0")
        the_fault(await all_of(outside.check_public_address(settings, runs=True)), "set IGEN_PUBLIC_URL")
        assert not wrong(await all_of(outside.check_public_address(GatewaySettings(), runs=True)))

    async def test_addresses_that_do_not_lead_here(self) -> None:
        settings = GatewaySettings(public_url=f"http://127.0.0.1:{free_ports(1)[0]}")
        the_fault(await all_of(outside.check_public_address(settings, runs=True)), "not reached")
        async with served(lambda _: web.Response(text="welcome to nginx")) as url:
            settings = GatewaySettings(public_url=url)
            the_fault(await all_of(outside.check_public_address(settings, runs=True)), "not as a gateway")
        async with served(lambda _: web.json_response({"status": "ok"})) as url:
            assert not wrong(await all_of(outside.check_public_address(GatewaySettings(public_url=url), runs=True)))

    async def test_no_encryption(self) -> None:
        settings = GatewaySettings(public_url="http://igen.example")
        the_fault(await all_of(outside.check_public_address(settings, runs=False)), "TLS", State.WARNING)

    def test_composing(self, tmp_path: Path) -> None:
        assert not wrong(outside.check_composing())
        the_fault(outside.check_composing(has=lambda name: name != "raqm"), "Arabic")
        the_fault(outside.check_composing(has=lambda name: name != "webp"), "without webp")
        the_fault(outside.check_composing(fonts=tmp_path), "no fonts")
        (tmp_path / "a.ttf").write_text("no font")
        the_fault(outside.check_composing(fonts=tmp_path), "cannot be read")
