from __future__ import annotations

import threading
import urllib.error
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING

import pytest

from inference import __main__ as server
from inference import runpod_worker, start

if TYPE_CHECKING:
    from collections.abc import Iterator


class Generator(BaseHTTPRequestHandler):
    """Stands for the inference server: `/ping` has the status of the moment."""

    status = 200

    def do_GET(self) -> None:
        self.send_response(Generator.status)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


@contextmanager
def serving(made: HTTPServer) -> Iterator[int]:
    thread = threading.Thread(target=made.serve_forever, args=(0.02,))
    thread.start()
    yield made.server_port
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture
def generator() -> Iterator[int]:
    Generator.status = 200
    with serving(HTTPServer(("127.0.0.1", 0), Generator)) as port:
        yield port


def unused_port() -> int:
    with HTTPServer(("127.0.0.1", 0), Generator) as made:
        return made.server_port


def status_of(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as problem:
        with problem:
            return problem.code


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which of the two programs was started."""
    calls: list[str] = []
    monkeypatch.setattr(server, "main", lambda: calls.append("server") or 7)
    monkeypatch.setattr(runpod_worker, "main", lambda: calls.append("worker") or 8)
    return calls


QUEUE = {"RUNPOD_WEBHOOK_GET_JOB": "https://queue.example/job-take/$ID?x=1"}


@pytest.mark.parametrize(
    ("arguments", "environ", "wanted"),
    [
        ([], {}, "server"),
        (["auto"], QUEUE, "worker"),
        (["auto"], {"RUNPOD_WEBHOOK_GET_JOB": ""}, "server"),
        (["server"], QUEUE, "server"),
        (["worker"], {}, "worker"),
    ],
)
def test_which_program_starts(arguments: list[str], environ: dict[str, str], wanted: str, started: list[str]) -> None:
    assert start.main(arguments, {**environ}) == {"server": 7, "worker": 8}[wanted]
    assert started == [wanted]


def test_the_platforms_port_becomes_ours(started: list[str]) -> None:
    environ = {"PORT": "5000", "PORT_HEALTH": "5000", "IGEN_INFERENCE_PORT": "8001"}
    assert start.main(["server"], environ) == 7
    assert environ["IGEN_INFERENCE_PORT"] == "5000"
    assert started == ["server"]


@pytest.mark.parametrize(
    ("environ", "name"),
    [({"PORT": "http"}, "PORT"), ({"PORT_HEALTH": "70000"}, "PORT_HEALTH"), ({"IGEN_INFERENCE_PORT": "0"}, "IGEN_")],
)
def test_a_wrong_port_is_named(
    environ: dict[str, str], name: str, started: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert start.main(["server"], environ) == 2
    assert name in capsys.readouterr().err
    assert started == []


@pytest.mark.parametrize("arguments", [["serve"], ["server", "now"]])
def test_a_wrong_mode_is_told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert start.main(arguments, {}) == 2
    assert "auto, server, worker, health" in capsys.readouterr().err


def test_a_health_port_of_its_own_tells_what_the_server_says(
    generator: int, started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    health = unused_port()
    asked: list[int] = []

    def ask() -> int:
        asked.extend(status_of(f"http://127.0.0.1:{health}{path}") for path in ("/ping", "/ping?x=1", "/metrics"))
        Generator.status = 204
        asked.append(status_of(f"http://127.0.0.1:{health}/ping"))
        Generator.status = 503
        asked.append(status_of(f"http://127.0.0.1:{health}/ping"))
        return 0

    monkeypatch.setattr(server, "main", ask)
    assert start.main(["server"], {"PORT": str(generator), "PORT_HEALTH": str(health)}) == 0
    assert asked == [200, 200, 404, 204, 503]


def test_before_the_server_listens_it_is_loading() -> None:
    with serving(start.HealthServer(("127.0.0.1", 0), unused_port())) as health:
        assert status_of(f"http://127.0.0.1:{health}/ping") == 204


def test_a_health_port_that_is_taken_is_told(
    generator: int, started: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert start.main(["server"], {"PORT": str(unused_port()), "PORT_HEALTH": str(generator)}) == 2
    assert f"127.0.0.1:{generator}" in capsys.readouterr().err
    assert started == []


@pytest.mark.parametrize(("status", "code"), [(200, 0), (204, 0), (503, 1)])
def test_the_health_check_asks_the_server(generator: int, status: int, code: int) -> None:
    Generator.status = status
    assert start.main(["health"], {"PORT": str(generator)}) == code


def test_the_health_check_of_a_worker_needs_no_server() -> None:
    port = {"PORT": str(unused_port())}
    assert start.main(["health"], port) == 1
    assert start.main(["health"], {**port, **QUEUE}) == 0
