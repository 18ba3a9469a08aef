"""Tests that need something special say so by a marker, and skip with the reason where it is missing."""

import shutil
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import google_crc32c
import pytest
import torch
from lightning.pytorch import callbacks
from packaging.version import Version
from tensorboard.compat.tensorflow_stub import pywrap_tensorflow

from tests.ranks import RankPool

# The same checksums, which TensorBoard else computes byte by byte in Python: a tenth of a second for every megabyte.
pywrap_tensorflow.crc32c = google_crc32c.value

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

# What tests may need beside the package itself: by marker the module, and the extra that brings it.
LIBRARIES = {
    "timm": ("timm", "architectures"),
    "transformers": ("transformers", "architectures"),
    "wandb": ("wandb", "wandb"),
    "mlflow": ("mlflow", "mlflow"),
    "datasets": ("datasets", "dev"),
    "albumentations": ("albumentations", "dev"),
    "quantus": ("quantus", "dev"),
    "captum": ("captum", "benchmarks"),
    "grad_cam": ("pytorch_grad_cam", "benchmarks"),
    "notebook": ("nbclient", "dev"),
    "jsonargparse": ("jsonargparse", "cli"),
}

LIGHTNING = Version(version("lightning"))

REQUIREMENTS = {
    "shared_data": (SHARED_DATA.is_dir(), "the measuring data is not there (../shared/data)"),
    "browser": (
        bool(shutil.which("chromium") and shutil.which("chromedriver")),
        "Chromium and its driver are not installed",
    ),
    "pytorch_lightning": (
        find_spec("pytorch_lightning") and Version(version("pytorch-lightning")) >= Version("2.6"),
        "pytorch_lightning takes callbacks of lightning.pytorch since 2.6",
    ),
    "weight_averaging": (
        hasattr(callbacks, "EMAWeightAveraging"),
        "this version of Lightning has no EMAWeightAveraging",
    ),
    "mkdocs": (
        find_spec("mkdocstrings") and sys.version_info >= (3, 11),
        "the site is built with mkdocstrings (an extra: gfi-lightning[docs]) and Python 3.11 or newer",
    ),
    "comet": (
        find_spec("comet_ml") and Version("2.6") <= LIGHTNING,
        "needs comet_ml (an extra: gfi-lightning[comet]) and Lightning 2.6, whose CometLogger starts offline",
    ),
    "rich_bar": (
        Version("2.6") <= LIGHTNING or Version(version("rich")) < Version("14"),
        "this version of Lightning cannot use this version of rich",
    ),
    "fsdp_on_cpu": (hasattr(torch.cpu.Stream, "record_event"), "this version of torch has no FSDP on a CPU"),
    "gpu": (torch.cuda.is_available(), "there is no NVIDIA GPU"),
    **{
        marker: (find_spec(module), f"{module} is not installed (an extra: gfi-lightning[{extra}])")
        for marker, (module, extra) in LIBRARIES.items()
    },
}


def pytest_runtest_setup(item):
    for marker, (met, reason) in REQUIREMENTS.items():
        if item.get_closest_marker(marker) and not met:
            pytest.skip(reason)


@pytest.fixture(autouse=True)
def no_process_group_is_left():
    """A Trainer in this very process leaves one behind, and torchmetrics would then wait for its other ranks."""
    yield
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="session")
def shared_data():
    return SHARED_DATA


@pytest.fixture(scope="session")
def two_ranks():
    pool = RankPool(2)
    yield pool
    pool.stop()
