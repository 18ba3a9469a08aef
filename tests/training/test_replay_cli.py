"""``gfi-lightning replay`` explains what a LightningCLI has trained, by the config that it wrote."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from lightning.pytorch.cli import LightningCLI

from gfi_lightning import History
from gfi_lightning.cli import main

PROJECT = """
import lightning as L
from torch.utils.data import DataLoader

from gfi_lightning import GFICallback
from tests.training.modules import Pictures, ToyModule, quick_callback


class Net(ToyModule):
    def __init__(self, width: int, scale: float = 1e-5):
        super().__init__()
        self.save_hyperparameters()
        if (width, scale) not in ((7, 1e-5), (8, 1e-5)):
            raise ValueError(f"width={width!r}, scale={scale!r}")


class Data(L.LightningDataModule):
    def __init__(self, batch_size: int = 4):
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage):
        if stage == "fit":
            self.train, self.val = Pictures(16, seed=1), Pictures()

    def train_dataloader(self):
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val, self.batch_size)


def fails(module, images):
    raise RuntimeError("cat on the keyboard")


class Quick(GFICallback):
    def __init__(self, number: int):
        vars(self).update(vars(quick_callback(samples=[7, number])))


class Ends(L.Callback):
    def setup(self, trainer, pl_module, stage):
        if stage != "fit":
            raise AssertionError("takes part")
"""
COMMON = {
    "--seed_everything": 0,
    "--trainer.accelerator": "cpu",
    "--trainer.max_epochs": 1,
    "--trainer.enable_progress_bar": "false",
    "--trainer.enable_model_summary": "false",
    "--trainer.log_every_n_steps": 1,
}
CLASSES = ["--model", "own_project.Net", "--data", "own_project.Data"]


def fit(cli_arguments, folder, **arguments):
    options = COMMON | {"--trainer.default_root_dir": folder} | arguments
    LightningCLI(*cli_arguments, args=["fit", *(f"{name}={value}" for name, value in options.items())])
    return folder / "lightning_logs/version_0"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with a module, and two runs: the config of one names the classes and has callbacks."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "own_project.py").write_text(PROJECT)
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(folder)
    import own_project

    fit([own_project.Net, own_project.Data], folder / "plain", **{"--model.width": 7})
    callbacks = [
        {"class_path": "own_project.Quick", "init_args": {"number": 3}},
        {"class_path": "own_project.Ends"},
        {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"every_n_train_steps": 2}},
    ]
    fit(
        [],
        folder / "named",
        **{
            "--model": "own_project.Net",
            "--model.width": 7,
            "--data": "own_project.Data",
            "--trainer.callbacks": callbacks,
            "--optimizer": "torch.optim.Adam",
        },
    )
    del sys.modules["own_project"]
    patch.undo()
    return folder


@pytest.fixture(autouse=True)
def in_the_project(project, monkeypatch):
    monkeypatch.chdir(project)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("own_project", None)


def command(run, tmp_path, *further):
    run = Path(run) / "lightning_logs/version_0"
    paths = ["--ckpt-dir", run / "checkpoints", "--config", run / "config.yaml", "--log-dir", tmp_path]
    return ["replay", *map(str, paths), *further]


def error_of(capsys, arguments):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    (line,) = [one for one in captured.err.splitlines() if one.startswith("gfi-lightning: error: ")]
    assert "Traceback" not in captured.err
    assert "Explained" not in captured.out
    return line


def files_in(folder):
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}


def test_callback_of_the_config_as_if_it_had_been_there(project, tmp_path, capsys):
    before = files_in(project)
    assert main(command("named", tmp_path)) == 0
    out = capsys.readouterr().out.splitlines()
    assert out == [
        f"Explained 1 step of the training; the maps are in {tmp_path}/gfi",
        f"To look at them: gfi-lightning report {tmp_path}, or tensorboard --logdir {tmp_path}",
    ]
    live, again = History.load("named/lightning_logs/version_0"), History.load(tmp_path)
    assert (live.steps, again.steps) == ([0, 3], [3])
    assert (again.images == live.images).all()
    for sample in range(2):
        np.testing.assert_array_equal(again.heatmaps(sample)[0, 0], live.heatmaps(sample)[1, 0])
    assert files_in(project) == before


def test_real_command_where_the_config_names_no_class(project, tmp_path):
    arguments = command("plain", tmp_path, *CLASSES, "--trainer.devices", "1", "--model.width=8")
    result = subprocess.run(
        [sys.executable, "-m", "gfi_lightning", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert result.returncode == 0, result.stderr
    assert "Explained 1 step of the training" in result.stdout
    assert "LightningCLI's args" not in result.stderr
    assert len(History.load(tmp_path).labels) == 8  # of GFICallback()


@pytest.fixture
def config(project, tmp_path):
    """Writes a config that differs from that of the run that names its classes."""
    original = yaml.safe_load(Path("named/lightning_logs/version_0/config.yaml").read_text())

    def write(**changes):
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(original | changes))
        return path

    return write


def with_config(path, tmp_path, *further):
    arguments = command("named", tmp_path / "log", *further)
    arguments[arguments.index("--config") + 1] = str(path)
    return arguments


def test_classes_of_a_script_and_what_is_not_needed(config, tmp_path):
    """The script's own name is __main__ while it runs; a CLI of one's own may have further sections."""
    path = config(
        model={"class_path": "__main__.Net", "init_args": {"width": 7}},
        data={"class_path": "__main__.Data"},
        my_early_stopping={"patience": 3},
        trainer={
            "accelerator": "cpu",
            "callbacks": [
                {"class_path": "__main__.Mine"},
                {"class_path": "own_project.Quick", "init_args": {"number": 3}},
            ],
            "logger": {"class_path": "__main__.Elsewhere"},
        },
    )
    assert main(with_config(path, tmp_path, *CLASSES)) == 0
    assert History.load(tmp_path / "log").steps == [3]


@pytest.mark.parametrize(
    ("changes", "further", "message"),
    [
        ({"model": {"width": 7}}, [], "does not name the class of the model, .*: give --model MODULE.CLASS"),
        ({"data": {"batch_size": 4}}, [], "does not name the class of the data, .*: give --data MODULE.CLASS"),
        ({"model": None}, [], "does not name the class of the model"),
        ({"model": {"class_path": "__main__.Net"}}, [], "in the script that was run: give --model SCRIPT.Net"),
        (
            {},
            ["--model", "nothing.Net"],
            r"nothing.Net cannot be imported \(ModuleNotFoundError: .*\): give it as MODULE",
        ),
        ({}, ["--model", "own_project.Nets"], "own_project.Nets cannot be imported"),
        ({}, ["--model", "Net"], r"Net cannot be imported \(ImportError: no module is named\)"),
        ({}, ["--model", "own_project.Data"], "own_project.Data: give a LightningModule"),
        ({}, ["--trainer.devicez=2"], r"nrecognized arguments: --trainer.devicez=2"),
        ({}, ["--model.height=2"], "'height' is not .*; other values can be given, as in --model.NAME=VALUE"),
        ({"model": {"class_path": "own_project.Net"}}, [], "own_project.Net.*width"),
        ({}, ["--trainer.max_epochs=some"], r"\"trainer.max_epochs\": Expected a <class 'int'>"),
        ({}, ["--trainer.strategy=magic"], "invalid strategy name"),
        ({}, ["--model.width=9"], "width=9, scale=1e-05"),
        ({"data": None}, [], "There is no validation set to explain: .*--data MODULE.CLASS"),
    ],
    ids=str,
)
def test_what_cannot_work_is_told_in_a_line(config, tmp_path, capsys, changes, further, message):
    line = error_of(capsys, with_config(config(**changes), tmp_path, *further))
    assert re.search(message, line)


def test_config_that_is_none(tmp_path, capsys):
    path = tmp_path / "config.yaml"
    assert "cannot be read: No such file" in error_of(capsys, with_config(path, tmp_path))
    for text, message in [
        ("a: [b\n c: d", "is no YAML file: "),
        ("width: 3", "is no config of a run: "),
        ("", "is no config"),
    ]:
        path.write_text(text)
        assert message in error_of(capsys, with_config(path, tmp_path))


def test_checkpoints_that_are_none(config, tmp_path, capsys):
    arguments = with_config(config(), tmp_path)
    place = arguments.index("--ckpt-dir") + 1
    (tmp_path / "empty").mkdir()
    for folder, message in [("nothing", "does not exist"), ("empty", "holds no checkpoints (*.ckpt)")]:
        arguments[place] = str(tmp_path / folder)
        assert message in error_of(capsys, arguments)


@pytest.mark.filterwarnings("default:GFICallback could not explain")
def test_where_explaining_fails(config, tmp_path, capsys):
    trainer = {
        "accelerator": "cpu",
        "callbacks": [{"class_path": "gfi_lightning.GFICallback", "init_args": {"forward": "own_project.fails"}}],
    }
    line = error_of(capsys, with_config(config(trainer=trainer), tmp_path))
    assert line.endswith("Nothing was explained: the warnings above say why.")


def test_without_jsonargparse(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "jsonargparse", None)
    assert "pip install 'gfi-lightning[cli]'" in error_of(capsys, with_config(config(), tmp_path))


def test_help(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["replay", "--help"])
    assert exit_.value.code == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("--ckpt-dir DIR", "--config FILE", "--model CLASS", "--trainer.devices=2"))
