"""What the pages say: every panel's SQL gives its rows, and the JSON is what its description promises."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import numpy as np
import pandas as pd
import pytest
from openapi_spec_validator import validate
from support.page import ask
from web.conftest import DemoPage

from query.presentation.formats import plain
from query.questions.declarations import QUESTIONS
from store import codes

UNITS = [
    ("blocks.5.2.bn1", 0), ("blocks.5.2.bn1", 3), ("blocks.5.2.bn1", 300), ("blocks.5.1.add", 5), ("bn1", 2),
    ("blocks.0.0.bn1", 31), ("classifier", 251), ("blocks.4.1.bn1", 0), ("blocks.2.1.bn1", 100), ("bn2", 7),
]  # fmt: skip
PAGES = [
    "", "-/image/4/", "-/image/4/?layer=blocks.5.2.bn1", "-/class/251/", "blocks.5.2.bn1/",
    "blocks.5.2.bn1/?sort=maximum&show=living", "blocks.5.2.bn1/?class=dalmatian", "blocks.5.2.bn1/?image=4",
    "blocks.5.2.bn1/?show=rendered&sort=fraction_active", "blocks.5.2.bn1/?sort=trust",
    "blocks.5.2.bn1/?show=clipped", "blocks.5.2.bn1/?show=dead",
    *(f"{layer}/{channel}/" for layer, channel in UNITS), "blocks.5.2.bn1/3/?from=1&to=2",
]  # fmt: skip


def fetched(page: DemoPage, path: str) -> Any:
    """The JSON beside a page of the run."""
    address, _, query = path.partition("?")
    status, headers, body = ask(page.address, f"/{page.run}/{address}index.json?{query}")
    assert status == 200, body
    assert headers["content-type"].startswith("application/json")
    return json.loads(body)


@pytest.mark.parametrize("path", PAGES)
def test_the_sql_of_every_panel_gives_its_rows(demo_page: DemoPage, path: str) -> None:
    panels = fetched(demo_page, path)["panels"]
    assert panels
    for name, panel in panels.items():
        if not panel["sql"]:
            continue
        answer = demo_page.scope.sql(panel["sql"])
        rows = [dict(zip(answer.columns, map(plain, row), strict=True)) for row in answer.fetchall()]
        shown = [{key: value for key, value in row.items() if key != "rendered"} for row in panel["rows"]]
        assert rows == shown, name


def test_a_page_and_its_json_say_the_same(demo_page: DemoPage) -> None:
    answer = fetched(demo_page, "blocks.5.2.bn1/3/")
    _, headers, html = ask(demo_page.address, f"/{demo_page.run}/blocks.5.2.bn1/3/")
    text = html.decode()
    assert f'href="/{demo_page.run}/blocks.5.2.bn1/3/index.json"' in text
    for row in answer["panels"]["highest"]["rows"]:
        assert f"/-/image/{row['image_id']}/" in text
    assert headers["link"].startswith('<index.json>; rel="alternate"; type="application/json"')
    assert "content-security-policy" in headers


def test_states_are_counted_as_the_question_counts_them(demo_page: DemoPage) -> None:
    layer = "blocks.5.2.bn1"
    answer = fetched(demo_page, f"{layer}/")
    states = demo_page.scope.unit_states(layer)["state"].value_counts().to_dict()
    assert {state: count for state, count in answer["counts"].items() if count} == states


def test_units_of_an_image_are_those_of_top_units(demo_page: DemoPage) -> None:
    rows = fetched(demo_page, "-/image/4/?layer=blocks.5.2.bn1")["panels"]["units"]["rows"]
    for layer, k in (("blocks.5.2.bn1", 48), ("blocks.5.1.add", 6), ("classifier", 6)):
        channels = [row["channel"] for row in rows if row["layer"] == layer]
        expected = demo_page.scope.top_units(4, k, layer=layer)
        assert channels == expected["channel"][expected["tail_p"] <= 0.5].tolist()
        assert channels


def test_a_histogram_counts_every_image_once(demo_page: DemoPage) -> None:
    for layer, channel in UNITS:
        frame = demo_page.scope.distribution(f"{layer}:{channel}")
        values = demo_page.scope.activations(f"{layer}:{channel}")["value"]
        assert frame["images"].sum() == len(values)
        edges = [*frame["low"], frame["high"].iloc[-1]]
        assert edges == sorted(edges)
        assert edges[0] <= values.min() + 1e-6
        assert edges[-1] >= values.max() - 1e-6


def test_images_between_are_those_whose_value_is(demo_page: DemoPage) -> None:
    for layer, channel in UNITS:
        unit = f"{layer}:{channel}"
        every = demo_page.scope.activations(unit)
        low, high = (float(x) for x in np.quantile(every["value"], [0.3, 0.8]))
        expected = every[(every["value"].astype(float) >= low) & (every["value"].astype(float) <= high)]
        found = demo_page.scope.images_between(unit, low, high, 100)
        assert sorted(found["image_id"]) == sorted(expected["image_id"])
        assert found["value"].is_monotonic_decreasing


def test_quantile_images_lie_around_their_quantile(demo_page: DemoPage) -> None:
    """Compare with a stable sort of all images of the unit by their codes."""
    k = 5
    for layer, channel in UNITS:
        unit = f"{layer}:{channel}"
        dense = demo_page.scope.records[demo_page.run]
        code = dense.unit(dense.run.by_name[layer], channel, "max")[dense.run.images.all].astype(int)
        found = demo_page.scope.quantile_images(unit, k)
        assert list(dict.fromkeys(found["quantile"])) == list(codes.QUANTILES)
        falling = sorted(range(len(code)), key=lambda i: (-code[i], i))
        for quantile, group in found.groupby("quantile"):
            start = min(max(round((1 - float(str(quantile))) * (len(code) - 1)) - k // 2, 0), len(code) - k)
            expected = dense.run.images.all[falling[start : start + k]]
            assert sorted(group["image_id"]) == sorted(expected)
            assert group["value"].is_monotonic_decreasing


def test_the_description_is_openapi_and_holds_for_every_question_and_page(demo_page: DemoPage) -> None:
    description = json.loads(ask(demo_page.address, "/-/api/index.json")[2])
    validate(description)
    given = {
        "unit": "blocks.5.2.bn1:3", "image": "4", "label": "dalmatian", "layer": "blocks.5.2.bn1", "a": "bn1:0",
        "b": "bn1:2", "images_a": "dalmatian", "images_b": "beaker", "low": "0.5", "high": "2", "k": "3",
        "model_a": "tf_efficientnet_lite0", "model_b": "tf_efficientnet_lite0",
    }  # fmt: skip
    for question in QUESTIONS:
        path = f"/-/api/{question.name}/index.json"
        operation = description["paths"][path]["get"]
        wanted = [p["name"] for p in operation["parameters"] if p["required"] or p["name"] in ("k", "layer")]
        query = "&".join(f"{name}={given[name]}" for name in wanted)
        status, _, body = ask(demo_page.address, f"{path}?{query}")
        assert status == 200, body
        schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
        jsonschema.validate(json.loads(body), schema | {"components": description["components"]})
    page_schema = {"$ref": "#/components/schemas/Page", "components": description["components"]}
    for path in PAGES:
        jsonschema.validate(fetched(demo_page, path), page_schema)
    described = {re.sub(r"{\w+}", "x", path) for path in description["paths"]}
    assert {f"/x/{tail}index.json" for tail in ("", "x/", "x/x/", "-/image/x/", "-/class/x/", "-/drop/x/")} <= described


def test_a_question_asked_by_address_is_answered_as_by_the_api(demo_page: DemoPage) -> None:
    answer = json.loads(ask(demo_page.address, "/-/api/top_units/index.json?image=4&k=7&layer=blocks.5.*")[2])
    expected = demo_page.scope.top_units(4, 7, layer="blocks.5.*")
    pd.testing.assert_frame_equal(pd.DataFrame(answer)[["layer", "channel"]], expected[["layer", "channel"]])
