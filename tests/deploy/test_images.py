"""The Dockerfiles: linted, and held to the code that they pack. Their steps are executed by run_steps.py."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.dockerfile import Stage, expand, health_command, parse

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("models", "inference", "gateway", "compositor", "scripts")
OPERATORS = tuple(
    f"scripts.{name}" for name in ("backup", "doctor", "env_example", "frame_feed", "generate", "restore", "smoke")
)
"""Commands that are run in the gateway's image; benchmarks and training are not."""
LOADED_BY_NAME = {"gateway": {"cv2", "simplejpeg", "numpy", "psycopg", "aiosqlite", "httptools", "websockets"}}
FILES = ("Dockerfile.gateway", "Dockerfile.gpu")


def module_file(name: str) -> Path | None:
    path = ROOT / Path(*name.split("."))
    return next((each for each in (path.with_suffix(".py"), path / "__init__.py") if each.is_file()), None)


def third_party(starts: list[str]) -> set[str]:
    """Top names of all packages that these modules, and those of ours that they import, import anywhere."""
    found: set[str] = set()
    seen: set[Path] = set()
    waiting = list(starts)
    while waiting:
        name = waiting.pop()
        file = module_file(name)
        if file is None or file in seen:
            continue
        seen.add(file)
        waiting += [name.rpartition(".")[0]]
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            imported: list[str] = []
            if isinstance(node, ast.Import):
                imported = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for each in imported:
                top = each.partition(".")[0]
                if top in PACKAGES:
                    waiting.append(each)
                elif top not in sys.stdlib_module_names:
                    found.add(top)
    return found


def modules_of(package: str) -> list[str]:
    files = (ROOT / package).rglob("*.py")
    return [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files]


def installed(stages: list[Stage]) -> set[str]:
    """Distributions that `pip install` lines name."""
    names: set[str] = set()
    for stage in stages:
        for step in stage.instructions:
            for line in re.findall(r"pip install ([^&|;]+)", step.text if step.word == "RUN" else ""):
                for word in re.sub(r'\$\{EXTRA[^}]*\}|"', "", line).split():
                    if re.fullmatch(r"[a-z][\w.-]*(\[[\w,]+\])?(==\S+)?", word):
                        names.add(canonicalize_name(Requirement(word.partition("==")[0]).name))
    return names


@pytest.mark.parametrize("name", FILES)
def test_hadolint_finds_nothing(name: str) -> None:
    command = [str(Path(sys.executable).with_name("hadolint")), "--no-color", str(ROOT / name)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stdout) == (0, "")
    assert "hadolint ignore" not in (ROOT / name).read_text()


@pytest.mark.parametrize(
    ("name", "starts"),
    [
        (
            "Dockerfile.gateway",
            [*modules_of("gateway"), *modules_of("compositor"), *modules_of("models"), *OPERATORS],
        ),
        ("Dockerfile.gpu", modules_of("inference")),
    ],
)
def test_an_image_has_what_its_code_imports(name: str, starts: list[str]) -> None:
    distributions = packages_distributions()
    there = installed(parse(ROOT / name))
    wanted = third_party(starts) | LOADED_BY_NAME.get(name.rpartition(".")[2], set())
    # pydantic_core comes with pydantic; diffusers' part of the generator is not imported by scripts that only look
    wanted -= {"pydantic_core"} | ({"diffusers", "transformers"} if name == "Dockerfile.gateway" else set())
    missing = {each for each in wanted if not {canonicalize_name(d) for d in distributions.get(each, [each])} & there}
    assert missing == set()
    if name == "Dockerfile.gateway":
        assert not there & {"torch", "diffusers", "transformers", "xformers"}


def test_the_gateways_image_has_the_client_of_composes_postgresql() -> None:
    """pg_dump refuses a newer server; the image's Debian must have this version (13, trixie, has 17)."""
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    server = re.match(r"postgres:(\d+)-", compose["services"]["postgres"]["image"])
    assert server is not None
    last = parse(ROOT / "Dockerfile.gateway")[-1]
    (argument,) = [step.text for step in last.instructions if step.word == "ARG" and "POSTGRES" in step.text]
    assert argument == f"POSTGRES={server[1]}"
    assert last.base == "python:3.11-slim-trixie"
    assert server[1] == "17"


@pytest.mark.parametrize("name", FILES)
def test_an_image_runs_as_a_user_of_its_own_and_checks_its_health(name: str) -> None:
    last = parse(ROOT / name)[-1]
    user = last.last("USER")
    assert user is not None
    assert user.text == "10001:10001", "a number: Kubernetes' runAsNonRoot does not look names up"
    after = last.instructions[last.instructions.index(user) :]
    assert not {each.word for each in after} & {"RUN", "COPY", "ADD"}
    assert last.last("HEALTHCHECK") is not None
    command = last.last("CMD")
    assert command is not None
    assert command.words


@pytest.mark.parametrize(("status", "well"), [(200, True), (503, False), (None, False)])
def test_the_gateways_health_check_asks_it(status: int | None, well: bool) -> None:
    check = parse(ROOT / "Dockerfile.gateway")[-1].last("HEALTHCHECK")
    assert check is not None
    program, *arguments = health_command(check)
    assert program == "python"

    class Gateway(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if status and self.path == "/healthz" else 404)
            self.end_headers()

    with HTTPServer(("127.0.0.1", 0), Gateway) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        if status is not None:
            thread.start()
        port = server.server_port if status is not None else 1
        command = [sys.executable, *arguments]
        answer = subprocess.run(command, env={"IGEN_PORT": str(port)}, capture_output=True, check=False)
        if status is not None:
            server.shutdown()
            thread.join()
    assert (answer.returncode == 0) is well


def test_the_generators_image_holds_its_two_packages_and_weights_apart_from_the_code() -> None:
    stages = {stage.name: stage for stage in parse(ROOT / "Dockerfile.gpu")}
    assert not [each for each in stages["weights"].instructions if each.word in ("COPY", "ADD")]
    assert stages["weights"].base == "python"
    assert "inference" not in "".join(each.text for each in stages["packages"].instructions if each.word == "COPY")
    last = list(stages.values())[-1]
    copied = [each.words for each in last.instructions if each.word == "COPY"]
    assert copied == [
        ["--from=weights", "/weights", "inference/checkpoints"],
        ["models", "models"],
        ["inference", "inference"],
    ]


def test_nothing_but_what_is_copied_is_sent_to_a_build() -> None:
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        each.words[0]
        for name in FILES
        for stage in parse(ROOT / name)
        for each in stage.instructions
        if each.word == "COPY" and not each.text.startswith("--from")
    }
    assert let_in == copied
    assert "*" in (ROOT / ".dockerignore").read_text().splitlines()


@pytest.mark.parametrize(
    ("text", "wanted"), [("${CHECKPOINT:-tiny}", "tiny"), ("a/${REVISION}/$REVISION", "a/x/x"), ("$NONE", "")]
)
def test_variables_are_replaced_as_docker_does(text: str, wanted: str) -> None:
    assert expand(text, {"CHECKPOINT": "", "REVISION": "x"}) == wanted
