from __future__ import annotations

from pathlib import Path

import pytest

from gateway.settings import BackendKind, GatewaySettings
from models.settings import SettingsError, load_settings


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("IGEN_"):
            monkeypatch.delenv(name)


def load() -> GatewaySettings:
    return load_settings(GatewaySettings)


def test_defaults() -> None:
    settings = load()
    assert (settings.port, settings.public_base) == (8000, "http://127.0.0.1:8000")
    assert settings.backend_url == "http://127.0.0.1:8001/v2/igen"
    assert settings.backend_rules is BackendKind.SELFHOSTED
    assert settings.database == "sqlite:///var/igen.db"
    assert settings.store == f"file://{Path('var/store').resolve()}"
    assert settings.hosts == {"localhost", "127.0.0.1", "[::1]"}
    assert settings.backend_secret == ""


def test_every_field_is_described() -> None:
    assert [name for name, field in GatewaySettings.model_fields.items() if not field.description] == []


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("IGEN_HOME", str(tmp_path))
    monkeypatch.setenv("IGEN_PORT", "9000")
    monkeypatch.setenv("IGEN_PUBLIC_URL", "https://pictures.example/igen/")
    monkeypatch.setenv("IGEN_BACKEND_URL", "https://api.runpod.ai/v2/abc/")
    settings = load()
    assert settings.public_base == "https://pictures.example/igen"
    assert settings.hosts == {"localhost", "127.0.0.1", "[::1]", "pictures.example"}
    assert settings.backend_url == "https://api.runpod.ai/v2/abc"
    assert settings.backend_rules is BackendKind.RUNPOD


def test_hosts_named_take_the_place_of_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IGEN_ALLOWED_HOSTS", "A.example, *.b.example")
    monkeypatch.setenv("IGEN_PUBLIC_URL", "http://[::1]:8000")
    assert load().hosts == {"a.example", "*.b.example", "[::1]"}


@pytest.mark.parametrize(
    ("url", "kind", "rules"),
    [
        ("https://api.runpod.ai/v2/x", "auto", BackendKind.RUNPOD),
        ("https://x.api.runpod.ai/v2/igen", "auto", BackendKind.SELFHOSTED),
        ("https://runpod.ai.evil.example/v2/x", "auto", BackendKind.SELFHOSTED),
        ("https://notrunpod.ai/v2/x", "auto", BackendKind.SELFHOSTED),
        ("https://api.runpod.ai/v2/x", "selfhosted", BackendKind.SELFHOSTED),
        ("http://127.0.0.1:8001/v2/igen", "runpod", BackendKind.RUNPOD),
    ],
)
def test_the_rules_of_a_backend(monkeypatch: pytest.MonkeyPatch, url: str, kind: str, rules: BackendKind) -> None:
    monkeypatch.setenv("IGEN_BACKEND_URL", url)
    monkeypatch.setenv("IGEN_BACKEND_KIND", kind)
    assert load().backend_rules is rules


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("IGEN_PORT", "no"),
        ("IGEN_PORT", "70000"),
        ("IGEN_BACKEND_URL", "127.0.0.1:8001"),
        ("IGEN_BACKEND_URL", "http://user:hunter2@host/v2/x"),
        ("IGEN_PUBLIC_URL", "ftp://host"),
        ("IGEN_DATABASE_URL", "mysql://u:hunter2@host/x"),
        ("IGEN_DATABASE_URL", "sqlite://"),
        ("IGEN_MEDIA_AUTH", "maybe"),
        ("IGEN_MAX_INFLIGHT", "0"),
        ("IGEN_LEASE_SECONDS", "0"),
    ],
)
def test_a_wrong_value_names_its_variable_and_hides_the_value(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as problem:
        load()
    assert str(problem.value).startswith(f"{name}: ")
    assert "hunter2" not in str(problem.value)


def test_secrets_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IGEN_BACKEND_KEY", "hunter2")
    monkeypatch.setenv("IGEN_DATABASE_URL", "postgresql://u:hunter2@host/x")
    monkeypatch.setenv("IGEN_REDIS_URL", "redis://:hunter2@host")
    settings = load()
    assert "hunter2" not in repr(settings)
    assert settings.backend_secret == "hunter2"


def test_the_backends_key_comes_from_the_supervisors_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("IGEN_HOME", str(tmp_path))
    (tmp_path / "inference-key").write_text("from-file\n")
    assert load().backend_secret == "from-file"
    monkeypatch.setenv("IGEN_BACKEND_KEY", "from-variable")
    assert load().backend_secret == "from-variable"


def test_origins_are_the_public_address_and_those_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IGEN_PUBLIC_URL", "https://Pictures.example:443/igen")
    monkeypatch.setenv("IGEN_ALLOWED_ORIGINS", "https://shop.example, http://localhost:3000/")
    origins = load_settings(GatewaySettings).origins
    assert origins == {"https://pictures.example", "https://shop.example", "http://localhost:3000"}


@pytest.mark.parametrize("value", ["shop.example", "https://shop.example/page", "*", "null"])
def test_what_is_no_origin_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("IGEN_ALLOWED_ORIGINS", value)
    with pytest.raises(SettingsError, match="IGEN_ALLOWED_ORIGINS"):
        load_settings(GatewaySettings)
