"""The page gets what the benchmarks printed, between its marks, and nothing else of it changes."""

import performance
import pytest

from gfi_lightning import UsageError

PART = performance.PARTS[0]


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(performance, "RESULTS", tmp_path)
    for part in performance.PARTS:
        performance.printed(part, "cpu").write_text(f"| table of {part.script} |\n")
    return tmp_path


def test_figures_are_exchanged_between_the_marks(results, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"# Before\n\n{performance.BEGIN}\nold\n{performance.END}\n\nAfter\n")
    performance.main(["--data", "voc", "--only", "--page", str(page)])
    text = page.read_text()
    assert text.startswith(f"# Before\n\n{performance.BEGIN}\n\nMeasured on: ")
    assert text.endswith(f"\n\n{performance.END}\n\nAfter\n")
    assert "old" not in text
    assert all(f"| table of {part.script} |" in text for part in performance.PARTS)


def test_the_real_page_has_the_marks():
    page = performance.PAGE.read_text(encoding="utf-8")
    assert performance.with_figures(page, "figures") != page
    with pytest.raises(UsageError, match="lacks <!-- measured"):
        performance.with_figures("nothing", "figures")


def test_what_was_not_measured_on_a_gpu_says_so(results):
    assert "On a GPU: **not measured**" in performance.section(PART)
    performance.printed(PART, "cuda").write_text("| fast |\n")
    assert performance.section(PART).endswith("On a GPU:\n\n| fast |")


def test_what_is_missing_is_named(results):
    performance.printed(PART, "cpu").unlink()
    with pytest.raises(UsageError, match=r"speed_cpu\.md is missing: run this with --only speed, or without"):
        performance.section(PART)


def test_a_benchmark_that_prints_nothing_ends_it(results, monkeypatch):
    monkeypatch.setattr(performance, "HERE", results)
    (results / "speed.py").write_text("raise SystemExit(3)")
    with pytest.raises(UsageError, match="ended with status 3"):
        performance.run(PART, results, "cpu")
    (results / "speed.py").write_text("import sys; print(sys.argv[1:])")
    performance.run(PART, results, "cpu")
    assert f"{results}/eval.txt" in performance.printed(PART, "cpu").read_text()
