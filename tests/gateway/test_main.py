"""The commands, as an operator runs them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.keys import KEY

ROOT = Path(__file__).parents[2]


class Command:
    def __init__(self, home: Path) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("IGEN_")}
        self.environment = {**kept, "IGEN_HOME": str(home), "IGEN_LOG_FORMAT": "json", "COLUMNS": "200"}

    def __call__(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "gateway", *arguments],
            env={**self.environment, **environment},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "home"


@pytest.fixture
def gateway(home: Path) -> Command:
    return Command(home)


def test_init_makes_a_private_key_once_and_again_when_it_is_lost(gateway: Command, home: Path) -> None:
    assert gateway("init").returncode == 0
    path = home / "first-key"
    first = path.read_text().strip()
    assert KEY.fullmatch(first)
    assert path.stat().st_mode & 0o777 == 0o600
    assert (home / "igen.db").stat().st_mode & 0o077 == 0

    again = gateway("init")
    assert path.read_text().strip() == first
    assert first not in again.stdout + again.stderr

    path.unlink()
    gateway("init")
    second = path.read_text().strip()
    assert KEY.fullmatch(second)
    assert second != first

    path.write_text("damaged")
    path.chmod(0o644)
    gateway("init")
    assert KEY.fullmatch(path.read_text().strip())
    assert path.stat().st_mode & 0o777 == 0o600


def test_keys_are_made_shown_and_revoked(gateway: Command) -> None:
    gateway("init")
    made = gateway("keys", "create", "--user", "ada", "--name", "laptop", "--days", "30")
    key = made.stdout.strip()
    assert KEY.fullmatch(key)
    key_id = key.split("_")[1]
    listed = gateway("keys", "list").stdout
    assert key_id in listed
    assert "ada" in listed
    assert key.split("_")[2] not in listed
    assert gateway("keys", "revoke", key_id).returncode == 0
    assert gateway("keys", "revoke", key_id).returncode == 1


def test_serve_refuses_an_unmigrated_database_with_the_command_that_helps(gateway: Command) -> None:
    done = gateway("serve")
    assert done.returncode == 2
    assert done.stderr.strip() == "the database has no tables yet: run `python -m gateway migrate`"


def test_a_taken_port_is_one_clear_line(gateway: Command) -> None:
    assert gateway("migrate").returncode == 0
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = gateway(IGEN_PORT=str(port))
    assert done.returncode == 2
    assert done.stderr.strip() == f"IGEN_BIND, IGEN_PORT: cannot listen on 127.0.0.1:{port}: Address already in use"


@pytest.mark.parametrize(
    ("name", "value"),
    [("IGEN_PORT", "no"), ("IGEN_STORE_URL", "ftp://x"), ("IGEN_DATABASE_URL", "hunter2")],
)
def test_a_wrong_setting_is_one_clear_line(gateway: Command, name: str, value: str) -> None:
    done = gateway("serve", **{name: value})
    assert done.returncode == 2
    assert done.stderr.startswith(f"{name}: ")
    assert "hunter2" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_database_that_cannot_be_written_is_one_clear_line(gateway: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = gateway("migrate", IGEN_DATABASE_URL=f"sqlite:///{tmp_path}/file/igen.db")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
