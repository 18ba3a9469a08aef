"""The shortcut is caught in the act, by the callback alone, and the mean tells it from a false alarm."""

import re
import runpy
import sys
import warnings
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gfi_lightning import History

RUNS = ("decoy", "clean")
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "shortcut.py"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run of the example: what it said, its warnings, and where its logs are."""
    folder = tmp_path_factory.mktemp("shortcut")
    arguments = ["--epochs", "1", "--train-size", "2400", "--log-dir", str(folder)]
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        said = []
        patch.setattr(sys, "argv", [str(EXAMPLE), *arguments])
        patch.syspath_prepend(str(EXAMPLE.parent))
        patch.setattr("builtins.print", lambda *words, end="\n", **options: said.append(" ".join(words) + end))
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    return "".join(said), [str(one.message) for one in caught], folder


def figures(said, name):
    """What stands in a row of the table: of the decoy run, and of the clean one."""
    return re.search(rf"^{re.escape(name)}  +(.+?)  +(.+)$", said, re.MULTILINE).groups()


def test_the_energy_on_the_patch_rises_where_its_colour_gives_away_the_class(run):
    _, _, folder = run
    decoy, clean = (History.load(folder / name / "version_0").curve("energy/patch").mean(1) for name in RUNS)
    assert max(decoy[0], clean[0]) < 0.1
    assert decoy[-1] > 0.25
    assert decoy[-1] > 2 * clean[-1]


ALARM = r"at step (\d+) the maps of \d of 8 samples .* in the region 'patch': samples? \d.* The mean is (0\.\d+)"


def test_the_alarm_names_it_in_the_first_epoch(run):
    """In the clean run a sample of the young model may raise a false one, which the mean tells."""
    said, warned, folder = run
    alarms = [re.search(ALARM, message) for message in warned if "GFICallback" in message]
    step = int(alarms[0][1])
    assert 0 < step <= 64  # the schedule's last step before the end of the epoch
    assert f"Alarm at step {step} of 74, in epoch 1" in said
    assert figures(said, "alarm")[0] == f"step {step}"
    decoy = History.load(folder / "decoy" / "version_0").curve("energy/patch").mean(1)
    for false in alarms[1:]:
        assert float(false[2]) < decoy[-1] / 2


def test_the_accuracy_without_the_patch_proves_it_right(run):
    said, _, _ = run
    validation, without, of_any_color = (
        float(figures(said, f"accuracy, {where}")[0])
        for where in ("validation", "test, no patch", "test, patch of any colour")
    )
    assert validation > 0.3 > 0.2 > max(without, of_any_color)


def test_pictures_tell_it(run):
    _, _, folder = run
    tags = EventAccumulator(str(folder / "decoy" / "version_0")).Reload().Tags()["images"]
    assert {"gfi/film_0", "gfi/animation", "gfi/curves"} <= set(tags)
    for name in ("films", "energy", "accuracies"):
        assert Image.open(folder / f"shortcut_{name}.png").width > 500
