from __future__ import annotations

import pytest

from gateway.filekinds import NotPictureError, kind_of_key, measure
from models.store import content_key
from tests.gateway.test_jpeg import jpeg
from tests.gateway.test_webp import webp
from tests.support.fake_backend import png


@pytest.mark.parametrize(("name", "data"), [("png", png(40, 24)), ("jpeg", jpeg()), ("webp", webp())])
def test_a_picture_is_told_by_its_content(name: str, data: bytes) -> None:
    kind, width, height = measure(data)
    assert (kind.name, width, height) == (name, 40, 24)
    assert kind.media_type == f"image/{name}"
    assert kind_of_key(content_key("a" * 64, f".{kind.suffix}")) is kind


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"<svg/>", png(40, 24)[:-1], jpeg()[:-1], webp()[:-1]])
def test_everything_else_is_refused(data: bytes) -> None:
    with pytest.raises(NotPictureError):
        measure(data)
