"""GFI_LIGHTNING=1: a callback in every Trainer, found by Lightning itself through the entry points."""

import subprocess
import sys

import lightning as L
import pytest
import pytorch_lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from gfi_lightning import GFICallback, History, replay
from gfi_lightning.entry import VARIABLE
from gfi_lightning.testing import assert_harmless
from tests.training.installed import installed_metadata
from tests.training.modules import Pictures, ToyModule, image_steps, loaders, make_trainer, quick_callback


@pytest.fixture(scope="module")
def metadata(tmp_path_factory):
    return installed_metadata(tmp_path_factory.mktemp("installed"))


@pytest.fixture(autouse=True)
def installed(metadata, monkeypatch):
    if metadata is not None:
        monkeypatch.syspath_prepend(metadata)
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.fixture
def opted_in(installed, monkeypatch):
    monkeypatch.setenv(VARIABLE, "1")


def kinds(trainer):
    return [type(one).__name__ for one in trainer.callbacks]


def ours(trainer):
    return [one for one in trainer.callbacks if isinstance(one, GFICallback)]


@pytest.mark.parametrize("make", [L.Trainer, pytorch_lightning.Trainer])
def test_nothing_is_added_unless_asked_for(make, monkeypatch):
    without = kinds(make(logger=False))
    for value, count in (("0", 0), ("", 0), ("off", 0), ("False", 0), ("1", 1), ("on", 1), (" TRUE ", 1)):
        monkeypatch.setenv(VARIABLE, value)
        trainer = make(logger=False)
        assert len(ours(trainer)) == count, value
        assert [kind for kind in kinds(trainer) if kind != "AddedCallback"] == without


def test_a_value_that_is_neither_on_nor_off(monkeypatch):
    monkeypatch.setenv(VARIABLE, "maybe")
    with pytest.warns(UserWarning, match=r"GFI_LIGHTNING='maybe' is neither on nor off, .*: set it to 1, .* or to 0"):
        L.Trainer(logger=False)


def test_the_entry_point_imports_nothing_unless_asked():
    code = "import gfi_lightning.entry as e, sys; assert e.callbacks() == []; print(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not {"torch", "lightning", "numpy", "matplotlib"} & set(done.stdout.split())


def test_what_cannot_be_imported_is_a_warning(opted_in, monkeypatch):
    monkeypatch.setitem(sys.modules, "gfi_lightning.training.added", None)
    with pytest.warns(UserWarning, match="GFI_LIGHTNING=1 adds no GFICallback, as it cannot be imported: .*Error"):
        trainer = L.Trainer(logger=False)
    assert ours(trainer) == []


@pytest.mark.usefixtures("opted_in")
def test_the_added_one_explains_as_any_other(tmp_path):
    trainer = make_trainer(tmp_path, max_epochs=1)
    (callback,) = ours(trainer)
    trainer.fit(ToyModule(), **loaders())
    assert ours(trainer) == [callback]
    assert image_steps(trainer) == [0, 3]
    assert len(History.load(trainer.log_dir).labels) == 8
    trainer = make_trainer(tmp_path)
    trainer.validate(ToyModule(), loaders()["val_dataloaders"], verbose=False)
    assert image_steps(trainer) == [0]


class BringsItsOwn(ToyModule):
    def configure_callbacks(self):
        return [SubclassOfOurs(num_samples=2, on_error="raise")]


class SubclassOfOurs(GFICallback):
    pass


GIVEN = {
    "one of the user": (ToyModule, [{}], ["gfi"]),
    "one by the name that the added one would have": (ToyModule, [{"name": "1"}], ["gfi/1"]),
    "one of the module": (BringsItsOwn, [], ["gfi"]),
}


@pytest.mark.usefixtures("opted_in")
@pytest.mark.parametrize("given", GIVEN)
def test_the_added_one_leaves_where_there_is_another(tmp_path, given):
    module, arguments, prefixes = GIVEN[given]
    callbacks = [quick_callback(**one) for one in arguments]
    trainer = make_trainer(tmp_path, *callbacks, ModelCheckpoint(tmp_path), max_epochs=1, enable_checkpointing=True)
    assert len(ours(trainer)) == len(callbacks) + 1
    trainer.fit(module(), **loaders())
    assert kinds(trainer)[-1] == "ModelCheckpoint"
    assert "AddedCallback" not in kinds(trainer)
    assert [one._prefix for one in ours(trainer)] == prefixes
    for prefix in prefixes:
        assert image_steps(trainer, f"{prefix}/sample_0") == [0, 3]


@pytest.mark.usefixtures("opted_in")
def test_the_added_one_is_not_in_the_way_of_a_replay(tmp_path):
    checkpoints = ModelCheckpoint(every_n_train_steps=2, save_top_k=-1)
    callback = quick_callback(samples=[1, 7])
    trainer = make_trainer(tmp_path, callback, checkpoints, max_epochs=1, enable_checkpointing=True)
    trainer.fit(ToyModule(), **loaders())
    for number, given in enumerate((None, quick_callback(samples=[1, 7]))):
        log_dir = tmp_path / f"replay_{number}"
        val = loaders()["val_dataloaders"]
        history = replay(checkpoints.dirpath, ToyModule(), dataloaders=val, callback=given, log_dir=log_dir)
        assert history.steps == [1, 3]
        assert len(history.labels) == 2
        assert len(list((log_dir / "gfi").glob("samples_*.npz"))) == 1


@pytest.mark.usefixtures("opted_in")
def test_a_barebones_trainer_stays_so():
    trainer = L.Trainer(barebones=True, accelerator="cpu", max_epochs=1)
    assert len(ours(trainer)) == 1
    trainer.fit(BoringModel())
    assert ours(trainer) == []


@pytest.mark.usefixtures("opted_in")
def test_a_fast_dev_run(tmp_path):
    trainer = L.Trainer(fast_dev_run=True, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(ToyModule(), **loaders())
    assert trainer.global_step == 1
    assert len(ours(trainer)) == 1


class OfNumbers(L.LightningModule):
    """What has no images."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 2)

    def forward(self, numbers):
        return self.layer(numbers)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.usefixtures("opted_in")
@pytest.mark.filterwarnings("default:.*GFICallback.*")
def test_a_training_that_cannot_be_explained_goes_on(tmp_path):
    loader = DataLoader(TensorDataset(torch.rand(8, 5), torch.arange(8) % 2), 4)
    trainer = make_trainer(tmp_path)
    with pytest.warns(UserWarning, match="GFICallback") as caught:
        trainer.fit(OfNumbers(), loader, loader)
    said = [str(one.message) for one in caught if "GFICallback" in str(one.message)]
    assert len(said) == 1
    assert said[0].startswith(
        "GFICallback, which GFI_LIGHTNING=1 adds, cannot explain this training, and it goes on without: "
        "A validation batch is "
    )
    assert trainer.global_step == 4
    assert ours(trainer) == []


@pytest.mark.usefixtures("opted_in")
def test_assert_harmless_is_about_the_callbacks_that_it_adds(tmp_path):
    def data():
        return L.LightningDataModule.from_datasets(Pictures(8, seed=1), Pictures(4), batch_size=4)

    with pytest.raises(AssertionError, match="Nothing was explained"):
        assert_harmless(lambda: make_trainer(tmp_path, max_epochs=1), ToyModule, data, make_callbacks=list)
