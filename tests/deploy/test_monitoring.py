"""Dashboard and alert rules name metrics, labels and values that the programs have."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from gateway.metrics import Metrics as GatewayMetrics
from inference.engine.types import EngineStats
from inference.metrics import Metrics as InferenceMetrics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import CollectorRegistry

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "deploy" / "monitoring"
OF_PROMETHEUS = {"up"}
WORDS = {"sum", "by", "rate", "increase", "histogram_quantile", "le", "or", "and"}


class EmptyBook:
    """A job book with nothing in it."""

    bytes_held = 0

    def __len__(self) -> int:
        return 0

    def count(self, _state: object) -> int:
        return 0


def names_of(registry: CollectorRegistry) -> dict[str, set[str]]:
    """Names that Prometheus stores, with their labels."""
    found: dict[str, set[str]] = {}
    for family in registry.collect():
        endings = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
        for ending in endings:
            labels = {label for sample in family.samples for label in sample.labels}
            found[family.name + ending] = labels
    return found


@pytest.fixture(scope="module")
def metrics() -> dict[str, set[str]]:
    inference = InferenceMetrics()
    fields = dict.fromkeys(EngineStats.__dataclass_fields__, 0)
    inference.watch(EmptyBook(), lambda: EngineStats(**fields))  # type: ignore[arg-type]
    inference.refused.labels("x")
    inference.webhooks.labels("x")
    gateway = GatewayMetrics()
    gateway.requests.labels("x", "x", "x")
    gateway.seconds.labels("x")
    gateway.generations.labels("x")
    return names_of(inference.registry) | names_of(gateway.registry)


def dashboard() -> Any:
    return json.loads((FOLDER / "grafana-igen.json").read_text(encoding="utf-8"))


def rules() -> list[dict[str, Any]]:
    loaded = yaml.safe_load((FOLDER / "alerts.yml").read_text(encoding="utf-8"))
    return [rule for group in loaded["groups"] for rule in group["rules"]]


def expressions() -> Iterator[str]:
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            yield target["expr"]
    for rule in rules():
        yield rule["expr"]


@pytest.mark.parametrize("expression", sorted(set(expressions())))
def test_every_metric_and_label_that_is_named_exists(expression: str, metrics: dict[str, set[str]]) -> None:
    bare = re.sub(r'"[^"]*"', "", expression)
    named = set(re.findall(r"[a-z][a-z_]+(?=[{\[\s)]|$)", re.sub(r"\{[^}]*\}|\bby \([^)]*\)", "", bare))) - WORDS
    assert named
    assert named <= set(metrics) | OF_PROMETHEUS
    labels = set(re.findall(r"(\w+)(?==~|!=|!~|=)", " ".join(re.findall(r"\{([^}]*)\}", bare))))
    for group in re.findall(r"\bby \(([^)]*)\)", bare):
        labels |= {each.strip() for each in group.split(",")}
    known = {label for name in named for label in metrics.get(name, set())}
    assert labels <= known | {"instance", "job"}


def test_values_that_are_compared_are_the_programs_own() -> None:
    text = " ".join(expressions())
    assert set(re.findall(r'outcome!="(\w+)"', text)) == {"success"}
    source = (FOLDER.parents[2] / "gateway" / "outcome.py").read_text() + "".join(
        path.read_text() for path in (FOLDER.parents[2] / "gateway").glob("*.py")
    )
    assert '"success"' in source
    assert set(re.findall(r'route[=!]~"([^"]*)"', text)) == {"/api/generate/?"}


def test_every_alert_says_how_grave_it_is_and_what_it_means() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    for rule in rules():
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"].endswith(".")


def test_the_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not taken & cells
        assert place["x"] + place["w"] <= 24
        taken |= cells
