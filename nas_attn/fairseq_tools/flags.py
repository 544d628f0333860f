"""Which flags of fairseq-train a study may set, and to what.

A flag that is not in these tables does not pass. What passes is data: a name that fairseq knows,
and a value that is a number, one of a few words, or a literal; it is judged here, before fairseq's
parser sees it, since fairseq evaluates some values as Python or as templates.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from nas_attn.config_model import Scalar
from nas_attn.errors import ConfigIssue
from nas_attn.fairseq_tools.flag_values import (
    BETAS,
    COUNT,
    FINITE,
    FROM_0,
    MOST,
    POSITIVE,
    RATES,
    SHARE,
    UNDER_1,
    WHOLE,
    WORD,
    Judge,
    folder_name,
    is_count,
    is_filters,
    is_number,
    is_schedule,
    json_object,
    list_of,
    literal,
    one_of,
    switch,
    whole,
    without,
    word,
    words,
)
from nas_attn.literals import did_you_mean

NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
LONGEST = 1000
"""Characters of a value."""
MOST_LAYERS = 1000


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


OWNED = _names(
    """
    arch attention-plan best-checkpoint-metric data keep-best-checkpoints keep-last-epochs log-file
    log-format maximize-best-checkpoint-metric no-epoch-checkpoints required-batch-size-multiple
    save-dir seed source-lang target-lang task teacher update-epoch-batch-itr user-dir
    """
)
"""Flags that nas-attn sets itself, or leaves as it needs them."""

SPLITS = (
    "a search trains on `train`, is judged on the whole of `valid`, and `nas-attn confirm` alone "
    "opens `test`"
)
VALIDATION = "a trial is validated after every epoch, on the whole of `valid`"
RESUMED = "a trial that is interrupted goes on exactly from its last checkpoint"
FILES = (
    "names a file outside the data set, which no other machine gets and no export holds; nothing "
    "but the data set is read"
)
LAUNCHED = "nas-attn starts the processes itself: see `resources.gpus`"
SHARDED = "checkpoints in pieces are neither resumed, converted nor exported"
EVALUATED = "a training does not read it; `nas-attn confirm` sets what an evaluation needs"
STOCK = "is for fairseq's own attention, which ours takes the place of"
PLACE = "writes outside of the run folder; take tensorboard-logdir"
HYDRA = "is for fairseq-hydra-train"
DATA2VEC = "prepares data for data2vec, which is not trained here"

REFUSED: dict[str, tuple[str, str]] = {
    "splits": (
        SPLITS,
        """combine-valid-subsets gen-subset ignore-unused-valid-subsets num-shards shard-id
        train-subset valid-subset""",
    ),
    "validation": (
        VALIDATION,
        """disable-validation max-valid-steps skip-invalid-size-inputs-valid-test
        validate-after-updates validate-interval""",
    ),
    "updates": (
        "a validation in between is not kept as a checkpoint; take save-interval-updates, which "
        "validates and keeps the best",
        "validate-interval-updates",
    ),
    "resumed": (
        RESUMED,
        """checkpoint-shard-count checkpoint-suffix continue-once finetune-from-model
        load-checkpoint-on-all-dp-ranks no-last-checkpoints no-save no-save-optimizer-state
        optimizer-overrides reset-dataloader reset-lr-scheduler reset-meters reset-optimizer
        restore-file save-interval write-checkpoints-asynchronously""",
    ),
    "time": ("where a training ends would hang on how fast the machine is", "stop-time-hours"),
    "files": (
        FILES,
        """bpe-codes bpe-merges bpe-vocab bpe-vocab-file decoder-embed-path ema-seed-model
        encoder-embed-path gpt2-encoder-json gpt2-vocab-bpe plasma-path quantization-config-path
        save-predictions sentencepiece-model sentencepiece-model-path use-plasma-view wer-args
        wer-kenlm-model wer-lexicon""",
    ),
    "launched": (
        LAUNCHED,
        """device-id distributed-backend distributed-init-method distributed-no-spawn
        distributed-num-procs distributed-port distributed-rank distributed-world-size
        heartbeat-timeout localsgd-frequency model-parallel-size nprocs-per-node
        pipeline-balance pipeline-checkpoint pipeline-chunks pipeline-decoder-balance
        pipeline-decoder-devices pipeline-devices pipeline-encoder-balance
        pipeline-encoder-devices pipeline-model-parallel slowmo-base-algorithm slowmo-momentum
        use-bmuf""",
    ),
    "sharded": (
        SHARDED,
        """cpu-offload fp32-reduce-scatter min-params-to-wrap no-reshard-after-forward
        not-fsdp-flatten-parameters use-sharded-state zero-sharding""",
    ),
    "tpu": (
        "trains on a TPU, which nas-attn does not: take bfloat16-linear on a CPU, amp on a GPU",
        "bf16 memory-efficient-bf16 tpu",
    ),
    "place": (PLACE, "aim-repo aim-run-hash"),
    "hydra": (HYDRA, "reset-logging suppress-crashes"),
    "evaluated": (
        EVALUATED,
        """bert-score-lang bpe bpe-add-prefix-space bpe-cased bpe-separator eos
        moses-no-dash-splits moses-no-escape pad sacrebleu-char-level sacrebleu-lowercase
        sacrebleu-tokenizer scoring sentencepiece-alpha sentencepiece-enable-sampling tokenizer unk
        wer-char-level wer-lowercase wer-remove-punct wer-tokenizer""",
    ),
    "words": ("needs a file of pieces (--bpe) at training; leave it out", "mask-whole-words"),
    "bleu": ("say objectives.bleu_tokenizer: none", "eval-tokenized-bleu"),
    "stock": (
        STOCK,
        """decoder-xformers-att-config encoder-xformers-att-config ffn-blocks-to-remove
        ffn-reg-scale-factor mha-heads-to-keep mha-reg-scale-factor quant-noise-pq
        quant-noise-pq-block-size quant-noise-scalar""",
    ),
    "layers": (
        "changes which layers there are; give the number with encoder-layers or decoder-layers",
        "base-layers base-shuffle base-sublayers decoder-layers-to-keep encoder-layers-to-keep",
    ),
    "dictionary": ("parameters are counted with the whole dictionary", "output-dictionary-size"),
    "format": ("fairseq sees itself how the data set is stored", "dataset-impl"),
    "targets": ("no language model here predicts it", "past-target self-target"),
    "data2vec": (DATA2VEC, "d2v2-multi include-index include-target-tokens skip-masking"),
    "relative": (
        "fairseq refuses it beside lr, which is always set",
        "relative-step warmup-init",
    ),
    "composite": ("is for the optimizer composite, which is not for one model", "groups"),
    "groups": ("is for the optimizer composite, which is not for one model", "dynamic-groups"),
}
"""Flags that would take away what nas-attn promises, or cannot work: why, and which."""

REASONS = {name: reason for reason, names in REFUSED.values() for name in _names(names)}

IDLE = _names(REFUSED["evaluated"][1]) | _names(REFUSED["hydra"][1])
IDLE |= {"heartbeat-timeout", "keep-best-checkpoints", "keep-last-epochs"}
"""Flags that are refused, but change no loss."""
STOCK_VALUES = {
    "save-interval": 1,
    "train-subset": "train",
    "valid-subset": "valid",
    "validate-interval": 1,
}
"""Flags that are refused, and the values with which they change no loss."""

ALIASES = {
    "combine-val": "combine-valid-subsets",
    "local-rank": "device-id",
    "max-sentences": "batch-size",
    "max-sentences-valid": "batch-size-valid",
    "nval": "max-valid-steps",
    "save-async": "write-checkpoints-asynchronously",
    "wd": "weight-decay",
}
"""Second names of flags."""

INVERTED = frozenset({"left-pad-source"})
"""Switches that are on; fairseq's flag turns them off."""

CRITERIONS = {
    "adaptive_loss": ("translation", "language_modeling"),
    "cross_entropy": ("translation", "language_modeling", "masked_lm"),
    "label_smoothed_cross_entropy": ("translation", "language_modeling", "masked_lm"),
    "label_smoothed_cross_entropy_with_alignment": ("translation",),
    "label_smoothed_cross_entropy_with_rdrop": ("translation",),
    "masked_lm": ("masked_lm",),
}
"""fairseq's criterions that train a model of ours, and the tasks that they are for; each also as
grouped_NAME."""

TAUGHT = ("cross_entropy", "label_smoothed_cross_entropy", "masked_lm")
"""Those that the plugin has with a teacher too, as distilled_NAME and grouped_distilled_NAME."""

GENERATION = _names(
    """
    beam diverse_beam_groups diverse_beam_strength diversity_rate lenpen match_source_len max_len
    max_len_a max_len_b min_len no_early_stop no_repeat_ngram_size normalize_scores sampling
    sampling_topk sampling_topp temperature unkpen unnormalized
    """
)
"""Options of translating the validation set."""

ALLOWED: tuple[tuple[Judge, str], ...] = (
    (
        switch,
        """adaptive-input add-bos-token amp anneal-eps azureml-logging bfloat16-linear
        broadcast-buffers char-inputs character-embeddings checkpoint-activations cpu
        cross-self-attention debug-param-names decoder-learned-pos decoder-normalize-before ema-fp32
        encoder-learned-pos encoder-normalize-before eval-bleu eval-bleu-print-samples export
        fast-stat-sync find-unused-parameters fix-batches-to-gpus fp16 fp16-adam-stats
        fp16-no-flatten-grads freq-weighted-replacement future-target gradient-as-bucket-view
        grouped-shuffling layernorm-embedding left-pad-source left-pad-target load-alignments
        load-checkpoint-heads memory-efficient-fp16 merge-src-tgt-embed no-bias-correction
        no-cross-attention no-decoder-final-norm no-progress-bar no-scale-embedding
        no-token-positional-embeddings offload-activations on-cpu-convert-precision
        pad-to-fixed-bsz pad-to-fixed-length profile report-accuracy scale-attn scale-fc
        scale-heads scale-parameter scale-resids sentence-avg share-all-embeddings
        share-decoder-input-output-embed shrink-min skip-remainder-batch
        spectral-norm-classification-head store-ema tie-adaptive-proj tie-adaptive-weights
        truncate-source untie-weights-roberta update-ordered-indices-seed use-old-adam""",
    ),
    (
        COUNT,
        """batch-size batch-size-valid bucket-cap-mb char-embedder-highway-layers
        character-embedding-dim data-buffer-size decoder-attention-heads decoder-embed-dim
        decoder-ffn-embed-dim decoder-input-dim decoder-output-dim ema-update-freq
        encoder-attention-heads encoder-embed-dim encoder-ffn-embed-dim log-interval
        lr-deacy-period lr-period-updates mask-multiple-length max-positions max-source-positions
        max-target-positions max-tokens max-tokens-valid required-seq-len-multiple
        tokens-per-sample total-num-update""",
    ),
    (
        whole(1, MOST_LAYERS, f"a whole number from 1 to {MOST_LAYERS}"),
        "decoder-layers encoder-layers",
    ),
    (
        WHOLE,
        """all-gather-list-size amp-batch-retries amp-init-scale amp-scale-window curriculum
        decay-steps ema-start-update empty-cache-freq fixed-validation-seed force-anneal
        fp16-init-scale fp16-scale-window hold-steps ignore-prefix-size lr-patience max-epoch
        max-update num-batch-buckets num-workers save-interval-updates vote-at-epoch
        vote-at-update vote-updates warmup-steps warmup-updates""",
    ),
    (
        whole(-1, MOST, "a whole number, or -1 for none"),
        "keep-interval-updates keep-interval-updates-pattern patience upsample-primary",
    ),
    (
        UNDER_1,
        """activation-dropout adaptive-softmax-dropout attention-dropout beta1 decoder-layerdrop
        dropout encoder-layerdrop label-smoothing momentum pooler-dropout relu-dropout""",
    ),
    (
        SHARE,
        """adadelta-rho ema-decay fp16-scale-tolerance leave-unmasked-prob lr-decay mask-prob
        random-token-prob teacher-weight""",
    ),
    (
        POSITIVE,
        """adadelta-eps adam-eps adamax-eps adaptive-input-factor adaptive-softmax-factor
        clip-threshold lamb-eps lr-shrink max-lr min-loss-scale power t-mult
        teacher-temperature threshold-loss-scale""",
    ),
    (
        FROM_0,
        """alignment-lambda clip-norm end-learning-rate final-lr-scale init-lr-scale lr-threshold
        mask-stdev min-lr rdrop-alpha weight-decay""",
    ),
    (FINITE, "decay-rate stop-min-lr warmup-init-lr"),
    (RATES, "lr"),
    (
        literal(list_of(is_count), "one whole number from 1, or one for each epoch"),
        "update-freq",
    ),
    (
        literal(list_of(is_count), "whole numbers with commas between them"),
        "adaptive-input-cutoff adaptive-softmax-cutoff",
    ),
    (BETAS, "adam-betas adamax-betas lamb-betas"),
    (
        literal(list_of(lambda x: is_number(x, 0), 2), "two numbers: (1e-30, 1e-3)"),
        "adafactor-eps",
    ),
    (
        literal(list_of(lambda x: is_number(x, 0, 1), 3), "three shares: (0.1, 0.4, 0.5)"),
        "phase-ratio",
    ),
    (literal(is_schedule, "rates by epoch: {'1': 0.001, '2-9': 0.0005}"), "epoch2lr update2lr"),
    (literal(is_filters, "pairs of width and number: [(1, 64), (2, 128)]"), "character-filters"),
    (json_object(GENERATION), "eval-bleu-args"),
    (
        json_object(
            _names("moses_no_dash_splits moses_no_escape"), _names("source_lang target_lang")
        ),
        "eval-bleu-detok-args",
    ),
    (one_of("space", "moses", "nltk"), "eval-bleu-detok"),
    (one_of("keys_values", "output"), "source-cache"),
    (
        one_of(
            "sentencepiece",
            "subword_nmt",
            "@@ ",
            "wordpiece",
            "letter",
            "_EOW",
            "none",
            switch=True,
        ),
        "eval-bleu-remove-bpe",
    ),
    (folder_name, "tensorboard-logdir"),
    (words, "shorten-data-split-list"),
    (
        word,
        """activation-fn ddp-comm-hook group-loss pooler-activation-fn sample-break-mode
        shorten-method wandb-project""",
    ),
    (
        without(word, frozenset({"fully_sharded", "slowmo"}), SHARDED),
        "ddp-backend",
    ),
    (word, "criterion"),
    (
        without(
            word,
            frozenset({"composite", "cpu_adam"}),
            "does not train one model in one process; take adam",
        ),
        "optimizer",
    ),
    (
        without(word, frozenset({"pass_through"}), "is for the optimizer composite"),
        "lr-scheduler",
    ),
)
"""How each flag that a study may set is judged."""

JUDGES = {name: judge for judge, names in ALLOWED for name in _names(names)}


def dashed(name: str) -> str:
    """The name of a flag as fairseq's help writes it, without the leading dashes."""
    return name.replace("_", "-")


def given(arguments: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Arguments by the first of fairseq's names for them."""
    return {ALIASES.get(dashed(name), dashed(name)): value for name, value in arguments.items()}


def plain_criterion(name: str) -> str:
    """The criterion of fairseq that one of the plugin's adds to."""
    return name.removeprefix("grouped_").removeprefix("distilled_")


def is_distilled(name: str) -> bool:
    """Whether a criterion asks a teacher."""
    return name.removeprefix("grouped_").startswith("distilled_")


def distilled(name: str) -> str:
    """The criterion that asks a teacher beside."""
    prefix = "grouped_" if name.startswith("grouped_") else ""
    return f"{prefix}distilled_{plain_criterion(name)}"


def without_refused(arguments: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Arguments without the flags that no study may set; earlier versions took some of them."""
    refused = OWNED | REASONS.keys()
    return {
        name: value
        for name, value in arguments.items()
        if ALIASES.get(dashed(name), dashed(name)) not in refused
    }


def without_idle(arguments: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Arguments without the refused flags that change no loss, so that they can be left out."""
    kept = without_refused(arguments)
    for name in arguments.keys() - kept.keys():
        flag, value = ALIASES.get(dashed(name), dashed(name)), arguments[name]
        is_stock = flag in STOCK_VALUES and str(value) == str(STOCK_VALUES[flag])
        if flag not in IDLE and value is not False and not is_stock:
            kept[name] = value
    return kept


def words_of(arguments: Mapping[str, Scalar]) -> list[str]:
    """Arguments as words of a command line, one each, so that no value can be taken for a flag."""
    words = []
    for name, value in arguments.items():
        flag = f"--{dashed(name)}"
        if not isinstance(value, bool):
            words.append(f"{flag}={value}")
        elif value != (dashed(name) in INVERTED):
            words.append(flag)
    return words


def check_flags(arguments: Mapping[str, Scalar], task: str) -> Iterator[ConfigIssue]:
    """What is wrong with names and values, by themselves; nothing of fairseq is asked.

    Args:
        arguments: Arguments of a training.
        task: Name of the task, such as `translation`.
    """
    seen: dict[str, str] = {}
    for name, value in arguments.items():
        key = f"arguments.{name}"
        flag = dashed(name)
        if not NAME.fullmatch(name):
            message = "no name of a flag; write it as fairseq's help does, without dashes in front"
            yield ConfigIssue(key, message)
            continue
        flag = ALIASES.get(flag, flag)
        if flag in seen:
            yield ConfigIssue(key, f"is the same flag as {seen[flag]}; give one of them")
            continue
        seen[flag] = name
        message = _refusal(flag, value)
        if message:
            yield ConfigIssue(key, message)
    yield from _check_criterion(given(arguments), task)


def _refusal(flag: str, value: Scalar) -> str:
    if flag in OWNED:
        return "is set by nas-attn itself; leave it out"
    if flag in REASONS:
        return f"is refused: {REASONS[flag]}"
    judge = JUDGES.get(flag)
    if judge is None:
        return f"fairseq-train has no such flag{did_you_mean(flag, JUDGES)}"
    text = str(value)
    # fairseq hands values to hydra as text, which reads these as templates, quotes and ends.
    if len(text) > LONGEST or "${" in text or "\\" in text or not text.isprintable():
        return "is no value of a flag: it is too long, or holds what fairseq would interpret"
    if isinstance(value, str) and not value:
        return "is empty"
    return judge(value)


def _check_criterion(named: Mapping[str, Scalar], task: str) -> Iterator[ConfigIssue]:
    said = str(named.get("criterion", "cross_entropy"))
    if not WORD.fullmatch(said):
        return
    plain = plain_criterion(said)
    tasks = CRITERIONS.get(plain)
    if is_distilled(said) and plain not in TAUGHT:
        taught = [name for name in TAUGHT if task in CRITERIONS[name]]
        message = f"no teacher teaches a model that is trained by {plain}; take "
        yield ConfigIssue("arguments.criterion", message + ", ".join(taught))
    elif tasks is None or task not in tasks:
        offer = ", ".join(name for name, tasks in CRITERIONS.items() if task in tasks)
        message = f"{said} does not train a {task} model here; take {offer}, or grouped_ and one"
        yield ConfigIssue("arguments.criterion", message)
