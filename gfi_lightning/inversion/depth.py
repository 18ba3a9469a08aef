"""Several depths of one network, each seen from a layer of its own."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack

from torch import Tensor, nn

from gfi_lightning.errors import UsageError
from gfi_lightning.inversion.layers import Capture, Layer, LayerLike, hooked, image_size
from gfi_lightning.inversion.network import Forward, Look, Network


class Depth(Network):
    """A model as one of its layers sees it, which is base layer and inversion layer at once.

    Args:
        model: the model, in eval mode whenever it is run.
        layer: of this depth.
        forward: (model, images) → output; None: ``model(images)``.
        on_pass: called before each forward pass.
    """

    def __init__(
        self, model: nn.Module, layer: LayerLike, forward: Forward | None, on_pass: Callable[[], object] | None = None
    ) -> None:
        super().__init__(model, layer, None, forward, on_pass=on_pass)

    @property
    def name(self) -> str:
        """The layer's."""
        return str(self.base[0])

    def capture(self, images: Tensor) -> tuple[nn.Module, Capture]:
        """The layer, and a hook for it that keeps what :meth:`seen` needs of the next forward pass."""
        (layer,) = self.base
        return self._module(layer, images, "layers"), Capture(image_size(images), layer.call)

    def seen(self, capture: Capture, images: Tensor) -> Look:
        """What that pass has shown; no output, which stage 1 does not need.

        Raises:
            UsageError: the layer was not run, or its output has no spatial extent.
        """
        (layer,) = self.base
        maps = self._maps(layer, capture, images)
        assert capture.output is not None
        self._calls = {layer: capture.call}
        return Look((maps,), capture.output.to(maps.dtype), None)

    def _parsed(self, layer: LayerLike, argument: str = "layers") -> Layer:
        return super()._parsed(layer, argument)

    def _unusable(self, layer: Layer, why: str, images: Tensor, argument: str = "layers") -> UsageError:
        return super()._unusable(layer, why, images, argument)


def look(network: Network, depths: Sequence[Depth], images: Tensor) -> tuple[Look, list[Look]]:
    """One forward pass over untouched images, and what the network and each depth saw in it.

    It is made without autocast, as all that follow, unless the model then fails.

    Args:
        network: whose pass it is, see :meth:`Network.look`.
        depths: of the same model.
        images: shape (N, C, H, W).

    Raises:
        UsageError: a layer does not exist, is not run, or has no spatial extent.
    """
    if network.is_sharded:  # on one rank alone a pass must not be made again
        return _look(network, depths, images)
    return network.precision.tried(lambda: _look(network, depths, images))


def _look(network: Network, depths: Sequence[Depth], images: Tensor) -> tuple[Look, list[Look]]:
    watched = [depth.capture(images) for depth in depths]
    with ExitStack() as hooks:
        for module, capture in watched:
            hooks.enter_context(hooked({module: capture}))
        own = network.look(images)
    own = own._replace(output=network.understood(own.output, images))
    return own, [depth.seen(capture, images) for depth, (_, capture) in zip(depths, watched, strict=True)]
