"""The pages of docs/deploy: their links, their commands and what they name are there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from scripts.env_example import variables

ROOT = Path(__file__).resolve().parents[2]
PAGES = {name: ROOT / "docs" / "deploy" / f"{name}.md" for name in (
    *("compose", "host", "kubernetes", "monitoring", "security", "upgrade"),
)}  # fmt: skip
SHELL = re.compile(r"^( *)```sh\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
COMMANDS_OF_COMPOSE = {"up", "down", "stop", "build", "run", "exec", "cp", "logs", "config"}


def commands(page: Path) -> list[str]:
    text = "\n".join(body for _, body in SHELL.findall(page.read_text(encoding="utf-8")))
    return [line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip()]


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[name].read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        file, _, heading = target.partition("#")
        found = (PAGES[name].parent / file).resolve() if file else PAGES[name]
        assert found.is_file(), target
        if heading:
            headings = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf-8").lower(), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", each).replace(" ", "-") for each in headings}, target


@pytest.mark.parametrize("name", PAGES)
def test_commands_are_shell(name: str, tmp_path: Path) -> None:
    for _, body in SHELL.findall(PAGES[name].read_text(encoding="utf-8")):
        script = tmp_path / "snippet"
        # what the reader fills in stands between angle brackets
        script.write_text(re.sub(r"<[a-z ]+>", "FILL", re.sub(r"(?m)^ {3}", "", body)))
        subprocess.run(["sh", "-n", script], check=True)


@pytest.mark.parametrize("name", PAGES)
def test_variables_and_files_that_are_named_exist(name: str) -> None:
    text = PAGES[name].read_text(encoding="utf-8")
    known = {variable.name for variable in variables()}
    assert set(re.findall(r"\bIGEN_[A-Z_]*[A-Z]\b", text)) <= known
    for path in re.findall(r"(?:\./|/opt/igen/|\s)(docs/deploy/[\w./-]*\w)", text):
        assert (ROOT / path).exists(), path
    for unit in re.findall(r"\b(igen-[a-z]+)@", text):
        assert (ROOT / "docs" / "deploy" / "systemd" / f"{unit}@.service").is_file(), unit


def test_compose_is_called_with_what_it_has() -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    profiles = {profile for service in compose["services"].values() for profile in service.get("profiles", [])}
    lines = [line for page in PAGES.values() for line in commands(page) if "docker compose " in line]
    assert len(lines) > 8
    for line in lines:
        assert set(re.findall(r"--profile (\w+)", line)) <= profiles
        words = re.sub(r"--profile \w+", "", line.partition("docker compose ")[2]).split()
        assert words[0] in COMMANDS_OF_COMPOSE, line
        named = set(re.findall(r"--scale (\w+)=", line))
        if words[0] in ("exec", "run"):
            named.add(next(word for word in words[1:] if not word.startswith("-")))
        named |= set(re.findall(r"(\w+):/srv", line))
        assert named <= set(compose["services"]), line


def test_the_host_page_enables_every_unit() -> None:
    (line,) = [each for each in commands(PAGES["host"]) if each.startswith("systemctl enable")]
    for unit in (ROOT / "docs" / "deploy" / "systemd").iterdir():
        assert unit.name.removesuffix(".service").removesuffix("@") in line, unit.name
