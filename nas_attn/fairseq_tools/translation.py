"""BLEU of a model in memory, as fairseq-generate finds it of a checkpoint."""

from __future__ import annotations

import math
from argparse import Namespace

import torch

from nas_attn.bleu import DEFAULT, BleuTokenizer
from nas_attn.errors import UsageError
from nas_attn.fairseq_tools.convert import BATCH_TOKENS
from nas_attn.fairseq_tools.data import PreparedData
from nas_attn.fairseq_tools.trained import TrainedModel, load_batches, spread, task_config

BEAM = 5


def validation_bleu(
    trained: TrainedModel, data: PreparedData, tokenizer: BleuTokenizer = DEFAULT
) -> float:
    """Corpus BLEU (sacreBLEU, in percent) of translations of the validation set, by a beam of 5.

    Args:
        trained: Trained translation model, on the device that is to be used.
        data: Binarised data set.
        tokenizer: Name of sacreBLEU's tokenizer.

    Raises:
        UsageError: The model does not translate, or the data do not fit it.
    """
    import sacrebleu
    from fairseq import tasks, utils

    model = trained.model
    if not (hasattr(model, "encoder") and hasattr(model, "decoder")):
        raise UsageError("only translations have BLEU, and this model does not translate")
    batches = load_batches(trained, data.folder, "valid", BATCH_TOKENS)
    task = tasks.setup_task(task_config(trained, data.folder))
    generator = task.build_generator([model], Namespace(beam=BEAM))
    device = next(model.parameters()).device
    dictionary = task.target_dictionary
    subwords = "sentencepiece" if data.sentencepiece_model.is_file() else None
    translations, references = [], []
    for batch in spread(batches, math.inf):
        sample = utils.apply_to_sample(lambda tensor: tensor.to(device), batch)
        with torch.no_grad():
            found = task.inference_step(generator, [model], sample)
        for (best, *_), reference in zip(found, batch["target"], strict=True):
            translations.append(dictionary.string(best["tokens"].cpu(), subwords))
            seen = reference[reference != dictionary.pad()]
            # A word that the dictionary lacks is none that a model could write.
            references.append(dictionary.string(seen, subwords, escape_unk=True))
    return float(sacrebleu.corpus_bleu(translations, [references], tokenize=tokenizer).score)
