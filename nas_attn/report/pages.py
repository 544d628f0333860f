"""Pages of one file each: templates, style and scripts of this package, put together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined


def render(
    template: str, scripts: Sequence[str], data: Mapping[str, Any], parts: Mapping[str, Any]
) -> str:
    """A page as HTML that needs nothing else.

    Args:
        template: File name of the template.
        scripts: File names of the parts of its one script, in the order in which they run.
        data: What the script reads.
        parts: Values of the template's variables.
    """
    from plotly.offline import get_plotlyjs

    return PAGES.get_template(template).render(
        style=_resource("page.css"),
        script="\n".join(_resource(name) for name in ("shared.js", *scripts)),
        library=get_plotlyjs(),
        data=_embedded(data),
        **parts,
    )


def numeric(text: Any) -> str:
    """A number with the signs of good print: a true minus, and a space before a per cent sign."""
    return str(text).replace("-", "\N{MINUS SIGN}").replace("%", "\N{NO-BREAK SPACE}%")


def _embedded(data: Mapping[str, Any]) -> str:
    """JSON that cannot end the script element that holds it."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _resource(name: str) -> str:
    return resources.files("nas_attn.report").joinpath(name).read_text(encoding="utf-8")


PAGES = Environment(autoescape=True, undefined=StrictUndefined, loader=FunctionLoader(_resource))
PAGES.filters["numeric"] = numeric
