"""The topology of compose.yaml as real processes: PostgreSQL, Redis, S3, two gateways behind nginx, three workers, a
reconciler and a generator. Each can be killed with SIGKILL and started again, which keeps what it had on disk.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from redis import Redis
from redis.exceptions import RedisError

from scripts.supervise.redis_server import find_redis
from tests.support.postgres import WATCH, PostgresCluster, find_binaries
from tests.support.s3 import ACCESS_ID, ACCESS_SECRET, S3Server
from tests.support.stack import free_ports

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ROOT = Path(__file__).resolve().parents[2]
NGINX = ROOT / "docs" / "deploy" / "nginx"
KEY = "a-key-of-this-test"
START_S = 120
STOP_S = 30
TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def until(holds: Callable[[], Any], seconds: float, what: str) -> None:
    """Wait for something that happens elsewhere."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def answers(url: str) -> bool:
    """Whether a GET is answered with 200 or 204."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status in (200, 204)
    except (OSError, urllib.error.HTTPError):
        return False


class Program:
    """One process, its log in a file; tied to the test process, so that it cannot outlive it."""

    def __init__(
        self, name: str, folder: Path, command: list[str], environment: Mapping[str, str], ready: Callable[[], bool]
    ) -> None:
        self.name = name
        self._command = (["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []) + command
        self._environment = environment
        self._log = folder / f"{name}.log"
        self._ready = ready
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; `wait` says when it is ready."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, cwd=ROOT, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self) -> None:
        """Until it is ready."""
        until(self._is_ready, START_S, f"{self.name} is not ready: {self.log[-3000:]}")

    def _is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"{self.name} ended: {self.log[-3000:]}"
        return self._ready()

    def kill(self) -> None:
        """SIGKILL to it and its children, as a power cut would."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def ask_to_stop(self) -> None:
        """SIGTERM; `stop` waits."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()

    def stop(self) -> None:
        """Wait for the end, for a while."""
        if self.process is None:
            return
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")


class TcpRedis:
    """A Redis on a loopback port, with the settings of compose.yaml."""

    def __init__(self, folder: Path, port: int) -> None:
        self.url = f"redis://127.0.0.1:{port}/0"
        program = find_redis()
        assert program, "there is no redis-server"
        keep = ("--appendonly", "yes", "--appendfsync", "everysec", "--maxmemory-policy", "noeviction", "--save", "")
        command = [program, "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder), *keep]
        self.program = Program("redis", folder, command, os.environ, self._answers)

    def __enter__(self) -> Self:
        self.program.start()
        self.program.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self.program.kill()

    def _answers(self) -> bool:
        try:
            with Redis.from_url(self.url) as client:
                return bool(client.ping())
        except RedisError:
            return False


class MortalPostgres(PostgresCluster):
    """A PostgreSQL of one's own that can be killed."""

    def kill(self) -> None:
        """SIGKILL to the postmaster; its children see that and end."""
        server = self._server()
        os.kill(server, signal.SIGKILL)
        until(lambda: not Path(f"/proc/{server}").exists(), STOP_S, "PostgreSQL lives")

    def start(self) -> None:
        """Start it on what it has on disk, once the last process of the killed one has ended."""
        Path(self.data, "postmaster.pid").unlink()
        options = f"-k {self.folder} -c listen_addresses='' -c max_connections=200"
        command = [
            str(self.binaries / "pg_ctl"),
            "-D",
            self.data,
            "-o",
            options,
            "-l",
            f"{self.folder}/log",
            "-w",
            "start",
        ]
        quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "user": self.user}
        until(
            lambda: subprocess.run(command, check=False, cwd=self.folder, **quiet).returncode == 0,
            START_S,
            "PostgreSQL does not start again",
        )
        self._watcher.kill()
        self._watcher.wait()
        assert self._watcher.stdin is not None
        self._watcher.stdin.close()
        self._watcher = subprocess.Popen(
            ["sh", "-c", WATCH, "sh", str(self._server()), str(self.folder)],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _server(self) -> int:
        return int(Path(self.data, "postmaster.pid").read_text().split()[0])


class MortalS3(S3Server):
    """An S3 server that starts again on what it has on disk."""

    def start_again(self) -> None:
        """After `kill`."""
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(self._folder / "data"), stdout=log, stderr=subprocess.STDOUT
            )
        assert self._wait(), (self._folder / "log").read_text()[-2000:]


class Topology:
    """All of it. `url` is nginx's; `gateways` are the addresses behind it."""

    def __init__(self, folder: Path, shop_host: str) -> None:
        self.folder = folder
        ports = free_ports(6)
        self.url = f"http://127.0.0.1:{ports[0]}"
        self.gateways = [f"http://127.0.0.1:{port}" for port in ports[1:3]]
        self.inference_url = f"http://127.0.0.1:{ports[3]}"
        self.postgres = MortalPostgres(find_binaries())
        (folder / "s3").mkdir()
        self.s3 = MortalS3(folder / "s3")
        (folder / "redis").mkdir()
        self.redis = TcpRedis(folder / "redis", ports[4])
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("IGEN_", "AWS_"))}
        self._environment = {
            **kept,
            "OMP_NUM_THREADS": "1",
            "IGEN_DATABASE_URL": self.postgres.create_database(),
            "IGEN_REDIS_URL": self.redis.url,
            "IGEN_PUBLIC_URL": self.url,
            "IGEN_BACKEND_URL": f"{self.inference_url}/v2/igen",
            "IGEN_BACKEND_KEY": KEY,
            "IGEN_INFERENCE_KEY": KEY,
            "IGEN_INFERENCE_PORT": str(ports[3]),
            # products' pictures come from the shop, and for scripts/smoke from the gateways' own public address
            "IGEN_FETCH_ALLOW_HOSTS": f"{shop_host},127.0.0.1:{ports[0]}",
            "IGEN_CHUNK_SIZE": "10",
            "IGEN_CHUNK_LEASE_SECONDS": "3",
            "IGEN_LEASE_SECONDS": "3",
            "AWS_ACCESS_KEY_ID": ACCESS_ID,
            "AWS_SECRET_ACCESS_KEY": ACCESS_SECRET,
        }
        self.programs: dict[str, Program] = {}
        self._add("inference", [sys.executable, "-m", "inference"], lambda: _pings(self.inference_url))
        for number, url in enumerate(self.gateways):
            self._add_gateway(f"gateway-{number}", url)
        for name in ("worker-0", "worker-1", "worker-2", "reconcile"):
            ready = folder / f"{name}.ready"
            command = [sys.executable, "-m", "compositor", name.partition("-")[0], "--ready", str(ready)]
            self._add(name, command, ready.exists)
        self._add_nginx(ports[0], ports[5])

    def _add(self, name: str, command: list[str], ready: Callable[[], bool], **variables: str) -> None:
        # each has a home of its own, as containers have
        environment = {**self._environment, "IGEN_HOME": str(self.folder / f"home-{name}"), **variables}
        self.programs[name] = Program(name, self.folder, command, environment, ready)

    def _add_gateway(self, name: str, url: str) -> None:
        command = [sys.executable, "-m", "gateway", "serve"]
        self._add(name, command, lambda: answers(f"{url}/healthz"), IGEN_PORT=url.rpartition(":")[2])

    def _add_nginx(self, port: int, health_port: int) -> None:
        """The product's own configuration; what differs between machines is in the two files that it includes."""
        program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
        assert program, "nginx is not installed: sudo apt-get install -y nginx-light"
        folder = self.folder / "nginx"
        folder.mkdir()
        (folder / "nginx.conf").write_text((NGINX / "nginx.conf").read_text())
        text = (NGINX / "igen.conf").read_text()
        for ours, here in (
            ("127.0.0.1:8081", f"127.0.0.1:{health_port}"),
            ("/var/log/nginx/access.log", "/dev/stdout"),
        ):
            assert ours in text
            text = text.replace(ours, here)
        (folder / "igen.conf").write_text(text)
        (folder / "listen.conf").write_text(f"listen 127.0.0.1:{port};\n")
        upstream = (NGINX / "upstream-host.conf").read_text()
        for at, url in zip(("127.0.0.1:8000", "127.0.0.1:8002"), self.gateways, strict=True):
            assert at in upstream
            upstream = upstream.replace(at, url.removeprefix("http://"))
        places = "".join(f"{each}_temp_path {folder}/{each};\n" for each in TEMPORARY)
        (folder / "upstream.conf").write_text(places + upstream)
        command = [
            program,
            "-p",
            str(folder),
            "-c",
            str(folder / "nginx.conf"),
            "-g",
            f"daemon off; pid {folder}/pid;",
        ]
        self._add("nginx", command, lambda: answers(f"http://127.0.0.1:{health_port}/nginx-health"))

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        self.s3.__enter__()
        self.redis.__enter__()
        store = self.s3.store_url()
        for program in self.programs.values():
            program._environment = {**program._environment, "IGEN_STORE_URL": store}
        init = self.programs["gateway-0"]
        subprocess.run(
            [sys.executable, "-m", "gateway", "init"],
            cwd=ROOT,
            env=init._environment,
            check=True,
            capture_output=True,
        )
        for program in self.programs.values():
            program.start()
        for program in self.programs.values():
            program.wait()

    def __exit__(self, *_: object) -> None:
        for program in self.programs.values():
            program.ask_to_stop()
        for program in self.programs.values():
            program.stop()
        self.redis.__exit__()
        self.s3.kill()
        self.postgres.stop()

    @property
    def key(self) -> str:
        return (self.folder / "home-gateway-0" / "first-key").read_text().strip()

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def restart(self, name: str) -> None:
        """Kill a part and start it again, as its supervisor would."""
        if name == "postgres":
            self.postgres.kill()
            self.postgres.start()
        elif name == "s3":
            self.s3.kill()
            self.s3.start_again()
        else:
            program = self.redis.program if name == "redis" else self.programs[name]
            program.kill()
            (self.folder / f"{name}.ready").unlink(missing_ok=True)  # the killed one's word
            program.start()
            program.wait()

    def logs(self) -> str:
        """The end of every log, for a failed test's message."""
        return "\n".join(f"== {program.name}\n{program.log[-1500:]}" for program in self.programs.values())


def _pings(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/ping", timeout=5) as answer:
            return int(answer.status) == 200
    except OSError:
        return False
