"""The command `nas-attn-measure`; says what to install if that is needed."""

from __future__ import annotations

import sys

from nas_attn.errors import MissingExtraError


def main() -> None:
    """Run the command.

    Raises:
        SystemExit: Exit status of the command; 2 if packages are missing.
    """
    try:
        from nas_attn.fairseq_tools.measure import main as command
    except MissingExtraError as error:
        sys.stderr.write(f"nas-attn-measure: {error}\n")
        raise SystemExit(2) from None
    command()


if __name__ == "__main__":
    main()
