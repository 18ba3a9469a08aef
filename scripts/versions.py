"""The built wheel and its tests in fresh environments: the oldest versions that it allows, and the newest.

    python scripts/versions.py [oldest] [newest] [--oldest-python PYTHON] [--workers N] [--folder FOLDER] [--keep]

For each set the wheel is first installed by itself, as a user would, and used in an empty folder. Then come the tools
for development, in whatever version fits, and the tests of this checkout, which see the wheel and not the checkout's
package. An environment takes about 6 GB, and is removed when it has served. All that the tests say is in
FOLDER/<set>.log.
"""

import argparse
import email
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
PACKAGE = "gfi_lightning"
# Tools for development need a newer one than we do.
NOT_HELD_BACK = {"typing-extensions"}
SHOWN = ("torch", "torchvision", "lightning", "torchmetrics", "tensorboard", "numpy", "matplotlib", "pillow")
SIGNS = ("FAILED", "ERROR", "SKIPPED")  # of the lines in which pytest says which tests, and why

# What a user does first.
FIRST_USE = """
import lightning as L, torch
from torch.utils.data import DataLoader, TensorDataset
from gfi_lightning import GFICallback, History

class Classifier(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
            torch.nn.Linear(8, 4),
        )
    def forward(self, images):
        return self.net(images)
    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])
    def validation_step(self, batch, batch_idx):
        pass
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

data = TensorDataset(torch.rand(16, 3, 24, 24), torch.arange(16) % 4)
trainer = L.Trainer(max_epochs=2, accelerator="cpu", callbacks=[GFICallback(on_error="raise")], log_every_n_steps=1,
                    logger=L.pytorch.loggers.TensorBoardLogger("."), enable_progress_bar=False)
trainer.fit(Classifier(), DataLoader(data, 4), DataLoader(data, 4))
steps = History.load(trainer.log_dir).steps
assert steps == [0, 3, 7], steps
"""


def run(*command: object, cwd: Path, **options: object) -> str:
    """What a command prints; it must succeed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment, text=True, capture_output=True, **options
    )
    if result.returncode:
        sys.exit(
            f"{command[0]} {' '.join(map(str, command[1:4]))} failed:\n{result.stdout[-5000:]}{result.stderr[-5000:]}"
        )
    return result.stdout


def copy_checkout(folder: Path) -> Path:
    """The checkout's files, without what git ignores."""
    copied = folder / "checkout"
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=CHECKOUT)
    for name in filter(None, listed.split("\0")):
        if (CHECKOUT / name).is_file():
            (copied / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(CHECKOUT / name, copied / name)
    if (CHECKOUT.parent / "shared").is_dir():  # data for measuring, which some tests read beside the checkout
        (folder / "shared").symlink_to(CHECKOUT.parent / "shared")
    return copied


def build_wheel(copied: Path) -> Path:
    """The wheel; the package's sources are gone afterwards, so that tests cannot but see what is installed."""
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", copied.parent, copied, cwd=copied)
    for leftover in (PACKAGE, "build", f"{PACKAGE}.egg-info"):
        shutil.rmtree(copied / leftover)
    (wheel,) = copied.parent.glob("*.whl")
    return wheel


def lower_bounds(wheel: Path) -> dict[str, str]:
    """The oldest version of each library that the wheel needs, as its metadata, and so pyproject.toml, say."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [one for one in archive.namelist() if one.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(archive.read(name))
    needed = [one for one in metadata.get_all("Requires-Dist", []) if "extra ==" not in one]
    bounds = dict(re.fullmatch(r"([\w.-]+).*?>=([\w.]+).*", one).groups() for one in needed)
    return bounds | {"pytorch-lightning": bounds["lightning"]}  # the same under its other name, for tests alone


def installed(python: Path, folder: Path) -> dict[str, str]:
    """Versions by the libraries' names."""
    lines = run(python, "-m", "pip", "list", "--format=freeze", cwd=folder).splitlines()
    return {name.lower(): version for name, version in (line.split("==") for line in lines)}


def use_as_a_user(python: Path, folder: Path) -> None:
    """Train, ask for help and write a report in an empty folder, with the wheel and what it needs alone."""
    run(python, "-m", "pip", "check", cwd=folder)
    with tempfile.TemporaryDirectory() as empty:
        run(python, "-c", FIRST_USE, cwd=Path(empty))
        run(python.with_name("gfi-lightning"), "--help", cwd=Path(empty))
        run(python.with_name("gfi-lightning"), "report", ".", "-o", "report.html", cwd=Path(empty))
        assert Path(empty, "report.html").stat().st_size > 10_000


def run_tests(python: Path, copied: Path, log: Path, workers: int) -> bool:
    """The checkout's tests, and the examples in the installed package's docstrings; whether all passed."""
    where = run(python, "-c", f"import {PACKAGE}; print({PACKAGE}.__file__)", cwd=copied).strip()
    assert Path(where).is_relative_to(python.parents[1]), f"the tests would see {where}"
    command = [python, "-m", "pytest", "-n", str(workers), "-p", "no:cacheprovider", "tests", "--pyargs", PACKAGE]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    with log.open("w", encoding="utf-8") as file:
        code = subprocess.run(command, cwd=copied, env=environment, stdout=file, stderr=subprocess.STDOUT).returncode
    lines = log.read_text(encoding="utf-8").splitlines()
    print("\n".join(line for line in lines if line.startswith(SIGNS)))
    counts = [line.strip("= ") for line in lines if re.search(r"^=.*\d (passed|failed|error).* in ", line)]
    print(f"{log.stem}: {counts[-1] if counts else 'no test was run'}", flush=True)
    return code == 0


def check(name: str, interpreter: str, wheel: Path, copied: Path, workers: int, keep: bool) -> bool:
    """One set; whether its tests passed."""
    folder = copied.parent
    environment, pins = folder / f"{name}-environment", folder / f"{name}.txt"
    bounds = lower_bounds(wheel) if name == "oldest" else {}
    run(interpreter, "-m", "venv", "--clear", environment, cwd=folder)
    python = environment / "bin" / "python"

    def install(what: object, held_back: dict[str, str]) -> None:
        pins.write_text("".join(f"{library}=={version}\n" for library, version in held_back.items()), encoding="utf-8")
        options = ("--quiet", "--disable-pip-version-check", "--constraint", pins)
        run(python, "-m", "pip", "install", *options, what, cwd=folder)

    run(python, "-m", "pip", "install", "--quiet", "--upgrade", "pip", cwd=folder)
    before = installed(python, folder)
    install(wheel, bounds)
    versions = installed(python, folder)
    came = sorted(set(versions) - set(before))
    print(f"{name}: Python {run(python, '-V', cwd=folder).split()[1]}, the wheel brings {len(came)} libraries")
    print(f"{name}: {', '.join(f'{one} {versions[one]}' for one in SHOWN)}", flush=True)
    print(f"{name}: {', '.join(one for one in came if not one.startswith('nvidia'))} and NVIDIA's", flush=True)
    use_as_a_user(python, folder)
    print(f"{name}: trained, explained and reported with the wheel alone", flush=True)
    install(f"{wheel}[dev]", {one: version for one, version in bounds.items() if one not in NOT_HELD_BACK})
    later = installed(python, folder)
    assert all(later[one] == versions[one] for one in SHOWN if bounds), "the tools have changed what is tested"
    passed = run_tests(python, copied, folder / f"{name}.log", workers)
    if not keep:
        shutil.rmtree(environment)
    return passed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sets", nargs="*", metavar="oldest|newest", help="which; both by default")
    parser.add_argument("--oldest-python", default=shutil.which("python3.10") or sys.executable)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir(), "gfi-lightning-versions"))
    parser.add_argument("--keep", action="store_true", help="keep the environments")
    options = parser.parse_args()
    interpreters = {"oldest": options.oldest_python, "newest": sys.executable}
    if unknown := set(options.sets) - set(interpreters):
        parser.error(f"there is no set {', '.join(sorted(unknown))}: give oldest, newest, or both")
    folder = options.folder.resolve()
    if folder.exists():
        parser.error(f"{folder} exists already: remove it, or give another --folder")
    folder.mkdir(parents=True)
    copied = copy_checkout(folder)
    wheel = build_wheel(copied)
    rest = (wheel, copied, options.workers, options.keep)
    passed = [check(name, interpreters[name], *rest) for name in options.sets or interpreters]
    sys.exit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()
