"""How large the page of a training is, and how smoothly its slider moves all samples, in headless Chromium.

    python benchmarks/report.py [--steps 100] [--samples 16] [--json FILE]

The photographs and maps are noise, which is as hard to compress as can be. A frame is what the page's scripts take to
show another step, in the rows that are in view, as a share of the 16.7 ms that a frame of a smooth animation may take;
painting it is the browser's.
"""

import argparse
import json
import shutil
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from history import draw_record
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

from gfi_lightning import History
from gfi_lightning.recording.arrays import run_array, sample_arrays
from gfi_lightning.recording.curves import CurveTracker
from gfi_lightning.recording.report import write_report

SIDE, GRID, TARGETS = 224, 14, 2
FRAME = 1000 / 60  # ms
BAR = 15  # MB
# The page shows a change with the next frame: what is asked for before and after it lies around that.
DURATIONS = """
const done = arguments[0], slider = document.querySelector('#step'), durations = [];
const map = document.querySelector('figure.map canvas'), seen = new Set();
function show(place) {
  if (place > 0) seen.add(map.toDataURL());
  if (place > Number(slider.max)) return done([durations, seen.size]);
  let began;
  requestAnimationFrame(() => { began = performance.now(); });
  slider.value = place;
  slider.dispatchEvent(new Event('input', {bubbles: true}));
  requestAnimationFrame(() => { durations.push(performance.now() - began); setTimeout(() => show(place + 1), 20); });
}
setTimeout(() => show(0), 1000); // when all is there
"""


def noise(steps: int, samples: int, seed: int) -> History:
    """A training of which all maps are noise."""
    torch.manual_seed(seed)
    tracker, runs = CurveTracker({}), []
    for step in range(steps):
        record = draw_record(samples, TARGETS, GRID, size=(SIDE, SIDE))
        runs.append(run_array(replace(record, step=step), tracker.curves(record)))
    return History(str(seed), sample_arrays(record, None), runs)


def frames(page: Path) -> list[float]:
    """What the page's scripts take for each step, in ms."""
    options = Options()
    options.binary_location = shutil.which("chromium") or ""
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1440,900"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        driver.set_script_timeout(120)
        driver.get(page.as_uri())
        durations, pictures = driver.execute_async_script(DURATIONS)
        assert pictures == len(durations), "each step shows a map of its own"
        return durations
    finally:
        driver.quit()


def measure(steps: int, samples: int, runs: int) -> dict[str, float]:
    """One row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "page.html")
        size = write_report({f"run {number}": noise(steps, samples, number) for number in range(runs)}, page)
        shares = [duration / FRAME for duration in frames(page)]
    late = sum(share > 1 for share in shares) / len(shares)
    return {"runs": runs, "megabytes": size / 1e6, "frame": statistics.median(shares), "late": late}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/report.json"))
    options = parser.parse_args()
    rows = [measure(options.steps, options.samples, runs) for runs in (1, 2)]
    print(f"{options.steps} steps × {options.samples} samples × {TARGETS} targets, images of {SIDE} px\n")
    print("| runs | MB | below the bar | scripts' share of a frame, median | steps that take longer than a frame |")
    print("|---|---|---|---|---|")
    for row in rows:
        below = "yes" if row["megabytes"] < BAR else "no"
        print(f"| {row['runs']} | {row['megabytes']:.1f} | {below} | {row['frame']:.2f} | {row['late']:.0%} |")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
