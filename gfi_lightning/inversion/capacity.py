"""How many images go through a network at once, in which memory format, and in what memory."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gfi_lightning.inversion.layers import image_size
from gfi_lightning.inversion.network import Network, several_ranks

_LARGEST_CHUNK = 32
# On two CPU cores a pass of 14 images of 224 × 224 takes, by image, 1.3 times as long as one of 4 through MobileNetV2,
# and 1.1 times through ResNet-50: large tensors are given back to the system, and asked for again.
_LARGEST_PASS_ON_CPU = 4 * 224 * 224  # pixels
# From this size on the channels last pay on a CPU, and what passes keep outweighs the weights.
_LARGE_IMAGE = 128 * 128  # pixels
_LITTLE = 32e6  # bytes, which nobody misses
_OWN_VERSIONS = 8  # of the images in memory during a pass: copy, background, kept, removed, noisy, and gradients
_SMALL_HEAP, _LARGEST_HEAP = 2**28, 2**30  # bytes
_BLOCK = 2**22  # bytes: once one was freed, glibc takes such blocks from its heap


class Capacity:
    """What a network takes at once, as far as it is known; more is known after the first pass.

    Args:
        network: through which images go.
        chunk_size: images that are optimised at once; None: see :class:`~gfi_lightning.GuidedFeatureInversion`.
        takes_channels_last: False: images are never laid out with the channels last on our own account.
    """

    def __init__(self, network: Network, chunk_size: int | None, takes_channels_last: bool) -> None:
        self.chunk_size = chunk_size
        self.takes_channels_last = takes_channels_last
        self._network = network
        self._free_on_gpu: int | None = None  # bytes

    def chunk_size_for(self, images: Tensor) -> int:
        """How many images of this size, (N, C, H, W), are optimised at once."""
        most = self._largest_chunk(images)
        if self.chunk_size is not None or images.device.type != "cuda" or several_ranks():
            return most  # so that ranks have chunks of the same size
        most = max(min(most, self._most_in_a_training_step(images)), 1)
        chunks = -(-len(images) // most)
        return -(-len(images) // chunks)  # and none is much smaller than the others

    def most_at_once(self, images: Tensor) -> int:
        """How many versions of these images, (N, C, H, W), may go through the network in one pass of stage 2.

        Noisy, kept and removed ones: no more than would take more memory than a training step with N images.
        """
        if several_ranks():  # whatever the number of images on each
            return 1
        most = 2 * self._largest_chunk(images)
        if self.chunk_size is None and images.device.type == "cpu":
            most = min(most, _most_on_cpu(images))
        return max(min(most, self._most_in_a_training_step(images)), 1)

    def _largest_chunk(self, images: Tensor) -> int:
        if self.chunk_size is not None:
            return self.chunk_size
        most = _most_on_cpu(images) if images.device.type == "cpu" else self._most_on_gpu(images)
        return min(max(most, 1), _LARGEST_CHUNK)

    def _most_in_a_training_step(self, images: Tensor) -> int:
        """How many images go through the network in the memory of a training step with these: (N, C, H, W).

        That keeps gradients of the weights, which are not needed here; but here are several versions of the images.
        Where it is made under autocast, and we are not, its activations take about half as much.
        """
        kept = self._network.bytes_per_image(images)
        if kept is None:
            return 2 * _LARGEST_CHUNK  # it sets no limit then
        of_a_step = kept / 2 if self._network.precision.is_finer_than_given(images.device) else kept
        taken = len(images) * of_a_step + self._bytes_of_weights - _OWN_VERSIONS * images.nbytes
        return int(max(taken, _LITTLE) / max(kept, 1))

    @cached_property
    def _bytes_of_weights(self) -> int:
        """As it is at first: to ask each parameter each time would take as long as all else here."""
        return sum(one.nbytes for one in self._network.model.parameters())

    def asks_for_a_trial(self, images: Tensor) -> bool:
        """Whether a pass with few images should come first, to tell how many fit."""
        known = self.chunk_size is not None or self._network.bytes_per_image(images) is not None
        return images.device.type == "cuda" and not known

    def gains_by_channels_last(self, images: Tensor) -> bool:
        """Whether the model takes images (N, C, H, W) with the channels last, and is faster by that.

        On a CPU eight networks took 0.72 to 1.0 of the time at 224 px, and 0.75 to 1.47 at 64 px.
        """
        height, width = image_size(images)
        gains = images.device.type == "cpu" and images.dtype == torch.float32 and height * width >= _LARGE_IMAGE
        return self.takes_channels_last and gains

    @contextmanager
    def heap_held(self, images: Tensor) -> Iterator[None]:
        """Have glibc keep what passes through images (N, C, H, W) on a CPU give back, until the end.

        It hands the end of its heap back to the system whenever that is free, after each pass, and every page that the
        next one touches costs a fault: a fifth of the time of 32 images of 224 px through MobileNetV2. One block behind
        the memory of a pass holds that in place. The memory is asked for and not touched. (Tensors of more than 32 MB
        never are in the heap.) Where passes keep little, asking takes longer than it saves.
        """
        kept, blocks = self._network.bytes_per_image(images), list[torch.UntypedStorage]()
        if images.device.type == "cpu" and kept is not None and _may_ask_for_memory_in_advance():
            size = min(2 * kept * self.most_at_once(images), _LARGEST_HEAP)
            with suppress(RuntimeError):  # the system may refuse all the same
                for _ in range(int(size) // _BLOCK + 1 if size >= _SMALL_HEAP else 0):
                    blocks.append(torch.UntypedStorage(_BLOCK))
        del blocks[:-1]
        yield

    @property
    def learned(self) -> dict[str, Any]:
        """What was found out about the model: what passes keep, what its layers give, and how it takes images."""
        return {
            "kept_bytes": self._network.kept_bytes,
            "gives_patches": self._network.gives_patches,
            "takes_channels_last": self.takes_channels_last,
            "needs_autocast": self._network.precision.needs_autocast,
            "activation": self._network.activation,
        }

    def learn(self, learned: dict[str, Any]) -> None:
        """Take over what another one for the same model has :attr:`learned`."""
        self._network.kept_bytes = dict(learned.get("kept_bytes", {}))
        self._network.gives_patches = learned.get("gives_patches", self._network.gives_patches)
        self.takes_channels_last = learned.get("takes_channels_last", self.takes_channels_last)
        self._network.precision.needs_autocast = learned.get("needs_autocast", False)
        self._network.activation = learned.get("activation", self._network.activation)

    def _most_on_gpu(self, images: Tensor) -> int:
        """What fits in half of the memory that was free when it was first asked for, so that chunks stay the same."""
        kept = self._network.bytes_per_image(images)
        if images.device.type != "cuda" or kept is None or several_ranks():  # which need chunks of the same size
            return _LARGEST_CHUNK
        if self._free_on_gpu is None:
            reserved = torch.cuda.memory_reserved(images.device) - torch.cuda.memory_allocated(images.device)
            self._free_on_gpu = torch.cuda.mem_get_info(images.device)[0] + reserved
        return int(self._free_on_gpu / 2 / max(kept, 1))


def _most_on_cpu(images: Tensor) -> int:
    """Of large images no more than half: all of them would take the process about as much as a training step."""
    height, width = image_size(images)
    most = _LARGEST_PASS_ON_CPU // (height * width)
    return most if height * width < _LARGE_IMAGE or several_ranks() else max(min(most, len(images) // 2), 1)


def _may_ask_for_memory_in_advance() -> bool:
    """Whether glibc is there, and to ask for memory takes it from nobody as long as it is not touched."""
    if platform.libc_ver()[0] != "glibc":
        return False
    import resource  # which only Unix has

    unlimited = resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
    try:
        return unlimited and Path("/proc/sys/vm/overcommit_memory").read_text(encoding="ascii").strip() != "2"
    except OSError:
        return False
