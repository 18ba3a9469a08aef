"""Histories as trainings write them, without a training: blobs that move over pictures until they find an object."""

from dataclasses import dataclass

import torch

from gfi_lightning.recording.arrays import run_array, sample_arrays
from gfi_lightning.recording.curves import CurveTracker
from gfi_lightning.recording.history import History, HistoryWriter
from gfi_lightning.recording.record import Record, SampleRecord, TargetRecord

CLASS_NAMES = ("ant", "bee", "crow", "deer")
# Names that would run a script, or break what they stand in, where they are taken for markup.
NASTY = [
    "<img src=x onerror=window.hacked=1>",
    "</script><script>window.hacked=2</script>",
    "<!--<script>",
    "\u2028';window.hacked=3//",
    "&lt;b&gt; \u202eright to left",
]


@dataclass(frozen=True)
class Plan:
    """What a history shows.

    Of the samples every third one is mispredicted from half of the training on, which gives it a second target, and
    every fourth one never comes to rest. Before a quarter of the training all are taken for the first class.
    """

    steps: tuple[int, ...] = (0, 1, 2, 4, 8, 16, 32, 64, 96)
    samples: int = 6
    size: tuple[int, int] = (64, 64)
    grid: tuple[int, int] = (8, 8)
    class_names: tuple[str, ...] = CLASS_NAMES
    regions: tuple[str, ...] = ("object", "distractor")
    predictions: bool = True  # whether a misprediction is explained, too
    contrasts: bool = False  # whether it is also explained why not the label
    labelled: bool = True
    several_labels: bool = False
    score_range: float = 1.0
    noise: float = 0.0  # of the pictures: as hard to compress as photographs
    floor: float = 0.05  # of the drift
    seed: int = 0
    epoch_length: int = 16


def write(log_dir, plan=None, name=""):
    """Write a history below a log directory, and return it."""
    plan = plan or Plan()
    scenes = make_scenes(plan)
    writer, tracker = None, CurveTracker({})
    for index in range(len(plan.steps)):
        record = make_record(plan, scenes, index)
        writer = writer or HistoryWriter(log_dir / "gfi" / name, sample_arrays(record, plan.class_names))
        curves = tracker.curves(record)
        tracker.floor = torch.full((plan.samples,), plan.floor)
        writer.append(run_array(record, curves))
    return History.load(log_dir, name or None)


def in_memory(plan):
    """The same without files and with few curves, for when there are many large pictures."""
    scenes, runs = make_scenes(plan), []
    for index in range(len(plan.steps)):
        record = make_record(plan, scenes, index)
        first = [sample.targets[0] for sample in record.samples]
        curves = {name: torch.tensor([getattr(one, name) for one in first]) for name in ("preserved", "removed")}
        runs.append(run_array(record, curves))
    return History("in-memory", sample_arrays(record, plan.class_names), runs)


def make_scenes(plan):
    """The samples, as they are at all steps."""
    return [_Scene(plan, number) for number in range(plan.samples)]


def make_record(plan, scenes, index):
    """What is seen at one of the steps, by its index."""
    masks = [torch.stack([scene.discs[place] for scene in scenes]) for place in ("object", "distractor")]
    regions = dict(zip(plan.regions, masks, strict=False))
    step, progress = plan.steps[index], index / max(len(plan.steps) - 1, 1)
    return Record(step, plan.grid, [scene.sample(progress) for scene in scenes], step // plan.epoch_length, regions)


class _Scene:
    """One sample: a disc, which is the object, another, which distracts, and a blob on its way."""

    def __init__(self, plan, number):
        self.plan, self.number = plan, number
        self.generator = torch.Generator().manual_seed(1000 * plan.seed + number)
        side = number % 2  # which of them lies left
        places = [torch.tensor([0.3, 0.28]) + 0.12 * self._draw(2), torch.tensor([0.58, 0.6]) + 0.12 * self._draw(2)]
        self.places = {"object": places[side], "distractor": places[1 - side], "start": places[1 - side] + 0.1}
        self.discs = {place: self._disc(self.places[place]) for place in ("object", "distractor")}
        self.label = number % len(plan.class_names)
        self.wrong = number % 3 == 1
        self.restless = number % 4 == 2
        self.image = self._image()

    def sample(self, progress):
        predicted = 0 if progress < 0.25 else self.label
        if self.wrong and progress >= 0.5:
            predicted = (self.label + 1) % len(self.plan.class_names)
        right = predicted == self.label
        targets = [self._target(self.label, "object", progress, 0.1 + 0.8 * progress * right)]
        if not right:
            if self.plan.predictions:
                targets.append(self._target(predicted, "distractor", progress, 0.7))
            if self.plan.contrasts:
                targets.append(self._target(self.label, "object", progress, 0.3, against=predicted))
        label = self.label if self.plan.labelled else None
        present = (self.label, (self.label + 2) % len(self.plan.class_names)) if self.plan.several_labels else None
        foreground = self._blob(self.places["object"], 0.3)
        return SampleRecord(self.image, label, predicted, max(targets[-1].score, 0.3), foreground, targets, present)

    def _target(self, target, place, progress, score, against=None):
        heatmap = self._blob(self._on_its_way(place, progress), 0.26 - 0.12 * progress)
        score *= self.plan.score_range
        preserved, removed = score * (0.4 + 0.5 * progress), score * (0.9 - 0.7 * progress)
        return TargetRecord(target, heatmap, score, preserved, removed, False, against)

    def _on_its_way(self, place, progress):
        """Where a blob is that is drawn to a place; one that is restless circles it."""
        if self.restless:
            angle = torch.tensor(23 * progress)
            return self.places[place] + 0.3 * torch.stack([angle.cos(), angle.sin()])
        distance = max(1 - 1.6 * progress, 0)
        return (1 - distance) * self.places[place] + distance * self.places["start"]

    def _blob(self, place, width):
        down, right = self._offsets(place)
        return torch.exp(-(down**2) / (2 * width**2)) * torch.exp(-(right**2) / (2 * width**2))

    def _disc(self, place, radius=0.15):
        down, right = self._offsets(place)
        return (down**2 + right**2).sqrt() < radius

    def _offsets(self, place):
        """Of each row (H, 1) and each column (1, W) from a place, in shares of the picture."""
        rows, columns = (torch.linspace(0, 1, edge) for edge in self.plan.size)
        return (rows - place[0])[:, None], (columns - place[1])[None]

    def _image(self):
        rows, columns = (torch.linspace(0, 1, edge) for edge in self.plan.size)
        shade = 0.3 + 0.4 * rows[:, None] * columns[None]
        tint = 0.5 + 0.5 * self._draw(3, 1, 1)
        image = shade * tint
        for place, colour in (("object", (0.95, 0.75, 0.25)), ("distractor", (0.3, 0.55, 0.85))):
            image = torch.where(self.discs[place], torch.tensor(colour)[:, None, None], image)
        return (image + self.plan.noise * (self._draw(3, *self.plan.size) - 0.5)).clamp(0, 1)

    def _draw(self, *shape):
        return torch.rand(shape, generator=self.generator)
