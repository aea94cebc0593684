"""Formulas as MathML, which browsers draw by themselves: no script, no font and no network."""

import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx

_TAG = re.compile(r"\\tag\{(.+?)\}")  # the number of an equation, which stands at the right
_NAME = re.compile(r"<mo>([A-Za-z]{2,})</mo>(?=(<mo stretchy=\"false\">&#x00028;)?)")  # `max`, and whether ( follows it


def _mathml(latex: str, display: str) -> str:
    """An operator's wide space is too much around a name: a thin one, and none before a parenthesis."""
    return _NAME.sub(_named, convert(latex, display=display))


def _named(found: re.Match[str]) -> str:
    return f'<mo lspace="0.17em" rspace="{0 if found[2] else 0.17}em">{found[1]}</mo>'


def inline(self: Any, node: nodes.math) -> None:
    self.body.append(_mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def block(self: Any, node: nodes.math_block) -> None:
    latex = node.astext()
    numbers = "".join(f"<span>({number})</span>" for number in _TAG.findall(latex))
    self.body.append(self.starttag(node, "div", CLASS="math"))
    self.body.append(f"<div>{_mathml(_TAG.sub('', latex), 'block')}</div>{numbers}</div>")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", inline_renderers=(inline, None), block_renderers=(block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
