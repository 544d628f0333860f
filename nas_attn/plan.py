"""Attention plans: which scheme, with which options, at every site and layer of a Transformer.

A plan is data. It has a JSON form (files, checkpoints, command lines), a short text form (tables,
reports), equality and a digest. It knows nothing of the schemes themselves; the registry in
`nas_attn.attention` checks their names and options.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from nas_attn.errors import PlanError

OptionValue = int | float | bool | str

SITES = ("encoder_self", "decoder_self", "encoder_decoder")
"""Where a Transformer attends, in the order in which tables show it."""

NO_ATTENTION = "none"
"""The scheme that attends to nothing; the only one that plans know by name (`source_fault`)."""

MAX_FILE_BYTES = 1_000_000
"""Of a plan's file."""

FLOAT_OPTIONS = frozenset(
    {"alpha", "beta", "centre_shift", "dim_threshold", "embedding_std", "vote_threshold"}
)
"""Options of schemes that are no whole numbers, whatever a file writes: 1 is kept as 1.0."""


@dataclass(frozen=True)
class AttentionChoice:
    """A scheme and the options given to it; options left out keep the scheme's defaults.

    Args:
        scheme: Name in the scheme registry, such as `collaborative`.
        options: (name, value) pairs, kept sorted by name; `AttentionChoice.of` takes keywords.
            Whole numbers of `FLOAT_OPTIONS` become floats, so that equal choices have one text.
    """

    scheme: str
    options: tuple[tuple[str, OptionValue], ...] = ()

    def __post_init__(self) -> None:
        if not FLOAT_OPTIONS.isdisjoint(name for name, _ in self.options):
            pairs = tuple((name, _canonical(name, value)) for name, value in self.options)
            object.__setattr__(self, "options", pairs)

    @classmethod
    def of(cls, scheme: str, **options: OptionValue) -> AttentionChoice:
        return cls(scheme, tuple(sorted(options.items())))

    @classmethod
    def from_json(cls, data: Any) -> AttentionChoice:
        """Read `{"scheme": NAME, OPTION: VALUE, ...}` or a bare scheme name.

        Raises:
            PlanError: the data is neither, or an option's value is not a number, bool or string.
        """
        if isinstance(data, str):
            return cls(data)
        if not isinstance(data, Mapping) or not isinstance(data.get("scheme"), str):
            raise PlanError(f'a choice must be {{"scheme": NAME, ...}} or a name, but is {data!r}')
        options = {name: value for name, value in data.items() if name != "scheme"}
        for name, value in options.items():
            if not isinstance(value, OptionValue):
                raise PlanError(f"option {name!r} must be a number, bool or string, not {value!r}")
        return cls.of(data["scheme"], **options)

    def to_json(self) -> dict[str, OptionValue]:
        return {"scheme": self.scheme, **dict(self.options)}

    def __str__(self) -> str:
        if not self.options:
            return self.scheme
        return f"{self.scheme}({', '.join(f'{name}={value}' for name, value in self.options)})"


@dataclass(frozen=True)
class AttentionPlan:
    """The attention of a whole model: for each site a choice per layer.

    A site whose layers all choose the same holds that choice once, so a plan written as "the same
    everywhere" equals the plan that spells every layer out.

    Args:
        sites: (site, choices) pairs; `AttentionPlan.of` takes a mapping.
    """

    sites: tuple[tuple[str, tuple[AttentionChoice, ...]], ...]

    @classmethod
    def of(cls, sites: Mapping[str, AttentionChoice | Sequence[AttentionChoice]]) -> AttentionPlan:
        """Build a plan from a mapping of site to one choice for all layers, or one per layer.

        Raises:
            PlanError: a site is unknown or has no choice.
        """
        entries = []
        for site, given in sites.items():
            if site not in SITES:
                raise PlanError(f"unknown site {site!r}; sites are {', '.join(SITES)}")
            choices = (given,) if isinstance(given, AttentionChoice) else tuple(given)
            if not choices:
                raise PlanError(f"site {site!r} has no choice")
            entries.append((site, choices[:1] if len(set(choices)) == 1 else choices))
        return cls(tuple(sorted(entries, key=lambda entry: SITES.index(entry[0]))))

    @classmethod
    def uniform(cls, choice: AttentionChoice, sites: Sequence[str] = SITES) -> AttentionPlan:
        """The plan that makes the same choice at every layer of the given sites."""
        return cls.of(dict.fromkeys(sites, choice))

    @classmethod
    def from_json(cls, data: Any) -> AttentionPlan:
        """Read a plan from decoded JSON: `{SITE: CHOICE or [CHOICE per layer], ...}`.

        Raises:
            PlanError: the data has another form; the message names the site and layer.
        """
        if not isinstance(data, Mapping):
            raise PlanError(f"a plan must be a mapping of sites, but is {type(data).__name__}")
        sites: dict[str, list[AttentionChoice]] = {}
        for site, given in data.items():
            per_layer = given if isinstance(given, list) else [given]
            sites[site] = []
            for layer, choice in enumerate(per_layer):
                try:
                    sites[site].append(AttentionChoice.from_json(choice))
                except PlanError as error:
                    raise PlanError(f"{site}[{layer}]: {error}") from None
        return cls.of(sites)

    @classmethod
    def parse(cls, text: Any, source: str = "plan") -> AttentionPlan:
        """Read a plan from JSON text, as a checkpoint holds it; no file is opened.

        Args:
            text: Text to read; refused if it is no string.
            source: Name of the text in error messages.

        Raises:
            PlanError: the text is no JSON, or the plan is malformed.
        """
        if not isinstance(text, str):
            raise PlanError(f"{source} must be JSON text, but is {type(text).__name__}")
        try:
            data = json.loads(text)
        except RecursionError:
            raise PlanError(f"{source} is nested too deeply") from None
        except ValueError as error:
            raise PlanError(f"{source} is not JSON: {error}") from None
        return cls.from_json(data)

    @classmethod
    def read(cls, text: str) -> AttentionPlan:
        """Read a plan from JSON text, or from the JSON file that the text names.

        For what a user types. What a checkpoint says goes to `parse`.

        Raises:
            PlanError: the text is neither, the file is no regular one or larger than
                `MAX_FILE_BYTES`, or the plan is malformed.
        """
        if text.lstrip().startswith("{"):
            return cls.parse(text)
        path = Path(text)
        try:
            if path.exists() and not path.is_file():
                raise PlanError(f"plan file {text} is no regular file")
            with path.open("rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
            if len(content) > MAX_FILE_BYTES:
                raise PlanError(f"plan file {text} is larger than {MAX_FILE_BYTES:,} bytes")
            return cls.parse(content.decode(), text)
        except OSError as error:
            raise PlanError(f"plan file {text}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise PlanError(f"plan file {text} is no text in UTF-8") from None

    def to_json(self) -> dict[str, Any]:
        return {
            site: choices[0].to_json() if len(choices) == 1 else [c.to_json() for c in choices]
            for site, choices in self.sites
        }

    def dumps(self) -> str:
        """The canonical JSON text: equal plans give equal text."""
        return json.dumps(self.to_json(), sort_keys=True)

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that identify the plan."""
        return hashlib.sha256(self.dumps().encode()).hexdigest()[:12]

    def layers(self, site: str, num_layers: int) -> tuple[AttentionChoice, ...]:
        """The choice of each of a site's `num_layers` layers.

        Raises:
            PlanError: the plan lacks the site, or lists another number of layers.
        """
        choices = dict(self.sites).get(site)
        if choices is None:
            raise PlanError(f"the plan says nothing about site {site!r}")
        if len(choices) == 1:
            return choices * num_layers
        if len(choices) != num_layers:
            raise PlanError(f"{site}: {len(choices)} choices given for {num_layers} layers")
        return choices

    def over(self, default: AttentionPlan) -> AttentionPlan:
        """This plan, with the sites it leaves out taken from `default`."""
        return AttentionPlan.of(dict(default.sites) | dict(self.sites))

    def source_fault(self) -> str | None:
        """Why the decoder would not see the source, in words; None if it does, or there is none."""
        choices = dict(self.sites).get("encoder_decoder", ())
        if not choices or any(choice.scheme != NO_ATTENTION for choice in choices):
            return None
        return (
            f"encoder_decoder is {NO_ATTENTION} in every layer, so that the decoder would not see "
            "the source: choose another scheme in one of them"
        )

    def check_source(self) -> None:
        """Refuse a plan whose decoder would not see the source.

        Raises:
            PlanError: `encoder_decoder` is without attention in every layer.
        """
        fault = self.source_fault()
        if fault is not None:
            raise PlanError(fault)

    def __iter__(self) -> Iterator[tuple[str, tuple[AttentionChoice, ...]]]:
        return iter(self.sites)

    def __str__(self) -> str:
        distinct = {choices for _, choices in self.sites}
        if len(distinct) == 1 and len(self.sites) > 1:
            return f"everywhere {_layers_text(self.sites[0][1])}"
        return "; ".join(f"{site} {_layers_text(choices)}" for site, choices in self.sites)


SCHEME_NAMES = (
    "multi_head", "collaborative", "head_embedding_add", "head_embedding_mul", "grouped_query",
    "grouped_head", "multi_query", "single_head", "reduced_key", "shared_key_value",
    "none", "latent",
)  # fmt: skip
"""Names of the registry of schemes, which imports torch; pages colour schemes in this order."""


@dataclass(frozen=True, kw_only=True)
class SiteShape:
    """Sizes of the attention modules of one site of a model."""

    num_layers: int
    embed_dim: int
    num_heads: int
    kdim: int | None = None
    """Width of the keys' and values' input; `embed_dim` if None."""


def _canonical(name: str, value: OptionValue) -> OptionValue:
    if name not in FLOAT_OPTIONS or isinstance(value, bool | str):
        return value
    try:
        number = float(value) + 0.0  # which makes 0.0 of -0.0
    except OverflowError:
        return value
    return number if number == value else value  # no option is so large that they differ


def _layers_text(choices: tuple[AttentionChoice, ...]) -> str:
    if len(choices) == 1:
        return str(choices[0])
    runs = [(str(choice), len(list(run))) for choice, run in groupby(choices)]
    return "[" + " | ".join(text if n == 1 else f"{n}x {text}" for text, n in runs) + "]"
