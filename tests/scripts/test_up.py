from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from scripts.supervise import install, pins, prerequisites

ROOT = Path(__file__).resolve().parents[2]
OTHER_PYTHON = Path(__file__).with_name("other_python.py")
BASE_PYTHON = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
TOOLS = ("sh", "false", "dirname", "id", "env", "sed", "cat", "sleep", "uname")


class Machine:
    """A checkout and a PATH that holds only what a test puts there."""

    def __init__(self, folder: Path) -> None:
        self.checkout = folder / "check out"
        self.bin = folder / "bin"
        self.environment = {"HOME": str(folder), "PATH": str(self.bin), "PIP_CONFIG_FILE": os.devnull}
        self.bin.mkdir(parents=True)
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found
            (self.bin / tool).symlink_to(found)
        shutil.copytree(ROOT / "scripts" / "supervise", self.checkout / "scripts" / "supervise")
        shutil.copy(ROOT / "scripts" / "up", self.checkout / "scripts" / "up")
        shutil.copy(ROOT / "constraints.txt", self.checkout)
        shutil.copy(ROOT / "pyproject.toml", self.checkout)
        (self.checkout / "scripts" / "__init__.py").touch()

    def program(self, name: str, text: str) -> None:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def python(self, name: str, version: str, venv: str = "with") -> None:
        self.program(name, f'exec "{BASE_PYTHON}" "{OTHER_PYTHON}" {version} {venv} "$@"')

    def up(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.checkout / "scripts" / "up", *arguments],
            env=self.environment,
            cwd=cwd or self.checkout,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def refusal(machine: Machine) -> str:
    """The one line of a start that ends with exit code 2."""
    answer = machine.up()
    assert answer.returncode == 2, answer.stderr
    assert answer.stdout == ""
    (line,) = answer.stderr.splitlines()
    assert not (machine.checkout / ".venv").exists()
    return line


def test_no_python_at_all(machine: Machine) -> None:
    line = refusal(machine)
    assert "needs Python 3.11 or newer, found no python3" in line
    assert line.endswith("apt-get install -y python3.11 python3.11-venv")


def test_a_python_that_is_too_old(machine: Machine) -> None:
    machine.python("python3", "3.9.2")
    assert "needs Python 3.11 or newer, found Python 3.9.2" in refusal(machine)


@pytest.mark.parametrize(
    ("name", "version", "package"),
    [("python3", "3.12.3", "python3-venv"), ("python3.11", "3.11.2", "python3.11-venv")],
)
def test_a_python_without_venv(machine: Machine, name: str, version: str, package: str) -> None:
    machine.program("redis-server", "exit 0")
    machine.python("python3", "3.10.1")
    machine.python(name, version, "without")
    line = refusal(machine)
    assert f"Python {version} needs {package} here." in line
    assert line.endswith(f"apt-get update && {'' if os.geteuid() == 0 else 'sudo '}apt-get install -y {package}")


def test_another_python_without_a_redis(machine: Machine) -> None:
    machine.python("python3", "3.13.5")
    assert refusal(machine).endswith("apt-get install -y redis-server")


def test_everything_that_is_missing_stands_in_one_line(machine: Machine) -> None:
    machine.python("python3", "3.13.5", "without")
    assert refusal(machine).endswith("apt-get install -y python3-venv redis-server")


def test_a_user_who_is_not_root_is_told_to_use_sudo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert prerequisites.apt_line(["a", "b"]) == "sudo apt-get update && sudo apt-get install -y a b"


@pytest.mark.parametrize("way", ["redis-server", "valkey-server", "IGEN_REDIS_URL"])
def test_another_python_goes_on_where_there_is_a_redis(machine: Machine, way: str) -> None:
    machine.python("python3", "3.13.5")
    if way.startswith("IGEN"):
        machine.environment[way] = "redis://127.0.0.1/0"
    else:
        machine.program(way, "exit 0")
    answer = machine.up("--install-only")
    assert answer.returncode == 2
    assert answer.stdout.startswith("[1/3] .venv with Python 3.13.5")
    assert (
        answer.stderr == "scripts/up: making .venv failed (exit code 1, the reason is above); run scripts/up again\n"
    )


def test_a_python_with_venv_is_taken_before_one_without(machine: Machine) -> None:
    machine.python("python3.11", "3.11.1", "without")
    machine.python("python3.12", "3.12.9", "with")
    assert ".venv with Python 3.12.9" in machine.up("--install-only").stdout


def test_a_full_disk_is_said_before_the_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=300_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(prerequisites.SetupError, match=r"has 0\.3 GB free; the installation needs 2 GB or more"):
        prerequisites.refuse_impossible(tmp_path, venv_works=True, torch_installed=False)
    prerequisites.refuse_impossible(tmp_path, venv_works=True, torch_installed=True)


def test_a_disk_that_fills_up_is_named_as_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=3_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(prerequisites.SetupError, match=r"installing failed: the disk of .* is full \(3 MB free\)"):
        install._run(["false"], "installing")


def wheel(folder: Path, name: str, version: str, body: str = "") -> None:
    """A package of one module, as an index has it."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}/__init__.py": f"VERSION = {version!r}\n{body}",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = []
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            rows.append(f"{path},sha256={digest},{len(text.encode())}\n")
            archive.writestr(path, text)
        archive.writestr(f"{info}/RECORD", "".join([*rows, f"{info}/RECORD,,\n"]))


@pytest.fixture
def small(machine: Machine, tmp_path: Path) -> Machine:
    """A checkout with two small dependencies and a supervisor that only says that it ran; no network."""
    packages = tmp_path / "packages"
    packages.mkdir()
    wheel(packages, "torch", "2.13.0")
    wheel(packages, "lamp", "1.0")
    wheel(packages, "lamp", "2.0")
    wheel(packages, "tool", "1.0")
    machine.environment |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(packages)}
    (machine.bin / "python3").symlink_to(BASE_PYTHON)
    machine.program("redis-server", "exit 0")
    (machine.checkout / "pyproject.toml").write_text(
        '[project]\ndependencies = ["torch>=2", "lamp"]\noptional-dependencies = {dev = ["tool"]}\n'
    )
    (machine.checkout / "constraints.txt").write_text("# pins\nlamp==1.0\ntool==1.0\ntorch==2.13.0\n")
    (machine.checkout / "scripts" / "supervise" / "__main__.py").write_text(
        "import lamp, os, sys, torch\nprint('RUNS', lamp.VERSION, torch.VERSION, os.environ.get('IGEN_HOME'))\n"
    )
    return machine


@pytest.mark.slow
def test_installation_second_start_new_pins_and_recovery(small: Machine, tmp_path: Path) -> None:
    first = small.up()
    assert first.returncode == 0, first.stderr
    assert "[2/3] torch==2.13.0 from the default package index" in first.stdout
    assert first.stdout.splitlines()[-1] == "RUNS 1.0 2.13.0 None"

    # the second start installs nothing and goes straight on
    small.environment |= {"IGEN_HOME": "my state", "PIP_FIND_LINKS": "/nowhere"}
    started = time.monotonic()
    second = small.up(cwd=tmp_path)
    assert second.stdout == f"RUNS 1.0 2.13.0 {tmp_path}/my state\n"
    assert time.monotonic() - started < 5

    # an extra joins, and stays known at the next plain start
    small.environment["PIP_FIND_LINKS"] = str(tmp_path / "packages")
    assert small.up("--install-only", "--extra", "dev").returncode == 0
    assert small.up("--install-only").stdout == ""
    stamp = json.loads((small.checkout / ".venv" / "igen-installed.json").read_text())
    assert stamp["extras"] == ["dev"]

    # a pin that moves is followed
    constraints = small.checkout / "constraints.txt"
    constraints.write_text(constraints.read_text().replace("lamp==1.0", "lamp==2.0"))
    assert small.up().stdout.splitlines()[-1].startswith("RUNS 2.0")

    # an installation that was cut off in the middle of a package is mended
    (small.checkout / ".venv" / "igen-installed.json").unlink()
    site = next((small.checkout / ".venv" / "lib").glob("python*/site-packages"))
    (site / "lamp" / "__init__.py").write_text("VERS")
    (site / "torch" / "__init__.py").unlink()
    (site / "tool-1.0.dist-info" / "RECORD").unlink()
    mended = small.up()
    assert "lamp-2.0.dist-info is half installed, once more" in mended.stdout
    assert mended.stdout.splitlines()[-1].startswith("RUNS 2.0 2.13.0")

    # a virtual environment whose making was cut off is made again
    (small.checkout / ".venv" / "igen-installed.json").unlink()
    shutil.rmtree(site / "pip")
    assert small.up().stdout.splitlines()[-1].startswith("RUNS 2.0 2.13.0")


@pytest.mark.slow
def test_torch_comes_from_the_named_index_and_changes_with_it(small: Machine, tmp_path: Path) -> None:
    assert small.up("--install-only").returncode == 0
    index = tmp_path / "index" / "torch"
    index.mkdir(parents=True)
    wheel(index, "torch", "2.13.0", body="BUILD = 'other'\n")
    name = "torch-2.13.0-py3-none-any.whl"
    (index / "index.html").write_text(f'<a href="{name}">{name}</a>')
    small.environment |= {"IGEN_TORCH_INDEX": index.parent.as_uri(), "PIP_NO_INDEX": "0"}
    other = small.up("--install-only")
    assert other.returncode == 0, other.stderr
    python = small.checkout / ".venv" / "bin" / "python"
    build = subprocess.run(
        [python, "-c", "import torch; print(torch.BUILD)"], capture_output=True, text=True, check=True
    )
    assert build.stdout == "other\n"
    # once chosen, the build stays without the variable
    del small.environment["IGEN_TORCH_INDEX"]
    assert small.up("--install-only").stdout == ""


@pytest.mark.slow
def test_an_extra_that_names_a_version_wins_over_the_pins_and_stays(small: Machine, tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    wheel(packages, "torch", "2.10.0")
    wheel(packages, "lens", "0.1")
    project = small.checkout / "pyproject.toml"
    project.write_text(project.read_text().replace("= {dev", '= {cuda = ["torch==2.10.0", "lens==0.1"], dev'))
    pinned = small.checkout / "constraints.txt"
    pinned.write_text(pinned.read_text() + "lens==0.1\n")

    plain = small.up()
    assert "[2/3] torch==2.13.0 from the default package index" in plain.stdout
    assert plain.stdout.splitlines()[-1].startswith("RUNS 1.0 2.13.0")
    assert not (small.checkout / ".venv" / "igen-constraints.txt").exists()

    with_extra = small.up("--extra", "cuda")
    assert with_extra.returncode == 0, with_extra.stderr
    assert "[2/3] torch==2.10.0 from the default package index" in with_extra.stdout
    assert with_extra.stdout.splitlines()[-1].startswith("RUNS 1.0 2.10.0")
    # the choice is remembered, also when another extra joins
    assert small.up().stdout.splitlines()[-1].startswith("RUNS 1.0 2.10.0")
    assert small.up("--install-only", "--extra", "dev").returncode == 0
    assert small.up().stdout.splitlines()[-1].startswith("RUNS 1.0 2.10.0")


def test_an_unknown_extra_is_told_before_anything_is_installed(small: Machine) -> None:
    answer = small.up("--extra", "cudda")
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr == "scripts/up: no such extra: cudda (there are dev)\n"
    assert not (small.checkout / ".venv").exists()


def test_the_extra_and_the_image_have_the_same_torch_and_xformers() -> None:
    dockerfile = (ROOT / "Dockerfile.gpu").read_text(encoding="utf-8")
    own = pins.own_versions(["cuda"])
    assert set(own) == {"torch", "xformers"}
    for name, version in own.items():
        assert f"ARG {name.upper()}={version}\n" in dockerfile
    assert pins.pinned("torch") != own["torch"], "with equal versions the extra needs none of its own"


@pytest.mark.slow
def test_two_installations_take_turns(small: Machine) -> None:
    command = [small.checkout / "scripts" / "up", "--install-only"]
    both = [subprocess.Popen(command, env=small.environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted("[1/3]" in output for output in outputs) == [False, True]


def test_an_interrupted_installation_stops_at_once_and_leaves_no_pip(small: Machine) -> None:
    (small.checkout / "scripts" / "supervise" / "install.py").write_text(
        (ROOT / "scripts/supervise/install.py")
        .read_text()
        .replace('[base, "-m", "venv", "--clear", str(VENV)]', '["sleep", "61"]')
    )
    process = subprocess.Popen(
        [small.checkout / "scripts" / "up"],
        env=small.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline().startswith("[1/3]")
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 130
    assert errors == "scripts/up: stopped; the next start takes the installation up from here\n"
    running = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert b"sleep\x0061\x00" not in running
