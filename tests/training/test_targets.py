"""Which classes are explained, and how images come to be shown as they were."""

import logging

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2

from gfi_lightning import GuidedFeatureInversion, History
from tests.training.modules import CLASSES, QUICK, Pictures, ToyModule, loaders, make_trainer, quick_callback


def fit_and_read(folder, module=None, val=None, **options):
    trainer = make_trainer(folder, quick_callback(**options), max_epochs=1)
    trainer.fit(module or ToyModule(), **loaders(val=val))
    return History.load(trainer.log_dir)


def test_the_label_and_beside_it_the_prediction_where_it_is_another(tmp_path):
    class Fixed(ToyModule):
        """Always predicts class 1, and never learns."""

        def forward(self, images):
            return super().forward(images) * 0.1 + 5 * torch.eye(CLASSES)[1]

        def configure_optimizers(self):
            return None

    history = fit_and_read(tmp_path, Fixed())
    assert history.targets(0).tolist() == [[0, 1]] * 2
    assert history.targets(1).tolist() == [[1, -1]] * 2
    assert history.targets(2).tolist() == [[3, 1]] * 2
    assert np.isnan(history.heatmaps(1)[:, 1]).all()
    assert np.isfinite(history.heatmaps(2)).all()
    assert (history.scores(0)[:, 1] > history.scores(0)[:, 0]).all()


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (3, [3]),
        ([4, 0], [4, 0]),
        (lambda logits, labels: (labels + logits.shape[1] - 1) % logits.shape[1], [4]),
        (lambda logits, labels: logits.argsort(1)[:, :2] * 0 + labels[:, None], [0, 0]),
    ],
)
def test_other_targets(tmp_path, targets, expected):
    assert fit_and_read(tmp_path, targets=targets).targets(0).tolist() == [expected] * 2


def test_the_predicted_class(tmp_path):
    module = ToyModule()
    history = fit_and_read(tmp_path, module, targets="predicted")
    with torch.no_grad():
        predicted = module.eval()(Pictures().images[:1]).argmax(1)
    assert history.targets(0)[-1].tolist() == predicted.tolist()


def test_the_maps_are_those_of_the_explainer(tmp_path):
    module = ToyModule()
    history = fit_and_read(tmp_path, module)
    val = Pictures()
    explanation = GuidedFeatureInversion(module, recipe=QUICK).explain(val.images[[0, 4, 12]], torch.tensor([0, 1, 3]))
    coarse = torch.nn.functional.adaptive_avg_pool2d(explanation.heatmaps, (8, 8))
    shown = np.stack([history.heatmaps(sample)[-1, 0] for sample in range(3)])
    np.testing.assert_allclose(shown, coarse, atol=1e-3)


def test_a_forward_of_ones_own(tmp_path):
    class Embedding(ToyModule):
        def forward(self, images):
            return {"embedding": self.network.coarse(self.network.pool(self.network.fine(images)))}

        def classify(self, images):
            return self.network(images)

        def unpack(self, batch):
            return batch

        def training_step(self, batch, batch_idx):
            return self.classify(batch[0]).square().mean()

        def validation_step(self, batch, batch_idx):
            pass

    history = fit_and_read(tmp_path, Embedding(), forward=lambda module, images: module.classify(images))
    assert history.steps == [0, 3]


def test_a_batch_of_ones_own(tmp_path):
    images, labels = torch.rand(8, 3, 16, 16), torch.arange(8) % CLASSES

    class Reversed(ToyModule):
        def unpack(self, batch):
            return batch[1], batch[0]

    trainer = make_trainer(tmp_path, quick_callback(batch=lambda batch: (batch[1], batch[0])), max_epochs=1)
    data = DataLoader(TensorDataset(labels, images), 4)
    trainer.fit(Reversed(), data, data)
    assert History.load(trainer.log_dir).labels.tolist() == [0, 1, 2]


def test_hooks_on_the_way_to_the_device_run_as_in_validation(tmp_path):
    class OnDevice(ToyModule):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            images, labels = batch
            if self.trainer.training:
                images = images + torch.rand_like(images)
            images.mul_(0.5)  # in place, as it should not
            return images, labels

    history = fit_and_read(tmp_path, OnDevice(), mean=[0.0] * 3, std=[1.0] * 3)
    expected = (Pictures().images[0].clamp(0, 2) * 0.5).clamp(0, 1).permute(1, 2, 0)
    np.testing.assert_allclose(history.images[0] / 255, expected, atol=1 / 255)


class Normalized(Pictures):
    """Pictures in [0, 1], normalised by the data set's transform."""

    def __init__(self, *steps):
        super().__init__()
        self.images = self.images.sigmoid()
        self.transform = v2.Compose([v2.Identity(), *steps])


MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@pytest.mark.parametrize(
    ("steps", "options"),
    [
        ([v2.Normalize(MEAN, STD)], {}),
        ([v2.Normalize(MEAN, STD)], {"mean": MEAN, "std": STD}),
        ([], {}),
    ],
    ids=["found", "given", "not normalised"],
)
def test_images_are_shown_as_they_were(tmp_path, steps, options):
    val = Normalized(*steps)
    history = fit_and_read(tmp_path, val=val, **options)
    np.testing.assert_allclose(history.images[0] / 255, val.images[0].permute(1, 2, 0), atol=1.5 / 255)


def test_images_are_else_shown_by_their_own_range_which_is_said_once(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "gfi_lightning"):
        history = fit_and_read(tmp_path)
    assert history.images[0].min() == 0
    assert history.images[0].max() == 255
    said = [record.getMessage() for record in caplog.records if "own range" in record.getMessage()]
    assert len(said) == 1
    assert "mean=..., std=..." in said[0]


def test_class_names(tmp_path):
    assert fit_and_read(tmp_path / "found").class_names == Pictures.classes
    names = ["ant", "bee", "cat", "dog", "elk"]
    assert fit_and_read(tmp_path / "given", class_names=np.array(names)).class_names == names
    odd = Pictures()
    odd.classes = 5
    assert fit_and_read(tmp_path / "odd", val=odd).class_names == []
