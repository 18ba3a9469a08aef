"""Under trainer.validate and trainer.test it explains once, and what a training has kept stays as it is."""

import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from gfi_lightning import History, UsageError
from tests.training.modules import (
    WEIGHTS_ONLY,
    Pictures,
    ToyModule,
    image_steps,
    loaders,
    make_trainer,
    quick_callback,
    read_events,
    scalar_steps,
)

EVALUATIONS = ("validate", "test")
OTHERS = Pictures(30, seed=5)  # as many as no training here has
REPEATED = {"logger": False}  # both Trainers write into the same folder


def evaluate(trainer, function, module, data=None, **options):
    getattr(trainer, function)(module, loaders(val=data)["val_dataloaders"], verbose=False, **options)


def fitted(folder, **options):
    trainer, module = make_trainer(folder, quick_callback(), default_root_dir=folder, **options), ToyModule()
    trainer.fit(module, **loaders())
    return trainer, module


def checkpoint_of(trainer, folder):
    path = folder / f"{trainer.global_step}.ckpt"
    trainer.save_checkpoint(path)
    return path


def state_in(path):
    """Of our callback, with plain lists for tensors, which can be compared."""
    (state,) = torch.load(path, weights_only=False)["gfi_lightning"].values()
    return {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in state.items()}


def histories(folder):
    """That of the training, and of the only evaluation."""
    one, training = (History.load(folder, run_id=run_id) for run_id in History.run_ids(folder))
    assert one.run_id.endswith("-evaluation")
    assert not training.run_id.endswith("-evaluation")
    return training, one


@pytest.mark.parametrize("function", EVALUATIONS)
def test_alone(tmp_path, function):
    trainer = make_trainer(tmp_path, quick_callback())
    evaluate(trainer, function, ToyModule())
    assert image_steps(trainer) == [0]
    assert scalar_steps(trainer, "gfi/removed") == [0]
    history = History.load(trainer.log_dir)
    assert (history.steps, history.epochs) == ([0], [-1])


@pytest.mark.parametrize("function", EVALUATIONS)
def test_after_a_fit_on_the_same_samples_at_the_step_of_its_metrics(tmp_path, function):
    trainer, module = fitted(tmp_path)
    evaluate(trainer, function, module, OTHERS)
    assert image_steps(trainer) == [0, 3, 7, 8]
    assert 8 in scalar_steps(trainer, "val_loss" if function == "validate" else "test_loss")
    training, one = histories(trainer.log_dir)
    assert (one.steps, one.epochs) == ([8], [-1])
    assert (one.images == training.images).all()


@pytest.mark.parametrize("function", EVALUATIONS)
def test_it_is_no_step_of_the_training(tmp_path, function):
    """The same weights again would look as if the maps had come to rest."""
    trainer, module = fitted(tmp_path)
    before = History.load(trainer.log_dir)
    state = state_in(checkpoint_of(trainer, tmp_path))
    evaluate(trainer, function, module)
    after = History.load(trainer.log_dir)
    assert after.steps == before.steps == [0, 3, 7]
    assert after.settled() == before.settled()
    assert scalar_steps(trainer, "gfi/drift") == [3, 7]
    for name in ("gfi/film_0", "gfi/animation", "gfi/curves"):
        assert max(event.step for event in read_events(trainer).Images(name)) == 7
    assert state_in(checkpoint_of(trainer, tmp_path)) == state


@pytest.mark.parametrize("function", EVALUATIONS)
def test_a_checkpoint_in_the_folder_of_its_training(tmp_path, function):
    trainer, _ = fitted(tmp_path, **REPEATED)
    path = checkpoint_of(trainer, tmp_path)
    again = make_trainer(tmp_path, quick_callback(), default_root_dir=tmp_path, **REPEATED)
    evaluate(again, function, ToyModule(), ckpt_path=path)
    assert History.load(tmp_path).steps == [0, 3, 7]
    training, one = histories(tmp_path)
    assert one.steps == [0]
    assert (one.images == training.images).all()
    # The training goes on as if there had been no evaluation.
    later = make_trainer(tmp_path, quick_callback(), max_epochs=3, default_root_dir=tmp_path, **REPEATED)
    later.fit(ToyModule(), **loaders(), ckpt_path=path, **WEIGHTS_ONLY)
    assert History.load(tmp_path).steps == [0, 3, 7, 11]


def test_of_a_checkpoint_the_test_set_is_not_taken_for_the_validation_set(tmp_path):
    trainer, _ = fitted(tmp_path, **REPEATED)
    path = checkpoint_of(trainer, tmp_path)
    again = make_trainer(tmp_path, quick_callback(num_samples=30), default_root_dir=tmp_path, **REPEATED)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "The validation set has|The images at GFICallback's sample indices")
        evaluate(again, "test", ToyModule(), OTHERS, ckpt_path=path)
    _, one = histories(tmp_path)
    assert len(one.images) == 30


def test_validating_and_then_testing_shows_each_its_own(tmp_path):
    trainer = make_trainer(tmp_path, quick_callback(num_samples=20), default_root_dir=tmp_path, **REPEATED)
    evaluate(trainer, "validate", ToyModule())
    evaluate(trainer, "test", ToyModule(), Pictures(20, seed=5))
    validated, tested = (History.load(tmp_path, run_id=run_id) for run_id in History.run_ids(tmp_path))
    assert (validated.images != tested.images).any()


@pytest.mark.parametrize("warm_start", [False, True])
@pytest.mark.filterwarnings("default:.*GFICallback.*")
def test_again_and_again_in_one_trainer_which_sets_off_the_alarm_once(tmp_path, warm_start):
    """Trained, validated twice and tested: four histories, of which one is the training's."""
    boxes = {"everything": [(0, 0, 16, 16)] * 20}
    callback = quick_callback(regions=boxes, alarm={"everything": 0.5}, warm_start=warm_start, name="mine")
    trainer = make_trainer(tmp_path, callback, default_root_dir=tmp_path, logger=CSVLogger(tmp_path))
    module = ToyModule()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, **loaders())
        for function in ("validate", "validate", "test"):
            evaluate(trainer, function, module)
    (alarm,) = [str(one.message) for one in caught if "in the region 'everything'" in str(one.message)]
    assert "see gfi/mine/film_0 and" in alarm
    *evaluations, training = History.run_ids(trainer.log_dir, "mine")
    assert len(evaluations) == 3
    assert History.load(trainer.log_dir, "mine").run_id == training
    assert History.load(trainer.log_dir, "mine").steps == [0, 3, 7]
    folders = Path(trainer.log_dir, "gfi/mine/pictures").iterdir()
    pictures = {folder.name: len(list(folder.glob("sample_0/*"))) for folder in folders}
    assert pictures == {training: 3, **dict.fromkeys(evaluations, 1)}


@pytest.mark.filterwarnings("default:.*GFICallback.*")
def test_before_a_fit_on_a_ready_batch(tmp_path):
    images, labels = Pictures().images[:2], torch.tensor([0, 1])
    boxes = {"everything": [(0, 0, 16, 16)] * 2}
    callback = quick_callback(samples=(images, labels), regions=boxes, alarm={"everything": 0.5})
    trainer, module = make_trainer(tmp_path, callback), ToyModule()
    with pytest.warns(UserWarning, match="in the region 'everything'.* see gfi/sample_0 and"):
        evaluate(trainer, "validate", module)
    trainer.fit(module, **loaders())
    training, one = histories(trainer.log_dir)
    assert (training.steps, one.steps) == ([0, 3, 7], [0])


@pytest.mark.filterwarnings("default:.*GFICallback.*")
def test_a_test_set_may_lack_the_region_of_the_alarm(tmp_path, caplog):
    """As it does where the shortcut is in the training's pictures alone."""
    caplog.set_level("INFO")
    everything = {"everything": [0, 0, 16, 16]}
    callback = quick_callback(regions=lambda item: everything, alarm={"patch": 0.5, "everything": 0.5})
    trainer = make_trainer(tmp_path, callback, default_root_dir=tmp_path)
    with pytest.warns(UserWarning, match="in the region 'everything'"):
        evaluate(trainer, "test", ToyModule())
    assert "alarm= watches 'patch', and regions= finds no such region in the test set." in caplog.text
    assert len(History.load(trainer.log_dir)) == 1
    with pytest.raises(UsageError, match="watches 'patch', but regions= has 'everything'"):
        evaluate(trainer, "validate", ToyModule())
