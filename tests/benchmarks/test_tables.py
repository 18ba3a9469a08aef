import json

import numpy as np
import pytest
from bench.rows import METRICS, Row, best_of_layers
from bench.tables import handwritten, markdown, rows_from_json, table, to_json


def row(name, group="", **values):
    return Row(name, group, {key: np.array(series, dtype=float) for key, series in values.items()})


FINE = row("CAM, fine", "CAM", pointing=[1, 1, 1, 0], energy=[0.2, 0.3, 0.2, 0.3], localization_error=[1, 1, 0, 0])
COARSE = row("CAM, coarse", "CAM", pointing=[1, 0, 0, 0], energy=[0.5, 0.6, 0.5, 0.6], localization_error=[1, 0, 0, 0])
REFERENCE = row("Grad-CAM, coarse", "Grad-CAM", pointing=[1, 0, 1, 0], energy=[0.4, 0.4, 0.4, 0.4])
SLOW = row("slow", pointing=[0, 0, np.nan, np.nan], energy=[0.6, 0.6, np.nan, np.nan])
ABOUT = {"data": "somewhere"}


def test_the_better_layer_is_taken_column_by_column():
    (best,) = best_of_layers([FINE, COARSE, REFERENCE])
    assert best.layers == {"pointing": FINE.name, "energy": COARSE.name, "localization_error": COARSE.name}
    assert best.values["energy"] is COARSE.values["energy"]


def test_nothing_is_best_where_neither_is_better():
    rows = [row("a, 1", "a", sparsity=[0.1]), row("a, 2", "a", sparsity=[0.2])]
    assert best_of_layers(rows)[0].values == {}


def test_differences_are_paired_on_the_images_of_both():
    report = to_json([REFERENCE, SLOW], REFERENCE.name, ABOUT)
    energy = report["methods"]["slow"]["figures"]["energy"]
    assert energy["value"] == pytest.approx(0.6)
    assert energy["difference"]["value"] == pytest.approx(0.2)
    assert energy["difference"]["images"] == energy["images"] == 2
    pointing = report["methods"]["slow"]["figures"]["pointing"]
    assert pointing["difference"]["value"] == -0.5  # of the first two images alone
    assert "difference" not in report["methods"][REFERENCE.name]["figures"]["energy"]


def test_a_report_survives_json():
    rows = [FINE, COARSE, REFERENCE, SLOW]
    SLOW.seconds, SLOW.alpha, SLOW.forwards, SLOW.stages = [3.0, 4.0], 1.5, 30.0, {"head": 0.4}
    report = to_json(rows, REFERENCE.name, ABOUT)
    again = rows_from_json(json.loads(json.dumps(report, allow_nan=False)))
    assert [one.name for one in again] == [one.name for one in rows]  # the best of layers is made anew
    np.testing.assert_equal(again[3].values["energy"], SLOW.values["energy"])
    assert (again[3].seconds, again[3].alpha, again[3].forwards, again[3].stages) == (
        SLOW.seconds,
        1.5,
        30.0,
        {"head": 0.4},
    )
    assert markdown(report) == markdown(json.loads(json.dumps(report)))


def test_the_page_tells_figures_intervals_and_numbers_of_images():
    text = markdown(to_json([REFERENCE, FINE, COARSE, SLOW], REFERENCE.name, ABOUT))
    lines = [line for line in text.splitlines() if line.startswith("| slow")]
    assert "0.600 (0.600 … 0.600), n = 2" in lines[0]
    assert "+0.200 (+0.200 … +0.200), n = 2" in lines[1]  # less the reference
    assert "pointing hit ↑ (n = 4)" in text
    assert "localisation error ↓ (n = 4)" in text
    assert "| CAM, best layer of each column" in text


def test_ours_is_compared_with_everyone():
    ours = row("GFI, default", pointing=[1, 1, 1, 1], energy=[0.7, 0.7, 0.7, 0.7])
    text = markdown(to_json([REFERENCE, ours, FINE, COARSE, SLOW], REFERENCE.name, ABOUT))
    section = text.split("### GFI, default, less each of the others, paired")[1].split("###")[0]
    lead = {line.split("|")[1].strip(): line for line in section.splitlines() if line.startswith("| ")}
    assert "+0.500 (" in lead[REFERENCE.name]
    assert "+0.300 (+0.300 … +0.300) |" in lead[REFERENCE.name]
    assert "+0.100 (+0.100 … +0.100), n = 2" in lead["slow"]
    assert "+0.150 (" in lead["CAM, best layer of each column"]


def test_floors_are_told_by_their_median_and_their_worst():
    text = markdown(to_json([row("ours", floor=[0.001, 0.002, 0.2])], "absent", ABOUT))
    assert "0.00200 (0.00100 … 0.20000), worst 0.20000" in text


def test_what_failed_is_told():
    failed = Row("broken", notes=["failed: ValueError: no"])
    text = markdown(to_json([REFERENCE, failed], REFERENCE.name, ABOUT))
    assert "- broken: failed: ValueError: no" in text


def test_a_table_is_aligned():
    assert (
        table(["", "n"], [["a", "10"], ["long", "2"]]) == "|      |  n |\n| :--- | -: |\n| a    | 10 |\n| long |  2 |"
    )


def test_every_metric_has_a_known_statistic():
    assert {metric.statistic for metric in METRICS.values()} <= {"mean", "median"}


def test_what_is_written_by_hand_stays(tmp_path):
    page = tmp_path / "page.md"
    assert handwritten(page, "# New\n") == "# New\n"
    page.write_text("# Mine\n\nBy hand.\n\n## Measured\n\nold\n\n## More\n\nold\n")
    assert handwritten(page, "# New\n") == "# Mine\n\nBy hand.\n"
