"""The headless command as people run it: a process of its own, from another folder, against a shop on loopback."""

from __future__ import annotations

import asyncio
import csv
import fcntl
import gzip
import json
import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from lxml import etree
from PIL import Image

from scripts.frame_feed import feed_of, fetch_policy
from scripts.headless.options import OptionsError, Overrides, read_assets, read_design
from tests.support.origin import Origin, answer_with
from tests.support.shop import Shop, draw

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.origin import Seen

COMMAND = Path(__file__).resolve().parents[2] / "scripts" / "frame_feed"
BOX = (20, 30, 160, 120)
BLUE = (20, 90, 160)
GOOGLE = "{http://base.google.com/ns/1.0}"


@dataclass
class Ended:
    code: int
    out: str
    errors: str


class Bench:
    """A folder with a frame and a feed, a shop, and the command to run in it."""

    def __init__(self, folder: Path, shop: Shop) -> None:
        self.folder = folder
        self.shop = shop
        self.out = folder / "out"
        Image.new("RGB", (200, 200), BLUE).save(folder / "frame.png")
        self.write_feed()

    def write_feed(self) -> None:
        (self.folder / "feed.xml").write_bytes(self.shop.feed)

    async def start(self, *options: str, feed: str = "feed.xml", before: str = "") -> asyncio.subprocess.Process:
        """The command with relative paths; `before` is shell text that goes ahead of it."""
        command = ["sh", "-c", f'{before} exec "$0" "$@"', str(COMMAND), feed, "--frame", "frame.png", "--out", "out"]
        return await asyncio.create_subprocess_exec(
            *command,
            *("--box", ",".join(map(str, BOX)), "--allow-host", self.shop.host, "--workers", "1", *options),
            cwd=self.folder,
            env={**os.environ, "COLUMNS": "200"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )

    async def run(self, *options: str, **how: str) -> Ended:
        process = await self.start(*options, **how)
        out, errors = await asyncio.wait_for(process.communicate(), 120)
        assert process.returncode is not None
        return Ended(process.returncode, out.decode(), errors.decode())

    def table(self, name: str) -> list[dict[str, str]]:
        with (self.out / name).open(newline="") as file:
            return list(csv.DictReader(file))

    def open(self, name: str) -> Image.Image:
        with Image.open(self.out / "pictures" / name) as picture:
            picture.load()
            return picture

    def entries(self) -> list[etree._Element]:
        return list(etree.parse(self.out / "feed.xml").getroot().iterfind("{*}entry"))

    def pictures(self) -> dict[str, int]:
        """Names of finished pictures with the time each was written."""
        return {path.name: path.stat().st_mtime_ns for path in (self.out / "pictures").iterdir()}

    def assert_tidy(self) -> None:
        names = {path.name for path in self.out.iterdir()}
        assert names == {".lock", "manifest.db", "pictures", "feed.xml", "feed.csv", "failures.csv", "pictures.csv"}


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with Shop() as shop:
        shop.add(8)
        yield Bench(tmp_path, shop)


def numbers(ended: Ended) -> list[int]:
    """Composed, unchanged, failed, skipped, total: the summary's row."""
    row = next(line for line in ended.out.splitlines() if line.startswith("│"))
    return [int(cell) for cell in row.strip("│").split("│")]


async def test_a_feed_with_broken_products_then_again_then_with_changes(bench: Bench) -> None:
    codes = bench.shop.break_some()
    bench.shop.products.append(bench.shop.products[0].__class__("=cmd()", "http://127.1/a.jpg"))
    bench.write_feed()
    first = await bench.run()
    assert (first.code, first.errors) == (1, "")
    assert numbers(first) == [8, 0, 12, 1, 21]
    assert re.search(r"^\d+ failed: .+ \(\w+\)$", first.out, re.MULTILINE), "reasons stand in the terminal too"
    assert "other reasons, see failures.csv" in first.out
    assert "--allow-host HOST:PORT" in first.out
    failures = bench.table("failures.csv")
    codes["'=cmd()"] = "source_blocked"
    assert {row["id"]: row["code"] for row in failures} == codes
    assert all(row["reason"] for row in failures)
    bench.assert_tidy()

    pictures = bench.pictures()
    rows = bench.table("pictures.csv")
    assert [row["id"] for row in rows] == [f"p{number}" for number in range(8)]
    assert {row["original"] for row in rows} == set(pictures)
    framed = bench.open(rows[0]["original"])
    assert (framed.size, framed.format) == ((200, 200), "JPEG")
    inside, outside = framed.getpixel((100, 100)), framed.getpixel((5, 5))
    assert isinstance(outside, tuple)
    assert all(abs(one - other) < 6 for one, other in zip(outside, BLUE, strict=True))
    assert inside != outside

    entries = bench.entries()
    links = [entry.findtext(f"{GOOGLE}image_link") for entry in entries]
    base = (bench.out / "pictures").as_uri()
    assert links[:8] == [f"{base}/{row['original']}" for row in rows]
    assert links[8:] == [product.link for product in bench.shop.products[8:]]
    assert [entry.findtext("{*}custom") for entry in entries] == ["kept"] * 21

    bench.shop.sent.clear()
    again = await bench.run()
    assert numbers(again) == [0, 8, 12, 1, 21]
    assert (bench.pictures(), bench.shop.sent, len(bench.shop.unchanged)) == (pictures, [], 8)

    bench.shop.serve("/2.jpg", draw(99, (300, 240)))
    bench.shop.serve("/gone", draw(98, (300, 240)))
    changed = await bench.run()
    assert numbers(changed) == [2, 7, 11, 1, 21]
    assert sorted(bench.shop.sent) == ["/2.jpg", "/gone"]
    assert len(bench.pictures()) == 10  # the older picture of p2 stays for those who link to it


async def test_another_design_fetches_and_composes_anew(bench: Bench) -> None:
    assert (await bench.run()).code == 0
    design = {
        "sizes": [{"name": "square", "width": 120, "height": 120}, {"name": "tall", "width": 90, "height": 160}],
        "texts": [{"text": "{title}", "box": {"x": 0, "y": 150, "width": 200, "height": 40}}],
        "output": {"kind": "jpeg"},
    }
    (bench.folder / "design.json").write_text(json.dumps(design))
    options = ("--design", "design.json", "--format", "webp", "--fit", "cover", "--base-url", "https://cdn.test/x/")
    ended = await bench.run(*options)
    assert (ended.code, numbers(ended)) == (0, [8, 0, 0, 0, 8])
    rows = bench.table("pictures.csv")
    sizes = [[bench.open(row[name]).size for name in ("square", "tall")] for row in rows]
    assert sizes == [[(120, 120), (90, 160)]] * 8
    assert all(row["square"].endswith(".webp") for row in rows)
    assert bench.entries()[3].findtext(f"{GOOGLE}image_link") == f"https://cdn.test/x/{rows[3]['square']}"

    bench.shop.products[0].title = "Another title"
    bench.shop.products[1].price = "99 EUR"  # which the design does not use
    bench.write_feed()
    bench.shop.sent.clear()
    ended = await bench.run(*options)
    assert (numbers(ended), bench.shop.sent) == ([1, 7, 0, 0, 8], ["/0.jpg"])


async def until(condition: Any) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=str
)
async def test_interrupted_and_taken_up_again(bench: Bench, number: signal.Signals, code: int) -> None:
    bench.shop.add(40)
    bench.write_feed()
    go_on = asyncio.Event()

    def hold(path: str) -> None:
        answer = bench.shop.origin.answers[path]
        assert not isinstance(answer, bytes)

        async def held(seen: Seen, writer: asyncio.StreamWriter) -> None:
            await go_on.wait()
            await answer(seen, writer)

        bench.shop.origin.answers[path] = held

    for position in range(20, 48):
        hold(f"/{position}.jpg")
    process = await bench.start()
    await until(lambda: (bench.out / "pictures").is_dir() and len(bench.pictures()) >= 15)
    process.send_signal(number)
    _, errors = await process.communicate()
    assert process.returncode == code, errors.decode()
    assert number is signal.SIGKILL or "Run the same command again" in errors.decode()
    assert not (bench.out / "feed.xml").exists()
    before, sent = bench.pictures(), list(bench.shop.sent)

    go_on.set()
    ended = await bench.run()
    assert ended.code == 0, ended.errors
    assert "Going on" in ended.out
    assert sum(numbers(ended)[:2]) == numbers(ended)[4] == 48
    assert before.items() <= bench.pictures().items()  # none of them was written again
    assert len(bench.pictures()) == 48
    again = [path for path in bench.shop.sent[len(sent) :] if path in sent]
    assert len(again) <= 48 - len(before)  # fetched once more at most: those that were not yet composed
    assert len(bench.entries()) == 48
    bench.assert_tidy()


async def test_a_truncated_feed_changes_nothing(bench: Bench) -> None:
    assert (await bench.run()).code == 0
    before = {path.name: path.read_bytes() for path in bench.out.iterdir() if path.suffix in (".xml", ".csv")}
    bench.shop.sent.clear()
    bench.shop.unchanged.clear()
    (bench.folder / "feed.xml").write_bytes(bench.shop.feed[:-200])
    ended = await bench.run()
    assert ended.code == 3
    assert "The feed cannot be used" in ended.errors
    assert {path.name: path.read_bytes() for path in bench.out.iterdir() if path.suffix in (".xml", ".csv")} == before
    assert (bench.shop.sent, bench.shop.unchanged) == ([], [])


async def test_a_feed_by_its_address(bench: Bench) -> None:
    lines = [f"{product.id},=cmd(),{product.link}" for product in bench.shop.products]
    table = gzip.compress("\n".join(["id,title,image_link", *lines]).encode())
    async with Origin({"/feed.csv.gz": answer_with(table)}) as feeds:
        allow = ("--allow-host", f"127.0.0.1:{feeds.port}")
        good = await bench.run(*allow, "--feed-mode", "additional", feed=feeds.url("/feed.csv.gz"))
        missing = await bench.run(*allow, feed=feeds.url("/none"))
        blocked = await bench.run(feed=feeds.url("/feed.csv.gz"))
    assert (good.code, numbers(good)) == (0, [8, 0, 0, 0, 8])
    rows, base = bench.table("feed.csv"), (bench.out / "pictures").as_uri()
    assert [row["image_link"] for row in rows] == [product.link for product in bench.shop.products]
    added = [f"{base}/{row['original']}" for row in bench.table("pictures.csv")]
    assert [row["additional_image_link"] for row in rows] == added
    assert {row["title"] for row in rows} == {"'=cmd()"}
    assert (missing.code, blocked.code) == (3, 3)
    assert "404" in missing.errors
    assert "127.0.0.1" not in blocked.errors
    bench.assert_tidy()


async def test_a_full_disk_is_no_products_fault(bench: Bench) -> None:
    bench.shop.serve("/5.jpg", draw(5, (2500, 2000)))
    ended = await bench.run(before="ulimit -f 200;")
    assert ended.code == 4, ended
    assert not (bench.out / "failures.csv").exists()
    ended = await bench.run()
    assert (ended.code, sum(numbers(ended)[:2])) == (0, 8)


async def test_one_process_at_a_time_in_a_folder(bench: Bench) -> None:
    bench.out.mkdir()
    with (bench.out / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ended = await bench.run()
    assert (ended.code, bench.shop.sent) == (2, [])
    assert "another process is at work" in ended.errors


async def test_a_frame_that_is_no_picture(bench: Bench) -> None:
    (bench.folder / "text.txt").write_text("no picture")
    ended = await bench.run("--frame", "text.txt")
    assert (ended.code, bench.shop.sent) == (2, [])
    assert ended.errors.startswith("--frame: ")
    assert "Traceback" not in ended.errors


class TestOptions:
    def test_a_feed_is_a_file_or_an_address(self, tmp_path: Path) -> None:
        (tmp_path / "feed").touch()
        assert feed_of(str(tmp_path / "feed")) == tmp_path / "feed"
        assert feed_of("HTTPS://shop.test/feed") == "HTTPS://shop.test/feed"
        for text in ("none.xml", "ftp://shop.test/feed", str(tmp_path)):
            with pytest.raises(OptionsError, match="there is no file"):
                feed_of(text)

    def test_hosts_of_the_command_line_and_of_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("IGEN_FETCH_ALLOW_HOSTS", "a.test:81")
        assert fetch_policy(["b.test:82", "c.test:83"]).allow_hosts == {
            ("a.test", 81),
            ("b.test", 82),
            ("c.test", 83),
        }
        with pytest.raises(OptionsError, match="--allow-host"):
            fetch_policy(["a:b:c"])

    def test_options_stand_above_the_file(self, tmp_path: Path) -> None:
        file = tmp_path / "d.json"
        file.write_text('{"placement": {"fit": "cover", "padding": 3}, "output": {"quality": 70}}')
        design = read_design(file, Overrides("-5,6,70,80", "stretch", "over", "png", 55))
        box = design.placement.box
        assert box is not None
        assert (box.x, box.y, box.width, box.height) == (-5, 6, 70, 80)
        assert (design.placement.fit, design.placement.padding, design.layer) == ("stretch", 3, "over")
        assert (design.output.kind, design.output.quality) == ("png", 55)
        assert read_design(file, Overrides()).placement.fit == "cover"
        assert read_design(None, Overrides()).placement.box is None

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            (Overrides(box="a,b,c,d"), "four whole numbers"),
            (Overrides(box="0,0,10,100"), "placement.box.width: Input should be greater than or equal to 20"),
            (Overrides(quality=101), "output.quality: Input should be less than or equal to 100"),
        ],
    )
    def test_wrong_options(self, given: Overrides, said: str) -> None:
        with pytest.raises(OptionsError, match=said):
            read_design(None, given)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("{", "Invalid JSON"),
            ("[]", "an object"),
            ('{"colour": 1}', "colour: Extra inputs"),
            ("\xff", "read"),
        ],
    )
    def test_wrong_design_files(self, tmp_path: Path, text: str, said: str) -> None:
        (tmp_path / "d.json").write_text(text, encoding="latin-1")
        with pytest.raises(OptionsError, match=said):
            read_design(tmp_path / "d.json", Overrides())

    def test_assets(self, tmp_path: Path) -> None:
        name = "ast_" + "a" * 26
        text = {"text": "x", "font": name, "box": {"x": 0, "y": 0, "width": 50, "height": 50}}
        (tmp_path / "d.json").write_text(json.dumps({"texts": [text]}))
        design = read_design(tmp_path / "d.json", Overrides())
        (tmp_path / "f.ttf").touch()
        assert read_assets([f"{name}={tmp_path}/f.ttf"], design) == {name: tmp_path / "f.ttf"}
        for pairs, said in (([], "say where"), (["x=y"], "not ID=PATH"), ([f"{name}=none"], "no file none")):
            with pytest.raises(OptionsError, match=said):
                read_assets(pairs, design)
