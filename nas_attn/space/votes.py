"""What votes on a trained model have decided, for each of its layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nas_attn.errors import PlanError
from nas_attn.plan import AttentionChoice


@dataclass(frozen=True)
class Votes:
    """A table of choices with a vote, and what the vote made of them.

    Args:
        settled: For each place, such as decoder_self.2, and each choice with a vote, the choice of
            the heads that stay.
    """

    settled: Mapping[tuple[str, AttentionChoice], AttentionChoice] = field(default_factory=dict)

    def of(self, site: str, layer: int, choice: AttentionChoice) -> AttentionChoice | None:
        """What a vote made of a choice; None if there was none on it."""
        return self.settled.get((f"{site}.{layer}", choice))

    def to_json(self) -> list[dict[str, Any]]:
        """Plain data, one entry for each vote."""
        return [
            {"place": place, "choice": choice.to_json(), "left": left.to_json()}
            for (place, choice), left in self.settled.items()
        ]

    @classmethod
    def from_json(cls, data: Any) -> Votes:
        """Read what `to_json` has made.

        Raises:
            PlanError: it is something else.
        """
        try:
            return cls(
                {
                    (str(entry["place"]), AttentionChoice.from_json(entry["choice"])): (
                        AttentionChoice.from_json(entry["left"])
                    )
                    for entry in data
                }
            )
        except (TypeError, LookupError) as error:
            raise PlanError(f"that is no table of votes: {error!r}") from None

    def __bool__(self) -> bool:
        return bool(self.settled)
