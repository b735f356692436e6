"""The composing process: `python -m compositor.compose.child --socket PATH`.

It loads Pillow once and then only listens. Every connection is served by a fork of its own, under limits of memory
and time, until it closes; so a picture that kills its decoder takes one connection with it and nothing else. The
process ends when its standard input closes, so it never outlives whoever started it.
"""

from __future__ import annotations

import argparse
import gc
import os
import select
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageFont

from compositor.compose import fastjpeg
from compositor.compose.errors import ComposeCode, ComposeError
from compositor.compose.fonts import try_font
from compositor.compose.job import ComposeJob
from compositor.compose.limits import Limits, end_request, limit_process, start_request
from compositor.compose.picture import open_picture
from compositor.compose.protocol import ConnectionLostError, encode, receive
from compositor.compose.render import Renderer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

BACKLOG = 64
MAX_CHILDREN = 64
READY = b"ready\n"
NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

Answer = tuple[dict[str, Any], bytes]


class Conversation:
    """Serves one connection, in a process of its own."""

    def __init__(self, connection: socket.socket, limits: Limits) -> None:
        self._connection = connection
        self._limits = limits
        self._renderer = Renderer()
        self._doors: dict[str, Callable[[dict[str, Any]], Answer]] = {
            "compose": self._compose,
            "inspect": self._inspect,
            "inspect_font": self._inspect_font,
        }

    def run(self) -> None:
        """Answer requests until the other side closes."""
        self._connection.sendall(encode({"pid": os.getpid()}))
        while True:
            try:
                request = receive(self._connection)
            except ConnectionLostError:
                return
            start_request(_limits_of(request, self._limits))
            header, data = self._answer(request)
            self._connection.sendall(encode(header) + data)
            end_request()

    def _answer(self, request: dict[str, Any]) -> Answer:
        try:
            return self._doors[request["do"]](request)
        except ComposeError as error:
            return {"code": error.code, "message": error.message}, b""
        except MemoryError:
            message = "The picture needs more memory than one picture may have."
            return {"code": ComposeCode.TOO_MUCH_MEMORY, "message": message}, b""
        except Exception:  # noqa: BLE001 - this process's edge: a fault of ours costs one product and is logged
            traceback.print_exc()
            return {
                "code": ComposeCode.COMPOSE_FAILED,
                "message": "Composing failed. The failure has been logged.",
            }, b""

    def _compose(self, request: dict[str, Any]) -> Answer:
        composed = self._renderer.render(ComposeJob.from_json(request["job"]))
        header = {"width": composed.width, "height": composed.height}
        if request.get("to") is None:
            return {**header, "bytes": len(composed.data)}, composed.data
        write_output(Path(request["to"]), composed.data)
        return {**header, "wrote": len(composed.data)}, b""

    def _inspect(self, request: dict[str, Any]) -> Answer:
        info = open_picture(Path(request["path"])).info()
        header = {"width": info.width, "height": info.height, "transparent": info.transparent, "format": info.format}
        return header, b""

    def _inspect_font(self, request: dict[str, Any]) -> Answer:
        try_font(Path(request["path"]))
        return {}, b""


def write_output(path: Path, data: bytes) -> None:
    """Write a file that is not there yet, for its owner alone. It is for the caller to get it to the disk.

    Raises:
        ComposeError: `output_not_written`, a fault of this machine.

    """
    try:
        with os.fdopen(os.open(path, NEW_FILE, 0o600), "wb", buffering=0) as file:
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
    except OSError as error:
        message = f"The output could not be written: {error.strerror}."
        raise ComposeError(ComposeCode.OUTPUT_NOT_WRITTEN, message) from error


def _limits_of(request: dict[str, Any], limits: Limits) -> Limits:
    """The wall clock runs a little longer than the caller waits, so that the caller is the one to tell."""
    wall = min(limits.wall_s, float(request.get("timeout_s", limits.wall_s)) + 1.0)
    return Limits(limits.memory_bytes, limits.cpu_s, wall)


class ComposeServer:
    """Listens on a unix socket and forks one child for each connection."""

    def __init__(self, listener: socket.socket, limits: Limits) -> None:
        self._listener = listener
        self._limits = limits
        self._children: set[int] = set()

    def run(self, alive: int) -> None:
        """Serve until the file descriptor `alive` closes at its other end."""
        woken, wake = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(woken, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # only to be woken
        while True:
            waiting = [alive, woken]
            if len(self._children) < MAX_CHILDREN:
                waiting.append(self._listener.fileno())
            ready, _, _ = select.select(waiting, [], [])
            if woken in ready:
                os.read(woken, 4096)
            self._reap()
            if alive in ready and not os.read(alive, 1):
                return
            if self._listener.fileno() in ready:
                self._serve_next([woken, wake, alive])

    def _serve_next(self, others: Sequence[int]) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        pid = os.fork()
        if pid:
            self._children.add(pid)
            connection.close()
            return
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            self._listener.close()
            for number in others:
                os.close(number)
            connection.setblocking(True)
            limit_process(self._limits)
            Conversation(connection, self._limits).run()
            code = 0
        except (BrokenPipeError, ConnectionResetError):
            code = 0  # the caller went away while we worked
        except BaseException:  # noqa: BLE001 - a fork must not run the parent's code any further
            traceback.print_exc()
        finally:
            os._exit(code)

    def _reap(self) -> None:
        while self._children:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self._children.clear()
                return
            if not pid:
                return
            self._children.discard(pid)


def warm() -> None:
    """Load what every fork needs, once."""
    Image.preinit()
    Image.init()
    ImageFont.load_default(10)
    fastjpeg.available()
    gc.collect()
    gc.freeze()


def main(arguments: Sequence[str] | None = None) -> None:
    """Listen until standard input closes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--memory-bytes", type=int, default=Limits().memory_bytes)
    parser.add_argument("--cpu-s", type=int, default=Limits().cpu_s)
    parser.add_argument("--wall-s", type=float, default=Limits().wall_s)
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for whoever started us, who then closes our input
    warm()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    options.socket.unlink(missing_ok=True)
    listener.bind(str(options.socket))
    options.socket.chmod(0o600)
    listener.listen(BACKLOG)
    listener.setblocking(False)
    os.write(sys.stdout.fileno(), READY)
    try:
        ComposeServer(listener, Limits(options.memory_bytes, options.cpu_s, options.wall_s)).run(sys.stdin.fileno())
    finally:
        options.socket.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
