"""What is counted as peak memory, and what is made of it. The machine's own figures are asserted nowhere."""

import json
import os
import sys
from functools import partial

import memory
import pytest
import torch
from torch import nn

from tests.networks import ToyCNN

MEGABYTE = 1_000_000
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux counts the pages")


def tensors(megabytes, each=64.0):
    """Memory that is in use; tensors of many megabytes are given back at once, small ones stay in the heap."""
    return [torch.ones(int(each * MEGABYTE / 4)) for _ in range(round(megabytes / each))]


def test_what_a_work_allocates_is_seen_even_when_it_is_gone():
    found = memory.peak_above(lambda: len(tensors(64)), "cpu")
    assert found == pytest.approx(64 * MEGABYTE, rel=0.1)


def test_what_was_there_before_is_not_seen():
    kept = tensors(128)
    assert memory.peak_above(lambda: None, "cpu") < 6 * MEGABYTE
    del kept
    assert memory.peak_above(lambda: None, "cpu") < 6 * MEGABYTE  # nor an earlier peak


def test_what_was_freed_before_hides_nothing():
    tensors(64, each=0.004)
    found = memory.peak_above(lambda: len(tensors(64, each=0.004)), "cpu")
    assert found > 60 * MEGABYTE


def test_a_training_step_has_gradients_and_momentum():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 10_000))
    weights = sum(4 * parameter.numel() for parameter in model.parameters())
    images, targets = torch.randn(2, 3, 16, 16), torch.tensor([0, 1])
    memory.train(nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 10)), images, targets)
    found = memory.peak_above(partial(memory.train, model, images, targets), "cpu")
    assert 1.9 * weights < found < 4 * weights  # two, and what an allocator takes besides


def test_both_works_are_measured_in_another_process():
    for work in (memory.train, memory.explain):
        assert 0 < memory.in_fresh_process(memory.measure, work, ToyCNN, 64, 8, "cpu") < 1000 * MEGABYTE
    assert memory.in_fresh_process(os.getpid) != os.getpid()
    assert memory.in_fresh_process(os.getpid) != memory.in_fresh_process(os.getpid)


@pytest.mark.parametrize(("explanation", "status"), [(30, 0), (40, 1), (50, 1)])
def test_the_report_and_the_bar(explanation, status, tmp_path, monkeypatch, capsys):
    peaks = {memory.train: 40 * MEGABYTE, memory.explain: explanation * MEGABYTE}
    monkeypatch.setattr(memory, "in_fresh_process", lambda measure, work, *rest: peaks[work])
    file = tmp_path / "results" / "memory.json"
    arguments = ["--networks", "ResNet-18", "ResNet-50", "--batches", "2", "--json", str(file)]
    assert memory.main(arguments) == status
    report = json.loads(file.read_text())
    assert report["torch"] == torch.__version__
    assert report["device"]
    assert report["rows"][1] == {
        "network": "ResNet-50",
        "px": 224,
        "batch": 2,
        "training_step_mb": 40,
        "explanation_mb": explanation,
        "ratio": explanation / 40,
    }
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| ResNet-18"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == ["ResNet-18", "64", "2", "40", str(explanation), f"{explanation / 40:.2f}"]


def test_one_row_above_the_bar_is_enough(tmp_path, monkeypatch):
    def peak(measure, work, build, size, batch, device):
        return 2 if work is memory.explain and batch == 8 else 1.5

    monkeypatch.setattr(memory, "in_fresh_process", peak)
    assert memory.main(["--batches", "1", "8", "--json", str(tmp_path / "memory.json")]) == 1
