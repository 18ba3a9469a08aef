"""All code on the pages is run."""

import pytest
import torch

from gfi_lightning.guard import preserved_rng
from tests.docs.commands import run_line
from tests.docs.pages import command_lines, pages, read_page, run_page

PAGES = [
    pytest.param(page, id=page.name, marks=[getattr(pytest.mark, name) for name in page.needs]) for page in pages()
]


@pytest.mark.parametrize("page", PAGES)
def test_its_code_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    monkeypatch.delenv("PL_SEED_WORKERS", raising=False)
    with preserved_rng(0):
        run_page(page, tmp_path)


def written(folder, text):
    path = folder / "page.md"
    path.write_text(text, encoding="utf-8")
    return path


def test_blocks_share_their_names_and_hidden_code_is_run_at_its_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = read_page(
        written(
            tmp_path,
            "<!-- run\nfound = []\n-->\n\n```python\nfound.append(1)\n```\n"
            "- in a list\n\n    ```python\n    found.append(2)\n    ```\n<!-- run\nassert found == [1, 2]\n-->\n",
        )
    )
    run_page(page, tmp_path)


def test_a_failure_names_the_line_of_the_page(tmp_path):
    page = read_page(written(tmp_path, "# Title\n\n```python\nfine = 1\nfine / 0\n```\n"))
    with pytest.raises(ZeroDivisionError) as failure:
        run_page(page, tmp_path)
    assert (failure.traceback[-1].path.name, failure.traceback[-1].lineno + 1) == ("page.md", 5)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("```perl\n1\n```", "nobody knows how to test 'perl'"),
        ("```python\n1\n", "has no end"),
        ("```yaml\na: 1\n```", "give it a title"),
        ('```python title="train.py"\n1\n```', r"no later line of sh runs train\.py"),
        ("<!-- run this\n1\n-->", "exactly '<!-- run'"),
    ],
)
def test_what_cannot_be_tested_is_refused(tmp_path, text, complaint):
    with pytest.raises(ValueError, match=complaint):
        read_page(written(tmp_path, text))


@pytest.mark.parametrize(
    "line",
    [
        "rm -r lightning_logs",
        "make tea",
        "pip install gfi-lightning[tea]",
        "pip install something-else",
        "python examples/digits.py --tea",
        "python examples/tea.py",
    ],
)
def test_lines_of_a_shell_that_would_not_work_are_found(tmp_path, line):
    with pytest.raises(AssertionError):
        run_line(line, tmp_path)


def test_tensorboards_flags_are_parsed_by_itself(tmp_path):
    run_line("tensorboard --logdir lightning_logs --samples_per_plugin images=1000", tmp_path)
    with pytest.raises(SystemExit):
        run_line("tensorboard --logdir lightning_logs --tea", tmp_path)


def test_a_file_that_a_page_writes_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = read_page(
        written(
            tmp_path,
            '```python title="own.py"\nopen("made", "w").write("x")\n```\n\n'
            "```sh\n# a comment\npython own.py \\\n    further  # another\n```\n",
        )
    )
    assert command_lines(page.blocks[1]) == ["python own.py  further"]
    run_page(page, tmp_path)
    assert (tmp_path / "made").exists()


def test_hidden_code_can_take_over_lines_of_a_shell_and_use_blocks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = read_page(
        written(
            tmp_path,
            "```yaml\na: 1\n```\n<!-- run\nassert block == 'a: 1\\n'\nlines = []\n\n\n"
            "def shell(line):\n    lines.append(line)\n    return line.startswith('odd')\n-->\n"
            "```sh\nodd thing > there\nmake test\n```\n"
            "<!-- run\nassert lines == ['odd thing > there', 'make test']\n-->\n",
        )
    )
    run_page(page, tmp_path)


def test_torch_is_as_it_was_after_a_page(tmp_path):
    before = torch.get_rng_state()
    with preserved_rng(0):
        run_page(read_page(written(tmp_path, "```python\nimport torch\ntorch.rand(3)\n```")), tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
