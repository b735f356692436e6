"""A shop on a loopback port: product pictures with validators, some products broken on purpose, and their feed."""

from __future__ import annotations

import hashlib
import io
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self
from xml.sax.saxutils import escape

from PIL import Image, ImageDraw

from tests.support.origin import Origin, answer_with

if TYPE_CHECKING:
    import asyncio

    from tests.support.origin import Answer, Seen

HEAD = '<?xml version="1.0"?>\n<feed xmlns:g="http://base.google.com/ns/1.0" xmlns="http://www.w3.org/2005/Atom">\n'
TAIL = "</feed>\n"


@dataclass
class Product:
    """One entry; `id` or `link` None leaves the element out."""

    id: str | None
    link: str | None
    title: str = "A thing"
    price: str = "10.00 EUR"

    @property
    def entry(self) -> str:
        fields = {"id": self.id, "title": self.title, "image_link": self.link, "price": self.price}
        inner = "".join(f"<g:{key}>{escape(value)}</g:{key}>" for key, value in fields.items() if value is not None)
        return f"<entry>{inner}<custom a='1'>kept</custom></entry>\n"


class Shop:
    """Serves pictures, conditionally, and remembers what was asked. `products` makes the feed.

    With `keep` its connections stay open, see `Origin`.
    """

    def __init__(self, *, keep: bool = False) -> None:
        self.origin = Origin(keep=keep)
        self.products: list[Product] = []
        self.sent: list[str] = []
        self.unchanged: list[str] = []

    async def __aenter__(self) -> Self:
        await self.origin.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.origin.__aexit__()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.origin.port}"

    @property
    def feed(self) -> bytes:
        return (HEAD + "".join(product.entry for product in self.products) + TAIL).encode()

    def add(self, count: int, size: tuple[int, int] = (300, 240)) -> None:
        """`count` good products, each with a picture of its own."""
        for _ in range(count):
            number = len(self.products)
            self.serve(f"/{number}.jpg", draw(number, size))
            self.products.append(Product(f"p{number}", self.origin.url(f"/{number}.jpg"), f"Thing no. {number}"))

    def break_some(self) -> dict[str, str]:
        """Products that cannot be framed, and the code of each by its id ("" for the one without)."""
        half = draw(1, (300, 240))
        answers: dict[str, tuple[Answer, str]] = {
            "gone": (answer_with(b"", status="404 Not Found"), "source_not_found"),
            "secret": (answer_with(b"", status="403 Forbidden"), "source_refused"),
            "sick": (answer_with(b"", status="500 Oh"), "source_unavailable"),
            "cookie": (
                answer_with(b"<!doctype html><p>We use cookies", "Content-Type: image/jpeg"),
                "source_not_an_image",
            ),
            "svg": (answer_with(b"<svg xmlns='x'/>", "Content-Type: image/png"), "source_not_an_image"),
            "huge": (answer_with(b"x", length=10**10), "source_too_large"),
            "half": (answer_with(half[: len(half) // 2]), "broken_image"),
        }
        codes = {}
        for name, (answer, code) in answers.items():
            self.origin.answers[f"/{name}"] = answer
            self.products.append(Product(name, self.origin.url(f"/{name}")))
            codes[name] = code
        self.products += [
            Product("inside", "http://169.254.169.254/latest"),
            Product("relative", "/picture.jpg"),
            Product("none", None),
            Product(None, self.origin.url("/0.jpg")),
            Product("p0", self.origin.url("/0.jpg")),
        ]
        more = {"inside": "source_blocked", "relative": "relative_url", "none": "missing_image", "": "missing_id"}
        return codes | more | {"p0": "duplicate_id"}

    def serve(self, path: str, data: bytes) -> None:
        """Answer `path` with a picture, or with 304 to whoever has it."""
        tag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
        close = not self.origin.keep
        whole = answer_with(data, f"ETag: {tag}", close=close)
        same = answer_with(b"", f"ETag: {tag}", status="304 Not Modified", close=close)

        async def answer(seen: Seen, writer: asyncio.StreamWriter) -> None:
            if seen.headers.get("if-none-match") == tag:
                self.unchanged.append(path)
                writer.write(same)
            else:
                self.sent.append(path)
                writer.write(whole)

        self.origin.answers[path] = answer


def draw(number: int, size: tuple[int, int]) -> bytes:
    """A JPEG that differs from every other number's."""
    pick = random.Random(number)
    image = Image.new("RGB", size, (pick.randrange(256), pick.randrange(256), pick.randrange(256)))
    pen = ImageDraw.Draw(image)
    for _ in range(12):
        left, top = pick.randrange(size[0]), pick.randrange(size[1])
        box = (left, top, left + pick.randrange(20, 120), top + pick.randrange(20, 120))
        pen.ellipse(box, fill=(pick.randrange(256), pick.randrange(256), pick.randrange(256)))
    pen.text((10, 10), str(number), fill="white", font_size=size[1] // 4, stroke_width=2, stroke_fill="black")
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return file.getvalue()
