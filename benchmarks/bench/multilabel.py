"""A network's last layer, trained anew for the classes that photographs are annotated with, several in each."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.networks import Network
from bench.voc import Photograph, stack_images
from gfi_lightning import UsageError

LEARNING_RATE = 1e-4
BATCH = 64
_PATIENCE = 20
MOST_EPOCHS = 1000
_HELD_OUT = 5  # every fifth photograph
_FEATURE_BATCH = 8


@dataclass(frozen=True)
class Retrained:
    """A network with a new last layer.

    Attributes:
        network: whose score is "sigmoid", and whose class_names are the annotations'.
        epochs: of training.
        photographs: so many it was trained on.
    """

    network: Network
    epochs: int
    photographs: int

    def described(self) -> str:
        """How it was trained, in a sentence."""
        return (
            f"The new last layer ({len(self.network.class_names or {})} classes) was trained on {self.photographs} "
            f"photographs for {self.epochs} epochs, after which the loss on a held-out fifth of them was lowest."
        )


def retrain_last_layer(network: Network, photographs: Sequence[Photograph]) -> Retrained:
    """Train only a new last layer, for the classes in these photographs: BCE, Adam 1e-4, batches of 64.

    The features in front of it are computed once. A fifth of the photographs is held out to find the number of epochs
    after which their loss does not fall for 20 epochs, at most 1,000; then a fresh layer is trained on all for so many.

    Raises:
        UsageError: the network has no linear layer.
    """
    names = sorted({name for photograph in photographs for name in photograph.classes})
    labels = torch.tensor([[float(name in photograph.classes) for name in names] for photograph in photographs])
    layer = _last_linear(network.model)
    features = _inputs_of(network, layer, photographs)
    epochs = _epochs_to_converge(features, labels)
    head = next(islice(_training(features, labels), epochs - 1, None))
    model = deepcopy(network.model)
    model.set_submodule(layer, head.to(network.device))
    retrained = replace(network, model=model.eval(), class_names=dict(enumerate(names)), score="sigmoid")
    return Retrained(retrained, epochs, len(photographs))


def _last_linear(model: nn.Module) -> str:
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not names:
        raise UsageError(f"{type(model).__name__} has no linear layer that could be trained anew.")
    return names[-1]


def _inputs_of(network: Network, layer: str, photographs: Sequence[Photograph]) -> Tensor:
    """What the layer is given for each photograph, (N, K)."""
    seen: list[Tensor] = []
    handle = network.model.get_submodule(layer).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        with torch.no_grad():
            for start in range(0, len(photographs), _FEATURE_BATCH):
                images = stack_images(photographs[start : start + _FEATURE_BATCH], network.preprocess)
                network.model(images.to(network.device))
    finally:
        handle.remove()
    return torch.cat(seen).float().cpu()


def _epochs_to_converge(features: Tensor, labels: Tensor) -> int:
    held_out = torch.arange(len(features)) % _HELD_OUT == 0
    best, best_epoch = torch.inf, 0
    training = islice(_training(features[~held_out], labels[~held_out]), MOST_EPOCHS)
    for epoch, head in enumerate(training, 1):
        with torch.no_grad():
            loss = float(F.binary_cross_entropy_with_logits(head(features[held_out]), labels[held_out]))
        if loss < best:
            best, best_epoch = loss, epoch
        if epoch - best_epoch >= _PATIENCE:
            break
    return max(best_epoch, 1)


def _training(features: Tensor, labels: Tensor) -> Iterator[nn.Linear]:
    """The layer after each epoch, for ever."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = nn.Linear(features.shape[1], labels.shape[1])
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(head.parameters(), lr=LEARNING_RATE)
    while True:
        for rows in torch.randperm(len(features), generator=generator).split(BATCH):
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(head(features[rows]), labels[rows]).backward()
            optimizer.step()
        yield head
