"""Settings: read once, bounded, and an error that names variables without showing values."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import Field, SecretStr, ValidationError

from models.settings import CommonSettings, SettingsError, load_settings


class DemandingSettings(CommonSettings):
    key: SecretStr = Field(min_length=20)
    port: int = Field(8000, ge=1, le=65535)
    names: list[int] = Field(default_factory=list)


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "LOG_LEVEL", "LOG_FORMAT", "BIND", "FETCH_ALLOW_HOSTS", "KEY", "PORT", "NAMES"):
        monkeypatch.delenv(f"IGEN_{name}", raising=False)


def test_defaults() -> None:
    settings = load_settings(CommonSettings)
    assert (settings.home, settings.bind) == (Path("var"), "127.0.0.1")
    assert (settings.log_level, settings.log_format) == ("info", "json")
    assert settings.fetch_allow_hosts == ""


def test_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IGEN_HOME", "/srv/igen")
    monkeypatch.setenv("IGEN_LOG_LEVEL", "debug")
    monkeypatch.setenv("IGEN_FETCH_ALLOW_HOSTS", "minio:9000")
    monkeypatch.setenv("IGEN_SOMETHING_ELSE", "of another process")
    settings = load_settings(CommonSettings)
    assert (settings.home, settings.log_level, settings.fetch_allow_hosts) == (
        Path("/srv/igen"),
        "debug",
        "minio:9000",
    )


def test_every_wrong_variable_is_named_and_no_value_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IGEN_LOG_LEVEL", "hunter2-level")
    monkeypatch.setenv("IGEN_KEY", "hunter2-key")
    monkeypatch.setenv("IGEN_PORT", "hunter2-port")
    with pytest.raises(SettingsError) as caught:
        load_settings(DemandingSettings)
    lines = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["IGEN_LOG_LEVEL", "IGEN_KEY", "IGEN_PORT"]
    assert "'debug', 'info', 'warning' or 'error'" in lines[0]
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__  # a printed traceback must not show the value either


def test_a_missing_variable() -> None:
    with pytest.raises(SettingsError, match=r"^IGEN_KEY: Field required$"):
        load_settings(DemandingSettings)


def test_a_list_that_is_not_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IGEN_KEY", "x" * 20)
    monkeypatch.setenv("IGEN_NAMES", "hunter2")
    with pytest.raises(SettingsError, match="names") as caught:
        load_settings(DemandingSettings)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("port", ["0", "65536", "-1", "8000.5", "", "1e3", "NaN"])
def test_bounds(monkeypatch: pytest.MonkeyPatch, port: str) -> None:
    monkeypatch.setenv("IGEN_KEY", "x" * 20)
    monkeypatch.setenv("IGEN_PORT", port)
    with pytest.raises(SettingsError, match=r"^IGEN_PORT: "):
        load_settings(DemandingSettings)


def test_settings_are_frozen_and_secrets_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IGEN_KEY", "hunter2" * 4)
    settings = load_settings(DemandingSettings)
    assert "hunter2" not in repr(settings)
    with pytest.raises(ValidationError, match="frozen"):
        settings.bind = "0.0.0.0"  # type: ignore[misc]


def test_importing_reads_no_environment() -> None:
    code = "import models.settings, models.fetch, models.store, models.wire, models.errors, models.logs"
    wrong = {"IGEN_LOG_LEVEL": "nonsense", "IGEN_STORE_URL": "nonsense", "IGEN_FETCH_ALLOW_HOSTS": ":::"}
    subprocess.run([sys.executable, "-c", code], env=os.environ | wrong, check=True)
