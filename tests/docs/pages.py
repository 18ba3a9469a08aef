"""The code on a page of the documentation, and how it is run.

A page's blocks belong together, from top to bottom, in one folder that is empty at first:

- ```python is run, all blocks of the page in one module;
- a comment ``<!-- run``, lines of Python, ``-->``, both ends on lines of their own, is run at its place likewise: what
  the page needs and the reader does not;
- a comment ``<!-- needs NAME … -->`` names markers of the tests, such as ``timm``: without that library the page is
  skipped;
- ```sh is run line by line as far as that can be done in no time, or else checked, see :mod:`tests.docs.commands`;
- where hidden code has defined a function ``shell(line)``, lines of sh go to that first, and only where it returns
  False on to the others;
- a block with a ``title="FILE"`` is written to that file. Python files must then be run by a later line of sh;
- YAML and TOML must have a title, or be used by the hidden code that comes next, as ``block``;
- ```text is no code, nor is a block without a language. Any other language is refused, so that nothing is left untested
  without anybody knowing.
"""

import re
import sys
import textwrap
import types
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from tests.docs.commands import run_line

ROOT = Path(__file__).resolve().parents[2]
NO_CODE = {"", "text"}
_FENCE = re.compile(r"(?P<indent> *)(?P<ticks>```+|~~~+) *(?P<language>[\w+-]*) *(?P<rest>.*)")
_TITLE = re.compile(r'title="([^"]+)"')
_NEEDS = re.compile(r"<!-- needs (.+?) -->")
RUN, END = "<!-- run", "-->"


@dataclass
class Block:
    """A block of code: its language ("run" for a hidden one), its lines, the number of the first, and its file."""

    language: str
    lines: list[str]
    first: int
    file: str | None = None

    @property
    def code(self) -> str:
        return textwrap.dedent("\n".join(self.lines)) + "\n"


@dataclass
class Page:
    """A page, its blocks, and the markers of what it needs."""

    path: Path
    blocks: list[Block]
    needs: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return str(self.path.relative_to(ROOT)) if self.path.is_relative_to(ROOT) else self.path.name

    @property
    def has_code(self) -> bool:
        return any(block.language not in NO_CODE for block in self.blocks)


def pages() -> list[Page]:
    """README and all pages of the site that have code."""
    every = [read_page(path) for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))]
    return [page for page in every if page.has_code]


def read_page(path: Path) -> Page:
    """Cut a page into blocks.

    Raises:
        ValueError: a block has no end, or one that cannot be tested is on the page.
    """
    blocks, needs, block, ends = [], [], None, None
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        fence = _FENCE.fullmatch(line)
        if block is not None:
            if line.strip() == ends:
                block = None
            else:
                block.lines.append(line)
        elif line == RUN:
            block, ends = Block("run", [], number + 1), END
        elif fence:
            title = _TITLE.search(fence["rest"])
            block, ends = Block(fence["language"], [], number + 1, title and title[1]), fence["ticks"]
        elif found := _NEEDS.fullmatch(line):
            needs += found[1].split()
        elif line.startswith("<!--") and "run" in line.split()[1:2]:
            raise ValueError(f"{path.name}:{number}: hidden code begins with a line that is exactly {RUN!r}.")
        if block is not None and (not blocks or blocks[-1] is not block):
            blocks.append(block)
    if block is not None:
        raise ValueError(f"{path.name}:{block.first}: this block has no end.")
    page = Page(path, blocks, needs)
    _check(page)
    return page


def _check(page: Page) -> None:
    for number, block in enumerate(page.blocks):
        where = f"{page.path.name}:{block.first}"
        if block.language not in {"python", "run", "sh", "yaml", "toml", *NO_CODE}:
            raise ValueError(f"{where}: nobody knows how to test {block.language!r}: see tests/docs/pages.py.")
        if block.language in {"yaml", "toml"} and block.file is None and not _is_used(page.blocks[number + 1 :]):
            raise ValueError(f'{where}: give it a title="FILE", or let hidden code that comes next use it as `block`.')
        if block.language == "python" and block.file is not None:
            later = [line for one in page.blocks[number:] if one.language in ("sh", "run") for line in one.lines]
            if not any(block.file in line for line in later):
                raise ValueError(f"{where}: no later line of sh runs {block.file}.")


def _is_used(later: list[Block]) -> bool:
    return bool(later) and later[0].language == "run" and re.search(r"\bblock\b", later[0].code) is not None


def run_page(page: Page, folder: Path) -> None:
    """Run a page's blocks in a folder, which is the current one."""
    with _module(page, folder) as module:
        for block in page.blocks:
            if block.file is not None:
                _write(block, folder)
            elif block.language in ("python", "run"):
                # As many empty lines in front as the page has, so that a traceback names the page's own line.
                code = compile("\n" * (block.first - 1) + block.code, str(page.path), "exec")
                exec(code, module.__dict__)
            elif block.language == "sh":
                for line in command_lines(block):
                    own = module.__dict__.get("shell")
                    if own is None or own(line) is False:
                        run_line(line, folder)
            else:
                module.block = block.code


def command_lines(block: Block) -> list[str]:
    """The lines without comments, those that go on joined."""
    joined = re.sub(r"\\\n\s*", " ", block.code)
    return [line for line in (re.sub(r"(^|\s)#.*", "", line).strip() for line in joined.splitlines()) if line]


def _write(block: Block, folder: Path) -> None:
    path = folder / block.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.code, encoding="utf-8")
    if block.language == "yaml":
        yaml.safe_load(block.code)


@contextmanager
def _module(page: Page, folder: Path):
    """A module that the page's code is run in; what it imports from the folder is forgotten afterwards."""
    name = "page_" + re.sub(r"\W", "_", page.path.stem)
    module = types.ModuleType(name)
    before = set(sys.modules)
    sys.modules[name] = module  # dataclasses and pickle look for it there
    sys.path.insert(0, str(folder))
    try:
        yield module
    finally:
        sys.path.remove(str(folder))
        for other in set(sys.modules) - before:
            origin = getattr(sys.modules[other], "__file__", None) or ""
            if other == name or origin.startswith(str(folder)):
                del sys.modules[other]
