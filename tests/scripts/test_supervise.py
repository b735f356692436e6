from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from models.settings import SettingsError, load_settings
from scripts.supervise import checks, child_log, redis_server
from scripts.supervise.child import Child
from scripts.supervise.child_log import ChildLog, RotatingFile, worth_showing
from scripts.supervise.env_file import apply_env_file
from scripts.supervise.probes import http_answers, process_lives
from scripts.supervise.services import registry
from scripts.supervise.settings import SupervisorSettings
from scripts.supervise.welcome import welcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
PATIENCE_S = 20.0


def until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    pytest.fail(f"did not happen in {PATIENCE_S} s: {what}")


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


class Running:
    """A real supervisor in its own process, its output in a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.events_file = folder / "events"
        self.output_file = folder / "output"
        self.services: list[dict[str, Any]] = []
        self.process: subprocess.Popen[bytes] | None = None
        self.stop_timeout_s = 2 * PATIENCE_S

    def service(self, name: str, *options: str, needs: tuple[str, ...] = (), one_shot: bool = False) -> None:
        port = None if one_shot else redis_server.free_port()
        command = [sys.executable, str(HERE / "fake_service.py"), name, str(self.events_file), *options]
        if port:
            command += ["--port", str(port)]
        self.services.append({"name": name, "command": command, "port": port, "needs": needs})

    def start(self) -> None:
        described = self.folder / "services.json"
        described.write_text(json.dumps(self.services))
        program = [sys.executable, str(HERE / "run_supervisor.py"), str(ROOT)]
        command = [*program, str(described), str(self.folder), str(self.stop_timeout_s)]
        with self.output_file.open("wb") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)

    def start_until_ready(self) -> None:
        self.start()
        until(lambda: "ALL READY" in self.output, "ALL READY")

    @property
    def output(self) -> str:
        return self.output_file.read_text()

    def events(self, kind: str) -> list[tuple[str, int]]:
        lines = self.events_file.read_text().splitlines() if self.events_file.exists() else []
        return [(name, int(pid)) for what, name, pid in map(str.split, lines) if what == kind]

    def send(self, number: int) -> None:
        assert self.process
        self.process.send_signal(number)

    def exit_code(self) -> int:
        assert self.process
        return self.process.wait(PATIENCE_S)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    supervisor = Running(tmp_path)
    yield supervisor
    if supervisor.process and supervisor.process.poll() is None:
        supervisor.process.kill()
        supervisor.process.wait()
    for _, pid in [*supervisor.events("start"), *supervisor.events("grandchild")]:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


def test_services_start_after_those_that_they_need_and_stop_in_reverse_order(running: Running) -> None:
    running.service("store", "--ready-after", "0.5")
    running.service("init", "--exit", "0", one_shot=True)
    running.service("front", needs=("store", "init"))
    running.start_until_ready()
    assert running.output.index("store  ready") < running.output.index("front  ready")
    assert [name for name, _ in running.events("start")][-1] == "front"
    running.send(signal.SIGTERM)
    assert running.exit_code() == 0
    assert [name for name, _ in running.events("stop")] == ["front", "store"]
    assert not any(alive(pid) for _, pid in running.events("start"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_other_ways_to_stop(running: Running, number: int) -> None:
    running.service("a")
    running.start_until_ready()
    running.send(number)
    assert running.exit_code() == 0
    assert not any(alive(pid) for _, pid in running.events("start"))


def test_a_child_that_is_killed_is_started_again_and_it_is_said(running: Running) -> None:
    running.service("a")
    running.service("b")
    running.start_until_ready()
    first = dict(running.events("start"))
    os.kill(first["a"], signal.SIGKILL)
    until(lambda: "a  ready again" in running.output, "a is back")
    assert "a  killed by SIGKILL; starts again in 0.1 s" in running.output
    assert [name for name, _ in running.events("start")].count("b") == 1
    os.kill(running.events("start")[-1][1], signal.SIGKILL)
    until(lambda: running.output.count("a  ready again") == 2, "a is back twice")
    assert "starts again in 0.2 s" in running.output


def test_a_service_that_was_ready_once_never_ends_the_supervisor(running: Running) -> None:
    running.service("a")
    running.start_until_ready()
    for life in range(4):  # more than the three tries of a service that was never ready
        os.kill(running.events("start")[-1][1], signal.SIGKILL)
        until(lambda life=life: len(running.events("start")) == life + 2, "the next life")
    until(lambda: running.output.count("ready again") >= 1, "ready again")
    assert running.process
    assert running.process.poll() is None


def test_a_service_that_cannot_start_ends_everything_with_one_line(running: Running) -> None:
    running.service("a")
    running.service("bad", "--exit", "7")
    running.start()
    assert running.exit_code() == 1
    assert "bad  | Traceback: the reason why" in running.output
    last = running.output.strip().splitlines()[-1]
    assert last.startswith("bad could not be started: ended with exit code 7 3 times in a row; its log is ")
    assert [name for name, _ in running.events("start")].count("bad") == 3
    assert not any(alive(pid) for _, pid in running.events("start"))


def test_wrong_configuration_is_not_tried_again(running: Running) -> None:
    running.service("bad", "--exit", "2")
    running.start()
    assert running.exit_code() == 1
    assert len(running.events("start")) == 1


def test_a_program_that_is_missing_is_named(running: Running) -> None:
    running.services.append({"name": "bad", "command": ["/nowhere/program"], "port": 1, "needs": ()})
    running.start()
    assert running.exit_code() == 1
    assert "/nowhere/program: No such file or directory" in running.output


def test_a_failed_one_shot_keeps_its_dependants_from_starting(running: Running) -> None:
    running.service("init", "--exit", "7", one_shot=True)
    running.service("front", needs=("init",))
    running.start()
    assert running.exit_code() == 1
    assert {name for name, _ in running.events("start")} == {"init"}


def test_a_child_that_ignores_sigterm_is_killed_after_the_deadline(running: Running) -> None:
    running.service("a", "--deaf")
    running.stop_timeout_s = 1.5
    running.start_until_ready()
    started = time.monotonic()
    running.send(signal.SIGTERM)
    assert running.exit_code() == 0
    assert time.monotonic() - started > 1.4
    assert not alive(running.events("start")[0][1])


def test_a_second_signal_kills_at_once(running: Running) -> None:
    running.service("a", "--deaf")
    running.start_until_ready()
    running.send(signal.SIGINT)
    until(lambda: "stopping" in running.output, "stopping")
    running.send(signal.SIGINT)
    assert running.exit_code() == 0  # within PATIENCE_S, which is half of the time to stop


def test_no_child_outlives_a_supervisor_killed_with_9(running: Running) -> None:
    running.service("a", "--deaf")
    running.service("b")
    running.start_until_ready()
    running.send(signal.SIGKILL)
    running.exit_code()
    until(lambda: not any(alive(pid) for _, pid in running.events("start")), "the children end")


def test_a_grandchild_ends_with_its_service(running: Running) -> None:
    running.service("a", "--grandchild")
    running.start_until_ready()
    grandchild = running.events("grandchild")[0][1]
    os.kill(running.events("start")[0][1], signal.SIGKILL)
    until(lambda: not alive(grandchild), "the grandchild ends")


def test_waiting_is_said_and_only_warnings_reach_the_console(running: Running) -> None:
    running.service("slow", "--ready-after", "0.8")
    running.start_until_ready()
    assert "waiting for slow" in running.output
    assert "slow  warning: a warning answer=42" in running.output
    assert "chatter" not in running.output
    assert "chatter" in (running.folder / "slow.log").read_text()
    assert "ALL READY" in (running.folder / "supervisor.log").read_text()


def test_a_reader_that_goes_away_does_not_stop_the_services(running: Running, tmp_path: Path) -> None:
    running.service("a")
    described = tmp_path / "services.json"
    described.write_text(json.dumps(running.services))
    command = [sys.executable, str(HERE / "run_supervisor.py"), str(ROOT), str(described), str(tmp_path), "10"]
    running.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert running.process.stdout
    running.process.stdout.close()
    log = tmp_path / "supervisor.log"
    until(lambda: log.exists() and "ALL READY" in log.read_text(), "ready without a reader")
    running.send(signal.SIGTERM)
    assert running.exit_code() == 0


def test_a_terminal_shows_a_moving_line_and_ctrl_c_stops(running: Running, tmp_path: Path) -> None:
    running.service("slow", "--ready-after", "1")
    described = tmp_path / "services.json"
    described.write_text(json.dumps(running.services))
    command = [sys.executable, str(HERE / "run_supervisor.py"), str(ROOT), str(described), str(tmp_path), "10"]
    on_a_terminal = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"
    with subprocess.Popen(
        [sys.executable, "-c", on_a_terminal, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as terminal:
        assert terminal.stdin
        assert terminal.stdout
        seen = b""
        while b"ALL READY" not in seen and (piece := terminal.stdout.read(4096)):
            seen += piece
        terminal.stdin.write(b"\x03")
        seen += terminal.stdout.read()
    assert terminal.returncode == 0, seen.decode()
    assert b"waiting for slow" in seen
    assert b"\x1b[2K" in seen  # erases the moving line
    assert b"slow  stopping" in seen
    assert not alive(running.events("start")[0][1])


def test_a_log_is_rotated_before_it_grows_past_its_limit(tmp_path: Path) -> None:
    file = RotatingFile(tmp_path / "a.log", limit=100)
    for _ in range(10):
        file.write(b"x" * 40)
    assert (tmp_path / "a.log").stat().st_size <= 100
    assert (tmp_path / "a.log.1").stat().st_size == 80
    assert len(list(tmp_path.iterdir())) == 2


def test_a_log_that_cannot_be_written_is_said_once_and_hurts_nobody() -> None:
    said: list[str] = []
    log = ChildLog(RotatingFile(Path("/dev/full")), said.append)
    log.feed(b"one\n")
    log.feed(b"two\n")
    assert said == ["its log /dev/full cannot be written: No space left on device"]
    assert list(log.tail) == ["one", "two"]


def test_a_line_without_end_is_not_held_for_ever(tmp_path: Path) -> None:
    log = ChildLog(RotatingFile(tmp_path / "a.log"), lambda _: None)
    log.feed(b"x" * (child_log.LINE_BYTES + 1))
    log.feed(b"end\n")
    assert [len(line) for line in log.tail] == [child_log.LINE_BYTES + 1, 3]


def test_the_same_warning_again_is_shown_once(tmp_path: Path) -> None:
    said: list[str] = []
    log = ChildLog(RotatingFile(tmp_path / "a.log"), said.append)
    for event in ("slow", "slow", "down", "slow"):
        log.feed(json.dumps({"level": "warning", "event": event}).encode() + b"\n")
    assert said == ["warning: slow", "warning: down", "warning: slow"]


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ('{"level": "error", "event": "down", "job": "j1", "exception": "long"}', "error: down job=j1"),
        ('{"level": "info", "event": "up"}', None),
        ("{not json", None),
        ("2026-11-21 [warning  ] slow", "2026-11-21 [warning  ] slow"),
        ("plain", None),
    ],
)
def test_what_is_worth_showing(line: str, shown: str | None) -> None:
    assert worth_showing(line) == shown


async def test_a_child_has_no_open_files_or_input_of_ours(tmp_path: Path) -> None:
    lock = checks.take_lock(tmp_path, "http://127.0.0.1:1")
    log = ChildLog(RotatingFile(tmp_path / "a.log"), lambda _: None)
    code = (
        "import os, sys; seen = sorted(os.listdir('/proc/self/fd'), key=int)[:-1];"
        "print(seen, repr(sys.stdin.read()), os.getsid(0) == os.getpid())"
    )
    child = Child([sys.executable, "-c", code], {}, log)
    assert await child.wait() == 0
    os.close(lock)
    assert list(log.tail) == ["['0', '1', '2'] '' True"]


def test_a_second_supervisor_is_refused_and_told_where_the_first_is(tmp_path: Path) -> None:
    first = checks.take_lock(tmp_path, "http://127.0.0.1:4711")
    with pytest.raises(
        checks.CheckError, match=rf"already running at http://127.0.0.1:4711 \(process {os.getpid()}\)"
    ):
        checks.take_lock(tmp_path, "http://127.0.0.1:2")
    os.close(first)
    os.close(checks.take_lock(tmp_path, "http://127.0.0.1:2"))


def test_a_taken_port_is_named_with_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "PORT_PATIENCE_S", 0.2)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(checks.CheckError, match=rf"IGEN_PORT: port {port} is taken"):
            checks.check_ports("127.0.0.1", [("IGEN_PORT", port)])
    checks.check_ports("127.0.0.1", [("IGEN_PORT", port)])


def test_a_port_that_is_freed_a_moment_later_is_good() -> None:
    other = socket.socket()
    other.bind(("127.0.0.1", 0))
    other.listen()
    port = other.getsockname()[1]
    holder = subprocess.Popen(["sleep", "0.5"], pass_fds=[other.fileno()])
    other.close()
    checks.check_ports("127.0.0.1", [("IGEN_PORT", port)])
    holder.wait()


def test_one_port_for_two_services_and_a_wrong_address() -> None:
    port = redis_server.free_port()
    with pytest.raises(checks.CheckError, match=r"IGEN_INFERENCE_PORT: port .* is IGEN_PORT's already"):
        checks.check_ports("127.0.0.1", [("IGEN_PORT", port), ("IGEN_INFERENCE_PORT", port)])
    with pytest.raises(checks.CheckError, match=r"IGEN_BIND: cannot listen on '192\.0\.2\.1'"):
        checks.check_ports("192.0.2.1", [("IGEN_PORT", port)])


def test_a_home_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(checks.CheckError, match=r"IGEN_HOME: cannot lock .*: Not a directory"):
        checks.take_lock(tmp_path / "file", "")
    with pytest.raises(checks.CheckError, match=r"IGEN_HOME: cannot write to .*: Not a directory"):
        checks.prepare_home(tmp_path / "file" / "home")
    usage = shutil.disk_usage(tmp_path)._replace(free=5_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(checks.CheckError, match=r"IGEN_HOME: the disk of .* is full: 5 MB free"):
        checks.prepare_home(tmp_path)


def settings_for(home: Path, **changes: Any) -> SupervisorSettings:
    return SupervisorSettings().model_copy(update={"home": home, **changes})


def test_the_inference_key_is_private_and_kept(tmp_path: Path) -> None:
    checks.ensure_inference_key(settings_for(tmp_path))
    key = tmp_path / "inference-key"
    assert key.stat().st_mode & 0o777 == 0o600
    first = key.read_text()
    assert len(first.strip()) >= 32
    checks.ensure_inference_key(settings_for(tmp_path))
    assert key.read_text() == first


async def test_a_process_lives_that_wrote_its_id(tmp_path: Path) -> None:
    check = process_lives(tmp_path / "worker.pid")
    assert not await check()
    (tmp_path / "worker.pid").write_text(f"{os.getpid()}\n")
    assert await check()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / "worker.pid").write_text(f"{ended.pid}\n")
    assert not await check()
    (tmp_path / "worker.pid").write_text("half a li")
    assert not await check()


def test_which_services_run(tmp_path: Path) -> None:
    redis = redis_server.RedisServer(("redis-server",), "unix:///r.sock?db=0", lambda: asyncio.sleep(0, True))
    names = [service.name for service in registry(settings_for(tmp_path), redis)]
    assert names == ["redis", "init", "inference", "gateway", "worker-1", "worker-2", "reconcile"]
    remote = settings_for(
        tmp_path, backend_url="https://api.runpod.ai/v2/abc", redis_url="redis://there/0", workers=1
    )
    services = registry(remote, None)
    assert [service.name for service in services] == ["init", "gateway", "worker-1", "reconcile"]
    assert services[2].command[1:4] == ("-m", "compositor", "worker")
    assert services[2].needs == ("init",)
    nobody = registry(settings_for(tmp_path, workers=0), redis)
    assert [service.name for service in nobody][-1] == "gateway"
    assert services[1].environment["IGEN_BACKEND_URL"] == "https://api.runpod.ai/v2/abc"
    assert services[1].environment["IGEN_REDIS_URL"] == "redis://there/0"
    assert settings_for(tmp_path, backend_url="http://localhost:8001/v2/igen").draws_here
    assert settings_for(tmp_path, endpoint="mine").local_backend_url == "http://127.0.0.1:8001/v2/mine"


@pytest.mark.parametrize(
    ("bind", "address"),
    [("127.0.0.1", "http://127.0.0.1:8000"), ("0.0.0.0", "http://127.0.0.1:8000"), ("::", "http://[::1]:8000")],
)
def test_the_address_is_one_that_this_machine_reaches(tmp_path: Path, bind: str, address: str) -> None:
    assert settings_for(tmp_path, bind=bind).address == address


def test_a_wrong_port_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IGEN_PORT", "many")
    with pytest.raises(SettingsError, match=r"IGEN_PORT: "):
        load_settings(SupervisorSettings)


def test_env_file_fills_in_what_is_not_set(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("# note\n\nexport IGEN_PORT=1\nIGEN_BIND='::1'\nIGEN_HOME=\"/x y\"\nnonsense\nIGEN_KEPT=file\n")
    environ = {"IGEN_KEPT": "mine"}
    apply_env_file(file, environ)
    assert environ == {"IGEN_KEPT": "mine", "IGEN_PORT": "1", "IGEN_BIND": "::1", "IGEN_HOME": "/x y"}
    apply_env_file(tmp_path / "absent", environ)


def test_the_printed_lines_work_in_a_shell_even_with_a_strange_home(tmp_path: Path) -> None:
    home = tmp_path / "it's a home"
    home.mkdir()
    (home / "first-key").write_text("igen_key\n")
    lines = [line for line in welcome(settings_for(home), 1.0) if line.startswith("curl")]
    fake = tmp_path / "curl"
    fake.write_text(
        '#!/bin/sh\nfor word; do echo "$word" >> "$SEEN"; done\n'
        'case "$*" in *api/generate*) echo \'{"status":"success","image_url":"http://h/p.png"}\';; esac\n'
    )
    fake.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SEEN": str(tmp_path / "seen")}
    for line in lines:
        subprocess.run(["sh", "-c", line], check=True, env=environment, capture_output=True)
    seen = (tmp_path / "seen").read_text().splitlines()
    assert seen.count("Authorization: Bearer igen_key") == 2
    assert seen.count('{"prompt": "A futuristic cityscape at sunset"}') == 2
    assert seen[-1] == "http://h/p.png"


def test_a_gateway_of_another_name_is_called_by_that_name(tmp_path: Path) -> None:
    (tmp_path / "first-key").touch()
    lines = [line for line in welcome(settings_for(tmp_path), 1.0, "igen.example.org") if "/api/generate/" in line]
    assert ["-H 'Host: igen.example.org' http://127.0.0.1:8000/" in line for line in lines] == [True, True]


async def test_a_probe_says_the_host_that_it_is_given() -> None:
    seen: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    assert await http_answers(f"http://127.0.0.1:{port}/healthz", "igen.example.org")()
    server.close()
    await server.wait_closed()
    assert b"GET /healthz HTTP/1.1\r\nHost: igen.example.org\r\n" in seen[0]
    assert not await http_answers(f"http://127.0.0.1:{port}/healthz")()


def test_the_demonstration_checkpoint_is_named_as_one(tmp_path: Path) -> None:
    assert "demonstration checkpoint" in "\n".join(welcome(settings_for(tmp_path), 1.0))
    other = "\n".join(welcome(settings_for(Path("/home"), checkpoint="sdxl"), 1.0))
    assert "demonstration" not in other
    assert "sdxl" in other


@pytest.fixture
def short_home() -> Iterator[Path]:
    """A path short enough for a unix socket, which pytest's own is not always."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="igen") as folder:
        yield Path(folder)


@pytest.mark.parametrize("long_path", [False, True])
async def test_a_real_redis_answers_keeps_what_it_was_told_and_is_private(short_home: Path, long_path: bool) -> None:
    import redis.asyncio as client

    home = short_home / ("x" * 120 if long_path else "a b")
    program = redis_server.find_redis()
    assert program
    for life in ("first", "second"):
        server = redis_server.prepare_redis(program, home)
        log = ChildLog(RotatingFile(short_home / "redis.log"), lambda _: None)
        child = Child(server.command, {}, log)
        async with asyncio.timeout(PATIENCE_S):
            while not await server.answers():
                await asyncio.sleep(0.02)
        assert server.url.startswith("redis://:" if long_path else "unix://")
        connection = client.from_url(server.url)
        if life == "first":
            await connection.set("kept", "yes")
            for name, value in {"appendonly": "yes", "maxmemory-policy": "noeviction", "save": ""}.items():
                assert (await connection.config_get(name))[name] == value
        else:
            assert await connection.get("kept") == b"yes"
        await connection.aclose()
        child.kill()
        await child.wait()
    assert (home / "redis" / "redis.conf").stat().st_mode & 0o777 == 0o600
