"""The example runs, finds what it says, and would say so if it did not."""

import re
import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "own_score.py"


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *map(str, arguments)])
    runpy.run_path(str(EXAMPLE), run_name="__main__")


def test_it_runs_and_the_maps_lie_on_the_objects(tmp_path, monkeypatch, capsys):
    run(monkeypatch, "--out", tmp_path / "own.png", "--steps", 60)
    said = re.findall(r": (\S+) of the energy on (\S+) of the area; on the other object (\S+)", capsys.readouterr().out)
    assert len(said) == 3
    for energy, area, elsewhere in said:
        assert float(energy) > 0.4 > 0.15 > float(area)
        assert float(elsewhere) < 0.1
    assert Image.open(tmp_path / "own.png").width > 1000


def test_it_tells_where_they_do_not(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="do not lie where they should"):
        run(monkeypatch, "--out", tmp_path / "own.png", "--steps", 0)
