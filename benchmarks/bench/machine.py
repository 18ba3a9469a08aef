"""What is measured on."""

import platform
from pathlib import Path

import torch


def device_name(device: str) -> str:
    """The GPU's name, or the CPU's where the system tells it."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
