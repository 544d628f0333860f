"""Proposals where costs are known, against brute force."""

from __future__ import annotations

import numpy as np
import pytest

from nas_attn.known_cost import proposals
from nas_attn.known_cost.proposals import History, KnownCostProposer, expected_gains
from nas_attn.known_cost.spread import CostSpread, Floats, Picks
from nas_attn.known_cost.surrogate import Alikeness, Beliefs, Choice, Surrogate
from nas_attn.pareto import hypervolume, non_dominated

LAYERS, WIDTHS = 5, (8, 16, 32, 64)
WEIGHTS = np.array([0.3, 3.0, 1.0, 0.5, 2.0])


def make_units() -> list[list[Choice]]:
    return [
        [Choice(cost=float(width), group="layers", label=str(width)) for width in WIDTHS]
        for _ in range(LAYERS)
    ]


def loss_of(picks: Picks) -> Floats:
    """A sum over layers, and a little of what two of them do together."""
    narrow = 8.0 / np.array(WIDTHS)[picks]
    return np.asarray(narrow @ WEIGHTS + 0.3 * narrow[:, 0] * narrow[:, 1])


def every_point() -> Picks:
    return np.indices([len(WIDTHS)] * LAYERS).reshape(LAYERS, -1).T


def history_of(tried: Picks, running: Picks | None = None, noise: float = 0.0) -> History:
    losses = loss_of(tried) + noise * np.random.default_rng(3).standard_normal(len(tried))
    return History(tried, losses, tried[:0] if running is None else running)


def some_points(count: int) -> Picks:
    return np.random.default_rng(0).permutation(every_point())[:count]


def share(picks: Picks) -> float:
    """The hypervolume of points as a share of that of all."""
    costs = CostSpread([np.array(WIDTHS)] * LAYERS, 0.0, 0).costs
    reference = (float(costs(every_point()).max()), 4.0)

    def volume(points: Picks) -> float:
        return hypervolume(list(zip(costs(points), loss_of(points), strict=True)), reference)

    return volume(picks) / volume(every_point())


class TestExpectedGains:
    def test_certain_losses_gain_what_hypervolume_grows_by(self) -> None:
        generator = np.random.default_rng(1)
        for _ in range(20):
            points = generator.random((9, 2)).tolist()
            front = sorted(tuple(points[i]) for i in non_dominated(points))
            reference = (0.9, 0.8)
            new = generator.random((7, 2))
            losses = Beliefs(np.log(new[:, 1] + 1), np.full(7, 1e-9), -1.0)
            gains = expected_gains(new[:, 0], losses.improvement, front, reference)
            before = hypervolume(points, reference)
            grown = [hypervolume([*points, p], reference) - before for p in new.tolist()]
            assert gains == pytest.approx(grown, abs=1e-7)

    def test_uncertain_losses_gain_the_mean_over_what_may_come(self) -> None:
        front, reference = [(0.2, 0.7), (0.5, 0.3)], (1.0, 1.0)
        logs = np.log(0.4) + 0.5 * np.random.default_rng(1).standard_normal(20_000)
        before = hypervolume(front, reference)
        grown = [hypervolume([*front, (0.3, x)], reference) - before for x in np.exp(logs) + 0.1]
        losses = Beliefs(np.log([0.4]), np.array([0.5]), 0.1)
        gain = expected_gains(np.array([0.3]), losses.improvement, front, reference)
        assert gain[0] == pytest.approx(np.mean(grown), rel=0.02)
        assert losses.medians == pytest.approx([0.5])


class TestSurrogate:
    def test_it_predicts_as_the_textbook_writes_it(self) -> None:
        alikeness, tried = Alikeness(make_units()), some_points(12)
        surrogate = Surrogate(alikeness, tried, losses := loss_of(tried))
        rows, new = alikeness.one_hot(tried), alikeness.one_hot(some_points(30))
        shares = surrogate.variances[:-1]
        floor = losses.min() - losses.std() / 2
        logs = np.log(losses - floor)
        scaled = (logs - logs.mean()) / logs.std()

        def covariance(one: Floats, other: Floats) -> Floats:
            return np.asarray(np.tensordot(shares, alikeness.between(one, other), 1) + 1.0)

        inverse = np.linalg.inv(
            covariance(rows, rows) + surrogate.variances[-1] * np.eye(len(rows))
        )
        across = covariance(new, rows)
        means = across @ inverse @ scaled * logs.std() + logs.mean()
        spreads = np.sqrt(np.diag(covariance(new, new) - across @ inverse @ across.T))
        found = surrogate.predict(some_points(30))
        assert found.means == pytest.approx(means, abs=1e-8)
        assert found.spreads == pytest.approx(spreads * logs.std(), rel=1e-5)
        assert found.floor == pytest.approx(floor)
        alone = alikeness.alone(shares, new) + 1.0
        assert alone == pytest.approx(np.diag(covariance(new, new)))

    def test_it_tells_noise_from_what_choices_do(self) -> None:
        tried = some_points(200)
        noise = 0.1 * np.random.default_rng(2).standard_normal(200)
        losses = np.exp(loss_of(tried) / 3 + noise)
        surrogate = Surrogate(Alikeness(make_units()), tried, losses)
        above = losses - losses.min() + losses.std() / 2
        found = np.sqrt(surrogate.variances[-1]) * np.log(above).std()
        assert found == pytest.approx(0.1 * np.sqrt(np.mean((losses / above) ** 2)), rel=0.15)
        off = np.log(surrogate.predict(every_point()).medians) - loss_of(every_point()) / 3
        assert np.sqrt(np.mean(off**2)) < 0.05

    def test_what_a_prediction_says_helps_as_far_as_it_is_right(self) -> None:
        right = [
            [
                Choice(c.cost, c.group, c.label, predicted=float(w * 8 / c.cost))
                for c in make_units()[0]
            ]
            for w in WEIGHTS
        ]
        off = {}
        for name, units in (("alone", make_units()), ("predicted", right)):
            losses = np.exp(loss_of(tried := some_points(8)) / 3)
            found = Surrogate(Alikeness(units), tried, losses).predict(every_point())
            wrong = np.log(found.medians) - loss_of(every_point()) / 3
            off[name] = np.sqrt(np.mean(wrong**2))
        assert off["predicted"] < 0.5 * off["alone"]

    def test_draws_of_tables_are_solved_exactly(self) -> None:
        proposer = KnownCostProposer(make_units(), 0.0, 1)
        table = np.random.default_rng(4).standard_normal(LAYERS * len(WIDTHS))
        sums = proposer._alikeness.one_hot(every_point()) @ table
        costs = proposer.costs(every_point())
        best = [min(sums[costs <= cost]) for cost in costs]
        wanted = {(c, round(s, 4)) for c, s, b in zip(costs, sums, best, strict=True) if s <= b}
        solved = proposer._solve(table)
        found = proposer._alikeness.one_hot(solved) @ table
        pairs = zip(proposer.costs(solved), found, strict=True)
        assert {(cost, round(loss, 4)) for cost, loss in pairs} == wanted


class TestProposals:
    @pytest.mark.parametrize("is_large", [False, True])
    def test_it_finds_more_than_points_spread_evenly(
        self, is_large: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if is_large:
            monkeypatch.setattr(proposals, "CANDIDATES", 0)
        shares: dict[str, list[float]] = {"spread": [], "known cost": []}
        for seed in range(2):
            proposer = KnownCostProposer(make_units(), 0.0, seed)
            for name, points in shares.items():
                tried: list[tuple[int, ...]] = []
                while len(tried) < 20:
                    picks = None
                    if name != "spread" and len(tried) >= 4:
                        history = history_of(np.array(tried), noise=0.05)
                        picks = proposer.propose(len(tried), history, lambda p, t=tried: p not in t)
                    picks = picks or proposer.spread.propose(
                        len(tried), lambda p, t=tried: p not in t
                    )
                    assert picks is not None
                    tried.append(picks)
                points.append(share(np.array(tried)))
        assert np.mean(shares["known cost"]) > np.mean(shares["spread"]) + 0.12

    def test_it_depends_on_the_history_alone(self) -> None:
        history = history_of(some_points(10), some_points(14)[10:])
        proposed = {
            KnownCostProposer(make_units(), 0.0, 1).propose(9, history, lambda p: True)
            for _ in range(2)
        }
        assert len(proposed) == 1

    def test_what_runs_sends_others_elsewhere(self) -> None:
        proposer, tried = KnownCostProposer(make_units(), 0.0, 1), some_points(10)
        running: list[tuple[int, ...]] = []
        for number in range(8):
            history = history_of(tried, np.array(running, int).reshape(-1, LAYERS))
            picks = proposer.propose(number, history, lambda p: p not in running)
            assert picks is not None
            running.append(picks)
        costs = proposer.costs(np.array(running))
        assert len(set(running)) == 8 and len(set(costs.tolist())) >= 4

    def test_limits_are_obeyed(self) -> None:
        proposer = KnownCostProposer(make_units(), 0.0, 1, limit=100.0)
        for number in range(10):
            picks = proposer.propose(number, history_of(some_points(8 + number)), lambda p: True)
            assert proposer.costs(np.array([picks]))[0] <= 100

    def test_a_long_history_is_thinned_and_keeps_its_front(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(proposals, "MOST_TRIED", 40)
        proposer, tried = KnownCostProposer(make_units(), 0.0, 1), some_points(300)
        surrogate = proposer.surrogate(history_of(tried), np.random.default_rng(0))
        seen = {tuple(row) for row in surrogate._points.astype(int).tolist()}
        points = list(zip(proposer.costs(tried), loss_of(tried), strict=True))
        rows = proposer._alikeness.one_hot(tried[non_dominated(points)]).astype(int).tolist()
        assert len(seen) == 40 and {tuple(row) for row in rows} <= seen
