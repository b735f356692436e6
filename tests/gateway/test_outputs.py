from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.gateway.conftest import until
from tests.support.seeded_run import seed_run

if TYPE_CHECKING:
    from tests.gateway.conftest import RunningGateway


@pytest.fixture
def database(either_database: str) -> str:
    return either_database


async def seeded(gateway: RunningGateway, **how: object) -> str:
    frame = await gateway.frame(feed_url="http://feeds.example.com/feed.xml")
    await seed_run(gateway.services.db, gateway.services.store, frame["id"], **how)  # type: ignore[arg-type]
    return f"/api/frames/{frame['id']}"


async def test_the_table_shows_outputs_with_original_and_result(framing: RunningGateway) -> None:
    address = await seeded(framing, sizes=("square", "tall"))
    table = (await framing.request("GET", f"{address}/outputs")).json
    assert (table["total"], table["filtered"], len(table["outputs"])) == (3, 3, 3)
    row = table["outputs"][0]
    assert (row["product_id"], row["title"], row["state"]) == ("sku-0", "Shoe number 0", "completed")
    assert [output["size"] for output in row["outputs"]] == ["square", "tall"]
    result = await framing.request("GET", row["outputs"][0]["url"].removeprefix("http://pictures.example"), key=None)
    assert (result.status, result.headers["Content-Type"]) == (200, "image/jpeg")
    assert result.body.endswith(b"0 square")
    source = await framing.request("GET", row["source"].removeprefix("http://pictures.example"))
    assert (source.body[3:], source.headers["Content-Type"]) == (b"source 0", "image/jpeg")
    assert source.headers["X-Content-Type-Options"] == "nosniff"


async def test_the_table_is_paged_searched_and_sorted(framing: RunningGateway) -> None:
    address = await seeded(framing, completed=12)
    page = (await framing.request("GET", f"{address}/outputs?limit=5&offset=10")).json
    assert [row["position"] for row in page["outputs"]] == [10, 11]
    found = (await framing.request("GET", f"{address}/outputs?search=SKU-1&sort=-position")).json
    assert (found["total"], found["filtered"]) == (12, 3)
    assert [row["position"] for row in found["outputs"]] == [11, 10, 1]
    assert (await framing.request("GET", f"{address}/outputs?search=number%203")).json["filtered"] == 1
    assert (await framing.request("GET", f"{address}/outputs?search=%25")).json["filtered"] == 0
    by_title = (await framing.request("GET", f"{address}/outputs?sort=title&limit=3")).json
    assert [row["position"] for row in by_title["outputs"]] == [0, 1, 10]
    by_time = (await framing.request("GET", f"{address}/outputs?sort=finished_at&limit=1")).json
    assert by_time["outputs"][0]["position"] == 11
    for query in ("sort=fields", "limit=0", "limit=501", "offset=-1", "state=odd", "search=%00", "run_id=x"):
        assert (await framing.request("GET", f"{address}/outputs?{query}")).status == 422, query


async def test_failures_are_listed_with_their_reason(framing: RunningGateway) -> None:
    address = await seeded(framing)
    failures = (await framing.request("GET", f"{address}/failures")).json
    told = [(row["product_id"], row["state"], row["code"], row["reason"]) for row in failures["outputs"]]
    assert told == [
        ("sku-3", "failed", "code_failed", "It was failed."),
        ("sku-4", "skipped", "code_skipped", "It was skipped."),
    ]
    everything = (await framing.request("GET", f"{address}/outputs?state=all")).json
    assert everything["total"] == 5


async def test_a_frame_without_a_run_has_an_empty_table(framing: RunningGateway) -> None:
    frame = await framing.frame()
    table = (await framing.request("GET", f"/api/frames/{frame['id']}/outputs")).json
    assert (table["outputs"], table["total"], table["run_id"]) == ([], 0, None)
    for path in ("outputs/0", "outputs/0/source", "outputs.zip"):
        assert (await framing.request("GET", f"/api/frames/{frame['id']}/{path}")).status == 404


@pytest.mark.parametrize("state", ["failed", "cancelled"])
async def test_a_run_that_broke_off_before_it_made_anything_hides_nothing(
    framing: RunningGateway, state: str
) -> None:
    address = await seeded(framing)
    services, frame_id = framing.services, int(address.rpartition("/")[2])
    shown = (await framing.request("GET", f"{address}/outputs")).json
    assert shown["total"] == 3
    await seed_run(services.db, services.store, frame_id, completed=0, failed=0, skipped=2, state=state)
    assert (await framing.request("GET", f"{address}/outputs")).json == shown
    going_on = await seed_run(services.db, services.store, frame_id, completed=0, failed=0, state="composing")
    assert (await framing.request("GET", f"{address}/outputs")).json["run_id"] == going_on.id


async def test_one_output_is_deleted_with_its_file(framing: RunningGateway) -> None:
    address = await seeded(framing)
    row = (await framing.request("GET", f"{address}/outputs/1")).json
    url = row["outputs"][0]["url"].removeprefix("http://pictures.example")
    assert (await framing.request("DELETE", f"{address}/outputs/1")).json == {"deleted": 1}
    assert (await framing.request("GET", url)).status == 404
    assert (await framing.request("DELETE", f"{address}/outputs/1")).status == 404
    assert (await framing.request("GET", f"{address}/outputs")).json["total"] == 2

    async def swept() -> bool:
        return len([key async for key in framing.services.store.list("outputs")]) == 2

    await until(swept)


async def test_a_file_that_another_run_shares_stays_when_one_run_is_named(framing: RunningGateway) -> None:
    address = await seeded(framing)
    frame_id = int(address.rpartition("/")[2])
    await seed_run(framing.services.db, framing.services.store, frame_id)  # the same outputs again
    runs = (await framing.request("GET", f"{address}/runs")).json["runs"]
    assert len(runs) == 2
    deleted = await framing.request(
        "POST", f"{address}/outputs/delete", json={"positions": [0, 1], "run_id": runs[0]["id"]}
    )
    assert deleted.json == {"deleted": 2}
    await framing.services.sweeper.sweep()
    assert len([key async for key in framing.services.store.list("outputs")]) == 3
    older = (await framing.request("GET", f"{address}/outputs?run_id={runs[1]['id']}")).json
    url = older["outputs"][0]["outputs"][0]["url"].removeprefix("http://pictures.example")
    assert (await framing.request("GET", url)).status == 200
    body = {"all": True, "run_id": runs[1]["id"]}
    assert (await framing.request("POST", f"{address}/outputs/delete", json=body)).json == {"deleted": 3}
    await framing.services.sweeper.sweep()
    assert len([key async for key in framing.services.store.list("outputs")]) == 1


@pytest.mark.parametrize("body", [{}, {"positions": [1], "all": True}, {"positions": [-1]}, {"positions": ["x"]}, []])
async def test_a_deletion_must_say_what(framing: RunningGateway, body: object) -> None:
    address = await seeded(framing)
    assert (await framing.request("POST", f"{address}/outputs/delete", json=body)).status == 422
    assert (await framing.request("GET", f"{address}/outputs")).json["total"] == 3


async def test_nobody_elses_outputs_are_there(framing: RunningGateway, other_key: str) -> None:
    address = await seeded(framing)
    for method, path in (
        ("GET", "/outputs"),
        ("GET", "/failures"),
        ("GET", "/outputs/0"),
        ("GET", "/outputs/0/source"),
        ("GET", "/outputs.zip"),
        ("DELETE", "/outputs/0"),
        ("POST", "/outputs/delete"),
    ):
        reply = await framing.request(method, address + path, key=other_key, json={"all": True})
        assert reply.status == 404, path
    assert (await framing.request("GET", f"{address}/outputs")).json["total"] == 3


async def test_deleting_a_frame_removes_every_row_and_object(framing: RunningGateway) -> None:
    address = await seeded(framing, publish=b"<feed/>")
    assert (await framing.request("DELETE", address)).status == 204
    await framing.services.sweeper.sweep()
    left = [key async for key in framing.services.store.list()]
    assert [key for key in left if not key.startswith("sources/")] == []
