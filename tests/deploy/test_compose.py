"""compose.yaml: the compose specification's schema, and what our own page promises of it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.env_example import variables

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "compose.yaml"
SECRETS = ("POSTGRES_PASSWORD", "REDIS_PASSWORD", "IGEN_INFERENCE_KEY")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return loaded


def test_it_is_valid_under_the_compose_schema() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(FILE)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout


def config(*arguments: str, **secrets: str) -> subprocess.CompletedProcess[str]:
    """Docker Compose's own reading of the file, which needs no Docker; `.env` and our environment are left out."""
    program = str(Path(sys.executable).with_name("docker-compose"))
    command = [program, "--env-file", "/dev/null", "--file", str(FILE), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={"HOME": "/nonexistent", **secrets}
    )


def test_compose_itself_takes_it_and_demands_every_secret() -> None:
    secrets = dict.fromkeys(SECRETS, "abc")
    answer = config("--profile", "*", "config", **secrets)
    assert answer.returncode == 0, answer.stderr
    read = yaml.safe_load(answer.stdout)
    assert read["services"]["gateway"]["environment"]["IGEN_BACKEND_KEY"] == "abc"
    assert read["services"]["inference-cpu"]["networks"]["outside"]["aliases"] == ["inference"]
    assert "devices" not in str(read["services"]["inference-cpu"]["deploy"])
    for name in SECRETS:
        without = config("config", **{each: "abc" for each in SECRETS if each != name})
        assert without.returncode != 0
        assert name in without.stderr


def test_every_service_is_bounded_logged_and_watched(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        limits = service["deploy"]["resources"]["limits"]
        assert {"cpus", "memory"} <= set(limits), name
        assert service["logging"]["options"]["max-size"], name
        assert service["restart"] == ("no" if name == "migrate" else "unless-stopped"), name
        from_image = name in ("gateway", "gateway-dev", "inference", "inference-cpu")
        assert "healthcheck" in service or from_image, name


def test_our_own_containers_have_no_rights(compose: dict[str, Any]) -> None:
    ours = [each for each in compose["services"].values() if each["image"].startswith("igen-")]
    assert len(ours) == 7
    for service in ours:
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_only_nginx_and_this_machine_reach_a_port(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        for port in service.get("ports", []):
            assert name == "nginx" or port.startswith("127.0.0.1:"), f"{name} is open on {port}"
    assert compose["networks"]["data"]["internal"] is True
    for name in ("postgres", "redis", "s3"):
        assert compose["services"][name]["networks"] == ["data"]


def test_what_the_profiles_start(compose: dict[str, Any]) -> None:
    plain = {name for name, service in compose["services"].items() if "profiles" not in service}
    assert plain == {"migrate", "gateway", "worker", "reconciler", "postgres", "redis"}
    assert compose["services"]["worker"]["deploy"]["replicas"] == 2
    profiles = {profile for service in compose["services"].values() for profile in service.get("profiles", [])}
    assert profiles == {"gpu", "cpu", "nginx", "s3", "dev"}


def test_redis_keeps_what_it_has(compose: dict[str, Any]) -> None:
    command = compose["services"]["redis"]["command"][-1]
    for wanted in ("--appendonly yes", "--maxmemory-policy noeviction", '--requirepass "$$REDIS_PASSWORD"'):
        assert wanted in command


def test_no_secret_has_a_default() -> None:
    text = FILE.read_text(encoding="utf-8")
    for name in SECRETS:
        uses = re.findall(rf"\$\{{{name}(:[?-])?", text)
        assert uses
        assert set(uses) == {":?"}, name


def test_every_variable_of_ours_is_one_that_the_programs_read() -> None:
    known = {variable.name for variable in variables()}
    spoken = set(re.findall(r"\bIGEN_[A-Z_]*[A-Z]\b", FILE.read_text(encoding="utf-8")))
    assert spoken <= known


def test_mounted_files_exist(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            source = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", volume).partition(":")[0]
            if source.startswith("."):
                assert (ROOT / source).exists(), source
            else:
                assert source in compose["volumes"], source
