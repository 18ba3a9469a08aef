"""The command: what it writes, and what it says where it cannot."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from gfi_lightning.cli import _names, main
from tests.recording.histories import Plan, write

SMALL = Plan(steps=(0, 5, 9), samples=2, size=(16, 16), grid=(4, 4))


def error_of(capsys, *arguments):
    assert main([str(one) for one in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line


def test_report_says_what_it_wrote_and_how_big_it_is(tmp_path, capsys):
    write(tmp_path / "version_0", SMALL)
    output = tmp_path / "page.html"
    assert main(["report", str(tmp_path / "version_0"), "-o", str(output)]) == 0
    run, wrote = capsys.readouterr().out.splitlines()
    assert run == "version_0: 3 steps, 2 samples"
    assert wrote == f"Wrote {output}, 0.1 MB: open it in a browser."
    assert 50e3 < output.stat().st_size < 150e3


def test_report_html_by_default(tmp_path, monkeypatch):
    write(tmp_path, SMALL)
    monkeypatch.chdir(tmp_path)
    assert main(["report", "."]) == 0
    assert f"<h1>{tmp_path.name}</h1>" in Path("report.html").read_text(encoding="utf-8")


def test_a_folder_of_runs_is_all_of_them_in_order(tmp_path, capsys):
    for number in (10, 2, 1):
        write(tmp_path / f"lightning_logs/version_{number}", SMALL)
    (tmp_path / "lightning_logs/version_3/checkpoints").mkdir(parents=True)
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "page.html")]) == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()[:-1]] == [
        "version_1",
        "version_2",
        "version_10",
    ]


def test_runs_at_several_depths_of_a_folder(tmp_path, capsys):
    for name in ("one", "two/version_0", "two/version_0/below", "three/deep/version_1"):
        write(tmp_path / name, SMALL)
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "page.html")]) == 0
    shown = {line.split(":")[0] for line in capsys.readouterr().out.splitlines()[:-1]}
    assert shown == {"one", "two/version_0", "two/version_0/below", "three/deep/version_1"}
    assert main(["report", str(tmp_path / "two/version_0"), "-o", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().out.startswith("version_0: ")


def test_the_same_run_twice_is_one(tmp_path, capsys):
    write(tmp_path / "version_0", SMALL)
    again = tmp_path / "version_0/../version_0"
    assert main(["report", str(tmp_path / "version_0"), str(again), "-o", str(tmp_path / "page.html")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_of_several_trainings_in_a_folder_the_last_one(tmp_path, capsys):
    write(tmp_path, Plan(steps=(0, 1, 2, 3), samples=3, size=(16, 16)))
    write(tmp_path, SMALL)
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "page.html")]) == 0
    assert "3 steps, 2 samples" in capsys.readouterr().out


def test_any_of_several_trainings_by_its_id(tmp_path, capsys):
    first = write(tmp_path, Plan(steps=(0, 1, 2, 3), samples=3, size=(16, 16))).run_id
    last = write(tmp_path, SMALL).run_id
    command = ["report", str(tmp_path), "-o", str(tmp_path / "page.html")]
    for wanted, shown, other in ([], "3 steps, 2 samples", first), (["--run-id", first], "4 steps, 3 samples", last):
        assert main([*command, *wanted]) == 0
        run, others, _ = capsys.readouterr().out.splitlines()
        assert run.endswith(shown)
        assert others == f"  others in that folder, for --run-id: {other}"
    assert f"holds no run_id='nothing', but {first}, {last}." in error_of(capsys, *command, "--run-id", "nothing")


def test_of_several_folders_those_that_hold_the_id(tmp_path, capsys):
    write(tmp_path / "version_0", SMALL)
    wanted = write(tmp_path / "version_1", SMALL).run_id
    write(tmp_path / "version_1", SMALL)
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "page.html"), "--run-id", wanted]) == 0
    assert capsys.readouterr().out.startswith("version_1: 3 steps")


def test_name_of_the_callback(tmp_path, capsys):
    write(tmp_path, SMALL, name="probes")
    output = tmp_path / "page.html"
    assert error_of(capsys, "report", tmp_path, "-o", output).endswith("Others that are there, for --name: probes.")
    assert not output.exists()
    assert main(["report", str(tmp_path), "-o", str(output), "--name", "probes"]) == 0


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["logs/version_0"], ["version_0"]),
        (["logs/version_0", "logs/version_1"], ["version_0", "version_1"]),
        (["runs/plain/version_0", "runs/bright/version_0"], ["plain", "bright"]),
        (["runs/a/logs/v0", "runs/b/logs/v1"], ["a/logs/v0", "b/logs/v1"]),
        (["runs/a", "runs/a/version_1"], ["a", "a/version_1"]),
        (["a/x/x", "a/x/x/x"], ["x", "x/x"]),
    ],
)
def test_names_are_what_tells_the_runs_apart(folders, names):
    assert _names([Path(folder) for folder in folders]) == names


def test_no_such_folder(tmp_path, capsys):
    line = error_of(capsys, "report", tmp_path / "version_9", "-o", tmp_path / "page.html")
    assert line == f"gfi-lightning: error: {tmp_path / 'version_9'} is not there."


def test_a_file_is_no_log_directory(tmp_path, capsys):
    file = tmp_path / "run.txt"
    file.touch()
    assert "is a file, and no folder" in error_of(capsys, "report", file, "-o", tmp_path / "page.html")


def test_a_folder_without_a_history(tmp_path, capsys):
    line = error_of(capsys, "report", tmp_path, "-o", tmp_path / "page.html")
    assert f"{tmp_path} holds no maps, nor do the folders in it: give the log directory of a run" in line


def test_nothing_that_can_be_read(tmp_path, capsys):
    write(tmp_path, SMALL)
    for path in tmp_path.glob("gfi/run_*"):
        path.write_bytes(b"not a run")
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "page.html")]) == 2
    *warnings, line = capsys.readouterr().err.splitlines()
    assert len(warnings) == 3
    assert all(one.startswith("warning: ") and "damaged and skipped" in one for one in warnings)
    assert "has no steps" in line


def test_unwritable_output(tmp_path, capsys):
    write(tmp_path, SMALL)
    assert "is a folder: give -o the name of a file" in error_of(capsys, "report", tmp_path, "-o", tmp_path)
    missing = tmp_path / "missing" / "page.html"
    assert f"The folder {missing.parent} does not exist" in error_of(capsys, "report", tmp_path, "-o", missing)
    if Path("/dev/full").exists():
        assert "No space left" in error_of(capsys, "report", tmp_path, "-o", "/dev/full")


@pytest.mark.parametrize("arguments", [[], ["report"], ["repeat"]])
def test_what_the_command_does_not_know(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert "usage: gfi-lightning" in capsys.readouterr().err


def test_help_of_the_module(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gfi-lightning", "report", "--help"])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_module("gfi_lightning", run_name="__main__")
    assert exit_.value.code == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("LOGDIR", "--output", "report.html", "--name"))


def test_report_needs_no_lightning(tmp_path):
    write(tmp_path, SMALL)
    program = (
        "import sys; sys.modules['lightning'] = sys.modules['pytorch_lightning'] = None; "
        "from gfi_lightning.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    arguments = ["report", str(tmp_path), "-o", str(tmp_path / "page.html")]
    result = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "page.html").exists()
