"""The row "what each depth still sees": in the picture, and on disk."""

import gc
import weakref

import numpy as np
import pytest
from lightning.pytorch.loggers import TensorBoardLogger

from gfi_lightning import GuidedFeatureInversion, History
from tests.training.modules import (
    QUICK,
    WEIGHTS_ONLY,
    Pictures,
    ToyModule,
    loaders,
    make_trainer,
    quick_callback,
    read_events,
)

LAYERS = ["network.fine.0", "network.coarse"]


def fit(folder, **options):
    module = ToyModule()
    trainer = make_trainer(folder, quick_callback(**options), max_epochs=1)
    trainer.fit(module, **loaders())
    return trainer, module


def height(trainer, tag):
    return [event.height for event in read_events(trainer).Images(tag)]


def test_the_depths_are_those_of_the_explainer(tmp_path):
    trainer, module = fit(tmp_path, layers=LAYERS)
    history = History.load(trainer.log_dir)
    expected = GuidedFeatureInversion(module, layers=LAYERS, recipe=QUICK).explain(Pictures().images[[0, 4, 12]], 0)
    assert history.depth_layers == LAYERS
    for sample in range(3):
        assert history.depths(sample).shape == (2, 2, 16, 16)
        np.testing.assert_allclose(history.depths(sample)[-1], expected.depths[sample], atol=1e-3)


def test_all_else_is_as_without(tmp_path):
    (with_depths, _), (without, _) = fit(tmp_path / "with", layers=LAYERS), fit(tmp_path / "without")
    histories = [History.load(trainer.log_dir) for trainer in (with_depths, without)]
    assert np.array_equal(histories[0].heatmaps(0)[0], histories[1].heatmaps(0)[0], equal_nan=True)
    assert histories[1].depth_layers == []
    assert histories[1].depths(0).shape == (2, 0, 0, 0)
    heights = height(with_depths, "gfi/sample_0"), height(without, "gfi/sample_0")
    assert all(higher > lower + 256 for higher, lower in zip(*heights, strict=True))
    assert height(with_depths, "gfi/overview") == height(without, "gfi/overview")


@pytest.mark.parametrize("form", ["modules", "a name", "a module"])
def test_layers_are_given_by_name_or_as_modules_and_the_model_is_let_go(tmp_path, form):
    module = ToyModule()
    part = module.network.coarse
    layers = {"modules": [module.network.fine, part], "a name": "network.coarse", "a module": part}[form]
    callback = quick_callback(layers=layers)
    trainer = make_trainer(tmp_path, callback, max_epochs=1)
    trainer.fit(module, **loaders())
    names = ["network.fine", "network.coarse"] if form == "modules" else ["network.coarse"]
    assert History.load(trainer.log_dir).depth_layers == names
    known = weakref.ref(part)
    del module, part, layers, trainer
    gc.collect()
    assert known() is None


def test_resuming_with_other_depths(tmp_path):
    logger, path = TensorBoardLogger(tmp_path, name=None), None
    for epochs, layers in ((1, LAYERS[:1]), (2, None), (3, LAYERS)):
        trainer = make_trainer(tmp_path, quick_callback(layers=layers), max_epochs=epochs, logger=logger)
        trainer.fit(ToyModule(), **loaders(), ckpt_path=path, **WEIGHTS_ONLY)
        path = tmp_path / f"{epochs}.ckpt"
        trainer.save_checkpoint(path)
    history = History.load(trainer.log_dir)
    assert history.steps == [0, 3, 7, 11]
    assert history.depth_layers == LAYERS
    depths = history.depths(1)
    assert np.isnan(depths[:3]).all()
    assert np.isfinite(depths[3]).all()
