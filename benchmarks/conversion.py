"""What a conversion costs: seconds against tensorly's, and loss on the validation split.

    python benchmarks/conversion.py speed checkpoint_best.pt
    python benchmarks/conversion.py damage checkpoint_best.pt data-bin/multi30k
    python benchmarks/conversion.py groups checkpoint_best.pt data-bin/multi30k

The checkpoint is of a trained fairseq transformer with multi-head attention. `speed` decomposes one
module's score maps, tensorly's parafac by the settings of the collaborative-attention paper's code
beside ours; `damage` converts every module without any fine-tuning; `groups` makes heads share keys
and values in two groups, in four ways: means of neighbours, means once heads are turned to each
other, ours of neighbours, and ours of those halves that leave a module's outputs with the least
error (heads may be put in any order, which changes nothing).
"""

from __future__ import annotations

import argparse
import copy
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nas_attn.attention import Attention
from nas_attn.conversion import RecordedCall, convert_attention
from nas_attn.conversion.factors import collaborative_factors
from nas_attn.conversion.maps import maps_of
from nas_attn.conversion.pooling import Pooling
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
            cells = [f"{_loss_of(trained, choice, data, pooling='means') - base:+9.4f}"]
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
    pooling: Pooling | None = None,
) -> float:
    model = copy.deepcopy(trained)
    plan = AttentionPlan.uniform(choice, tuple(trained.layers()))
    calls = calibration_calls(model, calibrate) if calibrate is not None else {}
    convert_trained(model, plan, calls, refit=refit, pooling=pooling)
    return validation_loss(model, data)


def groups(checkpoint: Path, data: Path) -> None:
    """Print what sharing keys and values in two groups changes in the validation loss."""
    trained = load_trained(checkpoint)
    base = validation_loss(trained, data)
    heads = next(iter(trained.attention().values())).num_heads
    choice = AttentionChoice.of("grouped_query", num_groups=2)
    print(f"{heads} heads, {choice} everywhere, validation loss {base:.4f} bits a token")
    changes = {
        "means": _loss_of(trained, choice, data, pooling="means"),
        "means of aligned heads": _loss_of(
            trained, choice, data, calibrate=data, pooling="aligned_means"
        ),
        "ours": _loss_of(trained, choice, data, calibrate=data, refit=True),
    }
    calls, tried = calibration_calls(trained, data), 0
    for place, module in trained.attention().items():
        orders = list(halves(heads))
        tried = len(orders)
        reorder(module, min(orders, key=lambda o: _error(module, o, choice, calls[place])))
    reordered = validation_loss(trained, data)
    changes[f"ours, best of {tried} halves"] = _loss_of(
        trained, choice, data, calibrate=data, refit=True
    )
    print(f"heads in another order: {reordered - base:+.6f}")
    for name, loss in changes.items():
        print(f"{name:32} {loss - base:+.4f}", flush=True)


def halves(heads: int) -> Iterator[list[int]]:
    """Orders of heads, one for each way to part them in two halves: 35 of 8 heads, 3 of 4."""
    for some in itertools.combinations(range(1, heads), heads // 2 - 1):
        first = [0, *some]
        yield first + [head for head in range(heads) if head not in first]


@torch.no_grad()
def reorder(module: Attention, order: Sequence[int]) -> None:
    """Put the heads of multi-head attention in another order, which changes nothing."""
    heads = torch.tensor(order)
    for name in ("q_proj", "k_proj", "v_proj"):
        projection = getattr(module, name)
        for weight in (projection.weight, projection.bias):
            if weight is not None:
                weight.copy_(weight.view(len(order), -1, *weight.shape[1:])[heads].flatten(0, 1))
    output = module.out_proj.weight
    output.copy_(output.view(len(output), len(order), -1)[:, heads].flatten(1))


def _error(
    module: Attention, order: Sequence[int], choice: AttentionChoice, calls: Sequence[RecordedCall]
) -> float:
    """Relative error of a module's outputs, its heads put in an order and converted."""
    ordered = copy.deepcopy(module)
    reorder(ordered, order)
    errors = convert_attention(ordered, choice, calls[:1], refit=False).errors
    assert errors is not None
    return errors.outputs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["speed", "damage", "groups"])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--shared-dims", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.what == "speed":
        speed(options.checkpoint, options.shared_dims)
    elif options.data is None:
        parser.error(f"{options.what} needs the data set")
    else:
        (damage if options.what == "damage" else groups)(options.checkpoint, options.data)


if __name__ == "__main__":
    main()
