"""From outputs of any usual form to probabilities and log-odds."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from itertools import count
from types import SimpleNamespace

import pytest
import torch

from gfi_lightning import GuidedFeatureInversion, UsageError
from gfi_lightning.inversion.scores import class_probabilities, log_odds, logits_of, target_scores
from tests.networks import ToyCNN, random_images

LOGITS = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
Output = namedtuple("Output", ["logits", "aux"])

FORMS = {
    "tensor": lambda logits: logits,
    "tuple": lambda logits: (logits, None),
    "list": lambda logits: [logits],
    "named tuple": lambda logits: Output(logits, logits * 0),
    "aux first": lambda logits: Output(logits, logits * 0)[::1],
    "dict": lambda logits: {"logits": logits},
    "dict, other names": lambda logits: {"ids": torch.arange(len(logits)), "out": logits},
    "dict, loss first": lambda logits: {"loss": logits.mean(), "logits": logits},
    "object": lambda logits: SimpleNamespace(loss=None, logits=logits),
    "positions of one": lambda logits: logits[:, :, None, None],
}


class ModelOutput(OrderedDict):
    """Like Hugging Face's: a mapping with attributes that refuses to be updated."""

    def update(self, *args, **kwargs):
        raise NotImplementedError

    def __getattr__(self, name):
        return self[name]


@dataclass(slots=True)
class Slotted:
    logits: torch.Tensor


FORMS |= {
    "Hugging Face": lambda logits: ModelOutput(logits=logits),
    "slots": lambda logits: Slotted(logits),
    "with a tensor of another length": lambda logits: {"logits": logits, "temperature": torch.ones(1)},
    "with prototypes": lambda logits: (logits, torch.zeros(3, 8)),
}


@pytest.mark.parametrize("form", FORMS)
def test_logits_are_found(form):
    assert torch.equal(logits_of(FORMS[form](LOGITS)), LOGITS)


@pytest.mark.parametrize("form", FORMS)
def test_models_with_any_form_of_output(form):
    class Model(ToyCNN):
        def forward(self, images):
            return FORMS[form](super().forward(images))

    images = random_images(2, dtype=torch.float32)
    expected = GuidedFeatureInversion(ToyCNN()).explain(images)
    explanation = GuidedFeatureInversion(Model()).explain(images)
    assert torch.equal(explanation.heatmaps, expected.heatmaps)
    assert torch.equal(explanation.score, expected.score)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("by_callable", [False, True])
def test_some_rows_of_any_form_of_output(form, by_callable):
    class Model(ToyCNN):
        def forward(self, images):
            return FORMS[form](super().forward(images))

    score = (lambda output, targets: target_scores(output, targets, "softmax")) if by_callable else "softmax"
    images, chosen = random_images(5, dtype=torch.float32), torch.tensor([True, False, True, True, False])
    gfi = GuidedFeatureInversion(Model(), score=score, chunk_size=3)
    part = gfi.refine(gfi.invert(images).select(chosen), torch.tensor([[0, 1], [2, 2], [4, 0]]))
    expected = ToyCNN()(images).softmax(1)
    rows = [0, 2, 3]
    torch.testing.assert_close(part.score[:, 0], expected[rows, [0, 2, 4]])
    torch.testing.assert_close(part.score[:, 1], expected[rows, [1, 2, 0]])


@pytest.mark.parametrize(
    ("output", "described"),
    [
        (torch.zeros(2, 3, 8, 8), r"Tensor\(2, 3, 8, 8\) of float32"),
        ({"boxes": torch.zeros(2, dtype=torch.long)}, r"\{'boxes': Tensor\(2,\) of int64\}"),
        ("nothing", "str"),
        (None, "NoneType"),
    ],
)
def test_an_output_without_logits(output, described):
    with pytest.raises(UsageError, match=f"The model's output is {described}; expected are logits"):
        logits_of(output)


def test_softmax_and_sigmoid():
    targets = torch.tensor([0, 1, 4, 2])
    torch.testing.assert_close(target_scores(LOGITS, targets, "softmax"), LOGITS.softmax(1)[range(4), targets])
    torch.testing.assert_close(target_scores(LOGITS, targets, "sigmoid"), LOGITS.sigmoid()[range(4), targets])


@pytest.mark.parametrize("shape", [(4, 1), (4,)])
@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_a_single_logit_decides_between_two_classes(shape, score):
    logit = LOGITS[:, 0].reshape(shape)
    probabilities = class_probabilities(logit, score)
    torch.testing.assert_close(probabilities[:, 1], LOGITS[:, 0].sigmoid())
    torch.testing.assert_close(probabilities.sum(1), torch.ones(4))


@pytest.mark.parametrize(
    ("score", "classes"),
    [("softmax", 1), ("softmax", 2), ("softmax", 5), ("sigmoid", 1), ("sigmoid", 2), ("sigmoid", 5)],
)
def test_log_odds(score, classes):
    logits = 3 * LOGITS[:, :classes].double()
    targets = torch.tensor([0, 1, 1, 0]) if classes < 5 else torch.tensor([0, 1, 4, 2])
    p = target_scores(logits, targets, score)
    torch.testing.assert_close(log_odds(logits, targets, score), (p / (1 - p)).log())


def test_log_odds_do_not_saturate():
    logits = torch.tensor([[200.0, 0.0]], requires_grad=True)
    log_odds(logits, torch.tensor([0]), "softmax").sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[1.0, -1.0]]))


def test_half_precision_logits_are_scored_in_float32():
    assert target_scores(LOGITS.bfloat16(), torch.tensor([0, 1, 2, 3]), "softmax").dtype == torch.float32


def test_a_callable_score_gets_the_models_own_output():
    class Model(ToyCNN):
        def forward(self, images):
            return {"margin": super().forward(images)}

    def margin(output, targets):
        scores = output["margin"]
        return scores[range(len(targets)), targets] - scores.mean(1)

    model, images = Model(), random_images(3, dtype=torch.float32)
    targets = torch.tensor([[0, 1], [2, 3], [4, 0]])
    explanation = GuidedFeatureInversion(model, score=margin, chunk_size=2).explain(images, targets)
    expected = torch.stack([margin(model(images), targets[:, column]) for column in range(2)], 1)
    torch.testing.assert_close(explanation.score, expected)
    with pytest.raises(UsageError, match=r"score= returned Tensor\(2, 5\) of float32; expected is one number"):
        GuidedFeatureInversion(model, score=lambda output, _: output["margin"][:2]).explain(images[:2], 0)


@pytest.mark.parametrize("recipe", ["default", "release"])
@pytest.mark.parametrize("wrap", [lambda logits: logits, lambda logits: {"margin": logits}], ids=["tensor", "dict"])
def test_a_score_without_a_gradient_is_told_of(recipe, wrap):
    class Model(ToyCNN):
        def forward(self, images):
            return wrap(super().forward(images))

    def is_highest(output, targets):
        logits = output["margin"] if isinstance(output, dict) else output
        return (logits.argmax(1) == targets).double()

    gfi = GuidedFeatureInversion(Model().double(), recipe=recipe, score=is_highest)
    with pytest.warns(UserWarning, match="score= returned what has no gradient.*: compute it from the model's output"):
        explanation = gfi.explain(random_images(2), 0)
    assert explanation.heatmaps.isfinite().all()


@pytest.mark.filterwarnings("ignore:score= returned what has no gradient")
def test_a_score_may_be_constant_where_there_is_nothing_to_be_found():
    """Here, as if by chance, in every second pass."""
    turn = count()

    def sometimes(output, targets):
        return output[:, 0] if next(turn) % 2 else torch.ones(len(targets), dtype=torch.double)

    gfi = GuidedFeatureInversion(ToyCNN().double(), recipe="release", score=sometimes)
    explanation = gfi.explain(random_images(2), 0)
    assert next(turn) > 10
    assert explanation.heatmaps.isfinite().all()


def test_a_callable_score_without_logits_needs_targets():
    class Segmentation(ToyCNN):
        def forward(self, images):
            return super().forward(images)[:, :, None, None].expand(-1, -1, 4, 4)

    def area(output, targets):
        return output[range(len(targets)), targets].mean((1, 2))

    gfi = GuidedFeatureInversion(Segmentation(), score=area)
    images = random_images(2, dtype=torch.float32)
    with pytest.raises(UsageError, match="targets=None needs logits"):
        gfi.explain(images)
    assert gfi.explain(images, 1).heatmaps.shape == (2, 16, 16)


def test_a_callable_score_may_be_told_of_regions_by_its_targets():
    """Targets as numbers of the images reach the score with their images, however these are cut into chunks."""

    class Segmentation(ToyCNN):
        def forward(self, images):
            return self.coarse(self.pool(self.fine(images)))

    model, images = Segmentation(), random_images(5, dtype=torch.float32)
    regions = torch.rand(5, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.5

    def inside(output, numbers):
        return (output[:, 0] * regions[numbers]).sum((1, 2))

    expected = (model(images)[:, 0] * regions).sum((1, 2))
    maps = []
    for chunk_size in (None, 2):
        gfi = GuidedFeatureInversion(model, "fine", score=inside, chunk_size=chunk_size)
        explanation = gfi.explain(images, torch.arange(5))
        torch.testing.assert_close(explanation.score, expected)
        maps.append(explanation.heatmaps)
    torch.testing.assert_close(*maps, rtol=0, atol=1e-3)
