"""What is printed when everything is ready: the address, and lines that work when pasted."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scripts.supervise.settings import SupervisorSettings

PROMPT = "A futuristic cityscape at sunset"
BUNDLED = ("", "tiny")
DEMONSTRATION = (
    "It draws with the bundled demonstration checkpoint: simple shapes and scenes, small. "
    "IGEN_CHECKPOINT names another, such as SDXL (README.md says how)."
)


def welcome(settings: SupervisorSettings, seconds: float, host_header: str = "") -> list[str]:
    """The lines for a person, none of them wrapped. `host_header` as for `registry`."""
    lines = [
        "",
        f"IGen is ready at {settings.address} after {seconds:.1f} s. Ctrl-C stops it.",
        *_checkpoint(settings),
    ]
    key = settings.home / "first-key"
    if not key.is_file():
        return [*lines, f"There is no {key}: call the API with a key of your own."]
    draw = _draw(settings.address, f"$(cat {shlex.quote(str(key))})", host_header)
    link = """sed -n 's/.*"image_url": *"\\([^"]*\\)".*/\\1/p'"""
    return [
        *lines,
        "",
        "Draw a picture and see the answer, which has its address:",
        draw,
        "",
        "Draw one into picture.png:",
        f'curl -sS -o picture.png "$({draw} | {link})"',
        "",
    ]


def _checkpoint(settings: SupervisorSettings) -> list[str]:
    if not settings.draws_here:
        return [f"Pictures are drawn by {settings.backend_url}."]
    if settings.checkpoint in BUNDLED:
        return [DEMONSTRATION]
    return [f"It draws with the checkpoint {settings.checkpoint}."]


def _draw(address: str, key: str, host_header: str) -> str:
    body = json.dumps({"prompt": PROMPT})
    host = f" -H {shlex.quote(f'Host: {host_header}')}" if host_header else ""
    return (
        f"""curl -sS -H "Authorization: Bearer {key}" -H 'Content-Type: application/json' """
        f"""-d '{body}'{host} {address}/api/generate/"""
    )
