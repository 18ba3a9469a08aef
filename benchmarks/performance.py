"""The figures of docs/performance.md: runs the benchmarks of cost one after the other and writes what they print.

    python benchmarks/performance.py --data ../shared/data/voc07
    python benchmarks/performance.py --data ../shared/data/voc07 --only memory  # one part anew; the others stay
    python benchmarks/performance.py --data ../shared/data/voc07 --device cuda  # where there is an NVIDIA GPU

What each prints is kept beside its JSON. On the page everything between the two marks is replaced, the rest stays.
"""

import argparse
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from bench.experiments import RESULTS, say
from bench.machine import device_name

from gfi_lightning import UsageError

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "performance.md"
BEGIN, END = "<!-- measured: benchmarks/performance.py -->", "<!-- /measured -->"


@dataclass(frozen=True)
class Part:
    """One benchmark.

    Attributes:
        script: its name, without the suffix.
        title: of its section.
        text: what its table says.
        arguments: of the script; {data} stands for the folder of photographs, {device} for cpu or cuda.
        on_gpu: whether it can be run there.
        on_gpu_also: further arguments there.
    """

    script: str
    title: str
    text: str
    arguments: tuple[str, ...] = ()
    on_gpu: bool = True
    on_gpu_also: tuple[str, ...] = ()


PARTS = (
    Part(
        "speed",
        "Beside the floor, and beside other methods",
        """\
An explanation's time as a ratio to bare passes through the network, run in turns with it: the median of the rounds,
and their middle half. *All passes* are those that the recipe asks for, of the same shapes and in the same memory
format; *steps alone* leaves out the first look at the images and the evidence, which are work as well. The bar is 1.10.

The second table: other methods on the same photographs of VOC 2007's test set, in turns with ours and in batches of 8,
on a GPU of 32, by a MobileNetV2 with ImageNet weights. The release takes one image at a time, as it was made.
Intervals: 95 %.""",
        ("--data", "{data}", "--ids", "{data}/eval.txt", "--limit", "16", "--device", "{device}"),
        on_gpu_also=("--limit", "32", "--batch-size", "32"),
    ),
    Part(
        "memory",
        "Memory",
        "Peak memory above model and batch, beside that of a training step (SGD, momentum) on the same batch.",
        ("--device", "{device}"),
    ),
    Part(
        "scaling",
        "Scaling",
        """\
An explanation's time by the first point of each series, beside what would be linear: samples, targets of each image
(which share stage 1), the number of pixels, and ranks that share 32 samples. 64 px where nothing else is said.

![Time against samples, targets, pixels and ranks](pictures/scaling.png)""",
        ("--picture", str(PAGE.parent / "pictures" / "scaling.png")),
        on_gpu=False,
    ),
    Part(
        "steps",
        "Steps, and stopping early",
        """\
The default recipe with other numbers of steps, on training photographs of VOC 2007, which the recipe was chosen by.
`Recipe.tolerance` ends a stage for an image as soon as a step has moved its mask by less than that on average.""",
        ("--data", "{data}", "--ids", "{data}/train.txt", "--limit", "60"),
        on_gpu=False,
    ),
    Part(
        "overhead",
        "What the line costs",
        "A training with `GFICallback(max_overhead=1)`, the default without its limit: its runs beside its own steps.",
        ("--epochs", "5", "--steps", "3"),
        on_gpu=False,
    ),
)


def run(part: Part, data: Path, device: str) -> None:
    """Run a benchmark to its end, and keep what it prints."""
    given = part.arguments + (part.on_gpu_also if device == "cuda" else ())
    arguments = [argument.format(data=data, device=device) for argument in given]
    say(f"{part.script} …")
    command = [sys.executable, str(HERE / f"{part.script}.py"), *arguments]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    bar_missed = part.script == "memory" and done.returncode == 1  # which its table shows
    if not done.stdout.strip() or (done.returncode != 0 and not bar_missed):
        raise UsageError(f"benchmarks/{part.script}.py ended with status {done.returncode}; nothing of it is kept.")
    printed(part, device).write_text(done.stdout, encoding="utf-8")


def printed(part: Part, device: str) -> Path:
    """Where a benchmark's text is kept."""
    return RESULTS / f"{part.script}_{device}.md"


def section(part: Part) -> str:
    """A part of the page: what was printed on a CPU, and on a GPU if that was measured."""
    on_cpu = printed(part, "cpu")
    if not on_cpu.is_file():
        raise UsageError(
            f"benchmarks/results/{on_cpu.name} is missing: run this with --only {part.script}, or without."
        )
    texts = [f"### {part.title}", part.text, on_cpu.read_text(encoding="utf-8").strip()]
    if part.on_gpu:
        on_gpu = printed(part, "cuda")
        measured = on_gpu.is_file()
        texts.append("On a GPU:" if measured else "On a GPU: **not measured**.")
        texts += [on_gpu.read_text(encoding="utf-8").strip()] if measured else []
    return "\n\n".join(texts)


def with_figures(page: str, figures: str) -> str:
    """The page with other figures between the marks.

    Raises:
        UsageError: a mark is missing.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UsageError(f"{PAGE.name} lacks {BEGIN} or {END}, between which the figures stand.")
    return f"{before}{BEGIN}\n\n{figures}\n\n{END}{after}"


def machine() -> str:
    """What all this was measured on."""
    return (
        f"Measured on: {device_name('cpu')}, {torch.get_num_threads()} threads, {platform.system()}, "
        f"torch {torch.__version__}. The machine was shared, so all figures are ratios of what ran in turns. "
        + ("" if any(printed(part, "cuda").is_file() for part in PARTS) else "Nothing was measured on a GPU.")
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [part.script for part in PARTS]
    parser.add_argument("--data", type=Path, required=True, help="a folder with JPEGImages, Annotations and id lists")
    parser.add_argument("--only", nargs="*", choices=names, default=names, help="what is run; the rest stays as it was")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    RESULTS.mkdir(exist_ok=True)
    for part in PARTS:
        if part.script in options.only and (part.on_gpu or options.device == "cpu"):
            run(part, options.data, options.device)
    figures = "\n\n".join([machine(), *map(section, PARTS)])
    options.page.write_text(with_figures(options.page.read_text(encoding="utf-8"), figures), encoding="utf-8")


if __name__ == "__main__":
    main()
