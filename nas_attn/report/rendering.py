"""Markdown and LaTeX from templates that escape all that is put into them."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "|": r"\textbar{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


def markdown_text(text: str) -> str:
    """A text for a Markdown table or paragraph that shows as it is, whatever it holds."""
    line = "".join(sign if sign.isprintable() else " " for sign in text)
    return re.sub(r"([\\|`*\[\]$])", r"\\\1", html.escape(line, quote=False))


def latex_text(text: str) -> str:
    """A text as LaTeX sets it, whatever is in it."""
    return re.sub(r"[\\~^|<>&%$#_{}]", lambda found: SPECIAL[found.group()], text)


def render_markdown(template: str, **values: Any) -> str:
    """Fill a Markdown template of this package; what is marked safe is not escaped.

    Args:
        template: File name of the template.
        values: Values of its variables.
    """
    return MARKDOWN.get_template(template).render(values)


def render_latex(template: str, **values: Any) -> str:
    """Fill a LaTeX template of this package; what is marked safe is not escaped.

    Args:
        template: File name of the template.
        values: Values of its variables.
    """
    return LATEX.get_template(template).render(values)


def _environment(escape: Callable[[str], str]) -> Environment:
    # Jinja's own escaping is for HTML only; this does the same to every value that is put out.
    return Environment(
        loader=PackageLoader("nas_attn.report"),
        finalize=lambda value: value if isinstance(value, Markup) else escape(str(value)),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )


MARKDOWN, LATEX = _environment(markdown_text), _environment(latex_text)
