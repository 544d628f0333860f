"""What is done to one trained checkpoint, or to text before any training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nas_attn.conversion.pooling import Pooling
from nas_attn.errors import NasAttnError, PlanError, UsageError
from nas_attn.fairseq_tools.convert import Converted, convert_checkpoint
from nas_attn.fairseq_tools.data import PreparedData, hold_out, prepare, read_corpus, splits_beside
from nas_attn.fairseq_tools.prune import Pruned, load_checkpoint, prune_checkpoint
from nas_attn.fairseq_tools.vote import vote_on_data
from nas_attn.literals import Subword
from nas_attn.machine import cpu_count
from nas_attn.plan import AttentionPlan
from nas_attn.workflows.events import Events


def prepare_files(
    paths: Sequence[Path],
    out: Path | None,
    *,
    vocab_size: int,
    subword: Subword,
    character_coverage: float,
    valid_lines: int,
    test_lines: int,
    events: Events,
) -> PreparedData:
    """Make a binarised data set of text files; lines are held out where there are no splits.

    Args:
        paths: Path of one file, or of two aligned ones named by language.
        out: Folder of the data set.
        vocab_size: SentencePiece pieces.
        subword: Kind of SentencePiece model.
        character_coverage: Share of all characters that the model knows.
        valid_lines: Lines held out for validation.
        test_lines: Lines held out for testing.
        events: Object that is called with what is held out.

    Raises:
        NasAttnError: The files are not such, or `out` exists.
        DataError: The text cannot be read or binarised.
    """
    if out is None:
        raise NasAttnError("say where the data set goes with --out DIR")
    if out.exists():
        raise NasAttnError(f"{out} exists; remove it or name another folder")
    if len(paths) > 2:
        raise NasAttnError("give one text file, or two aligned ones")
    plain = [path.with_suffix("") if path.suffix == ".gz" else path for path in paths]
    endings = [path.suffix.removeprefix(".") for path in plain]
    if len(paths) == 2 and (endings[0] == endings[1] or "" in endings):
        raise NasAttnError("name aligned files by language, such as train.en and train.de")
    found = splits_beside(paths, endings)
    if found is not None:
        corpus = read_corpus(found)
        events.on_message(
            "validation and test files lie beside the training text, so no line is held out of it"
        )
    else:
        lines = read_corpus({"train": list(paths)})["train"]
        corpus = hold_out(lines, valid_lines, test_lines)
        events.on_message(
            f"there are no validation and test files, so {valid_lines} and {test_lines} of "
            f"{len(lines[0])} lines are held out of the training text"
        )
    return prepare(
        corpus,
        endings if len(paths) == 2 else [],
        out,
        vocab_size=vocab_size,
        subword=subword,
        character_coverage=character_coverage,
        workers=cpu_count(),
    )


def prune(
    checkpoint: Path,
    out: Path,
    *,
    data: Path | None = None,
    options: dict[str, Any],
    refit: bool = False,
    batches: int = 20,
    replace: bool = False,
) -> Pruned:
    """Cut out of a checkpoint the heads that were voted out, or vote now.

    Args:
        checkpoint: Checkpoint of a training with the plugin.
        out: The smaller checkpoint.
        data: Vote now, on the validation set of this data set.
        options: Options of that vote: `keep`, `num_groups`, `vote_threshold`.
        refit: Solve the output projections again after that vote.
        batches: Batches to vote on.
        replace: Whether a file that is there is overwritten.

    Raises:
        UsageError: `out` exists, or options do not fit.
        NasAttnError: The checkpoint or the data are unfit.
    """
    if out.exists() and not replace:
        raise UsageError(f"{out} exists; remove it, name another file, or say --replace")
    masked = None
    if data is not None:
        load_checkpoint(checkpoint)  # refused early, in words
        if options.get("keep", "pillars") == "all":
            raise UsageError("--keep all prunes nothing")
        options = {"keep": "pillars"} | options
        masked = vote_on_data(checkpoint, data, options, refit=refit, num_batches=batches)
    elif refit or options:
        raise UsageError("--refit, --keep, --num-groups and --vote-threshold need --calibrate")
    return prune_checkpoint(checkpoint, out, masked)


def convert(
    checkpoint: Path,
    plan: str,
    out: Path,
    *,
    data: Path | None = None,
    refit: bool = True,
    force: bool = False,
    pooling: Pooling | None = None,
    distil: bool = False,
    replace: bool = False,
) -> Converted:
    """Turn a trained checkpoint into one with another attention plan.

    Args:
        checkpoint: Model of the plugin, or fairseq's transformer, transformer_lm or roberta.
        plan: File or JSON text of the plan; sites that it leaves out stay as they are.
        out: The new checkpoint.
        data: Data set whose training set says what is kept, and on whose validation set the
            change is measured.
        refit: Whether, with data, the output projections are solved again.
        force: Whether schemes that cannot inherit trained heads are converted to as well.
        pooling: Means of heads for grouped_query and multi_query: `means` (Ainslie et al. 2023) or
            `aligned_means`, of heads turned to each other (Jin et al. 2024).
        distil: Whether converted modules are trained alone, on data, to do what they did before;
            then every scheme inherits.
        replace: Write over a file that is there.

    Raises:
        UsageError: The plan does not fit the model, there are no data to distil on, or `out`
            exists.
        NasAttnError: The checkpoint or the data are unfit.
    """
    if distil and data is None:
        raise UsageError("--distil needs --calibrate DATA: modules are trained on what they see")
    if out.exists() and not replace:
        raise UsageError(f"{out} exists; remove it, name another file, or say --replace")
    try:
        wanted = AttentionPlan.read(plan)
        return convert_checkpoint(
            checkpoint,
            wanted,
            out,
            data=data,
            refit=refit,
            force=force,
            pooling=pooling,
            distil=distil,
        )
    except PlanError as error:
        raise UsageError(str(error)) from None
