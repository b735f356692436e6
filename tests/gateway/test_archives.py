from __future__ import annotations

import io
import zipfile
from typing import TYPE_CHECKING

from sqlalchemy import update

from models.tables import RunItem
from tests.support.seeded_run import seed_run

if TYPE_CHECKING:
    from tests.gateway.conftest import Reply, RunningGateway


async def seeded(gateway: RunningGateway, completed: int = 3) -> str:
    frame = await gateway.frame("Autumn & Winter")
    await seed_run(
        gateway.services.db, gateway.services.store, frame["id"], completed=completed, sizes=("original", "tall")
    )
    return f"/api/frames/{frame['id']}"


def archive(reply: Reply) -> dict[str, bytes]:
    assert (reply.status, reply.headers["Content-Type"]) == (200, "application/zip")
    with zipfile.ZipFile(io.BytesIO(reply.body)) as opened:
        assert opened.testzip() is None
        return {name: opened.read(name) for name in opened.namelist()}


async def test_all_outputs_in_one_archive(framing: RunningGateway) -> None:
    address = await seeded(framing, completed=150)
    reply = await framing.request("GET", f"{address}/outputs.zip")
    found = archive(reply)
    assert len(found) == 300
    assert found["000001_sku-0.jpg"].endswith(b" 0 original")
    assert found["000150_sku-149_tall.jpg"].endswith(b" 149 tall")
    assert 'filename="Autumn-Winter-run-1.zip"' in reply.headers["Content-Disposition"]


async def test_some_outputs_by_search_size_and_position(framing: RunningGateway) -> None:
    address = await seeded(framing)
    searched = archive(await framing.request("GET", f"{address}/outputs.zip?search=sku-2&size=tall"))
    assert list(searched) == ["000003_sku-2_tall.jpg"]
    chosen = archive(await framing.request("GET", f"{address}/outputs.zip?positions=2,0,2,77&size=original"))
    assert list(chosen) == ["000001_sku-0.jpg", "000003_sku-2.jpg"]
    body = {"positions": [1], "size": "original"}
    posted = archive(await framing.request("POST", f"{address}/outputs/zip", json=body))
    assert list(posted) == ["000002_sku-1.jpg"]
    for nothing in ("search=nothing", "positions=77", "size=other", "positions=0&size=other"):
        refused = await framing.request("GET", f"{address}/outputs.zip?{nothing}")
        assert (refused.status, refused.code) == (422, "invalid_input"), nothing


async def test_names_cannot_climb_out_and_a_lost_object_is_told(framing: RunningGateway) -> None:
    address = await seeded(framing)
    async with framing.services.db.write() as session:
        await session.execute(update(RunItem).where(RunItem.position == 0).values(product_id="../../etc/passwd"))
        await session.execute(update(RunItem).where(RunItem.position == 1).values(product_id="..\\\u202e\u0000x"[:4]))
    rows = (await framing.request("GET", f"{address}/outputs/2")).json
    name = rows["outputs"][0]["url"].rpartition("/")[2]
    await framing.services.store.delete(f"outputs/{name[:2]}/{name}")
    found = archive(await framing.request("GET", f"{address}/outputs.zip?size=original"))
    assert list(found) == ["000001_etc_passwd.jpg", "000002_product.jpg", "missing.txt"]
    assert found["missing.txt"] == b"000003_sku-2.jpg\n"
