"""The floor of an explanation's time: the passes through the network that it cannot do without, and nothing else."""

from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.cost import seconds
from gfi_lightning import GuidedFeatureInversion
from gfi_lightning.guard import undisturbed
from gfi_lightning.inversion.layers import Layer, Reached, StopAt, Tap, hooked
from gfi_lightning.inversion.scores import logits_of


@dataclass(frozen=True)
class Floor:
    """Bare passes of the shapes that an explanation has, in seconds.

    Attributes:
        steps: of both stages: forward to the inversion layer or to the output, and back to the image.
        evidence: forward to the output, and back to the finest base layer; of networks that give patches also one pass
            back to the image, and four without gradients.
        look: one forward pass without gradients.
    """

    steps: float
    evidence: float
    look: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.steps + self.evidence + self.look


def _versions(images: Tensor, count: int, most: int) -> tuple[Tensor, int]:
    """So many versions of the images as go through the network at once, and how often."""
    at_once = max(min(most // len(images), count), 1)
    return torch.cat([images] * at_once), -(-count // at_once)


@dataclass(frozen=True)
class BarePasses:
    """Passes through a network and nothing else: no mask, no loss, no optimiser.

    Attributes:
        model: in eval mode.
        gfi: explains it, and has found its layers.
        images: (N, C, H, W), that are explained, in the memory format in which passes are made.
    """

    model: nn.Module
    gfi: GuidedFeatureInversion
    images: Tensor

    def measure(self) -> Floor:
        """Run all of them once, in the chunks of an explanation."""
        recipe, size, most = (
            self.gfi.recipe,
            self.gfi.capacity.chunk_size_for(self.images),
            self.gfi.capacity.most_at_once(self.images),
        )
        steps = evidence = look = 0.0
        with undisturbed(self.model):
            for chunk in self.images.split(size):
                both, per_step = _versions(chunk, 2, most)
                noisy, of_evidence = _versions(chunk, recipe.evidence_passes, most)
                look += self._seconds(lambda chunk=chunk: self._forward(chunk))
                steps += self._seconds(lambda chunk=chunk: self._to_inversion_layer(chunk), recipe.inversion_steps)
                steps += self._seconds(lambda both=both: self._to_output(both), per_step * recipe.target_steps)
                evidence += self._seconds(lambda noisy=noisy: self._from_output_to_base(noisy), of_evidence)
                if recipe.evidence_by_mask and self.gfi.capacity.learned["gives_patches"]:
                    starts, of_starts = _versions(chunk, 4, most)
                    evidence += self._seconds(lambda chunk=chunk: self._to_output(chunk))
                    evidence += self._seconds(lambda starts=starts: self._forward(starts), of_starts)
        return Floor(steps, evidence, look)

    def _seconds(self, run: Callable[[], None], times: int = 1) -> float:
        return seconds(lambda: [run() for _ in range(times)], self.images.device) if times else 0.0

    @property
    def _layers(self) -> list[Layer]:
        """The base layers, the coarsest, which is the inversion layer, last."""
        names = (self.gfi.layer,) if isinstance(self.gfi.layer, str) else self.gfi.layer or ()
        return [Layer.parse(name, dict(self.model.named_modules())) for name in names]

    def _forward(self, images: Tensor) -> None:
        with torch.no_grad():
            self.model(images)

    def _to_output(self, images: Tensor) -> None:
        images = images.detach().requires_grad_()
        torch.autograd.grad(logits_of(self.model(images)).sum(), images)

    def _to_inversion_layer(self, images: Tensor) -> None:
        images, layer = images.detach().requires_grad_(), self._layers[-1]
        stop = StopAt(layer.call or 1)
        with hooked({self.model.get_submodule(layer.name): stop}), suppress(Reached):
            self.model(images)
        assert stop.output is not None
        torch.autograd.grad(stop.output.sum(), images)

    def _from_output_to_base(self, images: Tensor) -> None:
        images = images.detach().requires_grad_()
        taps = [Tap(layer.call or 1) for layer in self._layers]
        with ExitStack() as hooks:
            for layer, tap in zip(self._layers, taps, strict=True):
                hooks.enter_context(hooked({self.model.get_submodule(layer.name): tap}))
            output = self.model(images)
        torch.autograd.grad(logits_of(output).sum(), [tap.output for tap in taps])
