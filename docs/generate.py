"""Pages that are made from the code as the site is built; mkdocs calls `on_files` (a hook).

Keys of study and space files come from their pydantic models, commands from Typer, the Python API
from docstrings, schemes from the registry, their pictures from their modules, and what was measured
of them from committed results. None of these pages is in the repository.
"""

from __future__ import annotations

import ast
import inspect
import json
import logging
import re
import sys
import textwrap
import typing
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # mkdocs loads this file by its path

from docs import measured, pictures, plots, results  # noqa: E402
from docs.markdown import escaped, table  # noqa: E402

SHAPES = ((256, 4), (512, 8), (1024, 16))
"""Width and heads that schemes are counted at."""


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages and the figures of studies to the site (mkdocs' hook)."""
    from mkdocs.structure.files import File

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    for path, source in figures().items():
        files.append(File.generated(config, path, abs_src_path=str(source)))
    for path, svg in drawn().items():
        files.append(File.generated(config, path, content=svg))
    return files


def pages() -> dict[str, str]:
    """Generated pages by their path in the site, in Markdown."""
    _import_fairseq()
    made = {
        "reference/study-file.md": study_page(),
        "reference/space-file.md": space_page(),
        "reference/commands.md": commands_page(),
        "reference/python.md": python_page(),
        "reference/schemes/index.md": schemes_page(),
        "studies/results.md": _breakable((ROOT / results.RESULTS).read_text()),
        "studies/equal-size.md": measured.equal_size_page(),
        "contributing.md": (ROOT / "CONTRIBUTING.md").read_text(),
        "security.md": (ROOT / "SECURITY.md").read_text(),
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(),
    }
    from nas_attn.attention import SCHEMES

    return made | {f"reference/schemes/{name}.md": scheme_page(name) for name in SCHEMES}


def _import_fairseq() -> None:
    """Import fairseq without its warnings of deprecated calls, and leave logging as it was."""
    logger = logging.getLogger()
    level, handlers = logger.level, logger.handlers[:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nas_attn.light_fairseq import defer_sklearn

        defer_sklearn()
        import fairseq_plugin  # noqa: F401
    logger.setLevel(level)
    logger.handlers[:] = handlers


def _breakable(text: str) -> str:
    """A page whose plans in tables may be broken between a scheme and its options."""
    row = re.compile(r"^\|.*", re.MULTILINE)
    names = re.compile(rf"\b({results.NAMES})\(")
    return row.sub(lambda found: names.sub(r"\1<wbr>(", found[0]), text)


def figures() -> dict[str, Path]:
    """Figures of studies by their path in the site."""
    found = sorted(
        path for kind in ("svg", "png") for path in (ROOT / "studies").glob(f"*/*.{kind}")
    )
    return {f"studies/{path.parent.name}/{path.name}": path for path in found}


def drawn() -> dict[str, str]:
    """Pictures of schemes and fronts by their path in the site, as SVG."""
    from nas_attn.attention import SCHEMES

    made = {f"reference/schemes/{name}.svg": pictures.picture(name) for name in SCHEMES}
    for front in results.fronts():
        made[f"studies/fronts/{results.anchor(front.name)}.svg"] = plots.front_plot(front)
    return made


# Text


def prose(docstring: str) -> str:
    """A Google-style docstring as Markdown: sections become lists, example lines code."""
    made: list[str] = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(docstring)):
        title, _, rest = paragraph.partition("\n")
        if title in ("Args:", "Returns:", "Raises:"):
            made += [
                f"**{title[:-1]}**",
                _listed(rest) if title != "Returns:" else escaped(textwrap.dedent(rest)),
            ]
        elif paragraph.startswith(("    ", "nas-attn ")):
            made.append(f"```\n{textwrap.dedent(paragraph)}\n```")
        else:
            made.append(escaped(paragraph))
    return "\n\n".join(made)


def _listed(text: str) -> str:
    items = re.split(r"\n(?! )", textwrap.dedent(text))
    return "\n".join(f"- {escaped(' '.join(item.split()))}" for item in items)


# Study and space files


def study_page() -> str:
    """Every key of a study file."""
    from nas_attn.study.config import StudyConfig
    from nas_attn.study.shipped import shipped_description, shipped_names

    studies = [[f"`{n}`", escaped(shipped_description(n))] for n in shipped_names("studies")]
    return "\n\n".join(
        [
            "# Keys of a study file",
            "A study file is YAML; [how to write one](../how-to/study-file.md). `nas-attn check` "
            "refuses unknown keys and wrong types by key path. A dash means that the key must be "
            "given.",
            *_sections(StudyConfig, "", skipped=("space",)),
            "The section `space` is described under [keys of a search space](space-file.md).",
            "## Shipped studies",
            table(["study", "what it is"], studies),
        ]
    )


def space_page() -> str:
    """Every key of a search space, and the shipped spaces."""
    from nas_attn.space.config import SpaceConfig
    from nas_attn.study.shipped import shipped_names
    from nas_attn.study.spaces import load_space_config

    rows = []
    for name in shipped_names("search_spaces"):
        space = load_space_config(name)
        rows.append([f"`{name}`", f"`{space.decide}`", escaped(space.description)])
    return "\n\n".join(
        [
            "# Keys of a search space",
            "A search space is a YAML file, or the section `space` of a study; [how to choose or "
            "write one](../how-to/search-spaces.md).",
            *_sections(SpaceConfig, ""),
            "Values of an option are a list (`[32, 64]`), fractions of the site's width "
            "(`{fraction_of_embed_dim: [0.25, 0.5]}`) or of its heads "
            "(`{fraction_of_num_heads: [0.5]}`).",
            "## Shipped spaces",
            table(["space", "decides", "what it is"], rows),
        ]
    )


def _sections(model: type, prefix: str, *, skipped: tuple[str, ...] = ()) -> Iterator[str]:
    """A section's table and those of its subsections."""
    schema = model.model_json_schema()  # type: ignore[attr-defined]
    subsections = {n: m for n, m in _submodels(model).items() if n not in skipped}
    docs, rows = attribute_docs(model), []
    for name, about in schema["properties"].items():
        text = about.get("description") or docs.get(name, "")
        if name in subsections:
            inner = prefix + name
            text = f"{text or _summary(subsections[name])} [Its keys](#{inner.replace('.', '')})."
        needed = name in schema.get("required", ())
        default = "-" if needed else f"`{json.dumps(about.get('default'))}`"
        if name in subsections or (not needed and about.get("default") is None):
            default = default if needed else ""
        kind = "section" if name in subsections else type_text(about, schema.get("$defs", {}))
        rows.append([f"`{prefix}{name}`", escaped(kind), default, escaped(text)])
    yield table(["key", "type", "default", "meaning"], rows).replace("\\[Its keys\\]", "[Its keys]")
    for name, inner in subsections.items():
        yield f"{'#' * (2 + prefix.count('.'))} {prefix}{name}"
        yield prose(inner.__doc__ or "")
        yield from _sections(inner, f"{prefix}{name}.")


def _summary(model: type) -> str:
    return inspect.cleandoc(model.__doc__ or "").split("\n")[0]


def _submodels(model: Any) -> dict[str, type]:
    """Keys of a model whose values are one section."""
    from pydantic import BaseModel

    def within(hint: Any) -> Iterator[type]:
        if isinstance(hint, type) and issubclass(hint, BaseModel):
            yield hint
        for part in typing.get_args(hint):
            yield from within(part)

    found = {name: [*within(field.annotation)] for name, field in model.model_fields.items()}
    return {name: models[0] for name, models in found.items() if len(models) == 1}


def attribute_docs(model: type) -> dict[str, str]:
    """The docstrings below a class's attributes."""
    node = ast.parse(textwrap.dedent(inspect.getsource(model))).body[0]
    assert isinstance(node, ast.ClassDef)
    return {
        attribute.target.id: inspect.cleandoc(text.value.value)
        for attribute, text in pairwise(node.body)
        if isinstance(attribute, ast.AnnAssign)
        and isinstance(attribute.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    }


def type_text(schema: Mapping[str, Any], defs: Mapping[str, Any]) -> str:
    """A JSON schema in words."""
    if "$ref" in schema:
        return type_text(defs[schema["$ref"].rpartition("/")[2]], defs)
    for several in ("anyOf", "oneOf"):
        if several in schema:
            parts = [type_text(part, defs) for part in schema[several]]
            return " or ".join(dict.fromkeys(part for part in parts if part != "nothing"))
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    kind = schema.get("type", "number, word, true or false")
    if kind == "array":
        return f"list of {type_text(schema.get('items', {}), defs)}"
    names = {
        "null": "nothing", "integer": "integer", "number": "number", "string": "text",
        "boolean": "`true`, `false`", "object": "mapping",
    }  # fmt: skip
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {schema[bound]:,}" for bound, sign in signs.items() if bound in schema]
    return f"{names.get(kind, kind)} {', '.join(bounds)}".strip()


# Commands


def commands_page() -> str:
    """Every command with its arguments and options."""
    import typer

    from nas_attn.cli.main import app

    root = typer.main.get_command(app)
    parts = [
        "# Commands",
        "Errors are one message and an exit status: 0 done, 1 it could not be done, 2 the input "
        "was refused and nothing was started, 130 after Ctrl-C. `nas-attn COMMAND --help` prints "
        "the same text.",
        _parameters(root, "nas-attn"),
    ]
    for path, command in walk(root, "nas-attn"):
        parts += [f"## {path}", prose(command.help or ""), _parameters(command, path)]
    return "\n\n".join(part for part in parts if part)


def walk(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Commands below a group, with what is typed to run them."""
    for name, inner in command.commands.items():
        if inner.hidden:
            continue
        if hasattr(inner, "commands"):
            yield from walk(inner, f"{path} {name}")
        else:
            yield f"{path} {name}", inner


def _parameters(command: Any, path: str) -> str:
    import typer

    context = typer.Context(command, info_name=path)
    records = [parameter.get_help_record(context) for parameter in command.get_params(context)]
    rows = [[f"`{record[0]}`", escaped(record[1])] for record in records if record is not None]
    return table(["argument or option", "meaning"], rows)


# Python


def python_page() -> str:
    """Every public name of the package."""
    import nas_attn

    parts = [
        "# Python API",
        f"`import nas_attn` offers {len(nas_attn.__all__)} names, which are imported as they are "
        "asked for. [A search from a notebook](../tutorials/notebook.md) uses them.",
    ]
    for name in nas_attn.__all__:
        thing = getattr(nas_attn, name)
        parts.append(f"## nas_attn.{name}")
        if isinstance(thing, str):
            parts.append(f"The version, `{thing}`.")
            continue
        parts += [_signature(name, thing), prose(thing.__doc__ or "")]
        if isinstance(thing, type):
            parts += _members(thing)
        if name == "predict_front":
            parts += _fronts()
    return "\n\n".join(parts)


def _fronts() -> Iterator[str]:
    """What `predict_front` takes and returns, by what it is called with."""
    from nas_attn import api
    from nas_attn.workflows.model_front import ModelFront, predict_model_front

    for words, thing in (
        ("Of a PyTorch model", predict_model_front),
        ("Of a study or checkpoint", api.predict_front),
    ):
        yield f"### {words}"
        yield _signature("predict_front", thing)
        yield prose(inspect.getdoc(thing) or "")
    yield "### ModelFront"
    yield prose(inspect.getdoc(ModelFront) or "")
    yield from _members(ModelFront)


def _members(owner: type) -> Iterator[str]:
    for name, member in vars(owner).items():
        function = getattr(member, "__func__", member)
        if name.startswith("_") or not inspect.getdoc(function):
            continue
        if isinstance(member, property):
            yield f"### {owner.__name__}.{name}"
        elif inspect.isfunction(function):
            yield f"### {owner.__name__}.{name}()"
            yield _signature(name, getattr(owner, name), is_method=True)
        else:
            continue
        yield prose(inspect.getdoc(function) or "")


def _signature(name: str, thing: Any, *, is_method: bool = False) -> str:
    signature = inspect.signature(thing)
    given = [p for p in signature.parameters.values() if not (is_method and p.name == "self")]
    texts = [str(parameter).replace("'", "") if parameter.default is parameter.empty
             else f"{parameter.name}: {parameter.annotation} = {parameter.default!r}"
             for parameter in given]  # fmt: skip
    keywords = [i for i, p in enumerate(given) if p.kind is p.KEYWORD_ONLY]
    if keywords and not any(p.kind is p.VAR_POSITIONAL for p in given):
        texts.insert(keywords[0], "*")
    returned = signature.return_annotation
    end = "" if isinstance(thing, type) or returned is signature.empty else f" -> {returned}"
    line = f"{name}({', '.join(texts)}){end}"
    if len(line) > 88:
        line = f"{name}(\n" + "".join(f"    {text},\n" for text in texts) + f"){end}"
    return f"```python\n{line}\n```"


# Schemes


@dataclass(frozen=True)
class Facts:
    """What the pages say of a scheme that its code does not.

    Args:
        shares: What heads share.
        parameters: Formula of a layer's parameters for each set of options that has another one;
            a letter may stand for an option's value.
        cache: Formula of the numbers that decoding keeps per token; several if they are others for
            each of those sets of options.
        letters: Option that a letter of the formulas stands for.
        multi_head: When it is multi-head attention.
    """

    shares: str
    parameters: tuple[tuple[Mapping[str, Any], str], ...]
    cache: str | tuple[str, ...]
    letters: Mapping[str, str]
    multi_head: str

    def formulas(self) -> Iterator[tuple[Mapping[str, Any], str, str]]:
        """Sets of options, each with the formulas of parameters and cache."""
        several = isinstance(self.cache, tuple)
        caches = self.cache if several else (self.cache,) * len(self.parameters)
        for (options, parameters), cache in zip(self.parameters, caches, strict=True):
            yield options, parameters, cache


def _one(formula: str) -> tuple[tuple[Mapping[str, Any], str], ...]:
    return (({}, formula),)


ONE_HEAD = "with one head"
FACTS = {
    "multi_head": Facts(
        "nothing: the baseline", _one("4d² + 4d"), "2d", {}, "always; it is the baseline"
    ),
    "collaborative": Facts(
        "one query and one key projection of width D, mixed by a vector per head; with g value "
        "heads (ours) also values",
        _one("2D(d + 1) + nD + gh(d + 1) + d² + d"),
        "D + gh",
        {"D": "shared_dim", "g": "num_value_heads"},
        "with `shared_dim` of the full width and `mixing_init: heads`",
    ),
    "head_embedding_add": Facts(
        "one head's projections, to which each head adds vectors of its own",
        _one("3h(d + 1) + 3nh + d² + d"),
        "2h",
        {},
        ONE_HEAD,
    ),
    "head_embedding_mul": Facts(
        "one head's projections, which each head multiplies by vectors of its own, 1 + e",
        _one("3h(d + 1) + 3nh + d² + d"),
        "2h",
        {},
        f"{ONE_HEAD}; it is `collaborative` at a head's width with one value head",
    ),
    "grouped_query": Facts(
        "keys and values, in g groups of heads",
        (
            ({}, "2gh(d + 1) + 2(d² + d)"),
            ({"num_value_groups": 1}, "(g + 1)h(d + 1) + 2(d² + d)"),
            ({"tied": True}, "gh(d + 1) + 2(d² + d)"),
        ),
        ("2gh", "(g + 1)h", "gh"),
        {"g": "num_groups"},
        "with a group for each head, keys and values apart",
    ),
    "grouped_head": Facts(
        "nothing, but heads are trained into groups, voted on and pruned to k",
        _one("4kh(d + 1) - kh + d"),
        "2kh",
        {"k": "kept_heads"},
        "while all heads are kept",
    ),
    "multi_query": Facts(
        "all keys and values", _one("2h(d + 1) + 2(d² + d)"), "2h", {},
        f"{ONE_HEAD}; it is `grouped_query` with one group",
    ),
    "single_head": Facts(
        "everything: one head, repeated",
        (
            ({}, "3h(d + 1) + d² + d"),
            ({"narrow_output": True}, "3h(d + 1) + hd + d"),
        ),
        "2h",
        {},
        ONE_HEAD,
    ),
    "reduced_key": Facts(
        "nothing, but queries and keys are D wide in all",
        _one("2D(d + 1) + 2(d² + d)"),
        "D + d",
        {"D": "key_dim"},
        "with `key_dim` of the full width",
    ),
    "shared_key_value": Facts(
        "a head's key is its value", _one("3(d² + d)"), "d", {},
        "never: keys are values; it is `grouped_query` with `tied` and a group for each head",
    ),
    "none": Facts(
        "nothing: there are none", (({}, "0"), ({"output_bias": True}, "d")), "0", {},
        "where that gives zero, or always the same",
    ),
    "latent": Facts(
        "a latent of width D, of which keys and values of all heads are made",
        _one("2d² + 3Dd + 4d"),
        "D",
        {"D": "latent_dim"},
        "with `latent_dim` of the full width",
    ),
}  # fmt: skip
"""Tested against the modules themselves (tests/test_docs.py)."""


def value_of(formula: str, **letters: int) -> int:
    """What a formula comes to, such as 2h(d + 1).

    Raises:
        ValueError: It is no such formula.
    """
    if not re.fullmatch(r"[\w²+\- ()]*", formula):
        raise ValueError(f"{formula!r} is no formula")
    text = re.sub(r"(?<=[\w²)])(?=[A-Za-z(])", "*", formula).replace("²", "**2")
    return _evaluated(ast.parse(text, mode="eval").body, letters)


def _evaluated(node: ast.expr, letters: Mapping[str, int]) -> int:
    match node:
        case ast.Constant(value=int(number)):
            return number
        case ast.Name(id=letter):
            return letters[letter]
        case ast.BinOp(left=left, op=op, right=right):
            one, other = _evaluated(left, letters), _evaluated(right, letters)
            powers = {ast.Add: one + other, ast.Sub: one - other, ast.Mult: one * other}
            return one**2 if isinstance(op, ast.Pow) else powers[type(op)]
    raise ValueError(f"{ast.dump(node)} is no part of a formula")


def schemes_page() -> str:
    """All schemes in one table."""
    from nas_attn.attention import SCHEMES

    rows = []
    for name, scheme in SCHEMES.items():
        facts = FACTS[name]
        flags = " ".join(f"`--{f.name.replace('_', '-')}`" for f in fields(scheme.options))
        given = [
            (_with(parameters, options), _with(cache, options))
            for options, parameters, cache in facts.formulas()
        ]
        formulas, caches = ("; ".join(texts) for texts in zip(*given, strict=True))
        caches = facts.cache if isinstance(facts.cache, str) else caches
        rows.append([f"[`{name}`]({name}.md)", facts.shares, flags, formulas, caches])
    return "\n\n".join(
        [
            "# Schemes",
            "Width d, n heads of width h = d/n. D, g and k are options; each page says which. "
            "Cache is in numbers per token. [Where two schemes are the same "
            "function](../../explanation/exact.md#schemes-that-are-the-same-function).",
            table(["scheme", "heads share", "options", "parameters of a layer", "cache"], rows),
        ]
    )


def _with(formula: str, options: Mapping[str, Any]) -> str:
    return formula + (f" with `{_options_text(options)}`" if options else "")


def _options_text(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {json.dumps(value)}" for name, value in options.items())


def scheme_page(name: str) -> str:
    """A scheme, in the form that all have."""
    from nas_attn.attention import SCHEMES

    scheme, facts = SCHEMES[name], FACTS[name]
    function, refused = _docstring(scheme.module)
    letters = ", ".join(f"{letter} = `{option}`" for letter, option in facts.letters.items())
    parts = [
        f"# {name}",
        f"*Heads share:* {facts.shares}.",
        f"*Source:* {escaped(scheme.module.reference)}.",
        f"*Multi-head attention:* {facts.multi_head}.",
        f"![Weights that heads share and weights of one head, parameters and cache]({name}.svg)",
        _caption(name),
        "## Function",
        prose(function),
        "## Options",
        _options(name),
        "## Parameters and cache",
        f"Of one layer of width d with n heads of width h = d/n{'; ' if letters else ''}{letters}:",
        _formulas(facts),
        _counts(name, facts),
        "## Where it wins in our studies",
        measured.wins(name),
        "## What conversion costs",
        _inherits(name),
        measured.conversion(name),
        "## Speed",
        measured.speed(name),
        "## Limits",
        _limits(name, refused),
        "## Use",
        _use(name),
    ]
    return "\n\n".join(part for part in parts if part)


def _docstring(module: type) -> tuple[str, str]:
    """What a module's docstring says of its function, and what it says is refused."""
    text = inspect.cleandoc(module.__doc__ or "")
    function = re.split(r"\n(?:Args|Raises):\n", text)[0]
    function = re.sub(r"\n*Takes the arguments of `\w+`.\s*", "\n\n", function)
    refused = text.partition("\nRaises:\n")[2]
    return function, " ".join(refused.replace("PlanError:", "").split())


def _caption(name: str) -> str:
    given = pictures.PICTURED.get(name)
    options = f"`{_options_text(given)}`" if given else "default options"
    return (
        f"One layer of width {pictures.WIDTH} with {pictures.HEADS} heads and {options}. Boxes "
        "are numbers of weights, found by asking the module which weights each head uses; the "
        "output's bias is counted, but not drawn."
    )


def _limits(name: str, refused: str) -> str:
    from nas_attn.attention import build_attention

    module = build_attention(name, 64, 4)
    limits = ["[What the plugin refuses](../../how-to/plugin.md#what-is-refused) of every scheme."]
    limits += [f"Refused if {escaped(refused)}"] if refused else []
    if pictures.has_one_map(module):
        limits.append("All heads have one attention map, so a mask for each head is refused.")
    return "\n".join(f"- {limit}" for limit in limits)


def _options(name: str) -> str:
    from nas_attn.attention import SCHEMES

    options = SCHEMES[name].options
    rows = []
    for field in fields(options):
        default = "" if field.default in (None, MISSING) else f"`{json.dumps(field.default)}`"
        flag = f"`--{field.name.replace('_', '-')}`"
        rows.append([f"`{field.name}`", flag, default, escaped(field.metadata["help"])])
    titles = ["option", "flag of fairseq's commands", "default", "meaning"]
    return table(titles, rows) if rows else "It has none."


def _formulas(facts: Facts) -> str:
    rows, several = [], isinstance(facts.cache, tuple)
    for options, parameters, cache in facts.formulas():
        which = f", `{_options_text(options)}`" if options else ""
        rows.append([f"parameters{which}", parameters])
        if several:
            rows.append([f"cache, numbers per token{which}", cache])
    if not several:
        rows.append(["cache, numbers per token", facts.cache])
    return table(["", "formula"], rows)


def _counts(name: str, facts: Facts) -> str:
    from nas_attn.attention.counting import build_on_meta, count_choice
    from nas_attn.plan import AttentionChoice, SiteShape

    rows = []
    for width, heads in SHAPES:
        shape = SiteShape(num_layers=1, embed_dim=width, num_heads=heads)
        base = count_choice(AttentionChoice.of("multi_head"), shape).parameters
        for options, _ in facts.parameters:
            choice = AttentionChoice.of(name, **options)
            size, module = count_choice(choice, shape), build_on_meta(choice, shape)
            given = f"`{_options_text(options)}`" if options else "defaults"
            rows.append(
                [f"{width}, {heads}", given, f"{size.parameters:,}",
                 f"{size.parameters / base - 1:+.1%}", f"{size.effective:,}",
                 f"{module.cache_size():,} of {2 * width:,}"]
            )  # fmt: skip
    titles = ["width, heads", "options", "parameters", "to `multi_head`", "effective",
              "cache per token"]  # fmt: skip
    return table(titles, rows)


def _inherits(name: str) -> str:
    from nas_attn.attention import build_attention
    from nas_attn.conversion import inherits

    module = build_attention(name, 64, 4)
    pages = "[convert and prune](../../how-to/convert-and-prune.md)"
    if not module.cache_size():
        mean = "With `output_bias` it takes over the mean of what trained heads give"
        return f"{mean}; what that costs: {pages}."
    if inherits(module):
        return f"It takes over what trained heads have learned; what that costs: {pages}."
    if inherits(module, distilled=True):
        return f"It takes over what trained heads have learned with `--distil` only: {pages}."
    return "It cannot take over what trained heads have learned."


def _use(name: str) -> str:
    command = f'fairseq-train DATA --user-dir "$(nas-attn plugin-dir)" --arch {name}_transformer'
    return "\n\n".join(
        [
            f"```\n{command} ...\n```",
            f"Also `{name}_transformer_lm` and `{name}_roberta`, in fairseq's sizes.",
            f'```python\nbuild_attention("{name}", embed_dim=512, num_heads=8)\n```',
            f'In a [plan](../../how-to/plugin.md): `{{"encoder_self": "{name}"}}`; in a '
            f"[search space](../space-file.md): `schemes: {{{name}: {{}}}}`.",
        ]
    )
