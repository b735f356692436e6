from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import update

from models.tables import RunItem
from tests.support.seeded_run import seed_run

if TYPE_CHECKING:
    from tests.gateway.conftest import RunningGateway

COLUMNS = {"columns[0][data]": "product_id", "columns[1][data]": "image_url", "columns[2][data]": "created_at"}


async def seeded(gateway: RunningGateway) -> str:
    frame = await gateway.frame()
    await seed_run(gateway.services.db, gateway.services.store, frame["id"], completed=12)
    return f"/frame/{frame['id']}/outputs-ajax/"


async def test_a_page_in_the_protocols_shape(framing: RunningGateway) -> None:
    address = await seeded(framing)
    query = {"draw": "7", "start": "5", "length": "5", "order[0][column]": "0", "order[0][dir]": "desc", **COLUMNS}
    reply = (await framing.request("GET", address, params=query)).json
    assert (reply["draw"], reply["recordsTotal"], reply["recordsFiltered"]) == (7, 12, 12)
    assert [row["product_id"] for row in reply["data"]] == ["sku-4", "sku-3", "sku-2", "sku-11", "sku-10"]
    row = reply["data"][0]
    assert row["image_url"].startswith("http://pictures.example/media/outputs/")
    assert row["created_at"] == "2026-11-01 12:00:10"
    assert row["id"] == 4


async def test_the_total_is_that_before_the_search(framing: RunningGateway) -> None:
    address = await seeded(framing)
    reply = (await framing.request("GET", address, params={"draw": "1", "search[value]": "sku-1"})).json
    assert (reply["recordsTotal"], reply["recordsFiltered"], len(reply["data"])) == (12, 3, 3)


async def test_several_columns_sort_one_after_the_other(framing: RunningGateway) -> None:
    address = await seeded(framing)
    query = {
        "columns[0][data]": "state",
        "columns[1][data]": "product_id",
        "state": "all",
        "length": "3",
        "order[0][column]": "0",
        "order[0][dir]": "desc",
        "order[1][column]": "1",
        "order[1][dir]": "desc",
    }
    rows = (await framing.request("GET", address, params=query)).json["data"]
    assert [row["product_id"] for row in rows] == ["sku-13", "sku-12", "sku-9"]
    query["order[1][dir]"] = "asc"
    rows = (await framing.request("GET", address, params=query)).json["data"]
    assert [row["product_id"] for row in rows] == ["sku-13", "sku-12", "sku-0"]


async def test_one_column_is_searched_by_itself(framing: RunningGateway) -> None:
    address = await seeded(framing)
    query = {**COLUMNS, "columns[0][search][value]": "sku-1", "columns[2][search][value]": "left out"}
    reply = (await framing.request("GET", address, params=query)).json
    assert (reply["recordsTotal"], reply["recordsFiltered"], len(reply["data"])) == (12, 3, 3)
    query["columns[1][search][value]"] = "/11.jpg"
    reply = (await framing.request("GET", address, params=query)).json
    assert [row["product_id"] for row in reply["data"]] == ["sku-11"]
    query["search[value]"] = "number 10"
    assert (await framing.request("GET", address, params=query)).json["recordsFiltered"] == 0


async def test_all_rows_and_odd_values(framing: RunningGateway) -> None:
    address = await seeded(framing)
    assert len((await framing.request("GET", address, params={"length": "-1"})).json["data"]) == 12
    odd = {"order[0][column]": "9", "order[0][dir]": "sideways", "start": "-5", **COLUMNS}
    assert len((await framing.request("GET", address, params=odd)).json["data"]) == 10
    script = {"draw": "<script>"}
    assert (await framing.request("GET", address, params=script)).status == 422
    assert (await framing.request("GET", address, params={"state": "failed"})).json["recordsTotal"] == 1


async def test_cells_are_inert_html(framing: RunningGateway) -> None:
    address = await seeded(framing)
    async with framing.services.db.write() as session:
        await session.execute(update(RunItem).values(product_id="<img src=x onerror=alert(1)>"))
    row = (await framing.request("GET", address)).json["data"][0]
    assert row["product_id"] == "&lt;img src=x onerror=alert(1)&gt;"


async def test_without_a_key_or_of_another_user_there_is_nothing(framing: RunningGateway, other_key: str) -> None:
    address = await seeded(framing)
    assert (await framing.request("GET", address, key=None)).status == 401
    assert (await framing.request("GET", address, key=other_key)).status == 404
