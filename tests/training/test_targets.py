"""Which classes are explained, and how images come to be shown as they were."""

import logging
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import ImageDraw
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2

from gfi_lightning import GuidedFeatureInversion, History
from tests.training.modules import (
    CLASSES,
    PRESENT,
    QUICK,
    Pictures,
    SeveralLabels,
    TellsEach,
    ToyModule,
    loaders,
    make_trainer,
    quick_callback,
)


def fit_and_read(folder, module=None, val=None, train=None, **options):
    trainer = make_trainer(folder, quick_callback(**options), max_epochs=1)
    trainer.fit(module or ToyModule(), **loaders(train, val))
    return History.load(trainer.log_dir)


class Fixed(ToyModule):
    """Always predicts class 1, then class 4, and never learns."""

    def forward(self, images):
        return super().forward(images) * 0.1 + 5 * torch.eye(CLASSES)[1] + 3 * torch.eye(CLASSES)[4]

    def configure_optimizers(self):
        return None


def test_the_label_and_beside_it_the_prediction_where_it_is_another(tmp_path):
    history = fit_and_read(tmp_path, Fixed())
    assert history.targets(0).tolist() == [[0, 1]] * 2
    assert history.targets(1).tolist() == [[1, -1]] * 2
    assert history.targets(2).tolist() == [[3, 1]] * 2
    assert np.isnan(history.heatmaps(1)[:, 1]).all()
    assert np.isfinite(history.heatmaps(2)).all()
    assert (history.scores(0)[:, 1] > history.scores(0)[:, 0]).all()
    assert (history.against(0) == -1).all()


@pytest.fixture
def drawn(monkeypatch):
    """Every text that is drawn into a picture."""
    texts, draw = [], ImageDraw.ImageDraw.text

    def text(self, position, text, *arguments, **options):
        texts.append(text)
        return draw(self, position, text, *arguments, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return texts


def test_the_label_rather_than_the_prediction_or_else_the_prediction_rather_than_the_next(tmp_path, drawn):
    module, val = Fixed(), Pictures()
    history = fit_and_read(tmp_path, module, targets="contrast")
    assert [history.targets(sample).tolist() for sample in range(3)] == [[[0]] * 2, [[1]] * 2, [[3]] * 2]
    assert [history.against(sample).tolist() for sample in range(3)] == [[[1]] * 2, [[4]] * 2, [[1]] * 2]
    gfi = GuidedFeatureInversion(module, recipe=QUICK)
    expected = gfi.explain(val.images[[0, 4, 12]], torch.tensor([0, 1, 3]), against=torch.tensor([1, 4, 1]))
    coarse = torch.nn.functional.adaptive_avg_pool2d(expected.heatmaps, (8, 8))
    shown = np.stack([history.heatmaps(sample)[-1, 0] for sample in range(3)])
    np.testing.assert_allclose(shown, coarse, atol=1e-3)
    kept = [history.scores(sample, "preserved")[-1, 0] for sample in range(3)]
    np.testing.assert_allclose(kept, expected.preserved, rtol=1e-5)
    for caption in (
        *("kind 0 rather than kind 1", "the label, not the prediction"),
        *("kind 1 rather than kind 4", "the prediction, not the runner-up"),
        *("kind 3", "rather than kind 1"),  # in the overview, whose panels are narrow
    ):
        assert drawn.count(caption) >= 2, caption


def test_without_labels_the_prediction_is_contrasted_with_the_next(tmp_path):
    history = fit_and_read(tmp_path, Fixed(), targets="contrast", batch=lambda batch: (batch[0], None))
    assert {(*history.targets(sample)[0], *history.against(sample)[0]) for sample in range(3)} == {(1, 4)}


class CountsImages(TellsEach):
    """Notes how many images are in each step of an explanation."""

    counts: ClassVar = []

    def forward(self, images):
        if torch.is_grad_enabled() and not self.training:
            self.counts.append(len(images))
        return super().forward(images)


ALL_PRESENT = [[*row, *[-1] * (3 - len(row))] for row in PRESENT]


@pytest.mark.parametrize("score", ["sigmoid", None])
@pytest.mark.parametrize("targets", ["present", "label"])
def test_each_present_class_at_the_cost_of_stage_2_only(tmp_path, drawn, caplog, targets, score):
    module, val = CountsImages(), SeveralLabels()
    module.counts.clear()
    options = {"train": SeveralLabels(16), "val": val, "targets": targets, "score": score, "num_samples": 4}
    with caplog.at_level(logging.INFO, "gfi_lightning"):
        history = fit_and_read(tmp_path, module, layer="network.coarse", **options)
    said = [one for one in caplog.records if "targets='present'" in one.getMessage()]
    assert len(said) == (targets == "label")
    with torch.no_grad():
        predicted = int(module.eval()(val.images[3:4]).argmax())
    expected = [*ALL_PRESENT[:3], [predicted, -1, -1]]
    assert [history.targets(sample)[-1].tolist() for sample in range(4)] == expected
    # Stage 1 of four images; stage 2 of four first classes, two second ones and a third, each kept and removed. And in
    # the first run the first classes once more, for the noise floor.
    first_classes, further_classes = [4, 8, 8], [4, 4, 2, 2]
    assert module.counts == 2 * first_classes + further_classes + first_classes + further_classes
    gfi = GuidedFeatureInversion(module, recipe=QUICK, score="sigmoid")
    for sample, classes in enumerate(expected):
        alone = gfi.explain(val.images[[sample]], torch.tensor([[one for one in classes if one >= 0]]))
        coarse = torch.nn.functional.adaptive_avg_pool2d(alone.heatmaps[0], (8, 8))
        np.testing.assert_allclose(history.heatmaps(sample)[-1, : len(coarse)], coarse, atol=2e-3)
        np.testing.assert_allclose(history.scores(sample)[-1, : len(coarse)], alone.score[0], rtol=1e-4)
        assert np.isnan(history.heatmaps(sample)[-1, len(coarse) :]).all()
    assert history.labels.tolist() == [-1] * 4
    for caption in ("labels: kind 0, kind 2, kind 4", "labels: none", "no label present: the prediction"):
        assert drawn.count(caption) >= 2, caption


def test_class_indices_count_as_one_present_class(tmp_path):
    history = fit_and_read(tmp_path, Fixed(), targets="present")
    assert [history.targets(sample)[0].tolist() for sample in range(3)] == [[0], [1], [3]]


def test_a_callable_is_given_the_present_classes(tmp_path):
    def rarest(logits, labels):
        assert labels.dtype == torch.bool
        return labels.shape[1] - 1 - labels.flip(1).int().argmax(1)

    options = {"train": SeveralLabels(16), "val": SeveralLabels(), "targets": rarest, "score": "sigmoid"}
    history = fit_and_read(tmp_path, TellsEach(), **options)
    assert [history.targets(sample)[0].tolist() for sample in range(3)] == [[0], [3], [4]]


class SingleLogit(ToyModule):
    """Two classes by a single logit, which is always above 0."""

    def forward(self, images):
        return super().forward(images)[:, 0].square()[:, None]

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.binary_cross_entropy_with_logits(self(batch[0])[:, 0], batch[1].float())

    def validation_step(self, batch, batch_idx):
        self.training_step(batch, batch_idx)


class TwoClasses(Pictures):
    classes = ("no", "yes")

    def __init__(self, size=20):
        super().__init__(size)
        self.targets = [number % 2 for number in range(size)]


@pytest.mark.parametrize(
    ("targets", "expected", "against"),
    [
        ("label", [[0, 1], [1, -1]], [[-1, -1], [-1, -1]]),
        ("predicted", [[1], [1]], [[-1], [-1]]),
        ("contrast", [[0], [1]], [[1], [0]]),
        ("present", [[0], [1]], [[-1], [-1]]),
        ([0, 1], [[0, 1], [0, 1]], [[-1, -1], [-1, -1]]),
    ],
    ids=str,
)
@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_a_single_logit(tmp_path, targets, expected, against, score):
    options = {"train": TwoClasses(16), "val": TwoClasses(), "targets": targets, "score": score}
    module = SingleLogit()
    history = fit_and_read(tmp_path, module, num_samples=2, **options)
    assert [history.targets(sample)[-1].tolist() for sample in range(2)] == expected
    assert [history.against(sample)[-1].tolist() for sample in range(2)] == against
    with torch.no_grad():
        logits = module.eval()(TwoClasses().images[:2])[:, 0]
    logits = torch.tensor(history.targets(0)[-1][:1] * 2 - 1) * logits[0]
    np.testing.assert_allclose(history.scores(0)[-1, :1], logits.sigmoid(), rtol=1e-5)


class SingleProbability(SingleLogit):
    """The same two classes, by a probability; notes how many images are in each pass of an explanation."""

    counts: ClassVar = []

    def forward(self, images):
        if not self.training:
            self.counts.append(len(images))
        return super().forward(images).sigmoid()


def test_a_single_probability(tmp_path):
    module = SingleProbability()
    module.counts.clear()
    options = {"train": TwoClasses(16), "val": TwoClasses(), "num_samples": 2}
    history = fit_and_read(tmp_path, module, **options)
    assert module.counts.count(1) == 1  # by which the sigmoid was found, in the first of two runs
    assert [history.targets(sample)[-1].tolist() for sample in range(2)] == [[0, 1], [1, -1]]
    with torch.no_grad():
        probability = module.eval()(TwoClasses().images[:2])[:, 0]
    np.testing.assert_allclose(history.scores(0)[-1], [1 - probability[0], probability[0]], rtol=1e-5)
    np.testing.assert_allclose(history.predicted_scores[-1], probability, rtol=1e-5)


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
