"""Runs the methods over the images and measures their maps."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bench.cases import Batch, Case, batches
from bench.cost import counted, seconds
from bench.methods import Method
from bench.networks import Network
from bench.rows import Row
from gfi_lightning import metrics

CURVE_STEPS = 14
RADIUS = 0.02

Say = Callable[[str], None]
Values = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """On how many images what is measured.

    Attributes:
        batch_size: images that are explained at once, and against single ones for the noise floor.
        slow_limit: images for slow methods.
        expensive_limit: images for sensitivity and randomisation.
        floor_limit: images for the noise floor.
        slow_expensive_limit: images for these three for slow methods.
        timed_batches: whose time is compared to the reference's.
        samples: of noise, for the sensitivity.
        stages: of the cascading randomisation.
        bf16: whether maps are compared to those of the same weights and images in bfloat16.
    """

    batch_size: int = 16
    slow_limit: int = 40
    expensive_limit: int = 16
    floor_limit: int = 64
    slow_expensive_limit: int = 4
    timed_batches: int = 4
    samples: int = 4
    stages: int = 4
    bf16: bool = False

    def images(self, method: Method) -> int | None:
        """How many images are explained at most; None: all."""
        return self.slow_limit if method.slow else None

    def expensive(self, method: Method) -> int:
        """How many images sensitivity and randomisation are measured on."""
        return min(self.expensive_limit, self.slow_expensive_limit) if method.slow else self.expensive_limit

    def floor(self, method: Method) -> int:
        """How many images the noise floor is measured on."""
        return min(self.floor_limit, self.slow_expensive_limit) if method.slow else self.floor_limit


@dataclass(frozen=True)
class Bench:
    """The images, the network and the plan; measures one method after the other.

    Attributes:
        network: what is explained.
        reference: the method whose time is the unit.
        cases: the images that are reported.
        tuning: other images, for the α of the localisation error; empty: it is not measured.
        plan: on how many of them what is measured.
        say: where progress is told.
    """

    network: Network
    reference: Method
    cases: Sequence[Case]
    tuning: Sequence[Case]
    plan: Plan
    say: Say

    def measure(self, method: Method) -> Row:
        """Everything about one method, whose maps are computed once for all that is read off them.

        What fails is noted in the row, and takes neither the rest of the row with it nor the hours of other methods.
        """
        row = Row(method.name, method.group)
        try:
            row.alpha = self._tuned_alpha(method)
            maps = self._measure_maps(method, row)
            self._measure_floors(method, row, maps)
            self._measure_expensive(method, row)
        except Exception as error:
            row.notes.append(f"failed: {type(error).__name__}: {error}")
            self.say(f"{method.name} {row.notes[-1]}")
        row.values = {key: _padded(values, len(self.cases)) for key, values in row.values.items()}
        return row

    def _tuned_alpha(self, method: Method) -> float | None:
        cases = self.tuning[: self.plan.images(method)]
        if not cases:
            return None
        maps, boxes = [], []
        for batch in self._batches(cases, f"{method.name}, tuning"):
            maps.append(self._explain(method, batch))
            boxes += batch.boxes
        return metrics.tune_alpha(torch.cat(maps), boxes)

    def _measure_maps(self, method: Method, row: Row) -> list[Tensor]:
        """All that a batch's maps tell, and the passes; returns the first batches' maps, for the noise floor."""
        cases = self.cases[: self.plan.images(method)]
        kept: list[Tensor] = []
        measured: list[Values] = []
        forwards = backwards = 0
        for index, batch in enumerate(self._batches(cases, method.name)):
            if index < self.plan.timed_batches:
                base = seconds(lambda batch=batch: self._explain(self.reference, batch), self.network.device)
            start = time.perf_counter()
            with counted(self.network.model) as passes:
                maps = self._explain(method, batch)  # on the CPU, so a GPU is done, too
            if index < self.plan.timed_batches:
                row.seconds.append((time.perf_counter() - start) / base)
            forwards, backwards = forwards + passes.forwards, backwards + passes.backwards
            measured.append(self._values_of_maps(maps, batch, row.alpha))
            if sum(map(len, kept)) < self.plan.floor(method):
                kept.append(maps)
        row.values |= _concatenated(measured)
        row.forwards, row.backwards = forwards / len(cases), backwards / len(cases)
        return kept

    def _values_of_maps(self, maps: Tensor, batch: Batch, alpha: float | None) -> Values:
        model, regions = self.network.model, batch.regions
        on_device = maps.to(batch.images.device)
        curves = metrics.insertion_deletion(
            model, batch.images, on_device, batch.targets, steps=CURVE_STEPS, baseline="blur", score=self.network.score
        )
        scores = metrics.scores_on_map(model, batch.images, _unit(on_device), batch.targets, score=self.network.score)
        values = {
            "pointing": metrics.pointing_hits(maps, regions),
            "energy": metrics.energy_in_region(maps, regions),
            "insertion": curves.insertion_area,
            "deletion": curves.deletion_area,
            "insertion_deletion": curves.difference,
            "average_drop": metrics.average_drop(*scores),
            "increase": metrics.increase_in_confidence(*scores),
            "sparsity": metrics.gini(maps),
        }
        if alpha is not None:
            values["localization_error"] = ~metrics.localization_hits(maps, batch.boxes, alpha)
        return {key: _numbers(series) for key, series in values.items()}

    def _measure_floors(self, method: Method, row: Row, kept: Sequence[Tensor]) -> None:
        if not kept:
            return
        maps = torch.cat(list(kept))[: self.plan.floor(method)]
        cases = self.cases[: len(maps)]
        alone = [self._explain(method, single) for single in self._batches(cases, f"{method.name}, one by one", size=1)]
        row.values["floor"] = _numbers(metrics.heatmap_drift(torch.cat(alone), maps))
        if self.plan.bf16:
            # Not by autocast, which ours switches off.
            model = deepcopy(self.network.model).to(torch.bfloat16)
            self._measure_floor_between(method, row, "floor_bf16", cases, maps, model)
        if torch.cuda.is_available():
            other = torch.device("cuda" if self.network.device.type == "cpu" else "cpu")
            model = deepcopy(self.network.model).to(other)
            self._measure_floor_between(method, row, "floor_device", cases, maps, model)

    def _measure_floor_between(
        self,
        method: Method,
        row: Row,
        key: str,
        cases: Sequence[Case],
        maps: Tensor,
        model: nn.Module,
    ) -> None:
        like = next(model.parameters())
        others = []
        try:
            for batch in self._batches(cases, f"{method.name}, {key}"):
                images, targets = batch.images.to(like), batch.targets.to(like.device)
                with _full_float32():
                    others.append(method.explain(model, images, targets).detach().float().cpu())
        except (TypeError, RuntimeError) as error:  # numpy, which some libraries go through, has no bfloat16
            row.notes.append(f"{key}: {type(error).__name__}: {error}")
            return
        row.values[key] = _numbers(metrics.heatmap_drift(torch.cat(others), maps))

    def _measure_expensive(self, method: Method, row: Row) -> None:
        cases = self.cases[: self.plan.expensive(method)]
        if not cases:
            return
        sensitivity, similarities, names = [], [], ()
        for batch in self._batches(cases, f"{method.name}, sensitivity and randomisation"):
            model, given = self.network.model, (batch.images, batch.targets)
            explain = _detached(method)
            sensitivity.append(
                metrics.sensitivity_max(explain, model, *given, radius=RADIUS, samples=self.plan.samples)
            )
            result = metrics.randomization_sanity(explain, model, *given, stages=self.plan.stages)
            names, similarities = result.layers, [*similarities, result.similarities]
        by_stage = torch.cat(similarities, 1)
        row.values["sensitivity"] = _numbers(torch.cat(sensitivity))
        row.values["sanity_head"] = _numbers(by_stage[0])
        if len(by_stage) > 1:
            row.values["sanity_below"] = _numbers(by_stage[1:].mean(0))
        row.stages = dict(zip(names, by_stage.mean(1).tolist(), strict=True))

    def _explain(self, method: Method, batch: Batch) -> Tensor:
        """The maps of a batch, (N, H, W), float32, on the CPU."""
        with _full_float32():
            return method.explain(self.network.model, batch.images, batch.targets).detach().float().cpu()

    def _batches(self, cases: Sequence[Case], activity: str, size: int | None = None) -> Iterator[Batch]:
        done, start = 0, time.perf_counter()
        for batch in batches(cases, self.network, size or self.plan.batch_size):
            yield batch
            done += len(batch)
            if done == len(cases) or done % self.plan.batch_size == 0:
                self.say(f"{activity}: {done} of {len(cases)} images, {time.perf_counter() - start:.0f} s")


@contextmanager
def _full_float32() -> Iterator[None]:
    """No TF32 on GPUs, which has the precision of float16."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _detached(method: Method) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    def explain(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return method.explain(model, images, targets).detach().float().cpu()

    return explain


def _unit(maps: Tensor) -> Tensor:
    """Maps divided by their largest value."""
    return maps.clamp(min=0) / maps.amax((1, 2), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)


def _numbers(values: Tensor) -> np.ndarray:
    return values.detach().double().cpu().numpy()


def _concatenated(parts: Sequence[Values]) -> Values:
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _padded(values: np.ndarray, count: int) -> np.ndarray:
    return np.concatenate([values, np.full(count - len(values), np.nan)])
