"""Every logger that Lightning has, with its own library, offline; what it wrote is read back from its files."""

import csv
import io
import json
import struct
import zipfile
from itertools import chain
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CometLogger, CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import Logger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gfi_lightning import History
from gfi_lightning.logs import logger as our_lines
from tests.browser import wait_for
from tests.training.modules import ToyModule, image_steps, loaders, make_trainer, quick_callback

STEPS = [0, 3, 7]  # two epochs of four batches
EACH_RUN = ("sample_0", "sample_1", "overview", "film_0", "film_1", "animation")


def fit(folder, logger, callback=True, **options):
    """A training with two samples, to the given loggers."""
    torch.manual_seed(0)
    options = {"logger": logger, "default_root_dir": folder} | options
    callbacks = [quick_callback(num_samples=2)] if callback else []
    trainer, module = make_trainer(folder, *callbacks, **options), ToyModule()
    trainer.fit(module, **loaders())
    return trainer, module


def picture_format(data):
    """Which kind of picture a file is, once it has been decoded as a whole."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        assert min(image.size) > 100
        return image.format.lower()


@pytest.fixture
def said(caplog):
    """Our log lines."""
    return lambda: [record.getMessage() for record in caplog.records if record.name == our_lines.name]


# CSVLogger, no logger at all, several, and unknown ones


def files_of_pictures(log_dir, root="gfi"):
    (folder,) = Path(log_dir, root, "pictures").iterdir()  # of the only training there
    return {str(path.relative_to(folder)): picture_format(path.read_bytes()) for path in folder.rglob("*.*")}


EXPECTED_FILES = {
    **{f"{name}/step_{step:08d}.png": "png" for name in ("sample_0", "sample_1", "overview") for step in STEPS},
    **{name: name[-3:] for name in ("film_0.png", "film_1.png", "curves.png", "animation.gif")},
}


def csv_steps(log_dir, name):
    rows = csv.DictReader(Path(log_dir, "metrics.csv").read_text().splitlines())
    return [int(row["step"]) for row in rows if row.get(name)]


def test_csv_logger(tmp_path, said):
    trainer, _ = fit(tmp_path, CSVLogger(tmp_path))
    assert files_of_pictures(trainer.log_dir) == EXPECTED_FILES
    assert csv_steps(trainer.log_dir, "gfi/preserved") == STEPS
    assert csv_steps(trainer.log_dir, "gfi/drift") == STEPS[1:]
    assert History.load(trainer.log_dir).steps == STEPS
    assert not [line for line in said() if "curves only" in line]


def test_no_logger(tmp_path):
    fit(tmp_path, False)
    assert files_of_pictures(tmp_path) == EXPECTED_FILES
    assert History.load(tmp_path).steps == STEPS


def test_two_trainings_in_a_folder_do_not_mix_their_files(tmp_path):
    fit(tmp_path, False)
    fit(tmp_path, False, max_epochs=1)
    folders = {path.name: path for path in Path(tmp_path, "gfi/pictures").iterdir()}
    assert set(folders) == set(History.run_ids(tmp_path))
    first, second = (folders[name] for name in History.run_ids(tmp_path))
    assert len(list(first.glob("sample_0/*"))) == 3
    assert len(list(second.glob("sample_0/*"))) == 2


def test_pictures_of_a_named_callback_lie_in_its_own_folder(tmp_path):
    trainer = make_trainer(
        tmp_path, quick_callback(num_samples=2, name="mine"), logger=False, default_root_dir=tmp_path
    )
    trainer.fit(ToyModule(), **loaders())
    assert files_of_pictures(tmp_path, "gfi/mine") == EXPECTED_FILES


def test_several_loggers_each_have_all(tmp_path):
    trainer, _ = fit(tmp_path, [TensorBoardLogger(tmp_path, name="board"), CSVLogger(tmp_path, name="table")])
    board, table = trainer.loggers
    assert image_steps(trainer) == STEPS
    assert files_of_pictures(table.log_dir) == EXPECTED_FILES
    assert csv_steps(table.log_dir, "gfi/removed") == STEPS
    assert History.load(board.log_dir).steps == STEPS


@pytest.mark.parametrize("kind", [TensorBoardLogger, CSVLogger])
def test_two_loggers_of_a_kind_each_have_all(tmp_path, kind):
    trainer, _ = fit(tmp_path, [kind(tmp_path, name="one"), kind(tmp_path, name="two")])
    for one in trainer.loggers:
        if kind is CSVLogger:
            assert files_of_pictures(one.log_dir) == EXPECTED_FILES
        else:
            assert EventAccumulator(one.log_dir, {"images": 0}).Reload().Tags()["images"]


class Stranger(Logger):
    """A logger that nobody here has heard of."""

    def __init__(self, folder):
        super().__init__()
        self.folder, self.metrics = folder, []

    @property
    def name(self):
        return "strange"

    @property
    def version(self):
        return 7

    @property
    def save_dir(self):
        return self.folder

    def log_metrics(self, metrics, step=None):
        self.metrics += [(name, step) for name in metrics]

    def log_hyperparams(self, *args, **kwargs):
        pass


def homeless(folder):
    """A CSVLogger, by its name, that cannot say where it writes."""

    def log_dir(self):
        raise RuntimeError("no folder yet")

    return type("CSVLogger", (Stranger,), {"log_dir": property(log_dir)})(folder)


def test_a_logger_that_cannot_say_where_it_writes_is_not_in_the_way(tmp_path):
    trainer, _ = fit(tmp_path, [TensorBoardLogger(tmp_path, name="board"), homeless(tmp_path)])
    assert image_steps(trainer) == STEPS
    assert files_of_pictures(trainer.loggers[0].log_dir) == EXPECTED_FILES


def test_where_the_first_logger_cannot_say_it_maps_go_to_the_root(tmp_path):
    torch.manual_seed(0)
    callback = quick_callback(num_samples=2, on_error="warn")
    trainer = make_trainer(tmp_path, callback, logger=homeless(tmp_path), default_root_dir=tmp_path)
    with pytest.warns(UserWarning, match="could not find the log directory.*\n.*instead"):
        trainer.fit(ToyModule(), **loaders())
    assert files_of_pictures(tmp_path) == EXPECTED_FILES
    assert History.load(tmp_path).steps == STEPS


def test_an_unknown_logger_has_the_curves_and_a_line_says_where_the_pictures_are(tmp_path, said):
    trainer, _ = fit(tmp_path, Stranger(tmp_path))
    assert [step for name, step in trainer.logger.metrics if name == "gfi/preserved"] == STEPS
    folder = tmp_path / "strange" / "version_7"  # where Lightning puts its checkpoints
    assert files_of_pictures(folder) == EXPECTED_FILES
    assert History.load(folder).steps == STEPS
    (line,) = [line for line in said() if "curves only" in line]
    assert "Stranger" in line
    assert str(folder / "gfi" / "pictures") in line


def test_beside_an_unknown_logger_pictures_go_to_the_other(tmp_path, said):
    fit(tmp_path, [TensorBoardLogger(tmp_path, name=None), Stranger(tmp_path)])
    assert not list(tmp_path.rglob("pictures"))
    (line,) = [line for line in said() if "curves only" in line]
    assert "TensorBoardLogger" in line


class Mine(Stranger):
    """The same with the method for pictures."""

    def log_pictures(self, pictures, step):
        for tag, picture in pictures.items():
            self.metrics.append((f"{tag}.{picture_format(picture.data)}", step))
            assert picture.image().size == (picture.width, picture.height)
            assert picture.caption


def test_a_logger_with_the_method_is_sent_pictures(tmp_path, said):
    trainer, _ = fit(tmp_path, Mine(tmp_path))
    sent = [(name, step) for name, step in trainer.logger.metrics if name.endswith((".png", ".gif"))]
    suffix = {"animation": "gif"}
    expected = [(f"gfi/{name}.{suffix.get(name, 'png')}", step) for step in STEPS for name in EACH_RUN]
    drawn_at_the_end = [("gfi/animation.gif", 7), ("gfi/curves.png", 7)]
    # The animation comes at run counts that are powers of two, and at the end.
    expected.remove(("gfi/animation.gif", 7))
    assert sorted(sent) == sorted(expected + drawn_at_the_end)
    assert not list(tmp_path.rglob("pictures"))
    assert not [line for line in said() if "curves only" in line]


def test_the_animation_is_sent_once_at_the_end(tmp_path):
    """As many runs as a power of two, after the last of which it has just been drawn."""
    trainer, _ = fit(tmp_path, Mine(tmp_path), max_epochs=1)
    assert [step for name, step in trainer.logger.metrics if name == "gfi/animation.gif"] == [0, 3]


class Broken(Mine):
    def log_pictures(self, pictures, step):
        raise ConnectionError("the server is gone")


def test_a_logger_that_fails_is_told_of_once_and_the_others_have_theirs(tmp_path):
    torch.manual_seed(0)
    callback = quick_callback(num_samples=2, on_error="warn")
    trainer = make_trainer(tmp_path, callback, logger=[Broken(tmp_path), TensorBoardLogger(tmp_path, name=None)])
    with pytest.warns(UserWarning, match="the server is gone") as warned:
        trainer.fit(ToyModule(), **loaders())
    ours = [str(one.message) for one in warned if "the server is gone" in str(one.message)]
    assert len(ours) == 1
    assert "log pictures to Broken" in ours[0]
    assert EventAccumulator(trainer.loggers[1].log_dir, {"images": 0}).Reload().Tags()["images"]


def test_a_training_without_a_logger_ends_as_it_would_without_us(tmp_path):
    ends = [fit(tmp_path, False, callback=ours)[1].state_dict() for ours in (False, True)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


# Weights & Biases, MLflow, Comet


def wandb_records(path):
    """The records of an offline run's log, which has LevelDB's format, as far as they are written."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, parts, records = path.read_bytes(), 7, [], []
    while position + 7 <= len(data):
        if (left := 32768 - position % 32768) < 7:  # the end of a block
            position += left
            continue
        length, kind = struct.unpack("<HB", data[position + 4 : position + 7])
        if position + 7 + length > len(data):  # another process is still writing it
            break
        parts.append(data[position + 7 : position + 7 + length])
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            records.append(Record.FromString(b"".join(parts)))
            parts = []
    return records


def kind_of(record):
    return record.WhichOneof("record_type")


def unflattened(items):
    row = {}
    for item in items:
        *path, last = item.nested_key or [item.key]
        inner = row
        for part in path:
            inner = inner.setdefault(part, {})
        inner[last] = json.loads(item.value_json)
    return row


@pytest.mark.wandb
def test_wandb_logger(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    trainer, _ = fit(tmp_path, WandbLogger(save_dir=tmp_path, project="p", offline=True, name="a run"))
    run = trainer.logger.experiment
    folder = Path(run.dir)
    version = trainer.logger.version
    run.finish()
    (log,) = folder.parent.glob("run-*.wandb")
    wait_for(lambda: any(kind_of(one) == "exit" for one in wandb_records(log)))
    rows = [unflattened(one.history.item) for one in wandb_records(log) if kind_of(one) == "history"]
    steps = {}
    for row in rows:
        for key in row:
            steps.setdefault(key, []).append(row["trainer/global_step"])
    for name in EACH_RUN[:-1]:
        assert steps[f"gfi/{name}"] == STEPS, name
    assert steps["gfi/preserved"] == STEPS
    assert steps["gfi/curves"] == [7]
    first = next(row for row in rows if "gfi/sample_0" in row)
    assert first["gfi/sample_0"]["captions"][0].startswith("sample 0, label: kind 0, predicted")
    media = [row[key] for row in rows for key in row if key.startswith("gfi/") and isinstance(row[key], dict)]
    names = [one.get("filenames") or [video["path"] for video in one["videos"]] for one in media]
    formats = [picture_format((folder / name).read_bytes()) for name in chain.from_iterable(names)]
    assert formats.count("gif") == 3
    assert formats.count("png") == 5 * 3 + 1
    assert History.load(tmp_path / "p" / version).steps == STEPS


@pytest.mark.mlflow
def test_mlflow_logger(tmp_path):
    address = f"sqlite:///{tmp_path}/mlflow.db"
    logger = MLFlowLogger(tracking_uri=address, artifact_location=str(tmp_path / "artifacts"))
    trainer, _ = fit(tmp_path, logger)
    from mlflow import MlflowClient

    client, run = MlflowClient(address), trainer.logger.run_id
    assert [one.step for one in client.get_metric_history(run, "gfi/preserved")] == STEPS
    images = [Path(one.path) for one in client.list_artifacts(run, "images") if one.path.endswith(".png")]
    for name in EACH_RUN[:-1]:
        of_name = [path for path in images if path.name.startswith(f"gfi~{name}+")]
        assert sorted(int(path.name.split("+step+")[1].split("+")[0]) for path in of_name) == STEPS, name
    local = [Path(client.download_artifacts(run, str(path))) for path in images]
    assert {picture_format(path.read_bytes()) for path in local} == {"png"}
    (moving,) = client.list_artifacts(run, "gfi")
    assert picture_format(Path(client.download_artifacts(run, moving.path)).read_bytes()) == "gif"
    assert History.load(tmp_path / trainer.logger.name / run).steps == STEPS


@pytest.mark.comet
def test_comet_logger(tmp_path, monkeypatch):
    monkeypatch.setenv("COMET_START_ONLINE", "0")  # CometLogger(online=False) would disable the experiment altogether
    trainer, _ = fit(tmp_path, CometLogger(offline_directory=str(tmp_path), project="p"))
    experiment = trainer.logger.experiment
    experiment.end()
    (path,) = tmp_path.glob("*.zip")
    with zipfile.ZipFile(path) as archive:
        messages = [json.loads(line) for line in archive.read("messages.json").splitlines()]
        metrics = [message["payload"]["metric"] for message in messages if message["type"] == "metric_msg"]
        assert [one["step"] for one in metrics if one["metricName"] == "gfi/preserved"] == STEPS
        uploads = [message["payload"] for message in messages if message["type"] == "file_upload"]
        pictures = [one for one in uploads if one["upload_type"] == "visualization"]
        formats = {
            one["additional_params"]["figName"]: picture_format(archive.read(one["file_path"])) for one in pictures
        }
    assert formats == {f"gfi/{name}": "gif" if name == "animation" else "png" for name in (*EACH_RUN, "curves")}
    first = [one for one in pictures if one["additional_params"]["figName"] == "gfi/sample_0"]
    assert [one["additional_params"]["step"] for one in first] == STEPS
    assert first[0]["metadata"]["caption"].startswith("sample 0, label: kind 0, predicted")
    assert History.load(tmp_path / "p" / trainer.logger.version).steps == STEPS


def test_the_names_of_lightnings_loggers_are_those_that_are_looked_for():
    from gfi_lightning.recording.loggers import _FILES_BESIDE, _IDIOMS

    for name in (*_IDIOMS, _FILES_BESIDE):
        assert hasattr(L.pytorch.loggers, name)
