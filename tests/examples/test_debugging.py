"""What the examples for debugging do to their data, before they train on it; and their pictures in docs."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def examples(monkeypatch):
    """Lets the examples be imported, and forgets them afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    yield
    for name in set(sys.modules) - before:
        if str(ROOT / "examples") in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]


def test_noise_names_the_small_digit_or_flips_a_pair(examples):
    import label_noise
    from scattered import collections

    for noise in (label_noise.OTHER, label_noise.FLIPPED):
        pictures, _ = collections(300, 1)
        true, others = torch.tensor(pictures.targets), torch.tensor(pictures.others)
        wrong = label_noise.mislabel(pictures, noise, seed=1)
        given = torch.tensor(pictures.targets)
        assert torch.equal(given != true, wrong)
        if noise == label_noise.OTHER:
            assert torch.equal(given[wrong], others[wrong])
            assert 0.12 < wrong.float().mean() < 0.25
        else:
            assert set(true[wrong].tolist()) == {label_noise.TRUE}
            assert set(given[wrong].tolist()) == {label_noise.GIVEN}


def test_of_the_rare_classes_every_twentieth_is_kept(examples):
    import class_imbalance
    from scattered import collections

    pictures, _ = collections(400, 1)
    targets = np.array(pictures.targets)
    kept = targets[class_imbalance.imbalanced(pictures)]
    rare = np.isin(targets, class_imbalance.RARE)
    assert np.isin(kept, class_imbalance.RARE).sum() == -(-rare.sum() // class_imbalance.KEPT_OF_RARE)
    assert (~np.isin(kept, class_imbalance.RARE)).sum() == (~rare).sum()


def test_pictures_in_docs_are_small_files():
    pictures = sorted((ROOT / "docs" / "pictures").glob("*.png"))
    assert pictures
    for path in pictures:
        assert path.stat().st_size <= 150_000, path
        assert Image.open(path).width > 300
