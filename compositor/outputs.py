"""The outputs of one chunk: how they are called, which are there already, making the others, and keeping them."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compositor.compose.job import ComposeJob
from compositor.names import output_key
from models.db import utc_now
from models.store import NewObject

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from compositor.design import OutputSize
    from compositor.kit import Kit
    from compositor.pictures import Picture
    from compositor.work import RunWork


@dataclass(frozen=True, slots=True)
class Item:
    """A product as its row has it when its chunk is begun."""

    position: int
    product_id: str | None
    image_url: str | None
    fields: dict[str, str]
    attempts: int


@dataclass(frozen=True, slots=True)
class Pictured:
    """A product that has its picture."""

    item: Item
    picture: Picture


@dataclass(frozen=True, slots=True)
class Ready:
    """A product and what it still needs: sizes with the names of their outputs, and rows of those that exist."""

    item: Item
    picture: Picture
    todo: tuple[tuple[OutputSize, str], ...]
    rows: tuple[dict[str, Any], ...]


class Outputs:
    """Those of one chunk. What is made lies in `folder` until somebody keeps it."""

    def __init__(self, kit: Kit, work: RunWork, folder: Path) -> None:
        self._kit = kit
        self._work = work
        self._folder = folder
        self._suffix = work.snapshot.design.output.suffix
        self._ahead: dict[tuple[int, str, str], str] = {}
        """Names looked for ahead, by position, size and the picture's hash."""
        self._made: dict[str, int] = {}
        """Bytes of outputs that are there, or will be with the next keeping, by name."""
        self._new: list[NewObject] = []

    async def look_ahead(self, known: Sequence[tuple[Item, str | None]]) -> None:
        """Ask the store once for all outputs there will be if no picture has changed; each item with its hash.

        What is there stays there: nobody deletes a frame's outputs while a run of that frame is under way.
        """
        self._ahead = {
            (item.position, size.name, sha256): self._work.namer.name(sha256, item.fields, size)
            for item, sha256 in known
            if sha256 is not None
            for size in self._work.sizes
        }
        await self._look(self._ahead.values())

    async def find(self, products: Sequence[Pictured]) -> list[Ready]:
        """What each product still needs."""
        named = [[(size, *self._name(product, size)) for size in self._work.sizes] for product in products]
        await self._look({name for names in named for _, name, looked in names if not looked} - self._made.keys())
        return [self._ready(product, names) for product, names in zip(products, named, strict=True)]

    def made(self, name: str) -> int | None:
        """Bytes of an output, if there is one."""
        return self._made.get(name)

    async def make(self, product: Ready, size: OutputSize, name: str, source: Path) -> None:
        """Compose one output of a product, from its picture's file.

        Raises:
            ComposeError: there is none.

        """
        output = self._work.snapshot.design.output
        job = ComposeJob(
            source=source,
            frame=self._work.materials.frame,
            transparent=self._work.snapshot.transparent,
            design=self._work.snapshot.design,
            size=size,
            fields=product.item.fields,
            assets=self._work.materials.assets,
        )
        target = self._folder / f"{secrets.token_hex(8)}.made"
        count = await self._kit.composer.compose_file(job, target, self._kit.settings.compose_timeout)
        self._new.append(NewObject(output_key(name, output.suffix), target, output.media_type))
        self._made[name] = count

    def take_new(self) -> list[NewObject]:
        """What was made since the last call, which the caller then brings into the store."""
        taken, self._new = self._new, []
        return taken

    def row(self, item: Item, size: OutputSize, name: str) -> dict[str, Any]:
        """The row of an output that is there, or will be."""
        run = self._work.run
        return {
            "run_id": run.id,
            "position": item.position,
            "size": size.name,
            "frame_id": run.frame_id,
            "owner_id": run.owner_id,
            "name": name,
            "suffix": self._suffix,
            "object_key": output_key(name, self._suffix),
            "width": size.width,
            "height": size.height,
            "bytes": self._made[name],
            "created_at": utc_now(),
            "deleted_at": None,
        }

    def _name(self, product: Pictured, size: OutputSize) -> tuple[str, bool]:
        """An output's name, and whether it was looked for ahead."""
        item, sha256 = product.item, product.picture.sha256
        name = self._ahead.get((item.position, size.name, sha256))
        return (self._work.namer.name(sha256, item.fields, size), False) if name is None else (name, True)

    async def _look(self, names: Iterable[str]) -> None:
        keys = {output_key(name, self._suffix): name for name in names}
        if keys:
            sizes = await self._kit.store.sizes(keys)
            self._made |= {name: sizes[key] for key, name in keys.items() if key in sizes}

    def _ready(self, product: Pictured, names: Sequence[tuple[OutputSize, str, bool]]) -> Ready:
        todo = tuple((size, name) for size, name, _ in names if name not in self._made)
        rows = tuple(self.row(product.item, size, name) for size, name, _ in names if name in self._made)
        return Ready(product.item, product.picture, todo, rows)
