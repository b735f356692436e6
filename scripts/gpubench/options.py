"""The bench's command line; reads nothing of torch."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

STEPS, TINY_STEPS = 10, 4
LEAST_STEPS, MOST_STEPS, MOST_PICTURES = 2, 1000, 64


def read_options(words: Sequence[str] | None, about: str | None) -> argparse.Namespace:
    """Read and check it; `about` is what `--help` begins with."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="the bundled checkpoint, a few small pictures")
    parser.add_argument(
        "--travel", action="store_true", help="list what a bare CUDA machine must be brought, and try"
    )
    parser.add_argument("--device", default="auto", type=_device, help="cuda or cpu; cpu with --tiny alone")
    parser.add_argument("--batches", type=_numbers, help="pictures at once, with commas (1,2,4,8,16)")
    parser.add_argument("--steps", type=_steps, help=f"steps measured of each row, scaled to 30 and 20 ({STEPS})")
    parser.add_argument("--minutes", type=float, default=9.0, help="begin no row that would last longer (9)")
    parser.add_argument("--json", type=Path, help="keep results here, and go on from what is there")
    parser.add_argument("--only", default="", help="only rows whose name has this in it")
    parser.add_argument("--no-cold-start", action="store_true", help="write no 7 GB of weights to the disk")
    parser.add_argument("--table", type=Path, help="where the engine's table goes ($IGEN_HOME/tuning.json on CUDA)")
    for name in ("--start", "--home"):
        parser.add_argument(name, type=Path, help=argparse.SUPPRESS)  # the cold start's own process
    parser.add_argument("--compile", default="auto", help=argparse.SUPPRESS)
    return parser.parse_args(words)


def _numbers(text: str) -> tuple[int, ...]:
    found = tuple(sorted({int(word) for word in text.split(",")}))
    if found[0] < 1 or found[-1] > MOST_PICTURES:
        raise argparse.ArgumentTypeError(f"each must be from 1 to {MOST_PICTURES}")
    return found


def _steps(text: str) -> int:
    if not LEAST_STEPS <= int(text) <= MOST_STEPS:
        raise argparse.ArgumentTypeError(f"must be from {LEAST_STEPS} to {MOST_STEPS}")
    return int(text)


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError("must be auto, cpu or cuda")
    return text
