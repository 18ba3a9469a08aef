"""Narrow members of well-known architectures with random weights, and what is to be found in them.

Every row was looked at: the finer base layer is the last feature map of twice the last one's resolution, which is often
the first layer of the last stage; where a class token is classified, the last layer is the one whose patch tokens still
reach it, which is in the last block's attention.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torchvision import models
from torchvision.models import MaxVit, SwinTransformer, VisionTransformer

Shape = tuple[int, int, int]


class Architecture(NamedTuple):
    """A network and its base layers.

    Attributes:
        build: makes it.
        side: of its images, in pixels.
        shapes: (K, h, w) of the base layers' feature maps, the finest first.
        layers: their names; None: not looked at, for they differ between releases of the library.
        looks_where_it_is: what changes in a quarter of the image changes that quarter of the finer feature maps most.
            Not so where each position sees the whole image, and random weights make nothing of its middle.
    """

    build: Callable[[], nn.Module]
    side: int
    shapes: tuple[Shape, ...]
    layers: tuple[str, ...] | None = None
    looks_where_it_is: bool = True


TOKENS = {"image_size": 64, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64}

TORCHVISION = {
    "ViT": Architecture(
        lambda: VisionTransformer(num_classes=10, **TOKENS),
        64,
        ((32, 8, 8),),
        ("encoder.layers.encoder_layer_1.ln_1",),
    ),
    "Swin": Architecture(
        lambda: SwinTransformer([4, 4], 16, [1, 1, 1], [1, 2, 4], [4, 4], num_classes=10),
        64,
        ((32, 8, 8), (64, 4, 4)),
        ("features.3", "permute"),
    ),
    "Swin v2": Architecture(
        lambda: models.swin_transformer.SwinTransformer(
            [4, 4],
            16,
            [1, 1, 1],
            [1, 2, 4],
            [4, 4],
            num_classes=10,
            block=models.swin_transformer.SwinTransformerBlockV2,
            downsample_layer=models.swin_transformer.PatchMergingV2,
        ),
        64,
        ((32, 8, 8), (64, 4, 4)),
        ("features.3", "permute"),
    ),
    "MaxViT": Architecture(
        lambda: MaxVit((64, 64), 16, 4, [16, 32, 48], [1, 1, 1], 8, 0.0, num_classes=10),
        64,
        ((192, 8, 8), (48, 4, 4)),
        ("blocks.2.layers.0.layers.MBconv.layers.conv_a", "blocks.2"),
    ),
    "Inception v3": Architecture(
        lambda: models.inception_v3(num_classes=10, init_weights=True, aux_logits=True),
        299,
        ((192, 17, 17), (2048, 8, 8)),
        ("Mixed_7a.branch7x7x3_3", "Mixed_7c"),
    ),
    "EfficientNet (squeeze and excitation)": Architecture(
        lambda: models.efficientnet_b0(num_classes=10),
        128,
        ((672, 8, 8), (1280, 4, 4)),
        ("features.6.0.block.0", "features"),
    ),
    "MobileNet v3 (squeeze and excitation)": Architecture(
        lambda: models.mobilenet_v3_small(num_classes=10),
        128,
        ((288, 8, 8), (576, 4, 4)),
        ("features.9.block.0", "features"),
    ),
    "RegNet Y (squeeze and excitation)": Architecture(
        lambda: models.regnet_y_400mf(num_classes=10),
        128,
        ((440, 8, 8), (440, 4, 4)),
        ("trunk_output.block4.block4-0.f.a", "trunk_output"),
    ),
}


def timm_model(name: str, **narrow: Any) -> Callable[[], nn.Module]:
    """Makes one of timm's."""

    def build() -> nn.Module:
        import timm

        return timm.create_model(name, num_classes=10, **narrow)

    return build


def timm_class(name: str, **settings: Any) -> Callable[[], nn.Module]:
    """Makes one of timm's in a size that it has no name for."""

    def build() -> nn.Module:
        import timm.models

        return getattr(timm.models, name)(num_classes=10, **settings)

    return build


NARROW_TOKENS = {"embed_dim": 32, "depth": 2, "num_heads": 2}

TIMM = {
    "resnet18": Architecture(timm_model("resnet18"), 128, ((256, 8, 8), (512, 4, 4)), ("layer3", "layer4")),
    "legacy_seresnet18": Architecture(
        timm_model("legacy_seresnet18"), 128, ((256, 8, 8), (512, 4, 4)), ("layer3", "layer4")
    ),
    "seresnext26d_32x4d": Architecture(
        timm_model("seresnext26d_32x4d"), 64, ((1024, 4, 4), (2048, 2, 2)), ("layer4.0.act1", "layer4")
    ),
    "efficientnet_b0": Architecture(
        timm_model("efficientnet_b0"), 128, ((672, 8, 8), (1280, 4, 4)), ("blocks.5.0.bn1", "bn2")
    ),
    "tf_mobilenetv3_small_100": Architecture(
        timm_model("tf_mobilenetv3_small_100"), 128, ((288, 8, 8), (576, 4, 4)), ("blocks.4.0.bn1", "blocks")
    ),
    "regnety_002": Architecture(timm_model("regnety_002"), 128, ((368, 8, 8), (368, 4, 4)), ("s4.b1.conv1", "s4")),
    "convnext_atto": Architecture(
        timm_model("convnext_atto"), 128, ((160, 8, 8), (320, 4, 4)), ("stages.3.downsample.0", "stages")
    ),
    "densenet121": Architecture(
        timm_model("densenet121", growth_rate=8, block_config=(2, 2, 2, 2)),
        128,
        ((16, 8, 8), (32, 4, 4)),
        ("features.transition3.conv", "features"),
    ),
    "vit_tiny_patch16_224": Architecture(
        timm_model("vit_tiny_patch16_224", img_size=64, patch_size=8, **NARROW_TOKENS),
        64,
        ((96, 8, 8),),
        ("blocks.1.attn.qkv",),
    ),
    "deit_tiny_distilled_patch16_224": Architecture(
        timm_model("deit_tiny_distilled_patch16_224", img_size=64, patch_size=8, **NARROW_TOKENS),
        64,
        ((96, 8, 8),),
        ("blocks.1.attn.qkv",),
    ),
    "vit_small_patch14_reg4_dinov2": Architecture(
        timm_model("vit_small_patch14_reg4_dinov2", img_size=112, **NARROW_TOKENS),
        112,
        ((96, 8, 8),),
        ("blocks.1.attn.qkv",),
    ),
    "eva02_tiny_patch14_224": Architecture(
        timm_model("eva02_tiny_patch14_224", img_size=112, **NARROW_TOKENS), 112, ((32, 8, 8),), ("blocks.1",)
    ),
    "swin_tiny_patch4_window7_224": Architecture(
        timm_model(
            "swin_tiny_patch4_window7_224",
            img_size=64,
            window_size=4,
            embed_dim=16,
            depths=(1, 1, 1),
            num_heads=(1, 2, 4),
        ),
        64,
        ((32, 8, 8), (64, 4, 4)),
        ("layers.1", "norm"),
    ),
    "coatnet_nano_rw_224": Architecture(
        timm_model("coatnet_nano_rw_224", img_size=128, embed_dim=(32, 32, 64, 64), depths=(1, 1, 1, 1)),
        128,
        ((64, 8, 8), (64, 4, 4)),
        ("stages.3.blocks.0.norm1.norm", "norm"),
    ),
    "mobilevit_xxs": Architecture(
        timm_model("mobilevit_xxs"), 128, ((128, 8, 8), (320, 4, 4)), ("stages.4.0.conv1_1x1", "final_conv")
    ),
    "cait_xxs24_224": Architecture(
        timm_model("cait_xxs24_224", img_size=64, patch_size=8, **NARROW_TOKENS),
        64,
        ((32, 8, 8),),
        ("blocks_token_only.1.attn.v",),
    ),
    "mixer": Architecture(
        timm_class("MlpMixer", img_size=64, patch_size=8, embed_dim=32, num_blocks=2), 64, ((32, 8, 8),), ("norm",)
    ),
}


def transformers_model(kind: str, **settings: Any) -> Callable[[], nn.Module]:
    """Makes one of Hugging Face's from a configuration."""

    def build() -> nn.Module:
        import transformers

        configuration = getattr(transformers, f"{kind}Config")(num_labels=10, **settings)
        return getattr(transformers, f"{kind}ForImageClassification")(configuration)

    return build


PATCHES = {
    "image_size": 64,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
WINDOWS = {"image_size": 64, "embed_dim": 16, "depths": [1, 1, 1], "num_heads": [1, 2, 4], "window_size": 4}
STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}

TRANSFORMERS = {
    "ViT": Architecture(transformers_model("ViT", **PATCHES), 64, ((32, 8, 8),)),
    "DeiT": Architecture(transformers_model("DeiT", **PATCHES), 64, ((32, 8, 8),)),
    "BEiT": Architecture(transformers_model("Beit", **PATCHES, out_indices=[1]), 64, ((32, 8, 8),)),
    "DINOv2 with registers": Architecture(transformers_model("Dinov2WithRegisters", **PATCHES), 64, ((32, 8, 8),)),
    "Swin": Architecture(transformers_model("Swin", **WINDOWS), 64, ((32, 8, 8), (64, 4, 4))),
    "Swin v2": Architecture(transformers_model("Swinv2", **WINDOWS), 64, ((32, 8, 8), (64, 4, 4))),
    "ConvNeXt": Architecture(transformers_model("ConvNext", **STAGES), 128, ((24, 8, 8), (32, 4, 4))),
    "ConvNeXt v2": Architecture(transformers_model("ConvNextV2", **STAGES), 128, ((24, 8, 8), (32, 4, 4))),
    "ResNet": Architecture(transformers_model("ResNet", embedding_size=8, **STAGES), 128, ((8, 8, 8), (32, 4, 4))),
    "RegNet": Architecture(
        transformers_model("RegNet", embedding_size=8, groups_width=8, **STAGES), 128, ((32, 8, 8), (32, 4, 4))
    ),
    "MobileNet v2": Architecture(
        transformers_model("MobileNetV2", initializer_range=0.2, depth_multiplier=0.35),
        128,
        ((192, 8, 8), (1280, 4, 4)),
    ),
    "EfficientNet": Architecture(
        transformers_model(
            "EfficientNet",
            initializer_range=0.2,
            width_coefficient=0.25,
            depth_coefficient=0.25,
            hidden_dim=320,
            image_size=128,
        ),
        128,
        ((192, 8, 8), (320, 4, 4)),
    ),
    "LeViT": Architecture(
        transformers_model(
            "Levit",
            initializer_range=0.2,
            image_size=160,
            hidden_sizes=[32, 48, 64],
            num_attention_heads=[2, 2, 2],
            depths=[1, 1, 1],
        ),
        160,
        ((240, 5, 5), (64, 3, 3)),
        looks_where_it_is=False,
    ),
    "PoolFormer": Architecture(transformers_model("PoolFormer", **STAGES), 128, ((24, 8, 8), (32, 4, 4))),
    "PVT": Architecture(
        transformers_model("Pvt", image_size=128, num_attention_heads=[1, 1, 2, 2], **STAGES),
        128,
        ((24, 8, 8), (32, 4, 4)),
    ),
    "SegFormer": Architecture(
        transformers_model("Segformer", num_attention_heads=[1, 1, 2, 2], **STAGES), 128, ((24, 8, 8), (32, 4, 4))
    ),
    "CLIP": Architecture(transformers_model("CLIP", vision_config=PATCHES), 64, ((32, 8, 8),)),
    "MobileViT": Architecture(
        transformers_model(
            "MobileViT",
            initializer_range=0.2,
            image_size=128,
            hidden_sizes=[16, 24, 32],
            neck_hidden_sizes=[8, 8, 16, 16, 24, 32, 64],
        ),
        128,
        ((96, 8, 8), (64, 4, 4)),
    ),
}


def images_for(architecture: Architecture, count: int, seed: int = 0) -> torch.Tensor:
    """Smooth random images, shape (count, 3, side, side)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 16, 16, generator=generator)
    return nn.functional.interpolate(coarse, size=(architecture.side, architecture.side), mode="bilinear")


def seeded(architecture: Architecture) -> nn.Module:
    """The network, always with the same weights, in eval mode.

    The statistics of BatchNorm are those of some images: with those that it starts with, which are none, the features
    of a deep network dwindle to nothing.
    """
    torch.manual_seed(0)
    model = architecture.build().train()
    _start_what_starts_at_zero(model)
    normalizations = [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    if normalizations:
        momenta = [part.momentum for part in normalizations]
        for part in normalizations:
            part.momentum = 1.0
        with torch.no_grad():
            model(images_for(architecture, 4, seed=1))
        for part, momentum in zip(normalizations, momenta, strict=True):
            part.momentum = momentum
    return model.eval()


def _start_what_starts_at_zero(model: nn.Module) -> None:
    """Heads and last normalizations of blocks are often 0 before training, and then nothing has an effect."""
    for name, parameter in model.named_parameters():
        if name.endswith("weight") and not parameter.any():
            nn.init.ones_(parameter) if parameter.ndim == 1 else nn.init.normal_(parameter, std=0.1)
