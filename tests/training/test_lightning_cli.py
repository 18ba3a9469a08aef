"""The callback by LightningCLI: from files, from flags and back; the code of docs/configuration.md is what is run."""

import contextlib
import importlib
import io
import os
import re
import shlex
import subprocess
import sys
from inspect import signature
from pathlib import Path

import pytest
import yaml

from gfi_lightning import GFICallback, History, Recipe
from tests.training.installed import installed_metadata

pytestmark = pytest.mark.jsonargparse

PAGE = (Path(__file__).parents[2] / "docs/configuration.md").read_text(encoding="utf-8")
BLOCKS = {
    kind: re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE) for kind in ("python", "sh", "yaml")
}
HIDDEN = re.findall(r"^<!-- run\n(.*?)^-->", PAGE, re.DOTALL | re.MULTILINE)
LINES = [line for block in BLOCKS["sh"] for line in block.replace("\\\n", "").splitlines()]
FLAGS, HELP, FILE, PRINT, AGAIN, VARIABLE = LINES
QUIET = [
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]
NAMES = [name for name in signature(GFICallback.__init__).parameters if name != "self"]
PACKAGES = ("lightning.pytorch", "pytorch_lightning")

OWN = """
from dataclasses import replace

from gfi_lightning.inversion.recipes import DEFAULT

QUICK = replace(DEFAULT, target_steps=1)


def function(*given):
    return given


class Function:
    def __init__(self, what: str = "image"):
        self.what = what

    def __call__(self, batch):
        return batch[self.what], None
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The page's project in the current folder: its program, its module and its files."""
    folder, before = tmp_path_factory.mktemp("project"), os.getcwd()
    os.chdir(folder)
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(folder)
    exec(HIDDEN[0], {})
    program = next(block for block in BLOCKS["python"] if block.startswith("# train.py"))
    Path("train.py").write_text(f'{program}\n\nif __name__ == "__main__":\n    main()\n')
    Path("gfi.yaml").write_text(BLOCKS["yaml"][0])
    Path("recipe.yaml").write_text(BLOCKS["yaml"][1])
    Path("own_callables.py").write_text(OWN)
    yield folder
    patch.undo()
    os.chdir(before)
    for module in ("train", "my_project", "own_callables"):
        sys.modules.pop(module, None)


def cli_of(package, command, *arguments, **options):
    """A LightningCLI of one of the two packages with these arguments, and what it printed."""
    import my_project

    out = io.StringIO()
    cli = importlib.import_module(f"{package}.cli").LightningCLI
    if package == "pytorch_lightning":
        model = importlib.import_module("pytorch_lightning.demos.boring_classes").BoringModel
        data = None
    else:
        model, data = my_project.MyModel, my_project.MyData
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setattr(sys, "argv", ["train.py", *([command] if command else []), *arguments])
        try:
            made = cli(model, data, **options)
        except SystemExit as end:
            if end.code:
                raise
            made = None
    return made, out.getvalue()


def printed(package, *arguments):
    """What --print_config prints."""
    return cli_of(package, "fit", *arguments, "--print_config")[1]


def ours(trainer):
    return [one for one in trainer.callbacks if isinstance(one, GFICallback)]


def made_from(text):
    """The callbacks that a LightningCLI makes from a config."""
    config = yaml.safe_load(text)
    config = {"trainer": {"callbacks": config["trainer"]["callbacks"], "logger": False}}
    cli, _ = cli_of("lightning.pytorch", None, "--config", yaml.safe_dump(config), run=False, save_config_callback=None)
    return ours(cli.trainer)


def arguments_of(line, program=("python", "train.py", "fit")):
    """The arguments of a line of the page, without the program and without where its output goes."""
    words = shlex.split(line.partition(" > ")[0])
    assert tuple(words[: len(program)]) == program
    return words[len(program) :]


def test_flags_in_a_program_of_its_own(folder):
    """As a user's shell runs it; and from the config that Lightning wrote into the log directory once more."""
    command = [sys.executable, "train.py", "fit", *arguments_of(FLAGS), *QUIET]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=300)
    first = folder / "lightning_logs/version_0"
    (callback,) = yaml.safe_load((first / "config.yaml").read_text())["trainer"]["callbacks"]
    assert callback["class_path"] == "gfi_lightning.GFICallback"
    assert list(callback["init_args"]) == NAMES
    assert callback["init_args"]["num_samples"] == 16
    assert len(History.load(first).labels) == 16

    cli_of("lightning.pytorch", "fit", "--config", str(first / "config.yaml"))
    second = folder / "lightning_logs/version_1"
    assert (second / "config.yaml").read_text() == (first / "config.yaml").read_text()
    assert History.load(second).steps == History.load(first).steps == [0, 1]


def test_file_with_values_of_all_kinds(folder):
    cli, _ = cli_of("lightning.pytorch", "fit", *arguments_of(FILE), *QUIET)
    history = History.load(cli.trainer.log_dir)
    assert history.steps == [0, 1]
    assert len(history.labels) == 4
    assert history.targets(3).tolist() == [[1, 2]] * 2


@pytest.mark.parametrize("package", PACKAGES)
def test_what_is_printed_can_be_given_back(folder, package):
    arguments = arguments_of(PRINT)
    assert arguments.pop() == "--print_config"
    text = printed(package, *arguments)
    Path("all.yaml").write_text(text)
    assert printed(package, *arguments_of(AGAIN)) == text
    given = yaml.safe_load(BLOCKS["yaml"][0])["trainer"]["callbacks"][0]
    (found,) = yaml.safe_load(text)["trainer"]["callbacks"]
    assert found["class_path"] == given["class_path"]
    assert list(found["init_args"]) == NAMES
    assert found["init_args"] | given["init_args"] == found["init_args"]


def test_recipe_of_the_page(folder):
    text = printed("lightning.pytorch", "--config", "recipe.yaml")
    assert printed("lightning.pytorch", "--config", text) == text
    given = yaml.safe_load(BLOCKS["yaml"][1])["trainer"]["callbacks"][0]["init_args"]["recipe"]["init_args"]
    (callback,) = made_from(text)
    recipe = callback._settings.explainer["recipe"]
    assert isinstance(recipe, Recipe)
    assert (recipe.inversion_steps, recipe.target_steps) == (given["inversion_steps"], given["target_steps"])
    assert recipe.optimizer.__name__ == "Multiplicative"


def words(text):
    return re.sub(r"\s+", "", text)  # as lines are broken anywhere


@pytest.mark.parametrize("package", PACKAGES)
def test_help_says_all_that_the_docstring_says(folder, package):
    import docstring_parser

    _, text = cli_of(package, "fit", *arguments_of(HELP))
    described = {one.arg_name: one.description for one in docstring_parser.parse(GFICallback.__doc__).params}
    assert set(described) == set(NAMES)
    for name, description in described.items():
        _, _, said = text.partition(f"\n  --trainer.callbacks.{name} ")
        said = said.partition("\n  --trainer.callbacks.")[0]
        assert words(description) in words(said), name
        assert "(type: " in " ".join(said.split()), name
        assert ":class:" not in description
        assert ":meth:" not in description
    # jsonargparse would list every nn.Module here, thousands of lines of them.
    assert "known subclasses" not in text
    assert len(text.splitlines()) < 300


# By argument: as a flag, and what is in the config then.
VALUES = [
    ({"every_n_epochs": "2"}, 2),
    ({"every_n_steps": "5"}, 5),
    ({"schedule": "log"}, "log"),
    ({"schedule": "own_callables.function"}, "own_callables.function"),
    ({"max_overhead": "0.02"}, 0.02),
    ({"num_samples": "16"}, 16),
    ({"samples": "[3, 14, 15]"}, [3, 14, 15]),
    ({"samples+": "3"}, [3]),
    ({"targets": "contrast"}, "contrast"),
    ({"targets": "3"}, 3),
    ({"targets": "[1, 2]"}, [1, 2]),
    ({"targets": "own_callables.function"}, "own_callables.function"),
    ({"layer": "layer4"}, "layer4"),
    ({"layer": "[layer3, layer4]"}, ["layer3", "layer4"]),
    ({"layer": "null"}, None),
    ({"inversion_layer": "layer4.1"}, "layer4.1"),
    ({"layers": "[layer1, layer2]"}, ["layer1", "layer2"]),
    ({"recipe": "paper"}, "paper"),
    ({"recipe": "own_callables.QUICK"}, "own_callables.QUICK"),
    ({"background": "mean"}, "mean"),
    ({"background": "own_callables.function"}, "own_callables.function"),
    ({"score": "sigmoid"}, "sigmoid"),
    ({"score": "own_callables.function"}, "own_callables.function"),
    ({"class_names": "[cat, dog]"}, ["cat", "dog"]),
    ({"mean": "[0.5, 0.5, 0.5]", "std": "[1, 1, 1]"}, [0.5, 0.5, 0.5]),
    ({"std": "[1, 1, 1]", "mean": "[0.5, 0.5, 0.5]"}, [1, 1, 1]),
    ({"chunk_size": "4"}, 4),
    ({"forward": "own_callables.function"}, "own_callables.function"),
    ({"explainer": "own_callables.function"}, "own_callables.function"),
    ({"dataloader_idx": "1"}, 1),
    ({"verbose": "false"}, False),
    ({"batch": "own_callables.function"}, "own_callables.function"),
    (
        {"batch": "own_callables.Function"},
        {"class_path": "own_callables.Function", "init_args": {"what": "image"}},
    ),
    ({"regions": '{"patch": [[0, 0, 8, 8], null]}'}, {"patch": [[0, 0, 8, 8], None]}),
    ({"regions": "own_callables.function"}, "own_callables.function"),
    ({"alarm": '{"patch": 0.3}', "regions": "own_callables.function"}, {"patch": 0.3}),
    ({"per_class": "true"}, True),
    ({"per_sample": "true"}, True),
    ({"prog_bar": "[preserved, drift]"}, ["preserved", "drift"]),
    ({"keep_weights": "true"}, True),
    ({"warm_start": "true"}, True),
    ({"name": "late"}, "late"),
    ({"on_error": "raise"}, "raise"),
]


def flags(given):
    return [
        "--trainer.callbacks+=gfi_lightning.GFICallback",
        *(f"--trainer.callbacks.{name}={value}" for name, value in given.items()),
    ]


def test_every_argument_takes_plain_values(folder):
    assert {next(iter(given)).rstrip("+") for given, _ in VALUES} == set(NAMES)
    text = printed("lightning.pytorch", *(flag for given, _ in VALUES for flag in flags(given)))
    assert printed("lightning.pytorch", "--config", text) == text
    callbacks = yaml.safe_load(text)["trainer"]["callbacks"]
    assert len(made_from(text)) == len(callbacks) == len(VALUES)
    for (given, expected), callback in zip(VALUES, callbacks, strict=True):
        assert callback["init_args"][next(iter(given)).rstrip("+")] == expected, given


def test_functions_and_objects_are_what_the_callback_gets(folder):
    import own_callables

    batch = '{"class_path": "own_callables.Function", "init_args": {"what": "x"}}'
    given = {"forward": "own_callables.function", "recipe": "own_callables.QUICK", "batch": batch}
    (callback,) = made_from(printed("lightning.pytorch", *flags(given)))
    settings = callback._settings
    assert settings.explainer["forward"] is own_callables.function
    assert settings.explainer["recipe"] == own_callables.QUICK
    assert settings.batch({"x": 7}) == (7, None)


MISTAKES = {
    # told by jsonargparse, with the exit status 2
    "lable": ({"targets": "lable"}, "'label', 'predicted', 'contrast', 'present'"),
    "no such function": ({"targets": "own_callables.fnction"}, "'own_callables' has no attribute 'fnction'"),
    "text for a number": ({"num_samples": "many"}, "many"),
    "no such name": ({"numsamples": "3"}, "numsamples"),
    "a name for a function": ({"forward": "forward"}, "forward"),
    "one number for all channels": ({"mean": "0.5"}, "mean"),
    "unknown on_error": ({"on_error": "ignore"}, "'warn', 'raise'"),
    # told by the callback
    "no samples": ({"num_samples": "0"}, "num_samples=0 must be a whole number, at least 1"),
    "text for samples": ({"samples": "cats"}, "samples='cats' cannot be explained: give indices"),
    "mean alone": ({"mean": "[0.5]"}, r"mean=\[0.5\] and std=None must be given together"),
    "share": ({"max_overhead": "2"}, r"max_overhead=2.0 must be a share above 0 and at most 1"),
    "alarm of nothing": ({"alarm": '{"patch": 0.3}'}, r"alarm={'patch': 0.3} needs regions="),
    "name": ({"name": "a/b"}, "name='a/b' becomes part of tags"),
}


def test_mistakes_end_the_program_before_a_training_begins(folder, capsys):
    for given, message in MISTAKES.values():
        # What jsonargparse finds ends the program with its usage; a UsageError comes within what it has tried.
        with pytest.raises((SystemExit, ValueError)) as end:
            cli_of("lightning.pytorch", None, *flags(given), "--trainer.logger=false", run=False)
        said = capsys.readouterr().err + str(end.value)
        assert re.search(message, said), said


@pytest.mark.parametrize("package", PACKAGES)
def test_short_name_once_it_is_imported(folder, package):
    importlib.import_module(package)
    from gfi_lightning import GFICallback  # noqa: F401  # as the user's program does, after that package

    text = printed(package, "--trainer.callbacks+=GFICallback", "--trainer.callbacks.num_samples=3")
    (callback,) = yaml.safe_load(text)["trainer"]["callbacks"]
    assert callback["class_path"] == "gfi_lightning.GFICallback"
    assert callback["init_args"]["num_samples"] == 3


def test_environment_variable_with_a_program_that_does_not_know_of_us(folder, tmp_path):
    assignment, _, line = VARIABLE.partition(" ")
    name, _, value = assignment.partition("=")
    command = [sys.executable, "train.py", "fit", *arguments_of(line), *QUIET, "--trainer.default_root_dir=by_variable"]
    paths = [str(path) for path in (installed_metadata(tmp_path), os.environ.get("PYTHONPATH")) if path]
    environment = os.environ | {name: value, "PYTHONPATH": os.pathsep.join(paths)}
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, timeout=300)
    log_dir = folder / "by_variable/lightning_logs/version_0"
    assert History.load(log_dir).steps == [0, 1]
    assert yaml.safe_load((log_dir / "config.yaml").read_text())["trainer"]["callbacks"] is None
