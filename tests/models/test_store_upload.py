"""Uploads to a caller's own bucket: signed offline, sent through the safe fetch, against a real S3 server."""

from __future__ import annotations

import re
from dataclasses import replace
from urllib.parse import parse_qs, urlsplit

import pytest

from models.errors import InvalidInputError
from models.fetch import FetchBlockedError, FetchFailedError, FetchPolicy, SafeFetcher
from models.store import InvalidKeyError, PresignTarget, open_store, presign, upload_presigned
from tests.support.origin import Origin, answer_with, redirect_to
from tests.support.s3 import ACCESS_ID, ACCESS_SECRET, S3Server

AWS = PresignTarget("https://s3.eu-west-1.amazonaws.com", "pictures", ACCESS_ID, ACCESS_SECRET)


def policy_for(port: int) -> FetchPolicy:
    return FetchPolicy(allow_hosts=frozenset({("127.0.0.1", port)}))


def target_of(server: S3Server) -> PresignTarget:
    return PresignTarget(server.endpoint, "callers", ACCESS_ID, ACCESS_SECRET)


async def test_upload_and_read_back(s3_server: S3Server) -> None:
    async with SafeFetcher(policy_for(s3_server.port)) as fetcher:
        link = await upload_presigned(fetcher, target_of(s3_server), "jobs/1/a.png", b"picture" * 1000, "image/png")
        answer = await fetcher.get(link)
        unsigned = await fetcher.get(link.partition("?")[0])
        changed = await fetcher.get(link.replace("a.png", "b.png"))
    assert (answer.status, answer.body) == (200, b"picture" * 1000)
    assert answer.headers["Content-Type"] == "image/png"
    assert parse_qs(urlsplit(link).query)["X-Amz-Expires"] == ["604800"]
    assert unsigned.status == changed.status == 403
    store = open_store(
        f"s3://callers?endpoint={s3_server.endpoint}", access_key_id=ACCESS_ID, secret_access_key=ACCESS_SECRET
    )
    assert await store.get("jobs/1/a.png") == b"picture" * 1000


async def test_wrong_secret_is_refused_and_not_shown(s3_server: S3Server) -> None:
    target = replace(target_of(s3_server), access_secret="wrong-secret")
    async with SafeFetcher(policy_for(s3_server.port)) as fetcher:
        with pytest.raises(FetchFailedError, match="answered 403") as caught:
            await upload_presigned(fetcher, target, "a.png", b"x", "image/png")
    for hidden in ("wrong-secret", ACCESS_ID, "X-Amz", "127.0.0.1"):
        assert hidden not in caught.value.message
    assert "wrong-secret" not in repr(target)


@pytest.mark.parametrize(
    "endpoint", ["http://127.0.0.1:9000", "http://169.254.169.254", "http://10.0.0.1", "http://[::1]"]
)
async def test_an_endpoint_inside_is_blocked(endpoint: str) -> None:
    async with SafeFetcher(FetchPolicy()) as fetcher:
        with pytest.raises(FetchBlockedError):
            await upload_presigned(fetcher, replace(AWS, endpoint=endpoint), "a.png", b"x", "image/png")


async def test_a_redirect_inside_is_blocked() -> None:
    async with Origin(
        {"/pictures/a.png": redirect_to("http://10.0.0.1/", status="307 Temporary Redirect")}
    ) as origin:
        async with SafeFetcher(policy_for(origin.port)) as fetcher:
            with pytest.raises(FetchBlockedError):
                await upload_presigned(fetcher, replace(AWS, endpoint=origin.url("")), "a.png", b"x", "image/png")
        assert len(origin.seen) == 1


@pytest.mark.parametrize(
    ("answers", "tries"),
    [(["503 Slow Down", "", "200 OK"], 3), (["500 Oops"] * 3, 3), (["403 Forbidden"], 1), (["404 No Bucket"], 1)],
)
async def test_what_is_tried_again(answers: list[str], tries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.store.upload.RETRY_BASE_S", 0.01)
    async with Origin() as origin:
        script = iter(answers)

        async def answer(_seen: object, writer: object) -> None:
            status = next(script)
            writer.write(answer_with(b"", status=status) if status else b"")  # type: ignore[attr-defined]

        origin.answers["/pictures/a.png"] = answer
        async with SafeFetcher(policy_for(origin.port)) as fetcher:
            call = upload_presigned(fetcher, replace(AWS, endpoint=origin.url("")), "a.png", b"data", "image/png")
            if answers[-1] == "200 OK":
                assert "X-Amz-Signature" in await call
            else:
                with pytest.raises(FetchFailedError, match=f"answered {answers[-1][:3]}"):
                    await call
        assert [seen.body for seen in origin.seen] == [b"data"] * tries


def test_the_servers_own_credentials_stay_out(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = presign(AWS, "GET", "a.png", 60)
    for name, value in {
        "AWS_SESSION_TOKEN": "our-token",
        "AWS_ACCESS_KEY_ID": "our-id",
        "AWS_SECRET_ACCESS_KEY": "our-secret",
        "AWS_ENDPOINT_URL_S3": "http://ours.example",
        "AWS_ENDPOINT": "http://ours.example",
        "AWS_REGION": "ap-east-1",
        "AWS_DEFAULT_REGION": "ap-east-1",
        "AWS_SKIP_SIGNATURE": "true",
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true",
        "AWS_REQUEST_PAYER": "true",
        "AWS_S3_EXPRESS": "true",
        "AWS_BUCKET": "ours",
    }.items():
        monkeypatch.setenv(name, value)
    moving = re.compile(r"X-Amz-(Date|Signature)=[^&]+|%2F\d{8}%2F")
    assert moving.sub("", presign(AWS, "GET", "a.png", 60)) == moving.sub("", plain)
    assert "our" not in presign(AWS, "GET", "a.png", 60)


@pytest.mark.parametrize(
    ("endpoint", "where", "region"),
    [
        ("https://s3.eu-west-1.amazonaws.com", "https://s3.eu-west-1.amazonaws.com/pictures/a/b.png", "eu-west-1"),
        ("https://s3.eu-west-1.amazonaws.com/", "https://s3.eu-west-1.amazonaws.com/pictures/a/b.png", "eu-west-1"),
        (
            "https://pictures.s3.us-west-2.amazonaws.com",
            "https://pictures.s3.us-west-2.amazonaws.com/a/b.png",
            "us-west-2",
        ),
        ("https://s3.amazonaws.com", "https://s3.amazonaws.com/pictures/a/b.png", "us-east-1"),
        (
            "https://s3.dualstack.eu-west-3.amazonaws.com",
            "https://s3.dualstack.eu-west-3.amazonaws.com/pictures/a/b.png",
            "eu-west-3",
        ),
        ("https://fra1.digitaloceanspaces.com", "https://fra1.digitaloceanspaces.com/pictures/a/b.png", "fra1"),
        ("http://minio:9000", "http://minio:9000/pictures/a/b.png", "us-east-1"),
    ],
)
def test_address_and_region(endpoint: str, where: str, region: str) -> None:
    url = presign(replace(AWS, endpoint=endpoint), "PUT", "a/b.png", 60)
    assert url.partition("?")[0] == where
    assert f"%2F{region}%2Fs3%2Faws4_request" in url
    assert "%2Fxx-1%2Fs3" in presign(replace(AWS, endpoint=endpoint, region="xx-1"), "PUT", "a/b.png", 60)


@pytest.mark.parametrize(
    "endpoint", ["", "not a url", "minio:9000", "http://", "http://[", "file:///etc", "http://a:b:c"]
)
def test_no_endpoint(endpoint: str) -> None:
    with pytest.raises(InvalidInputError, match="endpointUrl"):
        presign(replace(AWS, endpoint=endpoint), "GET", "a.png", 60)


@pytest.mark.parametrize("key", ["../a", "a?b", "", "/a"])
def test_bad_keys(key: str) -> None:
    with pytest.raises(InvalidKeyError):
        presign(AWS, "GET", key, 60)
