"""Two methods are filmed in one training, and told apart."""

import re
import runpy
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gfi_lightning import History

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "side_by_side.py"


@pytest.mark.captum
def test_both_methods_are_in_one_tensorboard(tmp_path, monkeypatch, capsys):
    arguments = ["--epochs", "1", "--train-size", "320", "--log-dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *arguments])
    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    said = re.findall(r"^  (.+): (\S+) untrained, (\S+) trained$", capsys.readouterr().out, re.MULTILINE)
    assert [method for method, _, _ in said] == ["guided feature inversion", "Grad-CAM"]
    log_dir = tmp_path / "version_0"
    for (_, first, last), name in zip(said, (None, "grad-cam"), strict=True):
        energy = History.load(log_dir, name).curve("energy/larger digit").mean(1)
        assert (first, last) == (f"{energy[0]:.2f}", f"{energy[-1]:.2f}")
    events = EventAccumulator(str(log_dir)).Reload()
    for prefix in ("gfi", "gfi/grad-cam"):
        assert f"{prefix}/sample_15" in events.Tags()["images"]
        assert [event.step for event in events.Scalars(f"{prefix}/energy/larger digit")] == [0, 4]
