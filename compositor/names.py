"""Names of what a run makes: an output's is the hash of everything that decides its pixels."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from typing import TYPE_CHECKING

from compositor.compose.fields import NAME, canonical

if TYPE_CHECKING:
    from collections.abc import Mapping

    from compositor.design import Design, OutputSize
    from compositor.snapshot import Snapshot

RENDER_VERSION = 3
"""To be raised with every change of `compositor.compose` that changes pixels: outputs are then composed anew."""

_DERIVED = {"discount": ("price", "sale_price")}
"""Places in templates that are worked out from other fields."""


def used_fields(design: Design) -> frozenset[str]:
    """The feed's fields that a design's texts and conditions look at."""
    badges = [badge for layer in design.badges for badge in layer.badges]
    conditions = [condition for layer in design.texts for condition in layer.when]
    conditions += [condition for badge in badges for condition in badge.when]
    texts = [*(layer.text for layer in design.texts), *(condition.value for condition in conditions)]
    named = [name for text in texts for name in NAME.findall(text)]
    named += [condition.field for condition in conditions]
    bare = {canonical(name) for name in named}
    return frozenset(field for name in bare for field in (name, *_DERIVED.get(name, ())))


class OutputNamer:
    """Names the outputs of one run. What does not change from product to product is hashed once."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._secret = snapshot.secret.encode()
        self._fields = used_fields(snapshot.design)
        fixed = {
            "version": RENDER_VERSION,
            "picture": snapshot.picture_sha256,
            "transparent": snapshot.transparent,
            "frame": [snapshot.width, snapshot.height],
            "design": snapshot.design.model_dump(mode="json", exclude={"sizes"}),
            "assets": {name: asset.sha256 for name, asset in snapshot.assets.items()},
        }
        self._fixed = hashlib.sha256(_canonical(fixed)).hexdigest()

    def name(self, source_sha256: str, fields: Mapping[str, str], size: OutputSize) -> str:
        """64 hexadecimal digits, which nobody can work out without the frame's secret."""
        used = {name: fields[name] for name in sorted(self._fields) if fields.get(name)}
        inputs = [self._fixed, source_sha256, used, [size.width, size.height]]
        return hmac.digest(self._secret, _canonical(inputs), "sha256").hex()


def output_key(name: str, suffix: str) -> str:
    """Where an output lies in the store. One level of folders: more cost a run a folder for each of its pictures."""
    return f"outputs/{name[:2]}/{name}.{suffix}"


def source_key(owner_id: str, sha256: str) -> str:
    """Where a product's picture, as fetched, lies in the store: by content, apart for each owner."""
    return f"sources/{owner_id}/{sha256[:2]}/{sha256}.bin"


def feed_copy_key(run_id: int) -> str:
    """A new key for the copy of a run's feed as fetched."""
    return f"runs/{run_id}/feed-{secrets.token_hex(8)}"


def output_feed_keys(run_id: int) -> tuple[str, str]:
    """New keys for a run's output feed, as XML and as CSV; each has a copy with `.gz` at its end."""
    stem = f"runs/{run_id}/output-{secrets.token_hex(8)}"
    return f"{stem}.xml", f"{stem}.csv"


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
