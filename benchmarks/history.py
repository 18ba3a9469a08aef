"""What a history of a thousand runs takes: bytes on disk, and time to open beside merely reading its files.

    python benchmarks/history.py [--runs 1000] [--samples 8] [--json FILE]

Maps are random, which no file system compresses: those of a training take no more.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from gfi_lightning import History
from gfi_lightning.recording.arrays import run_array, sample_arrays
from gfi_lightning.recording.curves import CurveTracker
from gfi_lightning.recording.history import HistoryWriter
from gfi_lightning.recording.record import Record, SampleRecord, TargetRecord

SIZE = (64, 64)  # of images, of which one copy is kept: the maps count


def draw_record(samples: int, targets: int, grid: int, size: tuple[int, int] = SIZE) -> Record:
    """What is seen in a run: random maps."""

    def sample(number: int) -> SampleRecord:
        maps = [TargetRecord(target, torch.rand(size), 0.5, 0.7, 0.2, False) for target in range(targets)]
        return SampleRecord(torch.rand(3, *size), number, 0, 0.5, torch.rand(size), maps)

    return Record(0, (grid, grid), [sample(number) for number in range(samples)], epoch=0)


def write(folder: Path, record: Record, runs: int) -> None:
    """A history of so many runs."""
    writer, tracker = HistoryWriter(folder / "gfi", sample_arrays(record, None)), CurveTracker({})
    tracker.floor = torch.zeros(len(record.samples))
    curves = [tracker.curves(record) for _ in range(2)][-1]  # drift is there from the second run on
    for step in range(runs):
        writer.append(run_array(replace(record, step=step), curves))


def shortest(work: Callable[[], object], rounds: int = 5) -> float:
    """The shortest of a few durations, in seconds."""
    durations = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        durations.append(time.perf_counter() - began)
    return min(durations)


def measure(runs: int, samples: int, targets: int, grid: int) -> dict[str, float]:
    """One row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), draw_record(samples, targets, grid), runs)
        files = sorted(Path(folder, "gfi").iterdir())
        opening = shortest(lambda: History.load(folder))
        reading = shortest(lambda: [file.read_bytes() for file in files])
        return {
            "grid": grid,
            "targets": targets,
            "megabytes": sum(file.stat().st_size for file in files) / 1e6,
            "open": opening,
            "read": reading,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/history.json"))
    options = parser.parse_args()
    rows = [measure(options.runs, options.samples, targets, grid) for grid in (7, 14, 56) for targets in (1, 2)]
    print(f"{options.runs} runs of {options.samples} samples\n")
    print("| base layer | targets | MB | opening / reading the files | opened in less than a second |")
    print("|---|---|---|---|---|")
    for row in rows:
        layer, ratio, quick = f"{row['grid']} × {row['grid']}", row["open"] / row["read"], row["open"] < 1
        print(f"| {layer} | {row['targets']} | {row['megabytes']:.1f} | {ratio:.1f} | {'yes' if quick else 'no'} |")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
