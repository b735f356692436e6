"""The same composite by other means, each tuned as its own documentation advises. Absent libraries are left out."""

from __future__ import annotations

import importlib
import io
from typing import TYPE_CHECKING, Any

from PIL import Image

from scripts.compositing.products import BOX, FRAME_SIDE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Peer = Callable[[Path], bytes]

QUALITY = 90
OPTIONS = {
    "jpeg": {"ours": "quality 90, 4:2:0; exact: 4:4:4", "peers": "quality 90, 4:2:0"},
    "png": {
        "ours": "zlib level 1; exact: level 6",
        "peers": "zlib level 6, as Pillow and libvips do by default; OpenCV's default, level 1 with run lengths",
    },
    "webp": {
        "ours": "lossy, quality 90, method 0; exact: method 4",
        "peers": "lossy, quality 90, method 4, as all do by default",
    },
}
"""How each format is encoded. The floor encodes as ours does."""
LANCZOS = Image.Resampling.LANCZOS


def _place(width: int, height: int) -> tuple[int, int, int, int]:
    x, y, box_width, box_height = BOX
    scale = min(box_width / width, box_height / height)
    wide, high = round(width * scale), round(height * scale)
    return x + (box_width - wide) // 2, y + (box_height - high) // 2, wide, high


def _save(image: Image.Image, kind: str, **options: int) -> bytes:
    target = io.BytesIO()
    image.save(target, kind.upper(), **({} if kind == "png" else {"quality": QUALITY}), **options)
    return target.getvalue()


def naive(frame: Path, kind: str = "jpeg") -> Peer:
    """Everything RGBA at full quality, the frame decoded each time. Also what the others are compared with."""

    def compose(path: Path) -> bytes:
        canvas = Image.open(frame).convert("RGBA")
        picture = Image.open(path).convert("RGBA")
        x, y, wide, high = _place(*picture.size)
        picture = picture.resize((wide, high), LANCZOS)
        canvas.alpha_composite(picture, (x, y))
        return _save(canvas.convert("RGB"), kind)

    return compose


def pillow_draft(frame: Path, kind: str = "jpeg") -> Peer:
    """RGB, the frame kept, libjpeg's scaled decoding, LANCZOS."""
    ground = Image.open(frame).convert("RGB")

    def compose(path: Path) -> bytes:
        picture = Image.open(path)
        x, y, wide, high = _place(*picture.size)
        picture.draft("RGB", (wide, high))
        canvas = ground.copy()
        canvas.paste(picture.resize((wide, high), LANCZOS), (x, y))
        return _save(canvas, kind)

    return compose


def opencv_area(frame: Path, kind: str = "jpeg") -> Peer:
    """OpenCV: scaled decoding, INTER_AREA."""
    cv2: Any = importlib.import_module("cv2")
    cv2.setNumThreads(1)
    ground = cv2.imread(str(frame), cv2.IMREAD_COLOR)
    ending, options = {
        "jpeg": (".jpg", [cv2.IMWRITE_JPEG_QUALITY, QUALITY]),
        "png": (".png", []),
        "webp": (".webp", [cv2.IMWRITE_WEBP_QUALITY, QUALITY]),
    }[kind]

    def compose(path: Path) -> bytes:
        with Image.open(path) as header:  # OpenCV does not tell a file's size without decoding it
            x, y, wide, high = _place(*header.size)
            half = min(header.width // wide, header.height // high) >= 2  # noqa: PLR2004 - half the size suffices
        picture = cv2.imread(str(path), cv2.IMREAD_REDUCED_COLOR_2 if half else cv2.IMREAD_COLOR)
        canvas = ground.copy()
        canvas[y : y + high, x : x + wide] = cv2.resize(picture, (wide, high), interpolation=cv2.INTER_AREA)
        _, data = cv2.imencode(ending, canvas, options)
        return bytes(data)

    return compose


def simplejpeg_pillow(frame: Path, kind: str = "jpeg") -> Peer:
    """Decoding (n/8 scaling) and JPEG encoding by simplejpeg, Pillow resamples with LANCZOS."""
    simplejpeg: Any = importlib.import_module("simplejpeg")
    numpy: Any = importlib.import_module("numpy")
    ground = Image.open(frame).convert("RGB")

    def compose(path: Path) -> bytes:
        data = path.read_bytes()
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        x, y, wide, high = _place(width, height)
        pixels = simplejpeg.decode_jpeg(data, "RGB", min_width=wide, min_height=high)
        picture = Image.fromarray(pixels).resize((wide, high), LANCZOS)
        canvas = ground.copy()
        canvas.paste(picture, (x, y))
        if kind != "jpeg":
            return _save(canvas, kind)
        encoded = simplejpeg.encode_jpeg(numpy.asarray(canvas), QUALITY, "RGB", "420")
        return bytes(encoded)

    return compose


def pyvips_window(frame: Path, kind: str = "jpeg") -> Peer:
    """libvips: thumbnail with shrink-on-load, inserted into the frame kept in memory."""
    pyvips: Any = importlib.import_module("pyvips")
    pyvips.cache_set_max(0)
    ground = pyvips.Image.new_from_file(str(frame)).copy_memory()
    targets: dict[str, tuple[str, dict[str, Any]]] = {
        "jpeg": (".jpg", {"Q": QUALITY, "subsample_mode": "on"}),
        "png": (".png", {}),
        "webp": (".webp", {"Q": QUALITY}),
    }
    ending, options = targets[kind]

    def compose(path: Path) -> bytes:
        picture = pyvips.Image.thumbnail(str(path), BOX[2], height=BOX[3])
        x, y = BOX[0] + (BOX[2] - picture.width) // 2, BOX[1] + (BOX[3] - picture.height) // 2
        return bytes(ground.insert(picture, x, y).write_to_buffer(ending, **options))

    return compose


def floor(_frame: Path, kind: str = "jpeg") -> Peer:
    """Scaled decoding and encoding of a picture of the output's size alone: what no composite can be faster than."""
    plain = Image.radial_gradient("L").resize((FRAME_SIDE, FRAME_SIDE)).convert("RGB")
    fast: dict[str, int] = {"png": {"compress_level": 1}, "webp": {"method": 0}}.get(kind, {})

    def compose(path: Path) -> bytes:
        picture = Image.open(path)
        _, _, wide, high = _place(*picture.size)
        picture.draft("RGB", (wide, high))
        picture.load()
        return _save(plain, kind, **fast)

    return compose


PEERS: dict[str, Callable[[Path, str], Peer]] = {
    "Pillow, naive": naive,
    "Pillow, draft": pillow_draft,
    "OpenCV, area": opencv_area,
    "simplejpeg + Pillow": simplejpeg_pillow,
    "pyvips": pyvips_window,
    "floor: scaled decode + encode": floor,
}
