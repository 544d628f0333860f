"""What a conversion costs: seconds against tensorly's, and loss on the validation split.

    python benchmarks/conversion.py speed checkpoint_best.pt
    python benchmarks/conversion.py damage checkpoint_best.pt data-bin/multi30k

The checkpoint is of a trained fairseq transformer with multi-head attention. `speed` decomposes one
module's score maps, tensorly's parafac by the settings of the collaborative-attention paper's code
beside ours; `damage` converts every module without any fine-tuning.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nas_attn.conversion.factors import collaborative_factors
from nas_attn.conversion.maps import maps_of
from nas_attn.fairseq_tools.convert import calibration_calls, convert_trained, validation_loss
from nas_attn.fairseq_tools.trained import TrainedModel, load_trained
from nas_attn.plan import AttentionChoice, AttentionPlan

SWEEPS = (0, 1, 2, 3, 5, 10, 20, 50, 100)


def speed(checkpoint: Path, shared_dims: list[int]) -> None:
    """Print seconds and errors of one module's decomposition, ours and tensorly's."""
    import tensorly
    from tensorly.decomposition import parafac

    tensorly.set_backend("pytorch")
    module = next(iter(load_trained(checkpoint).attention().values()))
    maps = maps_of(module)
    left, right = maps.query[..., :-1].contiguous(), maps.key
    tensor = torch.einsum("nrp,nrq->pnq", left, right).float()
    print(f"width {module.embed_dim}, {module.num_heads} heads, {torch.get_num_threads()} threads")
    print("shared dimension  method          sweeps  seconds  relative error")
    for shared_dim in shared_dims:
        began = time.perf_counter()
        weights, factors = parafac(tensor, shared_dim, init="random", tol=1e-6, n_iter_max=100)
        seconds = time.perf_counter() - began
        found = tensorly.cp_to_tensor((weights, factors))
        theirs = float((found - tensor).norm() / tensor.norm())
        print(f"{shared_dim:16d}  tensorly        {'':6}  {seconds:7.2f}  {theirs:.4f}")
        reached = False
        for sweeps in SWEEPS:
            began = time.perf_counter()
            ours = collaborative_factors(left, right, shared_dim, sweeps=sweeps, tolerance=0.0)
            mine = time.perf_counter() - began
            note = ""
            if not reached and float(ours.error) <= theirs:
                reached, note = True, f"  tensorly's error in {seconds / mine:.0f} times less time"
            print(
                f"{shared_dim:16d}  ours            {sweeps:6d}  {mine:7.3f}  "
                f"{float(ours.error):.4f}{note}"
            )


def damage(checkpoint: Path, data: Path) -> None:
    """Print what each conversion of all modules changes in the validation loss."""
    trained = load_trained(checkpoint)
    base = validation_loss(trained, data)
    module = next(iter(trained.attention().values()))
    width, heads = module.embed_dim, module.num_heads
    print(f"width {width}, {heads} heads, validation loss {base:.4f} bits a token")
    print(f"{'everywhere':40}  {'means':>9}  {'weights':>9}  {'data':>9}  data, refit")
    of = AttentionChoice.of
    choices = [of("collaborative", shared_dim=width // part) for part in (1, 2, 4, 8)]
    groups = [number for number in range(heads, 0, -1) if heads % number == 0]
    choices += [of("grouped_query", num_groups=number) for number in groups]
    choices += [of("reduced_key", key_dim=width // part) for part in (2, 4)]
    choices += [of("shared_key_value"), of("head_embedding_mul"), of("single_head")]
    choices += [of("grouped_head", kept_heads=max(1, heads // 2))]
    for choice in choices:
        cells = [" " * 9]
        if choice.scheme == "grouped_query":
            cells = [f"{_loss_of(trained, choice, data, means=True) - base:+9.4f}"]
        for source, refit in ((None, False), (data, False), (data, True)):
            loss = _loss_of(trained, choice, data, calibrate=source, refit=refit)
            cells.append(f"{loss - base:+9.4f}")
        print(f"{choice!s:40}  {'  '.join(cells)}", flush=True)


def _loss_of(
    trained: TrainedModel,
    choice: AttentionChoice,
    data: Path,
    *,
    calibrate: Path | None = None,
    refit: bool = False,
    means: bool = False,
) -> float:
    model = copy.deepcopy(trained)
    plan = AttentionPlan.uniform(choice, tuple(trained.layers()))
    calls = calibration_calls(model, calibrate) if calibrate is not None else {}
    convert_trained(model, plan, calls, refit=refit, means=means)
    return validation_loss(model, data)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["speed", "damage"])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--shared-dims", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.what == "speed":
        speed(options.checkpoint, options.shared_dims)
    elif options.data is None:
        parser.error("damage needs the data set")
    else:
        damage(options.checkpoint, options.data)


if __name__ == "__main__":
    main()
