"""A large shop in a process of its own (`python -m tests.support.street GOOD ROUNDS`), with kept connections.

It says its port and the codes of its broken products in a line of JSON, and then answers commands by lines: `sent`
with the paths of the pictures sent since the last time, and `change FIRST LAST` after drawing those pictures anew. It
ends with its input.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

import uvloop

from tests.support.origin import answer_with
from tests.support.shop import Product, Shop, draw

ROOT = Path(__file__).resolve().parents[2]
SIZE = (200, 160)
ANOTHER = 10_000
"""Added to a product's number, it makes another picture."""


class Street:
    """The shop as a test sees it. `codes` has the code of each kind of broken product, see `Shop.break_some`."""

    def __init__(self, good: int, rounds: int) -> None:
        self._command = [sys.executable, "-m", "tests.support.street", str(good), str(rounds)]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        about = self._read()
        self.host = f"127.0.0.1:{about['port']}"
        self.codes: dict[str, str] = about["codes"]
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=30)

    def sent(self) -> list[str]:
        """Paths of the pictures sent since the last call."""
        paths: list[str] = self._ask("sent")
        return paths

    def change(self, first: int, last: int) -> None:
        """Give products other pictures."""
        self._ask(f"change {first} {last}")

    def _ask(self, command: str) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


def stock(shop: Shop, good: int, rounds: int) -> dict[str, str]:
    """The good products, and the broken ones in between, `rounds` of each kind."""
    shop.add(good, SIZE)
    count = len(shop.products)
    codes = shop.break_some()
    broken = shop.products[count:]
    del shop.products[count:]
    for turn in range(rounds):
        for number, product in enumerate(broken):
            name = product.id if product.id is None or product.id == "p0" else f"{product.id}-{turn}"
            shop.products.insert((turn * len(broken) + number) * 17 + 3, Product(name, product.link))
    shop.origin.answers["/feed.xml"] = answer_with(shop.feed, "Content-Type: application/xml")
    return codes


async def serve(good: int, rounds: int) -> None:
    """Serve until the input ends."""
    async with Shop(keep=True) as shop:
        say({"port": shop.origin.port, "codes": stock(shop, good, rounds)})
        while line := await asyncio.to_thread(sys.stdin.readline):
            match line.split():
                case ["sent"]:
                    say(shop.sent)
                    shop.sent.clear()
                case ["change", first, last]:
                    for number in range(int(first), int(last)):
                        shop.serve(f"/{number}.jpg", draw(number + ANOTHER, SIZE))
                    say(None)


def say(what: object) -> None:
    """A line of JSON."""
    sys.stdout.write(f"{json.dumps(what)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), int(sys.argv[2])))
