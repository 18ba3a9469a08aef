"""What importing gfi_lightning takes beyond importing Lightning.

    python benchmarks/import_time.py [--rounds 7] [--json FILE]

Each measurement is made in a fresh process, and the statements take turns, so that what else the machine does is shared
by all. What comes on top of Lightning is taken in the same process, once Lightning is there: from one process to the
next, importing Lightning alone differs by more than that. The processor's time is what is left of it where nothing else
is running.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

BAR = 0.3  # s
STATEMENTS = ("pass", "import gfi_lightning", "from gfi_lightning import GFICallback")
PROGRAM = """
import time
began = time.perf_counter()
import lightning.pytorch as L
then, worked = time.perf_counter(), time.process_time()
{}
print(then - began, time.perf_counter() - then, time.process_time() - worked)
"""


def measure(statement: str) -> tuple[float, float, float]:
    """Seconds for Lightning, for what is imported after it, and of the latter the processor's."""
    command = [sys.executable, "-c", PROGRAM.format(statement)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    lightning, ours, processor = map(float, result.stdout.split())
    return lightning, ours, processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/import_time.json"))
    options = parser.parse_args()
    for statement in STATEMENTS:  # files are compiled, and read from the disk once
        measure(statement)
    rounds = [{statement: measure(statement) for statement in STATEMENTS} for _ in range(options.rounds)]
    rows = []
    print(f"{options.rounds} rounds, medians\n")
    print("| after Lightning | both together | on top | shortest – longest | processor's time | below the bar |")
    print("|---|---|---|---|---|---|")
    for statement in STATEMENTS:
        lightning, ours, work = zip(*(one[statement] for one in rounds), strict=True)
        total = statistics.median(map(sum, zip(lightning, ours, strict=True)))
        median, processor = statistics.median(ours), statistics.median(work)
        rows.append({"statement": statement, "total": total, "median": median, "processor": processor, "runs": ours})
        spread = f"{min(ours):.3f} – {max(ours):.3f} s"
        below = "yes" if median < BAR else "no"
        print(f"| `{statement}` | {total:.2f} s | {median:.3f} s | {spread} | {processor:.3f} s | {below} |")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
