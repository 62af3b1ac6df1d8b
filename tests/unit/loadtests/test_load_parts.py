"""Requests that are drawn, adapters that are made, times of bursts, and the pictures."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import load_test
import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from load.adapters import NUM_EXAMPLES, Template, examples_of, name_of, prompt_of, upload
from load.driver import arrivals
from load.html import page
from load.mix import EVERYTHING, Draw, Mixture
from load.plots import Chart, Line, ticks
from load.sections import Check, Section
from load.timeline import Timeline
from safetensors.numpy import load, save_file

LIBRARY = {name_of(index): f"{index:08x}" for index in range(50)}


def draw(**changes: object) -> Draw:
    return Draw(Mixture(50, **changes), 7, Timeline(LIBRARY), "base", "auto")  # type: ignore[arg-type]


def test_every_kind_comes_in_its_share() -> None:
    requests = draw()
    kinds = Counter(requests.next(serial)[0].kind for serial in range(4000))
    total = sum(EVERYTHING.values())
    for kind, share in EVERYTHING.items():
        assert kinds[kind] / 4000 == pytest.approx(share / total, abs=0.05)


def test_zipf_asks_the_first_experts_most() -> None:
    requests = draw(skew=1.0, kinds={"expert": 1})
    names = Counter(requests.next(serial)[0].model for serial in range(5000))
    harmonic = sum(1 / rank for rank in range(1, 51))
    assert names[name_of(0)] / 5000 == pytest.approx(1 / harmonic, abs=0.03)
    assert names[name_of(0)] > 5 * names[name_of(20)]
    requests = draw(skew=0.0, kinds={"expert": 1})
    even = Counter(requests.next(serial)[0].model for serial in range(5000))
    assert len(even) == 50 and max(even.values()) < 2 * min(even.values())


def test_a_policy_is_asked_only_for_changing_experts_that_it_knows() -> None:
    requests = draw(kinds={"auto": 1}, changing_share=1.0)
    requests.changing = [60]
    assert requests.next(0)[0].kind == "expert"
    requests.routable.add(60)
    asked, body = requests.next(1)
    assert (asked.kind, asked.experts) == ("auto", ((name_of(60), 0.0),))
    assert examples_of(60)[0].split()[0] in orjson.loads(body)["messages"][0]["content"]


def test_prompts_of_experts_share_no_words() -> None:
    words = [set(" ".join(examples_of(index)).split()) for index in range(300)]
    shared = sum(len(words[a] & words[a + 1]) for a in range(299))
    assert shared <= 2
    assert len(prompt_of(3, 1, 500).split()) == pytest.approx(500, abs=12)
    assert prompt_of(3, 1, 24) != prompt_of(3, 1 + NUM_EXAMPLES, 24)


def test_other_seeds_are_other_contents(tmp_path: Path) -> None:
    template = Template.load(None)
    one, same, other = (template.files(seed)["adapter_model.safetensors"] for seed in (1, 1, 2))
    assert one == same != other
    assert all(np.abs(tensor).max() > 0 for tensor in load(one).values())
    save_file({"x": np.zeros((2, 2), np.float16)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text("{}")
    made = Template.load(tmp_path).files(1)
    assert load(made["adapter_model.safetensors"])["x"].dtype == np.float16


def test_uploads_hold_manifest_and_files() -> None:
    body, kind = upload("load-1", ("a", "b"), {"adapter_config.json": b"{}"})
    boundary = kind.partition("boundary=")[2]
    assert body.count(boundary.encode()) == 3
    assert b'"examples":["a","b"]' in body


@settings(deadline=None, max_examples=25)
@given(st.floats(1, 4.9), st.integers(0, 5))
def test_bursts_keep_the_average(burst: float, seed: int) -> None:
    times = list(arrivals(100.0, 40.0, burst, 5.0, seed))
    assert times == sorted(times)
    assert len(times) == pytest.approx(4000, rel=0.12)


def test_bursts_are_bursts() -> None:
    times = list(arrivals(100.0, 50.0, 4.0, 5.0, 1))
    assert sum(time % 5 < 1 for time in times) / len(times) == pytest.approx(0.8, abs=0.05)
    with pytest.raises(ValueError, match="below 5"):
        list(arrivals(1.0, 1.0, 5.0, 5.0, 1))


@settings(deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_enclose_the_range(low: float, span: float) -> None:
    found = ticks(low, low + span)
    assert found[0] <= low + 1e-6 * span and found[-1] >= low + span * (1 - 1e-6)
    assert 2 <= len(found) <= 9


@pytest.mark.parametrize(
    "chart",
    [
        Chart("a <b>", "s", [Line("x & y", [0, 1, 2], [1.0, float("nan"), 3.0])], marks=[(0.5, 1.0)]),
        Chart("none", "s", [Line("x", [], [])]),
        Chart("bars", bars=[("one", 1.0), ("a name that does not fit below its bar" * 5, 2.0)]),
        Chart("zero", bars=[("one", 0.0)]),
    ],
)
def test_charts_are_well_formed(chart: Chart) -> None:
    assert ElementTree.fromstring(chart.svg()).tag == "figure"  # noqa: S314 - our own text


def test_the_page_needs_nothing_from_outside() -> None:
    section = Section("s", "Title", "Text", checks=[Check("x", "1", False)], facts=[("a", "<script>")])
    made = page("Report", {"commit": "`abc`"}, [section])
    assert "http" not in made and "src=" not in made and "<script" not in made
    assert 'class="bad">FAILS' in made
    assert "| x | 1 | FAILS |" in section.markdown()


def test_the_command_line() -> None:
    given_ = load_test.parser().parse_args(["all", "--no-pin"])
    assert set(load_test.scenarios(given_)) >= {"grid", "soak", "durability", "limits", "bulk", "gateway-killed"}
    with pytest.raises(SystemExit):
        load_test.parser().parse_args(["nothing"])


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://x", "http://x/v1"])
def test_a_bad_url_is_explained(url: str) -> None:
    with pytest.raises(SystemExit, match="must be the gateway's root"):
        load_test.options_of(load_test.parser().parse_args(["recipes", "--url", url]))
