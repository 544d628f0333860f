"""The page of a predicted front of any PyTorch model: one file that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, StrictUndefined

from nas_attn.analysis.sensitivity import SensitivityFindings, prediction_row
from nas_attn.engine.sensitivity import Prediction
from nas_attn.files import write_text
from nas_attn.plan import AttentionChoice, SiteShape
from nas_attn.report.figures import svg_bytes
from nas_attn.report.formatting import cost_words
from nas_attn.report.pictures import codes_of, plan_picture
from nas_attn.report.sensitivity import curve, heat_map, surface_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGES = Environment(autoescape=True, undefined=StrictUndefined)
PAGES.filters["minus"] = lambda text: str(text).replace("-", "\N{MINUS SIGN}")


@dataclass(frozen=True, kw_only=True)
class PredictedModel:
    """The model that a front was predicted of.

    Args:
        shapes: Shapes of its sites.
        loss: Mean loss as it was trained.
        examples: Number of losses that are the mean of.
        distils: Whether converted modules were trained alone.
    """

    shapes: Mapping[str, SiteShape]
    loss: float
    examples: int
    distils: bool


def write_front_page(findings: SensitivityFindings, model: PredictedModel, folder: Path) -> Path:
    """Write the page.

    Args:
        findings: All that was measured and predicted.
        model: Model that they are of.
        folder: Folder that the page goes to, as index.html.

    Returns:
        The page.
    """
    codes = codes_of([point.plan for point in findings.chosen])
    html = PAGES.from_string(_resource("front_page.html")).render(
        style=_resource("page.css"),
        findings=findings,
        model=model,
        axis=cost_words(findings.axis),
        second="" if findings.second is None else cost_words(findings.second),
        rows=[
            _row(number, point, findings, model, codes, folder)
            for number, point in enumerate(findings.chosen)
        ],
        checks=sorted(findings.checks, key=lambda check: check.cost),
        front=_picture(curve(findings)),
        heat=_picture(heat_map(findings)),
        surface=surface_text(findings),
    )
    page = folder / "index.html"
    write_text(page, html)
    return page


def _row(
    number: int,
    point: Prediction,
    findings: SensitivityFindings,
    model: PredictedModel,
    codes: Mapping[AttentionChoice, str],
    folder: Path,
) -> dict[str, Any]:
    if model.distils:
        lines = (
            "front = nas_attn.predict_front(\n"
            f"    model, data, loss, space, distil=True, folder={str(folder)!r}\n"
            ")\n"
            f"smaller = front.convert({number})"
        )
    else:
        lines = (
            f"plan = nas_attn.AttentionPlan.parse({point.plan.dumps()!r})\n"
            "nas_attn.convert_model(\n"
            "    model, plan, lambda model: [loss(model, batch) for batch in batches]\n"
            ")"
        )
    return {
        **prediction_row(point, findings),
        "second": point.others[0] if point.others else None,
        "picture": plan_picture(point.plan, model.shapes, codes),
        "words": str(point.plan),
        "lines": f"import nas_attn\n\n{lines}",
    }


def _picture(figure: Figure) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg_bytes(figure)).decode()}"


def _resource(name: str) -> str:
    return resources.files("nas_attn.report").joinpath(name).read_text(encoding="utf-8")
