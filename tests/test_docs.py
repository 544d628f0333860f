"""The docs: nothing is missing from the generated reference, links resolve, tested blocks run."""

from __future__ import annotations

import csv
import posixpath
import re
import shlex
import subprocess
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import typer
import yaml
from matplotlib import pyplot

import nas_attn
from docs import generate, pictures, results
from nas_attn.attention import SCHEMES, build_attention
from nas_attn.attention.counting import build_on_meta, count_choice
from nas_attn.cli.main import app
from nas_attn.fairseq_tools.checkpoints import save_checkpoint
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.plan import AttentionChoice, SiteShape
from nas_attn.space import SpaceConfig
from nas_attn.study.config import StudyConfig
from nas_attn.study.shipped import shipped_names
from tests.helpers.checkpoints import state_of
from tests.helpers.cli import invoke
from tests.helpers.paths import ROOT

DOCS = ROOT / "docs"
WRITTEN = {path.relative_to(DOCS).as_posix(): path for path in DOCS.rglob("*.md")}
OUTSIDE = re.compile(r"[a-z]+:|mailto:")
BLOCK = re.compile(r"<!-- (tested|file: (\S+)) -->\n```(\w+)\n(.*?)\n```", re.DOTALL)
RUN = WRITTEN | {"README.md": ROOT / "README.md"}
TESTED = sorted(name for name, path in RUN.items() if BLOCK.search(path.read_text()))
TRAINED = "tutorials/smaller-model.md"
"""Page that begins with a checkpoint."""
ON_TEXT = {"README.md", "how-to/study-file.md"}
"""Pages that begin with text; tutorials begin with a data set."""


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    """All pages of the site by path."""
    written = {name: path.read_text() for name, path in WRITTEN.items()}
    made = generate.pages()
    assert not {*written} & {*made}
    return written | made


def keys_of(schema: Mapping[str, Any], defs: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, about in schema["properties"].items():
        yield prefix + name
        options = [about, *about.get("anyOf", [])] if name != "space" else []
        for option in options:
            inner = defs.get(option.get("$ref", "").rpartition("/")[2], {})
            if "properties" in inner:
                yield from keys_of(inner, defs, f"{prefix}{name}.")


@pytest.mark.parametrize(
    ("page", "model"), [("study-file", StudyConfig), ("space-file", SpaceConfig)]
)
def test_every_key_has_its_row(page: str, model: type[Any], pages: dict[str, str]) -> None:
    schema = model.model_json_schema()
    keys = [*keys_of(schema, schema["$defs"])]
    assert len(keys) > 3
    for key in keys:
        assert f"\n| `{key}` |" in pages[f"reference/{page}.md"], key


def test_every_command_and_option_is_there(pages: dict[str, str]) -> None:
    page = pages["reference/commands.md"]
    sections = {part.partition("\n")[0]: part for part in page.split("\n## ")[1:]}
    commands = dict(generate.walk(typer.main.get_command(app), "nas-attn"))
    assert {"nas-attn search", "nas-attn bench attention"} <= {*commands} == {*sections}
    for path, command in commands.items():
        for parameter in command.params:
            if parameter.param_type_name == "option" and not parameter.hidden:
                for name in parameter.opts:
                    found = re.search(rf"[` ]{re.escape(name)}\b", sections[path])
                    assert found, f"{path} {name}"


def test_every_public_name_is_there(pages: dict[str, str]) -> None:
    page = pages["reference/python.md"]
    for name in nas_attn.__all__:
        assert f"\n## nas_attn.{name}\n" in page
    for name in ("front", "trials", "plot_front", "confirm", "report", "export", "compare"):
        assert f"\n### Results.{name}()\n" in page


def test_every_scheme_has_a_page_in_the_navigation(pages: dict[str, str]) -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    for name, scheme in SCHEMES.items():
        page = pages[f"reference/schemes/{name}.md"]
        assert f"reference/schemes/{name}.md\n" in navigation
        assert f"({name}.md)" in pages["reference/schemes/index.md"]
        assert scheme.module.reference.partition(",")[0] in page
        for option in fields(scheme.options):
            assert f"| `{option.name}` |" in page


VALUES = {"D": (4, 8, 16), "g": (1, 2, 4), "k": (1, 3)}


@pytest.mark.parametrize("name", generate.FACTS)
def test_formulas_are_what_modules_have(name: str) -> None:
    facts = generate.FACTS[name]
    for width, heads in ((16, 4), (64, 8)):
        shape = SiteShape(num_layers=1, embed_dim=width, num_heads=heads)
        for options, formula, cached in facts.formulas():
            for number in range(3):
                letters = {x: VALUES[x][number % len(VALUES[x])] for x in facts.letters}
                if "key_dim" in facts.letters.values():
                    letters["D"] = heads * (number + 1)
                chosen = {facts.letters[letter]: value for letter, value in letters.items()}
                choice = AttentionChoice.of(name, **options, **chosen)
                symbols = {"d": width, "n": heads, "h": width // heads, **letters}
                assert generate.value_of(formula, **symbols) == count_choice(choice, shape)[0]
                cache = build_on_meta(choice, shape).cache_size()
                assert generate.value_of(cached, **symbols) == cache


def test_a_formula_is_no_code() -> None:
    assert generate.value_of("2D(d + 1) - nD + d²", d=3, D=2, n=1) == 23
    for text in ("__import__('os')", "d.real", "d if d else 1"):
        with pytest.raises((ValueError, KeyError, SyntaxError)):
            generate.value_of(text, d=1)


@pytest.mark.parametrize("name", SCHEMES)
def test_a_picture_has_all_weights_and_the_cache(name: str) -> None:
    found = pictures.structure(name)
    options = pictures.PICTURED.get(name, {})
    module = build_attention(name, pictures.WIDTH, pictures.HEADS, **options)
    assert found.parameters == sum(p.numel() for p in module.parameters())
    assert found.cache == module.cache_size()


def test_pictures_say_what_heads_share() -> None:
    parts = {name: pictures.structure(name).parts for name in SCHEMES}
    owners = {name: [sorted(map(len, part.shared)) for part in parts[name]] for name in SCHEMES}
    single, pair, everyone = [1] * 4, [2, 2], [4]  # numbers of heads that use a weight
    assert owners["multi_head"] == owners["reduced_key"] == [single] * 4
    assert owners["grouped_query"] == [single, pair, pair, single]
    assert owners["multi_query"] == [single, everyone, everyone, single]
    assert owners["single_head"] == [everyone, everyone, everyone, single]
    assert owners["collaborative"] == [single + everyone, everyone, single, single]
    for name in ("head_embedding_add", "head_embedding_mul"):
        assert owners[name] == [single + everyone, everyone, single + everyone, single]
    assert [part.again for part in parts["shared_key_value"]] == [False, False, True, False]
    assert owners["latent"] == [single, everyone, single, single]
    assert owners["none"] == [[]] * 4
    assert pictures.structure("head_embedding_add").dead == pictures.WIDTH  # the key embedding


def test_pictures_are_small_and_can_be_read_in_the_dark() -> None:
    drawn = generate.drawn()
    assert len(drawn) == len(SCHEMES) + len(results.fronts())
    for path, svg in drawn.items():
        ElementTree.fromstring(svg)
        assert len(svg.encode()) < 10_000, path
        assert "prefers-color-scheme:dark" in svg


def test_fronts_are_those_that_are_committed(pages: dict[str, str]) -> None:
    fronts = {front.name: front for front in results.fronts()}
    for path in (ROOT / "studies").glob("*/front.csv"):
        with path.open() as file:
            rows = [row for row in csv.DictReader(file) if row["on_front"] == "True"]
        points = fronts[path.parent.name].points
        assert [p.size for p in points] == sorted(float(row["cost"]) for row in rows)
        changes = {float(row["cost"]): float(row["loss_change"]) for row in rows}
        assert [p.change for p in points] == pytest.approx(
            [changes[p.size] for p in points], abs=6e-5
        )
        words = [row["plan"] for row in rows]
        plans = [plan for plan in words if not re.fullmatch(r"\w+ multi_head", plan)]
        for name in SCHEMES:
            count = sum(bool(re.search(rf"\b{name}\b", plan)) for plan in plans)
            link = f"studies/results.md#{path.parent.name}) | {count} of {len(plans)} |"
            assert (link in pages[f"reference/schemes/{name}.md"]) == (count > 0)
    assert "In no front of ours." in pages["reference/schemes/latent.md"]


UNSTUDIED = {"none", "latent"}
"""Schemes that multi30k_sensitivity has not everywhere."""


def test_sizes_in_words_are_those_that_were_measured() -> None:
    """Shares counted on modules are those of the models' sizes, so plans are read rightly."""
    name = "multi30k_sensitivity"
    front = next(front for front in results.fronts() if front.name == name)
    shape = results.shape_of(name)
    page = [*results.tables((ROOT / results.RESULTS).read_text())]
    rows = results.table_with(page, "everywhere", results.COLD).rows
    measured = {*SCHEMES} - {"multi_head", *UNSTUDIED}
    assert {results.options_of(row["everywhere"])[0] for row in rows} == measured
    for row in rows:
        size = results.number(row["non-embedding"])
        assert size is not None
        assert shape.share(row["everywhere"]) == pytest.approx(shape.share_at(front, size))


def test_numbers_of_the_table_of_schemes_are_committed(pages: dict[str, str]) -> None:
    sources = (results.RESULTS, "docs/how-to/convert-and-prune.md")
    committed = "".join((ROOT / path).read_text() for path in sources)
    found = next(results.tables(pages["studies/equal-size.md"]))
    assert {*SCHEMES} - {"multi_head", *UNSTUDIED} <= {
        row["scheme"].strip("`") for row in found.rows
    }
    assert len(found.titles) - 2 == len(results.uniform_results())
    for row in found.rows:
        for title in found.titles[2:]:
            computed = "how-head" in title or ("#multi30k_sensitivity) warm" in title)
            for change in re.findall(r"[+-][\d.]+", row[title]):
                assert computed or change in committed, f"{title}: {change}"
            for error in re.findall(r"±0(\.\d+)", row[title]):
                assert error in committed


def test_the_gallery_has_every_front() -> None:
    text = WRITTEN["studies/gallery.md"].read_text()
    rows = {row["study"]: row for row in next(results.tables(text)).rows}
    sections = {part.partition("\n")[0]: part for part in text.split("\n## ")[1:]}
    for front in results.fronts():
        anchor = results.anchor(front.name)
        assert f"[{front.name}](#{anchor})" in rows
        assert f"(fronts/{anchor}.svg)" in sections[front.name]
    for command in re.findall(r"nas-attn search (\w+)", text):
        assert command in shipped_names("studies")
    for row in rows.values():
        assert row["minutes"]
        assert row["machine"]
        shown = ["git", "-C", str(ROOT), "show", "-s", "--format=%as", row["commit"]]
        done = subprocess.run(shown, capture_output=True, text=True, check=False)
        assert done.returncode or done.stdout.strip() == row["date"]  # no history, nothing to say


def section(text: str, anchor: str) -> str:
    """What a page has below a heading, up to the next one."""
    parts = re.split(r"^(?=#+ )", text, flags=re.MULTILINE)
    (found,) = [part for part in parts if anchors(part.partition("\n")[0]) == {anchor}]
    return found


def test_what_was_measured_of_a_claim_stands_where_it_points(pages: dict[str, str]) -> None:
    name, count = "studies/claims.md", 0
    for table in results.tables(WRITTEN[name].read_text()):
        for row in table.rows:
            link = re.search(r"\((\S+)#(\S+)\)", row["source"])
            if link is None:
                source = (ROOT / row["source"].strip("`")).read_text()
                for number in re.findall(r"\d[\d,]{6,}", row["measured here"]):
                    assert number.replace(",", "_") in source
                continue
            page = posixpath.normpath(posixpath.join(posixpath.dirname(name), link[1]))
            source = section(pages[page], link[2])
            figures = re.findall(r"[+-]?(?:0\.\d{2,}|\d+\.\d+)", row["measured here"])
            assert figures
            for figure in figures:
                assert figure in source, f"{figure} of {link[0]}"
            count += len(figures)
    assert count > 20


def anchors(text: str) -> set[str]:
    """Anchors of a page's headings, as Python-Markdown makes them."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    found = set()
    for heading in re.findall(r"^#+ (.*)$", prose, re.MULTILINE):
        plain = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
        found.add(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower()))
    return found


def links(text: str) -> list[str]:
    prose = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)
    found = re.findall(r"(?<!\\)\]\(([^)\s]+)\)", prose)
    return [link for link in found if not OUTSIDE.match(link)]


def test_links_of_the_site_lead_somewhere(pages: dict[str, str]) -> None:
    files = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*") if path.is_file()}
    files |= {*generate.figures(), *generate.drawn(), *pages}
    count = 0
    for name, text in pages.items():
        for link in links(text):
            path, _, anchor = link.partition("#")
            target = posixpath.normpath(posixpath.join(posixpath.dirname(name), path))
            target = target if path else name
            assert target in files, f"{name}: {link}"
            assert not anchor or anchor in anchors(pages[target]), f"{name}: {link}"
            count += 1
    assert count > 100


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "studies/README.md"])
def test_links_of_the_repository_lead_somewhere(name: str) -> None:
    for link in links((ROOT / name).read_text()):
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), f"{name}: {link}"
        assert not anchor or anchor in anchors(target.read_text()), f"{name}: {link}"


def test_every_page_is_in_the_navigation(pages: dict[str, str]) -> None:
    def within(entry: Any) -> Iterator[str]:
        parts = entry.values() if isinstance(entry, dict) else entry
        for part in [entry] if isinstance(entry, str) else parts:
            yield from [part] if isinstance(part, str) else within(part)

    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    assert sorted(within(navigation)) == sorted(pages)


def test_nothing_is_fetched_from_a_network(pages: dict[str, str]) -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert settings["theme"]["font"] is False
    assert settings["strict"] is True
    for name, text in pages.items():
        assert not re.search(r"!\[[^]]*\]\(http|<(img|script|iframe)\b", text), name


def test_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 180
    assert len(text.split()) <= 1300
    for command in ("make search", "make test", "nas-attn init", "nas-attn confirm"):
        assert command in text


@pytest.fixture
def _starting_point(
    tmp_path: Path,
    tiny_translation: PreparedData,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Iterator[None]:
    """What a reader of a page has: text, or a trained model and its data."""
    monkeypatch.chdir(tmp_path)
    schemes, name = dict(SCHEMES), request.node.callspec.params["name"]
    if name in ON_TEXT:
        (tmp_path / "text").mkdir()
        for file in product(("train", "valid", "test"), ("en", "de")):
            (tmp_path / "text" / ".".join(file)).write_text("a line\n")
    else:
        (tmp_path / "data-bin").mkdir()
        (tmp_path / "data-bin" / "my_data").symlink_to(tiny_translation.folder)
    if name == TRAINED:
        save_checkpoint(state_of(tiny_translation.folder), tmp_path / "checkpoint_best.pt")
    yield
    SCHEMES.clear()
    SCHEMES.update(schemes)
    pyplot.close("all")


def run_lines(text: str) -> None:
    """Run lines of the command in this process."""
    for line in text.replace("\\\n", " ").splitlines():
        command, *words = shlex.split(line, comments=True)
        assert command == "nas-attn", line
        invoke(*words)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of hydra, which fairseq calls as of old
@pytest.mark.usefixtures("_starting_point")
@pytest.mark.parametrize("name", TESTED)
def test_tested_blocks_run(name: str) -> None:
    names: dict[str, Any] = {"__name__": "docs"}
    for kind, file, language, text in BLOCK.findall(RUN[name].read_text()):
        if file:
            Path(file).write_text(text + "\n")
        elif language == "python":
            exec(compile(text, name, "exec"), names)
        else:
            assert (kind, language) == ("tested", "bash")
            run_lines(text)


def test_tutorials_are_among_the_tested_pages() -> None:
    tutorials = {page for page in WRITTEN if page.startswith("tutorials/")}
    assert {"README.md", *tutorials} <= {*TESTED}
