"""What is written can be read back, whatever happened to the files in between."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from gfi_lightning import History
from gfi_lightning.recording.film import film_strip, spread
from gfi_lightning.recording.history import save_run
from gfi_lightning.recording.record import DepthRecord, Record, SampleRecord, TargetRecord

GRID, SIZE = (4, 4), (16, 16)


def record(step, targets=(1, 2), seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.rand(shape, generator=generator)

    images = [draw(3, *SIZE) for _ in targets]
    maps = [[TargetRecord(index, draw(*SIZE), 0.5, 0.75, 0.25, False) for index in range(count)] for count in targets]
    samples = [
        SampleRecord(image, number, 0, 0.5, draw(*SIZE), of_sample)
        for number, (image, of_sample) in enumerate(zip(images, maps, strict=True))
    ]
    return Record(step, GRID, samples)


def changed_maps(run):
    """The same samples with other maps."""
    samples = [
        replace(sample, targets=[replace(target, heatmap=1 - target.heatmap) for target in sample.targets])
        for sample in run.samples
    ]
    return replace(run, samples=samples)


def test_other_samples_in_the_same_folder_do_not_mix(tmp_path):
    for run in (record(0, seed=1), record(7, seed=1), record(0, seed=2)):
        save_run(tmp_path / "gfi", run, None)
    history = History.load(tmp_path)
    assert history.steps == [0], "the samples that were explained last"
    shown = record(0, seed=2).samples[0].image.permute(1, 2, 0)
    np.testing.assert_allclose(history.images[0] / 255, shown, atol=0.5 / 255 + 1e-6)


def test_round_trip(tmp_path):
    records = [record(0, (1, 2)), record(10, (1, 1)), record(5, (2, 1))]
    records[1] = changed_maps(records[1])
    for run in records:
        save_run(tmp_path / "gfi", run, ["ant", "bee"])
    history = History.load(str(tmp_path))
    assert history.steps == [0, 5, 10]
    assert len(history) == 3
    assert history.class_names == ["ant", "bee"]
    assert history.labels.tolist() == [0, 1]
    assert history.heatmaps(0).shape == (3, 2, 4, 4)
    assert history.heatmaps(0).dtype == np.float32
    assert history.targets(0).tolist() == [[0, -1], [0, 1], [0, -1]]
    assert history.targets(1).tolist() == [[0, 1], [0, -1], [0, -1]]
    assert np.isnan(history.heatmaps(0)[0, 1]).all()
    expected = records[1].coarse(records[1].samples[0].targets[0].heatmap)
    np.testing.assert_allclose(history.heatmaps(0)[2, 0], expected, atol=1e-3)
    assert history.scores(1, "preserved")[0].tolist() == [0.75, 0.75]
    shown = records[0].samples[0].image.permute(1, 2, 0)
    np.testing.assert_allclose(history.images[0] / 255, shown, atol=0.5 / 255 + 1e-6)


def with_depths(run, **grids):
    """The same with maps of depths, of which each row of positions has a brightness of its own."""
    samples = [
        replace(
            sample,
            depths=[
                DepthRecord(layer, (rows, rows), torch.linspace(0, 1, 112)[:, None].expand(112, 112) / (1 + number))
                for layer, rows in grids.items()
            ],
        )
        for number, sample in enumerate(run.samples)
    ]
    return replace(run, samples=samples)


def test_depths(tmp_path):
    runs = [record(0), with_depths(record(1), early=28), with_depths(record(2), late=7, early=28)]
    runs.append(with_depths(record(3), late=7, early=28))
    for run in runs:
        save_run(tmp_path / "gfi", run, None)
    history = History.load(tmp_path)
    assert history.depth_layers == ["late", "early"]
    depths = history.depths(1)
    assert depths.dtype == np.float32
    assert depths.shape == (4, 2, 28, 28)
    assert np.isnan(depths[:2]).all()
    rows = torch.linspace(0, 1, 112).reshape(28, 4).mean(1) / 2
    np.testing.assert_allclose(depths[2:], rows[:, None].expand(2, 2, 28, 28), atol=1e-3)
    with np.load(next((tmp_path / "gfi").glob("run_0000000003_*"))) as arrays:
        assert arrays["depth_grids"].tolist() == [[7, 7], [28, 28]]


def test_depths_are_kept_no_finer_than_56(tmp_path):
    save_run(tmp_path / "gfi", with_depths(record(0), first=112), None)
    history = History.load(tmp_path)
    assert history.depths(0).shape == (1, 1, 56, 56)
    rows = torch.linspace(0, 1, 112).reshape(56, 2).mean(1)
    np.testing.assert_allclose(history.depths(0)[0, 0, :, 3], rows, atol=1e-3)


def test_contrasts(tmp_path):
    plain, run = record(0, (1, 2)), record(5, (1, 2))
    contrasted = [
        replace(sample, targets=[replace(target, against=3 + target.target) for target in sample.targets])
        for sample in run.samples
    ]
    for one in (plain, replace(run, samples=contrasted)):
        save_run(tmp_path / "gfi", one, None)
    history = History.load(tmp_path)
    assert history.against(0).tolist() == [[-1, -1], [3, -1]]
    assert history.against(1).tolist() == [[-1, -1], [3, 4]]


def test_files_of_before_depths_and_contrasts(tmp_path):
    save_run(tmp_path / "gfi", with_depths(record(0), early=28), None)
    (path,) = (tmp_path / "gfi").glob("run_*")
    with np.load(path) as arrays:
        before = {name: arrays[name] for name in arrays.files if not name.startswith(("depth", "against"))}
    assert len(before) == 6
    np.savez_compressed(path, **before)
    history = History.load(tmp_path)
    assert history.depth_layers == []
    assert history.depths(1).shape == (1, 0, 0, 0)
    assert history.against(1).tolist() == [[-1, -1]]
    assert history.targets(1).tolist() == [[0, 1]]


def test_a_run_of_the_same_step_replaces_the_former(tmp_path):
    first, second = record(3), changed_maps(record(3))
    for run in (first, second):
        save_run(tmp_path / "gfi", run, None)
    history = History.load(tmp_path)
    assert history.steps == [3]
    expected = second.coarse(second.samples[0].targets[0].heatmap)
    np.testing.assert_allclose(history.heatmaps(0)[0, 0], expected, atol=1e-3)


@pytest.mark.parametrize("damage", [b"", b"not a zip file", None])
def test_a_damaged_run_is_skipped_with_a_warning_that_names_it(tmp_path, damage):
    for step in (0, 1, 2):
        save_run(tmp_path / "gfi", record(step), None)
    (path,) = (tmp_path / "gfi").glob("run_0000000001_*.npz")
    path.write_bytes(path.read_bytes()[:200] if damage is None else damage)
    with pytest.warns(UserWarning, match=r"run_0000000001_\w+\.npz is damaged and skipped"):
        history = History.load(tmp_path)
    assert history.steps == [0, 2]


def test_a_failed_write_leaves_the_former_file_and_no_litter(tmp_path, monkeypatch):
    save_run(tmp_path / "gfi", record(0), None)
    before = sorted((path.name, path.read_bytes()) for path in (tmp_path / "gfi").iterdir())

    def disk_full(file, **arrays):
        file.write(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez_compressed", disk_full)
    with pytest.raises(OSError, match="No space left"):
        save_run(tmp_path / "gfi", changed_maps(record(0)), None)
    assert sorted((path.name, path.read_bytes()) for path in (tmp_path / "gfi").iterdir()) == before


def test_no_history(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no runs: give the log directory of a run"):
        History.load(tmp_path)


def test_film_strip(tmp_path):
    for step in range(15):
        save_run(tmp_path / "gfi", record(step), None)
    history = History.load(tmp_path)
    whole, half = film_strip(history), film_strip(history, samples=[1])
    assert whole.shape[1] == half.shape[1]
    assert whole.shape[0] > 1.5 * half.shape[0]
    assert film_strip(history, columns=4).shape[1] < whole.shape[1]


@pytest.mark.parametrize("count", [1, 2, 9, 10, 11, 13, 40, 1000])
@pytest.mark.parametrize("most", [2, 10])
def test_spread(count, most):
    chosen = spread(count, most)
    assert chosen[0] == 0
    assert chosen[-1] == count - 1
    assert len(set(chosen)) == len(chosen) == min(count, most)
    assert chosen == sorted(chosen)
