"""Our faults become one warning; misuse is found before the first step."""

import warnings

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

from gfi_lightning import History, UsageError
from tests.training.modules import Pictures, ToyModule, image_steps, loaders, make_trainer, quick_callback


class FailsInExplaining(ToyModule):
    """Fails whenever it is run outside its own steps, but for the first few times."""

    patience = 0

    def forward(self, images):
        if torch.is_grad_enabled() and not self.training:
            FailsInExplaining.patience -= 1
            if FailsInExplaining.patience < 0:
                raise RuntimeError("the cat sat on the keyboard")
        return super().forward(images)


def our_warnings(caught):
    return [str(warning.message) for warning in caught if "GFICallback" in str(warning.message)]


@pytest.mark.filterwarnings("default:.*GFICallback.*")
@pytest.mark.parametrize("patience", [0, 5])
def test_a_failure_becomes_one_warning_and_training_goes_on(tmp_path, patience):
    FailsInExplaining.patience = patience
    trainer = make_trainer(tmp_path, quick_callback(on_error="warn"), max_epochs=3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(FailsInExplaining(), **loaders())
    assert trainer.current_epoch == 3
    (message,) = our_warnings(caught)
    assert "could not explain, and the run goes on: RuntimeError: the cat sat on the keyboard" in message
    assert "on_error='raise'" in message


@pytest.mark.filterwarnings("default:.*GFICallback.*")
def test_the_next_run_explains_again(tmp_path):
    class FailsOnce(ToyModule):
        def forward(self, images):
            if self.trainer.current_epoch == 1 and torch.is_grad_enabled() and not self.training:
                raise RuntimeError("only in the second epoch")
            return super().forward(images)

    trainer = make_trainer(tmp_path, quick_callback(on_error="warn"), max_epochs=4)
    with pytest.warns(UserWarning, match="only in the second epoch"):
        trainer.fit(FailsOnce(), **loaders())
    assert image_steps(trainer) == [0, 3, 11, 15]


def test_on_error_raise(tmp_path):
    FailsInExplaining.patience = 5
    trainer = make_trainer(tmp_path, quick_callback(on_error="raise"))
    with pytest.raises(RuntimeError, match="the cat sat"):
        trainer.fit(FailsInExplaining(), **loaders())


@pytest.mark.filterwarnings("default:.*GFICallback.*")
def test_a_logger_that_fails(tmp_path):
    trainer = make_trainer(tmp_path, quick_callback(on_error="warn"))
    trainer.logger.experiment.add_image = None
    with pytest.warns(UserWarning, match="GFICallback could not explain, and the run goes on: TypeError"):
        trainer.fit(ToyModule(), **loaders())
    assert trainer.current_epoch == 2


def tensors(images, *others):
    return DataLoader(TensorDataset(images, *others), 4)


PICTURES, LABELS = torch.rand(8, 3, 16, 16), torch.arange(8) % 5

MISUSES = {
    "unknown layer": ({"layer": "layer4"}, None, r"layer='layer4' does not exist\. Usable layers"),
    "flat layer": ({"layer": "network.head.3"}, None, "has no spatial extent"),
    "samples out of range": (
        {"samples": [0, 20]},
        None,
        r"samples=\[0, 20\] cannot be read from .* of 20 items",
    ),
    "class names": ({"class_names": ["cat", "dog"]}, None, "class_names has 2 names, but the model has 5 classes"),
    "mean": ({"mean": [0.5] * 4, "std": [0.5] * 4}, None, "has 4 numbers, but the images have 3 channels"),
    "target": ({"targets": 7}, None, "targets reach from 7 to 7, but the model has 5 classes"),
    "labels of other classes": ({}, tensors(PICTURES, LABELS + 3), "targets reach from 3 to 6, but the model has 5"),
    "flat data": (
        {},
        tensors(PICTURES.flatten(1), LABELS),
        r"A validation batch is list\(Tensor\(3, 768\) of float32, Tensor\(3,\) of int64\)\. Expected is \(images,",
    ),
    "volumes": ({}, tensors(PICTURES[:, :, None], LABELS), r"Tensor\(3, 3, 1, 16, 16\)"),
    "bytes": ({}, tensors((PICTURES * 255).byte(), LABELS), "of uint8"),
}


@pytest.mark.parametrize("misuse", MISUSES)
def test_misuse_ends_the_fit_before_it_begins(tmp_path, misuse):
    arguments, val, message = MISUSES[misuse]

    class Watched(ToyModule):
        def unpack(self, batch):
            return PICTURES[: len(batch[1])], batch[1] % 5

    module = Watched()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    trainer = make_trainer(tmp_path, quick_callback(on_error="warn", **arguments))
    with pytest.raises(UsageError, match=message):
        trainer.fit(module, loaders()["train_dataloaders"], val or loaders()["val_dataloaders"])
    assert trainer.global_step == 0
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items() if "running" not in name)


def test_no_validation_data(tmp_path):
    trainer = make_trainer(tmp_path, quick_callback(on_error="warn"))
    with pytest.raises(UsageError, match=r"found no validation data to explain: .* or give samples=\(images, labels\)"):
        trainer.fit(ToyModule(), loaders()["train_dataloaders"])


@pytest.mark.filterwarnings("default:.*GFICallback.*")
def test_unlabelled_images_are_explained_by_their_predicted_class(tmp_path):
    class Unlabelled(ToyModule):
        def validation_step(self, batch, batch_idx):
            pass

    trainer = make_trainer(tmp_path, quick_callback())
    with pytest.warns(UserWarning, match="found no class indices .* it explains the predicted classes"):
        trainer.fit(Unlabelled(), loaders()["train_dataloaders"], tensors(PICTURES))
    assert image_steps(trainer) == [0, 3, 7]


@pytest.mark.filterwarnings("default:.*GFICallback.*")
def test_a_data_set_that_fails_to_read(tmp_path):
    class Broken(Pictures):
        def __getitem__(self, index):
            if index == 4:
                raise OSError("image file is truncated")
            return super().__getitem__(index)

    trainer = make_trainer(tmp_path, quick_callback(on_error="warn"), limit_val_batches=1)
    with pytest.warns(UserWarning, match="OSError: image file is truncated"):
        trainer.fit(ToyModule(), **loaders(val=Broken()))
    assert trainer.current_epoch == 2


class TakesTheBatch(ToyModule):
    def forward(self, batch):
        return super().forward(batch["image"])

    def unpack(self, batch):
        return {"image": batch[0]}, batch[1]


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        (
            TakesTheBatch,
            {},
            r"forward\(\) was called with Tensor\(3, 3, 16, 16\) of float32, the images in a validation batch, "
            r"which is list\(.*\), and failed with IndexError: .* Give forward=",
        ),
        (
            ToyModule,
            {"batch": lambda batch: {"image": batch[0]}},
            r"batch= returned \{'image': .*; expected are images",
        ),
        (
            ToyModule,
            {"batch": lambda batch: batch[0]},
            r"batch= returned Tensor\(3, 3, 16, 16\) .*; expected are images",
        ),
    ],
)
def test_what_was_found_is_told_before_the_first_step(tmp_path, module, arguments, message):
    trainer = make_trainer(tmp_path, quick_callback(on_error="warn", **arguments))
    with pytest.raises(UsageError, match=message):
        trainer.fit(module(), **loaders())
    assert trainer.global_step == 0


@pytest.mark.filterwarnings("default:.*GFICallback.*")
def test_the_same_fault_with_other_numbers_is_told_once(tmp_path):
    class Counting(ToyModule):
        calls = 0

        def forward(self, images):
            if torch.is_grad_enabled() and not self.training:
                Counting.calls += 1
                raise RuntimeError(f"out of memory: tried to allocate {Counting.calls} GiB")
            return super().forward(images)

    trainer = make_trainer(tmp_path, quick_callback(on_error="warn"), max_epochs=3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(Counting(), **loaders())
    assert Counting.calls > 1
    assert len(our_warnings(caught)) == 1


@pytest.mark.filterwarnings("default:.*GFICallback.*")
def test_a_trainer_without_tensorboard_keeps_the_maps_and_says_so(tmp_path):
    trainer = make_trainer(tmp_path, quick_callback(), logger=CSVLogger(tmp_path))
    with pytest.warns(UserWarning, match="this Trainer has no TensorBoardLogger: maps are kept in"):
        trainer.fit(ToyModule(), **loaders())
    assert History.load(trainer.log_dir).steps == [0, 3, 7]
