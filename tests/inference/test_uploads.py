"""Pictures uploaded to a real S3 server, by request and by the operator's BUCKET_* variables."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from PIL import Image

from inference.settings import InferenceSettings
from inference.uploads import operators_bucket
from tests.support.fake_engine import colour_of
from tests.support.s3 import ACCESS_ID, ACCESS_SECRET, S3Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(scope="module")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        yield server


def config_for(endpoint: str, **changes: str) -> dict[str, str]:
    return {
        "accessId": ACCESS_ID,
        "accessSecret": ACCESS_SECRET,
        "bucketName": "callers",
        "endpointUrl": endpoint,
        **changes,
    }


async def draw(rig: Any, **more: Any) -> Any:
    status, body = await rig.call("POST", "/runsync", json={"input": {"prompt": "x", "seed": 77}, **more})
    assert status == 200, body
    return body


async def pixel_at(link: str) -> Any:
    async with aiohttp.ClientSession() as http, http.get(link) as answer:
        assert answer.status == 200
        assert answer.content_type == "image/png"
        return Image.open(io.BytesIO(await answer.read())).getpixel((0, 0))


async def test_a_requests_own_bucket_gets_the_pictures(make_rig: Callable[..., Any], s3_server: S3Server) -> None:
    async with make_rig(fetch_allow_hosts=f"127.0.0.1:{s3_server.port}") as rig:
        body = await draw(rig, s3Config=config_for(s3_server.endpoint))
        (link,) = body["output"]["images"]
        assert body["output"]["image_url"] == link
        assert body["id"] in link
        assert ACCESS_SECRET not in link
        assert await pixel_at(link) == colour_of(77)
        streamed = (await rig.call("GET", f"/stream/{body['id']}"))[1]["stream"]
        assert [chunk["output"]["picture"]["image"] for chunk in streamed if "picture" in chunk["output"]] == [link]


@pytest.mark.parametrize(("kind", "suffix"), [("jpeg", ".jpg"), ("webp", ".webp")])
async def test_the_objects_name_and_type_follow_the_format(
    make_rig: Callable[..., Any], s3_server: S3Server, kind: str, suffix: str
) -> None:
    async with make_rig(fetch_allow_hosts=f"127.0.0.1:{s3_server.port}") as rig:
        wanted = {"input": {"prompt": "x", "output_format": kind}, "s3Config": config_for(s3_server.endpoint)}
        _, body = await rig.call("POST", "/runsync", json=wanted)
        (link,) = body["output"]["images"]
        assert f"/0{suffix}?" in link
        async with aiohttp.ClientSession() as http, http.get(link) as answer:
            assert (answer.status, answer.content_type) == (200, f"image/{kind}")
            assert str(Image.open(io.BytesIO(await answer.read())).format).lower() == kind


async def test_the_operators_bucket_may_be_private(make_rig: Callable[..., Any], s3_server: S3Server) -> None:
    """No IGEN_FETCH_ALLOW_HOSTS: the operator's endpoint is its own permission, and nobody else's."""
    bucket = {
        "bucket_endpoint_url": s3_server.endpoint,
        "bucket_access_key_id": ACCESS_ID,
        "bucket_secret_access_key": ACCESS_SECRET,
        "bucket_name": "operators",
    }
    async with make_rig(**bucket) as rig:
        body = await draw(rig)
        assert await pixel_at(body["output"]["images"][0]) == colour_of(77)
        status, refused = await rig.call(
            "POST", "/run", json={"input": {"prompt": "x"}, "s3Config": config_for(s3_server.endpoint)}
        )
        assert (status, refused["error"]["details"][0]["field"]) == (422, "s3Config.endpointUrl")


async def test_a_refused_upload_fails_the_job_in_plain_words(
    make_rig: Callable[..., Any], s3_server: S3Server
) -> None:
    async with make_rig(fetch_allow_hosts=f"127.0.0.1:{s3_server.port}") as rig:
        body = await draw(rig, s3Config=config_for(s3_server.endpoint, accessSecret="wrong-secret"))
        assert body["status"] == "FAILED"
        assert body["error"].startswith("upload_failed: The pictures were drawn, but picture 0 could not be stored")
        assert "403" in body["error"]
        assert "wrong-secret" not in str(body)
        assert len(rig.engine.drawn) == 1


async def test_a_bucket_that_does_not_answer_fails_the_job(make_rig: Callable[..., Any]) -> None:
    async with make_rig(fetch_allow_hosts="127.0.0.1:9", upload_timeout_s=5) as rig:
        body = await draw(rig, s3Config=config_for("http://127.0.0.1:9"))
        assert body["status"] == "FAILED"
        assert body["error"].startswith("upload_failed: ")


async def test_the_same_key_with_another_bucket_is_another_request(rig: Any) -> None:
    await draw(rig)
    first = {"input": {"prompt": "x", "request_id": "k"}}
    assert (await rig.call("POST", "/run", json=first))[0] == 200
    status, _ = await rig.call("POST", "/run", json={**first, "s3Config": config_for("https://s3.example.org")})
    assert status == 422


def test_the_operators_bucket_is_named_by_month_when_it_has_no_name() -> None:
    settings = InferenceSettings(
        bucket_endpoint_url="https://s3.example.org", bucket_access_key_id="a", bucket_secret_access_key="b"
    )
    target = operators_bucket(settings)
    assert target is not None
    assert len(target.bucket) == len("11-26")
    assert operators_bucket(InferenceSettings()) is None
