"""The command as operators run it: a process of its own before a real gateway, killed, starved, refused."""

from __future__ import annotations

import csv
import json
import resource
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.fake_backend import Fault, png
from tests.support.gateway_process import GatewayProcess, plain_environment, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMAND = Path(__file__).resolve().parents[2] / "scripts" / "generate"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with GatewayProcess(tmp_path_factory.mktemp("home")) as process:
        yield process


@pytest.fixture
def gateway(served: GatewayProcess) -> GatewayProcess:
    """The module's gateway before a backend that remembers nothing and has no faults."""
    backend = served.backend
    backend.drawn.clear()
    backend.submissions.clear()
    backend.submit_faults.clear()
    backend.seconds, backend.fail_with = 0.0, None
    return served


class Operator:
    """A folder with a file of prompts, and the command run in it."""

    def __init__(self, folder: Path, gateway: GatewayProcess) -> None:
        self.folder = folder
        self.gateway = gateway
        self.out = folder / "out"
        self.started: list[subprocess.Popen[str]] = []

    def write(self, count: int, **fields: Any) -> None:
        rows = [{"prompt": f"picture no. {n}", "seed": n, "width": 64, "height": 64, **fields} for n in range(count)]
        (self.folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def start(self, *options: str, key: str = "", **how: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [COMMAND, *options, "--url", self.gateway.url, "--out", "out"],
            cwd=self.folder,
            env=plain_environment(IGEN_API_KEY=key or self.gateway.key, IGEN_HOME=str(self.folder / "nowhere")),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **how,
        )
        self.started.append(process)
        return process

    def run(self, *options: str, key: str = "", **how: Any) -> tuple[int, str]:
        process = self.start(*(options or ("--file", "prompts.jsonl")), key=key, **how)
        out, errors = process.communicate(timeout=250)
        return process.returncode, out + errors

    def table(self, name: str) -> list[dict[str, str]]:
        with (self.out / name).open(newline="") as file:
            return list(csv.DictReader(file))

    @property
    def pictures(self) -> list[Path]:
        return sorted(self.out.glob("*.png"))


@pytest.fixture
def operator(tmp_path: Path, gateway: GatewayProcess) -> Iterator[Operator]:
    """What a test that fails leaves running would go on asking the gateway, which other tests use too."""
    made = Operator(tmp_path, gateway)
    yield made
    for process in made.started:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.mark.timeout(900)
def test_killed_three_times_every_prompt_has_one_picture_paid_for_once(operator: Operator) -> None:
    gateway, count = operator.gateway, 300
    operator.write(count)
    before = gateway.rows("SELECT COUNT(*) FROM generations")[0][0]
    gateway.backend.seconds = 0.05
    for reached in (40, 120, 210):
        process = operator.start("--file", "prompts.jsonl")
        wait_until(lambda reached=reached: len(gateway.backend.drawn) >= reached, 250, f"{reached} drawn")
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()

    code, told = operator.run()

    assert code == 0, told
    assert len(operator.pictures) == count
    assert not list(operator.out.glob("*.part"))
    rows = operator.table("pictures.csv")
    assert [row["prompt"] for row in rows] == [f"picture no. {n}" for n in range(count)]
    assert len({row["generation_id"] for row in rows}) == count
    for number, row in enumerate(rows):
        assert (operator.out / row["file"]).read_bytes() == png(64, 64, number)
    # what was paid for: the backend drew each job once, and the gateway has no row beside them
    assert set(gateway.backend.drawn.values()) == {1}
    assert len(gateway.backend.drawn) == count
    assert gateway.rows("SELECT COUNT(*) FROM generations")[0][0] - before == count
    charged = (
        "SELECT COUNT(*) FROM (SELECT idempotency_key FROM generations GROUP BY idempotency_key HAVING COUNT(*) > 1)"
    )
    assert gateway.rows(charged) == [(0,)]


def test_again_asks_for_nothing_and_lost_files_are_fetched_not_drawn(operator: Operator) -> None:
    operator.write(6)
    assert operator.run()[0] == 0
    assert operator.run()[0] == 0
    assert len(operator.gateway.backend.submissions) == 6
    data = operator.pictures[2].read_bytes()
    operator.pictures[2].unlink()
    code, told = operator.run()
    assert code == 0, told
    assert "fetched again, not drawn" in told
    assert operator.pictures[2].read_bytes() == data
    assert len(operator.gateway.backend.submissions) == 6


def test_rows_may_be_added_and_repeated(operator: Operator) -> None:
    operator.write(2)
    assert operator.run()[0] == 0
    lines = (operator.folder / "prompts.jsonl").read_text().splitlines()
    new = json.dumps({"prompt": "a new one"})
    (operator.folder / "prompts.jsonl").write_text("\n".join([new, *lines, lines[0]]))
    code, told = operator.run()
    assert code == 0, told
    assert len(operator.gateway.backend.submissions) == 4
    prompts = [row["prompt"] for row in operator.table("pictures.csv")]
    assert prompts == ["a new one", "picture no. 0", "picture no. 1", "picture no. 0"]


def test_one_prompt_from_the_command_line(operator: Operator) -> None:
    code, told = operator.run("A red Circle!", "--set", "num_images=2", "--set", "width=72", "--set", "seed=5")
    assert code == 0, told
    assert [path.name for path in operator.pictures] == ["000001-a-red-circle-1.png", "000001-a-red-circle-2.png"]
    assert operator.pictures[1].read_bytes() == png(72, 64, 6)
    assert operator.run("A red Circle!")[0] == 0
    assert operator.run("A red Circle!")[0] == 0  # finished, so it is another one that is wanted
    assert len(operator.gateway.backend.submissions) == 3


def test_bad_rows_are_all_named_and_nothing_is_sent(operator: Operator) -> None:
    table = (
        "prompt,width,guidance_scale,style,strict\nfine,64,7.5,,true\n,64,,,\nx,65,,,\ny,64,much,a,yes\nz,1,2,3,4,5\n"
    )
    (operator.folder / "prompts.csv").write_text(table)
    code, told = operator.run("--file", "prompts.csv")
    assert code == 2
    for place, what in (
        (3, "prompt"),
        (4, "width: must be a multiple of 8"),
        (5, "guidance_scale"),
        (5, "strict"),
        (6, "has 6 cells"),
    ):
        assert f"prompts.csv:{place}: {what}" in told.replace("\n", " "), told
    assert operator.gateway.backend.submissions == []
    assert not operator.pictures


def test_a_table_of_all_kinds_of_cells(operator: Operator) -> None:
    row = '"a (red) circle, with a comma",64,64,20,7,true,"[""anime"", ""photo""]",Euler'
    (operator.folder / "p.csv").write_text(f"prompt,width,height,steps,cfg_scale,strict,styles,sampler\n{row}\n")
    code, told = operator.run("--file", "p.csv")
    assert code == 0, told
    (sent,) = [job.input for job in operator.gateway.backend.jobs.values() if "comma" in job.input["prompt"]]
    assert sent["num_inference_steps"] == 20
    assert (sent["guidance_scale"], sent["strict"], sent["scheduler"]) == (7.0, True, "Euler")
    assert sent["style"] == ["anime", "photo"]


def test_full_and_broken_backends_are_waited_for(operator: Operator) -> None:
    operator.write(4)
    operator.gateway.backend.retry_after = "1"
    operator.gateway.backend.submit_faults.extend([Fault.FULL_429, Fault.LOADING_503, Fault.FULL_429])
    code, told = operator.run("--file", "prompts.jsonl", "--concurrency", "1")
    operator.gateway.backend.retry_after = "7"
    assert code == 0, told
    assert sum(operator.gateway.backend.drawn.values()) == 4
    assert len(operator.pictures) == 4
    assert "Waiting: " in told, "whoever looks at a bar that stands still wants to know why"
    assert "backend_full" in told


def test_failures_are_reported_and_tried_again_only_when_asked(operator: Operator) -> None:
    operator.write(3)
    operator.gateway.backend.fail_with = "out of memory"
    code, told = operator.run()
    assert code == 1, told
    failures = operator.table("failures.csv")
    assert [row["code"] for row in failures] == ["backend_failed"] * 3
    assert [row["prompt"] for row in json.loads((operator.out / "failures.json").read_text())] == [
        f"picture no. {n}" for n in range(3)
    ]
    operator.gateway.backend.fail_with = None
    assert operator.run()[0] == 1
    assert len(operator.gateway.backend.submissions) == 3
    code, told = operator.run("--file", "prompts.jsonl", "--retry-failed")
    assert code == 0, told
    assert operator.table("failures.csv") == []
    assert len(operator.pictures) == 3


def test_ctrl_c_leaves_a_tidy_folder_and_the_next_run_goes_on(operator: Operator) -> None:
    operator.write(40)
    operator.gateway.backend.seconds = 1.0
    process = operator.start("--file", "prompts.jsonl", "--concurrency", "4")
    wait_until(lambda: len(operator.pictures) >= 3, 60, "three pictures")
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "Interrupted" in told
    assert "Traceback" not in told
    assert not list(operator.out.glob("*.part"))
    # one that was being written at that moment may be there and not in the table yet
    assert len(operator.table("pictures.csv")) <= len(operator.pictures) < 40
    operator.gateway.backend.seconds = 0
    assert operator.run()[0] == 0
    assert set(operator.gateway.backend.drawn.values()) == {1}
    assert len(operator.gateway.backend.drawn) == 40


def test_a_full_disk_is_said_plainly(operator: Operator) -> None:
    """A limit on a file's size stands for the full disk: pictures of 2 MB beside a small manifest."""
    operator.gateway.backend.change_output = _large
    operator.write(1, width=1024, height=1024)

    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    try:
        code, told = operator.run(preexec_fn=small_files)
        assert code == 4, told
        assert "too large" in told
        assert "Traceback" not in told
        assert not list(operator.out.glob("*.part"))
        assert not operator.pictures
        code, told = operator.run()
    finally:
        operator.gateway.backend.change_output = lambda output: output
    assert code == 0, told
    assert len(operator.gateway.backend.submissions) == 1


def _large(output: dict[str, Any]) -> dict[str, Any]:
    import os
    import struct
    import zlib

    from tests.support.fake_backend import data_uri, png_chunk

    row = b"".join(b"\0" + os.urandom(3 * 1024) for _ in range(1024))
    header = struct.pack(">IIBBBBB", 1024, 1024, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(row, 1)), (b"IEND", b"")]
    picture = data_uri(b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(name, data) for name, data in chunks))
    return {**output, "images": [picture], "image_url": picture}


def test_a_gateway_that_is_killed_is_waited_for(operator: Operator) -> None:
    operator.write(30)
    operator.gateway.backend.seconds = 0.1
    process = operator.start("--file", "prompts.jsonl", "--concurrency", "4")
    wait_until(lambda: len(operator.pictures) >= 3, 60, "three pictures")
    operator.gateway.kill()
    operator.gateway.start()
    out, errors = process.communicate(timeout=250)
    assert process.returncode == 0, out + errors
    assert set(operator.gateway.backend.drawn.values()) == {1}
    assert len(operator.gateway.backend.drawn) == 30
    assert len(operator.pictures) == 30


def test_a_refused_key_and_a_wrong_address_end_it_at_once(operator: Operator) -> None:
    operator.write(2)
    code, told = operator.run(key="igen_aaaaaaaaaaaa_" + "x" * 43)
    assert code == 3
    assert "refuses the key" in told
    code, told = operator.run("--file", "prompts.jsonl", "--url", operator.gateway.url + "/elsewhere")
    assert code in (2, 3), told
    assert operator.gateway.backend.submissions == []


def test_what_was_sent_is_not_sent_to_another_gateway(operator: Operator) -> None:
    operator.write(5)
    operator.gateway.backend.seconds = 1
    process = operator.start("--file", "prompts.jsonl")
    wait_until(lambda: operator.gateway.backend.drawn, 60, "the first submission")
    process.kill()
    process.communicate()
    operator.gateway.backend.seconds = 0
    other = operator.gateway.url.replace("127.0.0.1", "localhost")
    command = ("--file", "prompts.jsonl", "--same-gateway")
    url, operator.gateway.url = operator.gateway.url, other
    try:
        code, told = operator.run()
        assert code == 2
        assert "--same-gateway" in told
        assert operator.run(*command)[0] == 0
    finally:
        operator.gateway.url = url
    assert set(operator.gateway.backend.drawn.values()) == {1}


def test_one_process_a_folder(operator: Operator) -> None:
    operator.write(10)
    operator.gateway.backend.seconds = 0.5
    process = operator.start("--file", "prompts.jsonl", "--concurrency", "1")
    wait_until(lambda: operator.gateway.backend.drawn, 60, "the first submission")
    code, told = operator.run()
    process.kill()
    process.communicate()
    assert code == 2
    assert "another process is at work" in told
