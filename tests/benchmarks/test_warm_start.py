"""The whole script, on a few pictures."""

import json
import subprocess
import sys

import pytest

from gfi_lightning.inversion.recipes import DEFAULT
from tests.benchmarks.conftest import BENCHMARKS

ALL = f"{DEFAULT.inversion_steps} + {DEFAULT.target_steps} steps"


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("warm")
    sizes = ["--epochs", "1", "--train-size", "192", "--samples", "3", "--points", "3"]
    command = [sys.executable, str(BENCHMARKS / "warm_start.py"), *sizes, "--json", str(folder / "a" / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads((folder / "a" / "out.json").read_text(encoding="utf-8")), done.stdout


def test_warm_and_cold_are_compared_at_each_point(result):
    numbers, printed = result
    cold, *_ = ways = list(numbers["means"])
    rows = {(row["step"], row["way"]): row for row in numbers["points"]}
    assert [*rows] == [(step, way) for step in (0, 1, 3) for way in ways]
    assert all(row["distance, median"] == 0 for (_, way), row in rows.items() if way == cold)
    # At the first point nothing is warm.
    assert rows[0, f"warm, {ALL}"]["distance, worst"] == 0
    assert rows[0, "warm, 1 + 2 steps"]["distance, worst"] == rows[0, "cold, 1 + 2 steps"]["distance, worst"]
    assert rows[0, cold]["drift, median"] is None
    assert rows[3, f"warm, {ALL}"]["distance, worst"] > 0
    assert "drift of cold" in printed


def test_passes_that_are_saved_are_counted(result):
    share = {way: one["images through the network, of the cold way's"] for way, one in result[0]["means"].items()}
    cold = (
        1 + DEFAULT.inversion_steps + 4 + 2 * DEFAULT.target_steps
    )  # look, stage 1, evidence, kept and removed images in stage 2
    assert share[f"cold, {ALL}"] == 1
    assert share[f"warm, {ALL}"] == pytest.approx((cold - 4) / cold)
    assert share["warm, 1 + 2 steps"] == pytest.approx((1 + 1 + 2 * 2) / cold)
    assert share["warm stage 1, 1 + 2 steps"] == share["cold, 1 + 2 steps"] == pytest.approx((1 + 1 + 4 + 4) / cold)
