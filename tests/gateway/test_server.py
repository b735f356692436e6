from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import aiohttp
import pytest

if TYPE_CHECKING:
    from tests.gateway.conftest import RunningGateway


async def test_a_refused_socket_is_no_error_of_ours(
    framing: RunningGateway, caplog: pytest.LogCaptureFixture
) -> None:
    frame = await framing.frame()
    with caplog.at_level(logging.INFO), pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await framing.http.ws_connect(f"{framing.url}/ws/progress/{frame['id']}/")
    assert refused.value.status == 401
    assert (await framing.log(2))[-1].status == 401
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []
