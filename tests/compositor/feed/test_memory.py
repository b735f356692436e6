"""A million entries within a fixed memory, in a process of its own so that nothing else counts."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROGRAM = """
import sys
from pathlib import Path
from compositor.feed.reader import open_feed
from compositor.feed.writer import rewrite_feed
status = Path("/proc/self/status")  # getrusage would count what the parent held before exec
peak = lambda: next(int(line.split()[1]) for line in status.open() if line.startswith("VmHWM")) // 1024
idle = peak()
source = Path(sys.argv[1])
count = sum(entry.code is None for entry in open_feed(source))
read = peak()
if len(sys.argv) > 2:
    rewrite_feed(source, Path(sys.argv[2]), lambda position: ["https://i.test/a"], "replace")
print(count, read - idle, peak() - idle)
"""
ENTRY = (
    "<item><g:id>{0}</g:id><g:title>Product {0}</g:title><g:image_link>https://x.test/{0}.jpg</g:image_link></item>\n"
)


def run(*arguments: str) -> list[int]:
    words = [sys.executable, "-c", PROGRAM, *arguments]
    done = subprocess.run(words, check=True, capture_output=True, text=True, cwd=ROOT, timeout=800)
    return [int(word) for word in done.stdout.split()]


def write_feed(path: Path, entries: int) -> None:
    with gzip.open(path, "wt", compresslevel=1, encoding="utf-8") as out:
        out.write('<rss xmlns:g="http://base.google.com/ns/1.0"><channel>')
        for start in range(0, entries, 1000):
            out.write("".join(ENTRY.format(number) for number in range(start, start + 1000)))
        out.write("</channel></rss>")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_million_entries_are_read_in_little_memory(tmp_path: Path) -> None:
    write_feed(tmp_path / "feed.xml.gz", 1_000_000)
    count, read, _ = run(str(tmp_path / "feed.xml.gz"))
    assert count == 1_000_000
    assert read < 40


def test_reading_and_writing_hold_no_more_for_more_entries(tmp_path: Path) -> None:
    write_feed(tmp_path / "feed.xml.gz", 40_000)
    count, read, written = run(str(tmp_path / "feed.xml.gz"), str(tmp_path / "out.xml"))
    assert count == 40_000
    assert read < 10  # held in a list they would take more than 20
    assert written < 10
