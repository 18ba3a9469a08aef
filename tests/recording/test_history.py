"""What is written can be read back, whatever happened to the files in between."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from gfi_lightning import History, UsageError
from gfi_lightning.recording.arrays import run_array, sample_arrays, without_extras
from gfi_lightning.recording.curves import CurveTracker
from gfi_lightning.recording.history import Earlier, HistoryWriter, load_run
from gfi_lightning.recording.record import DepthRecord, Record, SampleRecord, TargetRecord

GRID, SIZE = (4, 4), (16, 16)


def record(step, targets=(1, 2), seed=0, grid=GRID):
    """Two samples, or as many as there are numbers of targets."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.rand(shape, generator=generator)

    def target(index):
        return TargetRecord(index, draw(*SIZE), 0.5, 0.75, 0.25, False, weights=draw(3))

    images = [draw(3, *SIZE) for _ in targets]
    samples = [
        SampleRecord(image, number, 0, 0.5, draw(*SIZE), [target(index) for index in range(count)])
        for number, (image, count) in enumerate(zip(images, targets, strict=True))
    ]
    return Record(step, grid, samples, epoch=step // 4)


def changed_maps(run):
    """The same samples with other maps."""
    samples = [
        replace(sample, targets=[replace(target, heatmap=1 - target.heatmap) for target in sample.targets])
        for sample in run.samples
    ]
    return replace(run, samples=samples)


def write(folder, *records, class_names=None, run_id=None, tracker=None, **options):
    """A training that makes these runs; its writer."""
    tracker = tracker or CurveTracker({})
    writer = HistoryWriter(folder / "gfi", sample_arrays(records[0], class_names), run_id)
    for one in records:
        writer.append(run_array(one, tracker.curves(one), **options))
    return writer


def first_map(run, sample=0):
    return run.samples[sample].targets[0].heatmap.reshape(4, 4, 4, 4).mean((1, 3))


def test_round_trip(tmp_path):
    records = [record(0, (1, 2)), record(5, (2, 1)), changed_maps(record(10, (1, 1)))]
    writer = write(tmp_path, *records, class_names=["ant", "bee"])
    history = History.load(str(tmp_path))
    assert history.run_id == writer.run_id
    assert history.steps == [0, 5, 10]
    assert history.epochs == [0, 1, 2]
    assert history.times == sorted(history.times)
    assert len(history) == 3
    assert history.class_names == ["ant", "bee"]
    assert history.labels.tolist() == [0, 1]
    assert history.predicted.tolist() == [[0, 0]] * 3
    assert history.predicted_scores.tolist() == [[0.5, 0.5]] * 3
    assert history.heatmaps(0).shape == (3, 2, 4, 4)
    assert history.heatmaps(0).dtype == np.float32
    assert history.foregrounds(0).shape == (3, 4, 4)
    assert history.targets(0).tolist() == [[0, -1], [0, 1], [0, -1]]
    assert history.targets(1).tolist() == [[0, 1], [0, -1], [0, -1]]
    assert np.isnan(history.heatmaps(0)[0, 1]).all()
    np.testing.assert_allclose(history.heatmaps(0)[2, 0], first_map(records[2]), atol=1e-3)
    assert history.scores(1, "preserved")[0].tolist() == [0.75, 0.75]
    shown = records[0].samples[0].image.permute(1, 2, 0)
    np.testing.assert_allclose(history.images[0] / 255, shown, atol=0.5 / 255 + 1e-6)


def test_the_files_are_plain_arrays(tmp_path):
    write(tmp_path, record(7))
    (path,) = (tmp_path / "gfi").glob("run_*_000000.npy")
    run = np.load(path, allow_pickle=False)
    assert run.shape == ()
    assert run["step"] == 7
    assert run["heatmaps"].shape == (2, 2, 4, 4)
    assert run["curves"]["preserved"].tolist() == [0.75, 0.75]


def test_curves(tmp_path):
    tracker = CurveTracker({})
    tracker.floor = torch.tensor([0.0, 1e-4])
    write(tmp_path, record(0), record(3), changed_maps(record(9)), tracker=tracker)
    history = History.load(tmp_path)
    assert np.isnan(history.curve("drift")[0]).all()
    np.testing.assert_allclose(history.curve("drift")[1:], [[0, 0], [2, 2]], atol=1e-5)
    np.testing.assert_allclose(history.curve("drift_floor"), [[0, 1e-4]] * 3)
    assert {"entropy", "area", "preserved", "removed", "drift_from_first"} < set(history.curves)
    with pytest.raises(UsageError, match=r"no curve 'drft', but preserved, .*drift"):
        history.curve("drft")


def test_when_maps_settled(tmp_path):
    still = [record(0), changed_maps(record(3)), changed_maps(record(9)), changed_maps(record(12))]
    write(tmp_path / "still", *still)
    assert History.load(tmp_path / "still").settled() == [3, 3]
    write(tmp_path / "moving", *still, record(13))
    assert History.load(tmp_path / "moving").settled() == [None, None]
    tracker = CurveTracker({})
    tracker.floor = torch.tensor([3.0, 0.0])  # larger than any drift of the first sample
    write(tmp_path / "noisy", *still, record(13), tracker=tracker)
    assert History.load(tmp_path / "noisy").settled() == [0, None]


def test_several_trainings_in_one_folder_do_not_mix(tmp_path):
    first = write(tmp_path, record(0), record(7), record(9))
    second = write(tmp_path, record(0, seed=2), record(8, seed=2))
    os.utime(tmp_path / "gfi" / f"run_{first.run_id}_000002.npy", (1, 1))  # however close together
    assert History.load(tmp_path).steps == [0, 8]
    shown = record(0, seed=2).samples[0].image.permute(1, 2, 0)
    np.testing.assert_allclose(History.load(tmp_path).images[0] / 255, shown, atol=0.5 / 255 + 1e-6)
    assert set(History.run_ids(tmp_path)) == {first.run_id, second.run_id}
    assert History.load(tmp_path, run_id=first.run_id).steps == [0, 7, 9]
    with pytest.raises(FileNotFoundError, match=rf"no run_id='other', but .*{second.run_id}"):
        History.load(tmp_path, run_id="other")


def test_a_resumed_training_goes_on(tmp_path):
    writer = write(tmp_path, record(0), record(4), record(8), record(12))
    before = {path.name: path.read_bytes() for path in (tmp_path / "gfi").iterdir()}
    resumed = write(tmp_path, changed_maps(record(6)), changed_maps(record(8)), run_id=writer.run_id)
    assert resumed.run_id == writer.run_id
    history = History.load(tmp_path)
    assert history.steps == [0, 4, 6, 8], "what it ran through before counts no more"
    np.testing.assert_allclose(history.heatmaps(0)[3, 0], 1 - first_map(record(8)), atol=1e-3)
    after = {path.name: path.read_bytes() for path in (tmp_path / "gfi").iterdir()}
    assert len(after) == len(before) + 2
    assert before.items() <= after.items(), "nothing that was written is written again"


def test_a_resumed_training_with_other_samples_is_another(tmp_path):
    writer = write(tmp_path, record(0), record(4))
    other = write(tmp_path, record(6, seed=3), run_id=writer.run_id)
    assert other.run_id != writer.run_id
    assert History.load(tmp_path, run_id=writer.run_id).steps == [0, 4]
    assert History.load(tmp_path, run_id=other.run_id).steps == [6]


def test_read_while_it_is_written(tmp_path):
    writer = write(tmp_path, record(0))
    assert History.load(tmp_path).steps == [0]
    writer.append(run_array(record(1), CurveTracker({}).curves(record(1))))
    (tmp_path / "gfi" / f"run_{writer.run_id}_000002.tmp").write_bytes(b"half of it")
    assert History.load(tmp_path).steps == [0, 1]


def test_a_crash_in_the_middle_of_writing_loses_one_run_at_most(tmp_path):
    """The process is killed without warning while it writes run after run."""
    program = (
        "import sys; from pathlib import Path; from tests.recording.test_history import *\n"
        "tracker, first = CurveTracker({}), record(0)\n"
        "writer = HistoryWriter(Path(sys.argv[1], 'gfi'), sample_arrays(first, None)); step = 0\n"
        "while True:\n"
        "    run = replace(first, step=step); writer.append(run_array(run, tracker.curves(run)))\n"
        "    print(step, flush=True); step += 1\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if int(line) == 20:
                break
        process.kill()
        written = 20 + sum(1 for _ in process.stdout)
    steps = History.load(tmp_path).steps
    assert steps == list(range(len(steps)))
    assert written + 1 <= len(steps) <= written + 2


def test_a_thousand_runs_are_small(tmp_path):
    tracker, first = CurveTracker({}), record(0, (2,) * 8, grid=(14, 14))
    writer = HistoryWriter(tmp_path / "gfi", sample_arrays(first, None))
    for step in range(20):
        one = replace(first, step=step)
        writer.append(run_array(one, tracker.curves(one)))
    sizes = [path.stat().st_size for path in (tmp_path / "gfi").glob("run_*")]
    assert len(sizes) == 20
    assert max(sizes) * 1000 < 20e6


def test_large_grids_are_kept_coarser(tmp_path):
    run = record(0, (1,), grid=(16, 16))
    wide = replace(run.samples[0].targets[0], heatmap=torch.linspace(0, 1, 64)[:, None].expand(64, 64))
    samples = [replace(run.samples[0], targets=[wide], foreground=torch.zeros(64, 64))]
    write(tmp_path, replace(run, samples=samples, grid=(64, 64)))
    maps = History.load(tmp_path).heatmaps(0)
    assert maps.shape == (1, 1, 16, 16)
    np.testing.assert_allclose(maps[0, 0, :, 5], torch.linspace(0, 1, 64).reshape(16, 4).mean(1), atol=1e-3)


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
    write(tmp_path, *runs, with_depths(record(3), late=7, early=28))
    history = History.load(tmp_path)
    assert history.depth_layers == ["late", "early"]
    depths = history.depths(1)
    assert depths.dtype == np.float32
    assert depths.shape == (4, 2, 28, 28)
    assert np.isnan(depths[:2]).all()
    rows = torch.linspace(0, 1, 112).reshape(28, 4).mean(1) / 2
    np.testing.assert_allclose(depths[2:], rows[:, None].expand(2, 2, 28, 28), atol=1e-3)


def test_depths_are_kept_no_finer_than_56(tmp_path):
    write(tmp_path, with_depths(record(0), first=112))
    history = History.load(tmp_path)
    assert history.depths(0).shape == (1, 1, 56, 56)
    rows = torch.linspace(0, 1, 112).reshape(56, 2).mean(1)
    np.testing.assert_allclose(history.depths(0)[0, 0, :, 3], rows, atol=1e-3)
    assert History.load(tmp_path).depths(1).shape == (1, 1, 56, 56)


def test_without_depths(tmp_path):
    write(tmp_path, record(0))
    assert History.load(tmp_path).depth_layers == []
    assert History.load(tmp_path).depths(1).shape == (1, 0, 0, 0)


def test_channel_weights_where_asked_for(tmp_path):
    first, second = record(0, (1, 2)), record(5, (1, 1), seed=1)
    tracker = CurveTracker({})
    writer = write(tmp_path, first, tracker=tracker)
    assert History.load(tmp_path).weights(0).shape == (1, 1, 0)
    run = run_array(second, tracker.curves(second), with_weights=True)
    writer.append(run)
    weights = History.load(tmp_path).weights(0)
    assert weights.shape == (2, 1, 3)
    assert np.isnan(weights[0]).all()
    np.testing.assert_allclose(weights[1, 0], second.samples[0].targets[0].weights)
    assert "weights" not in without_extras(run).dtype.names


def test_channel_weights_of_a_training_that_goes_on_with_other_layers(tmp_path):
    first, second = record(0), record(5)
    for sample in second.samples:
        sample.targets[:] = [replace(target, weights=torch.ones(5)) for target in sample.targets]
    tracker = CurveTracker({})
    writer = write(tmp_path, first, tracker=tracker)
    for one in (record(2), second):
        writer.append(run_array(one, tracker.curves(one), with_weights=True))
    weights = History.load(tmp_path).weights(0)
    assert weights.shape[2] == 5
    assert np.isnan(weights[:2]).all()
    assert (weights[2] == 1).any()


def test_contrasts(tmp_path):
    plain, run = record(0, (1, 2)), record(5, (1, 2))
    contrasted = [
        replace(sample, targets=[replace(target, against=3 + target.target) for target in sample.targets])
        for sample in run.samples
    ]
    write(tmp_path, plain, replace(run, samples=contrasted))
    history = History.load(tmp_path)
    assert history.against(0).tolist() == [[-1, -1], [3, -1]]
    assert history.against(1).tolist() == [[-1, -1], [3, 4]]


def test_regions(tmp_path):
    regions = {"object": torch.zeros(2, *SIZE, dtype=torch.bool), "猫, a cat": torch.ones(2, *SIZE, dtype=torch.bool)}
    regions["object"][0, :8] = True
    write(tmp_path, replace(record(0), regions=regions))
    history = History.load(tmp_path)
    assert list(history.regions) == ["object", "猫, a cat"]
    assert all(np.array_equal(history.regions[name], regions[name]) for name in regions)
    heatmap = record(0).samples[0].targets[0].heatmap
    energy = history.curve("energy/object")
    assert energy[0, 0] == pytest.approx(float(heatmap[:8].sum() / heatmap.sum()))
    assert np.isnan(energy[0, 1])
    assert history.curve("pointing/猫, a cat").tolist() == [[1, 1]]


@pytest.mark.parametrize("damage", ["empty", "no array", "cut short", "a bit is flipped"])
def test_a_damaged_run_is_skipped_with_a_warning_that_names_it(tmp_path, damage):
    write(tmp_path, record(0), record(1), record(2))
    (path,) = (tmp_path / "gfi").glob("run_*_000001.npy")
    content = path.read_bytes()
    flipped = bytes([content[-200] ^ 1])
    damaged = {
        "empty": b"",
        "no array": b"not an array",
        "cut short": content[:200],
        "a bit is flipped": content[:-200] + flipped + content[-199:],
    }
    path.write_bytes(damaged[damage])
    with pytest.warns(UserWarning, match=r"run_\S+_000001\.npy is damaged and skipped"):
        history = History.load(tmp_path)
    assert history.steps == [0, 2]
    with pytest.raises(ValueError, match="checksum"):
        load_run(path)


def test_without_its_samples_the_training_before_is_read(tmp_path):
    first, second = write(tmp_path, record(0)), write(tmp_path, record(1))
    (tmp_path / "gfi" / f"samples_{second.run_id}.npz").write_bytes(b"")
    with pytest.warns(UserWarning, match=rf"samples_{second.run_id}\.npz is damaged and skipped"):
        assert History.load(tmp_path).run_id == first.run_id


def test_a_failed_write_leaves_all_as_it_was_and_no_litter(tmp_path, monkeypatch):
    writer = write(tmp_path, record(0))
    before = sorted((path.name, path.read_bytes()) for path in (tmp_path / "gfi").iterdir())
    run = run_array(record(1), CurveTracker({}).curves(record(1)))

    def disk_full(descriptor):
        raise OSError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", disk_full)
        with pytest.raises(OSError, match="No space left"):
            writer.append(run)
    assert sorted((path.name, path.read_bytes()) for path in (tmp_path / "gfi").iterdir()) == before
    writer.append(run)
    assert History.load(tmp_path).steps == [0, 1]


def test_two_resumes_of_the_same_training_lose_nothing(tmp_path):
    """Each writes what it sees; the one that comes second gets an id of its own."""
    resumed = [HistoryWriter(tmp_path / "gfi", sample_arrays(record(0), None), "same") for _ in range(2)]
    for writer in resumed:
        writer.open()
    tracker = CurveTracker({})
    for step in range(4):
        for writer in resumed:
            writer.append(run_array(record(step), tracker.curves(record(step))))
    one, other = resumed
    assert one.run_id == "same" != other.run_id
    assert [History.load(tmp_path, run_id=writer.run_id).steps for writer in resumed] == [[0, 1, 2, 3]] * 2


def test_without_links_a_file_is_not_replaced_either(tmp_path, monkeypatch):
    def refuse(*paths):
        raise OSError("Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    test_two_resumes_of_the_same_training_lose_nothing(tmp_path)
    assert not list((tmp_path / "gfi").glob("*.tmp"))


def test_a_resume_in_another_folder_takes_over_what_came_before_it(tmp_path):
    first = write(tmp_path / "first", record(0), record(4), record(8))
    earlier = Earlier(tmp_path / "first" / "gfi", last_step=4)
    second = HistoryWriter(tmp_path / "second" / "gfi", sample_arrays(record(0), None), first.run_id, earlier)
    assert second.open().steps == [0, 4], "but not what was never resumed"
    second.append(run_array(record(6), CurveTracker({}).curves(record(6))))
    assert History.load(tmp_path / "second").steps == [0, 4, 6]
    assert History.load(tmp_path / "first").steps == [0, 4, 8]
    with pytest.warns(UserWarning, match="was resumed is not in .*first.elsewhere any more: the history .* begin anew"):
        HistoryWriter(
            tmp_path / "fourth", sample_arrays(record(0), None), first.run_id, Earlier(tmp_path / "first/elsewhere", 4)
        ).open()
    other = HistoryWriter(tmp_path / "third" / "gfi", sample_arrays(record(0, seed=3), None), first.run_id, earlier)
    assert other.open().steps == [], "of other samples"


def test_what_was_taken_over_in_part_is_taken_over_again(tmp_path, monkeypatch):
    first = write(tmp_path / "first", record(0), record(4), record(8))
    earlier = Earlier(tmp_path / "first" / "gfi", last_step=8)
    second = HistoryWriter(tmp_path / "second" / "gfi", sample_arrays(record(0), None), first.run_id, earlier)
    fsync, calls = os.fsync, []

    def fail_once(descriptor):
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError("No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail_once)
    with pytest.raises(OSError, match="No space left"):
        second.open()
    second.append(run_array(record(12), CurveTracker({}).curves(record(12))))
    assert History.load(tmp_path / "second").steps == [0, 4, 8, 12]


def test_when_it_settled_is_not_known_from_one_run(tmp_path):
    write(tmp_path, record(0))
    assert History.load(tmp_path).settled() == [None, None]


def test_several_labels(tmp_path):
    run = record(0)
    samples = [replace(run.samples[0], label=None, present=(0, 2)), replace(run.samples[1], label=None, present=())]
    write(tmp_path, replace(run, samples=samples))
    history = History.load(tmp_path)
    assert [history.classes(sample) for sample in range(2)] == [[0, 2], []]
    write(tmp_path / "single", run)
    labels = History.load(tmp_path / "single").labels.tolist()
    assert [History.load(tmp_path / "single").classes(sample) for sample in range(2)] == [[label] for label in labels]


@pytest.mark.parametrize("content", ["nothing", "an array", "no regions"])
def test_runs_without_samples_say_what_is_damaged(tmp_path, content):
    writer = write(tmp_path, record(0))
    path = tmp_path / "gfi" / f"samples_{writer.run_id}.npz"
    if content == "nothing":
        path.write_bytes(b"")
    elif content == "an array":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    else:
        np.savez(path, images=np.zeros((1, 2, 2, 3), dtype=np.uint8))
    with (
        pytest.warns(UserWarning, match=r"samples_\S+ is damaged and skipped"),
        pytest.raises(FileNotFoundError, match=rf"holds runs, but the file {path.name}.* is damaged or gone"),
    ):
        History.load(tmp_path)


def test_no_history(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no runs: give the log directory of a run"):
        History.load(tmp_path)


def test_maps_of_another_base_layer_are_brought_to_the_size_of_the_last(tmp_path):
    write(tmp_path, record(0, grid=(2, 2)), record(5))
    maps = History.load(tmp_path).heatmaps(0)
    assert maps.shape == (2, 2, 4, 4)
    coarse = record(0, grid=(2, 2)).maps()[0]
    corners = maps[0, 0][[0, 0, -1, -1], [0, -1, 0, -1]]  # which interpolation does not touch
    np.testing.assert_allclose(corners, coarse.flatten(), atol=1e-3)
    assert History.load(tmp_path).foregrounds(1).shape == (2, 4, 4)


def test_some_of_the_runs(tmp_path):
    write(tmp_path, record(0), record(5), record(9))
    some = History.load(tmp_path).at([0, 2])
    assert some.steps == [0, 9]
    assert some.curve("removed").shape == (2, 2)
