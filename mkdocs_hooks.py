"""What our site needs beside its plugins: equations as MathML, links in docstrings, and no hidden code."""

import html
import re
import textwrap
from typing import Any

from griffe import Extension, Object
from latex2mathml.converter import convert

# What pymdownx.arithmatex makes of $…$ and $$…$$ where it is told to be generic.
_EQUATION = re.compile(
    r'<span class="arithmatex">\\\((?P<inline>.*?)\\\)</span>|<div class="arithmatex">\\\[(?P<block>.*?)\\\]</div>',
    re.DOTALL,
)
# A reference in a docstring, such as :class:`~gfi_lightning.Recipe`, once Markdown has made code of its name.
_REFERENCE = re.compile(r":(?:class|func|meth|mod|attr):<code>(?P<short>~?)(?P<name>[\w.]+)</code>")
_EXAMPLE = re.compile(r"^(?P<indent> *)Example:(?P<is_code>:?)\n(?P<lines>(?:(?P=indent) +.*\n?|\n)+)", re.MULTILINE)
_HIDDEN = re.compile(r"^<!-- (run|needs)\b.*?-->\n?", re.DOTALL | re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Without the comments that are for the tests."""
    return _HIDDEN.sub("", markdown)


def on_page_content(content: str, **_: Any) -> str:
    """With MathML for equations, and links for references."""
    return _REFERENCE.sub(_link, _EQUATION.sub(_mathml, content))


def _mathml(found: re.Match[str]) -> str:
    display = "inline" if found["block"] is None else "block"
    return str(convert(html.unescape(found["inline"] or found["block"]).strip(), display=display))


def _link(found: re.Match[str]) -> str:
    """For the plugin autorefs, which leaves the mere name where it knows no such place."""
    name = found["name"]
    shown = name.rsplit(".", 1)[-1] if found["short"] else name
    return f'<autoref optional identifier="{name}"><code>{shown}</code></autoref>'


class Examples(Extension):
    """Has examples in docstrings shown as code, which it else takes for quotations."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Of every module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = _EXAMPLE.sub(_examples, obj.docstring.value)


def _examples(found: re.Match[str]) -> str:
    """A section of examples as Google's style has it, with a fence where no line has a prompt."""
    lines = textwrap.dedent(found["lines"]).strip("\n")
    if found["is_code"]:
        lines = f"```python\n{lines}\n```"
    return textwrap.indent(f"Examples:\n{textwrap.indent(lines, '    ')}\n", found["indent"])
