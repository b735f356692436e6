from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from inference.settings import InferenceSettings, check_settings, is_loopback, resolve_key
from models.settings import SettingsError, load_settings

if TYPE_CHECKING:
    from pathlib import Path


def test_the_variable_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inference-key").write_text("from-file\n")
    monkeypatch.setenv("IGEN_HOME", str(tmp_path))
    monkeypatch.setenv("IGEN_INFERENCE_KEY", "from-variable")
    assert resolve_key(load_settings(InferenceSettings)) == "from-variable"


def test_the_file_is_read_when_the_variable_is_unset_or_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inference-key").write_text("from-file\n")
    monkeypatch.setenv("IGEN_HOME", str(tmp_path))
    monkeypatch.setenv("IGEN_INFERENCE_KEY", "")
    assert resolve_key(load_settings(InferenceSettings)) == "from-file"


@pytest.mark.parametrize("content", [None, "", "  \n"])
def test_without_any_key_it_refuses_to_serve(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "inference-key").write_text(content)
    with pytest.raises(SettingsError, match="IGEN_INFERENCE_KEY"):
        resolve_key(InferenceSettings(home=tmp_path))


@pytest.mark.parametrize(("bind", "served"), [("127.0.0.1", True), ("::1", True), ("0.0.0.0", False), ("::", False)])
def test_serving_without_a_key_is_for_loopback_alone(tmp_path: Path, bind: str, served: bool) -> None:
    settings = InferenceSettings(home=tmp_path, bind=bind, inference_auth="none")
    if served:
        assert resolve_key(settings) is None
    else:
        with pytest.raises(SettingsError, match="IGEN_INFERENCE_AUTH"):
            resolve_key(settings)


@pytest.mark.parametrize(("endpoint", "served"), [("ep1", True), ("", False), (None, False)])
def test_runpods_own_check_of_keys_is_trusted_in_its_serverless_workers_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str | None, served: bool
) -> None:
    monkeypatch.setenv("IGEN_INFERENCE_AUTH", "platform")
    monkeypatch.setenv("IGEN_BIND", "0.0.0.0")
    monkeypatch.setenv("RUNPOD_POD_ID", "pod1")
    if endpoint is not None:
        monkeypatch.setenv("RUNPOD_ENDPOINT_ID", endpoint)
    settings = load_settings(InferenceSettings)
    if served:
        assert resolve_key(settings) is None
    else:
        with pytest.raises(SettingsError, match="IGEN_INFERENCE_AUTH: 'platform'"):
            resolve_key(settings)


def test_a_host_name_is_no_loopback_address() -> None:
    assert not is_loopback("example.org")
    assert is_loopback("localhost")


def test_the_buckets_variables_have_no_prefix_and_come_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUCKET_ENDPOINT_URL", "https://s3.example.org")
    settings = load_settings(InferenceSettings)
    assert settings.bucket_endpoint_url == "https://s3.example.org"
    with pytest.raises(SettingsError, match="BUCKET_SECRET_ACCESS_KEY"):
        check_settings(settings)


def test_bounds_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(SettingsError, match="IGEN_MIN_SIDE"):
        check_settings(InferenceSettings(min_side=512, max_side=256))
    with pytest.raises(SettingsError, match="IGEN_MAX_PIXELS"):
        check_settings(InferenceSettings(min_side=512, max_pixels=4096))
    check_settings(InferenceSettings())


@pytest.mark.parametrize("endpoint", ["s3.example.org", "ftp://s3.example.org", "http://", "http://x:99999"])
def test_a_bucket_endpoint_that_is_no_url_is_refused_at_start(endpoint: str) -> None:
    keys = {"bucket_access_key_id": "a", "bucket_secret_access_key": "b"}
    with pytest.raises(SettingsError, match="BUCKET_ENDPOINT_URL"):
        check_settings(InferenceSettings(bucket_endpoint_url=endpoint, **keys))
    check_settings(InferenceSettings(bucket_endpoint_url="http://127.0.0.1:9000", **keys))


def test_no_secret_shows_in_the_settings_text() -> None:
    settings = InferenceSettings(inference_key="hidden-1", bucket_secret_access_key="hidden-2")
    assert "hidden" not in repr(settings)


def test_every_setting_is_described() -> None:
    assert not [name for name, field in InferenceSettings.model_fields.items() if not field.description]


def test_batch_sizes_are_numbers_with_commas(tmp_path: Path) -> None:
    assert InferenceSettings(home=tmp_path).bucket_sizes == ()
    assert InferenceSettings(home=tmp_path, buckets="8,2,2,4").bucket_sizes == (2, 4, 8)
    for wrong in ("0", "2,", "a", "128", "2, 4"):
        with pytest.raises(ValueError, match="buckets"):
            InferenceSettings(home=tmp_path, buckets=wrong)
