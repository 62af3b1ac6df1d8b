"""The arithmetic of experts, mixes and gates against the plain formulas, row by row in float64, on random inputs."""

from collections.abc import Sequence

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm", reason="vLLM is not installed")

from server.engine.recipes import parse  # noqa: E402
from server.vllm_plugin.kernels.batch import MAX_DENSE_ROWS, MIN_RUN, Batch, group_rows  # noqa: E402
from server.vllm_plugin.kernels.expert_linear import ExpertLinear  # noqa: E402
from server.vllm_plugin.kernels.module_weights import SliceWeights  # noqa: E402
from server.vllm_plugin.kernels.packed_products import PACK_AFTER, PackedMatrix, can_pack  # noqa: E402
from server.vllm_plugin.plans import FIXED, RecipePlan, plan_of  # noqa: E402

D_IN, SLICES = 24, (16, 8, 12)
RANKS = {"a": 2, "b": 4, "c": 8, "d": 1, "e": 3}


def ident(name: str) -> str:
    return f"{name}@00000000"


A, B, C, D, E = map(ident, "abcde")
RECIPES = [
    None,
    A,
    C,
    f"mix({A}*0.5,{B}*0.25,{D}*1.5)",
    f"gate(arrow,k=2,t=1;{A},{B},{C},{E})",
    f"gate(arrow,k=3,t=0.5,agg=ab;{A},{C},{D},{E})",
    f"mix({E}*0.31)",
    f"gate(arrow,k=4,t=1;{A},{B},{C},{E})",
    f"gate(uniform,agg=ab;{A},{C},{E})",
    f"mix({A}*1.1,{C}*-0.4,{E}*0.25;agg=ab)",
    f"mix({A}*-0.5,{C}*0.75)",
]
PLANS = {number: plan_of(parse(text)) for number, text in enumerate(RECIPES) if text}
LEAVE_OUT_EXPERTS = {4, 5}
"""Gates that do not take all of their experts: which ones, may hang on a rounding."""


class World:
    """Random experts; some do not adapt every slice. All numbers are those that `dtype` can hold."""

    def __init__(self, seed: int, dtype: "torch.dtype" = torch.float32, rank: int | None = None) -> None:
        self.dtype = dtype
        self.ranks = dict.fromkeys(RANKS, rank) if rank else RANKS
        self.seed = seed
        self.rng = np.random.default_rng(seed)
        self.weights: dict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray] | None]] = {}
        self.batch = Batch(dtype, torch.device("cpu"))
        self.linear = ExpertLinear(self.batch, D_IN, SLICES)
        for name, own_rank in self.ranks.items():
            slices: list[tuple[np.ndarray, np.ndarray, np.ndarray] | None] = []
            for number, width in enumerate(SLICES):
                missing = not rank and (name, number) in {("b", 1), ("d", 0), ("d", 2), ("e", 2)}
                a, b, v = (self.rng.normal(size=shape) for shape in ((own_rank, D_IN), (width, own_rank), D_IN))
                rounded = [tensor(each).to(dtype).double().numpy() for each in (a, b, v / np.linalg.norm(v))]
                slices.append(None if missing else (rounded[0], rounded[1], rounded[2]))
            self.weights[ident(name)] = slices
            packed = [None if s is None else SliceWeights(*map(self.tensor, (s[0], s[1].T, s[2]))) for s in slices]
            self.linear.put(ident(name), packed)

    def tensor(self, values: np.ndarray) -> "torch.Tensor":
        return tensor(values).to(self.dtype)

    def check(self, rows: Sequence[int]) -> None:
        """Compare all rows; `rows` has an index into RECIPES for each."""
        self.batch.update(rows, PLANS, {ident(name): rank for name, rank in self.ranks.items()})
        x = self.tensor(self.rng.normal(size=(len(rows), D_IN))).double().numpy()
        before = self.tensor(self.rng.normal(size=(len(rows), sum(SLICES)))).double().numpy()
        y = self.tensor(before)
        self.linear.add(y, self.tensor(x))
        expected = before.copy()
        for row, recipe in enumerate(rows):
            if recipe:
                expected[row] += self.formula(PLANS[recipe], x[row])
        atol = 2e-4 if self.dtype is torch.float32 else 0.02 * np.abs(expected).max()
        np.testing.assert_allclose(y.double().numpy(), expected, rtol=1e-4, atol=atol, err_msg=f"seed {self.seed}")
        for row, recipe in enumerate(rows):
            if not recipe:
                assert torch.equal(y[row], self.tensor(before)[row])

    def formula(self, plan: RecipePlan, x: np.ndarray) -> np.ndarray:
        parts = []
        for number, width in enumerate(SLICES):
            there = [(w, s[number]) for e, w in zip(plan.experts, plan.weights, strict=True) if (s := self.weights[e])]
            chosen = [(weight, found) for weight, found in there if found is not None]
            total = np.zeros(width)
            if plan.gate is None:
                for weight, (a, b, _) in chosen:
                    total += weight * (b @ (a @ x))
            elif chosen:
                is_arrow = plan.gate.kind == "arrow"
                scores = np.array([abs(x @ v) if is_arrow else 0.0 for _, (_, _, v) in chosen])
                kept = np.argsort(-scores)[: plan.gate.k]
                gains = np.zeros(len(chosen))
                gains[kept] = np.exp((scores[kept] - scores[kept].max()) / plan.gate.temperature)
                gains /= gains.sum()
                if plan.gate.kind == FIXED:
                    gains = np.array([weight for weight, _ in chosen])
                if plan.gate.aggregation == "output":
                    for gain, (_, (a, b, _)) in zip(gains, chosen, strict=True):
                        total += gain * (b @ (a @ x))
                else:
                    rank = max(len(a) for _, (a, _, _) in chosen)
                    mean_a = sum(
                        g * np.pad(a, ((0, rank - len(a)), (0, 0)))
                        for g, (_, (a, _, _)) in zip(gains, chosen, strict=True)
                    )
                    mean_b = sum(
                        g * np.pad(b, ((0, 0), (0, rank - b.shape[1])))
                        for g, (_, (_, b, _)) in zip(gains, chosen, strict=True)
                    )
                    total += mean_b @ (mean_a @ x)
            parts.append(total)
        return np.concatenate(parts)


def tensor(values: np.ndarray) -> "torch.Tensor":
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


@pytest.mark.parametrize("num_rows", [1, 2, 7, 16, MAX_DENSE_ROWS, MAX_DENSE_ROWS + 1, 200])
def test_any_batch_is_the_plain_formula(num_rows: int, fresh_seed: int) -> None:
    world = World(fresh_seed)
    for _ in range(6):  # layouts grow, are used again, and are compacted
        world.check(world.rng.integers(0, len(RECIPES), num_rows).tolist())


@pytest.mark.parametrize("num_rows", [1, 16, MAX_DENSE_ROWS + 1, 200])
def test_experts_of_one_rank_in_all_slices_are_the_plain_formula(num_rows: int, fresh_seed: int) -> None:
    world = World(fresh_seed, rank=4)
    for recipe in range(len(RECIPES)):
        world.check([recipe] * num_rows)
    for _ in range(3):
        world.check(world.rng.integers(0, len(RECIPES), num_rows).tolist())


@pytest.mark.parametrize("num_rows", [1, 5, 16, MAX_DENSE_ROWS, MAX_DENSE_ROWS + 1, 300])
def test_packed_products_are_the_plain_formula(num_rows: int, monkeypatch: pytest.MonkeyPatch, fresh_seed: int) -> None:
    num_packed = 0
    times = PackedMatrix.__call__

    def counted(self: PackedMatrix, x: torch.Tensor) -> torch.Tensor:
        nonlocal num_packed
        num_packed += 1
        return times(self, x)

    monkeypatch.setattr(PackedMatrix, "__call__", counted)
    # Some recipes in one product, some by slice.
    monkeypatch.setattr("server.vllm_plugin.kernels.packed_products.MAX_ZEROS", 400)
    world = World(fresh_seed, torch.bfloat16)
    any_recipe = [number for number in range(len(RECIPES)) if number not in LEAVE_OUT_EXPERTS]
    batches = [world.rng.choice(any_recipe, num_rows).tolist(), [1] * num_rows, [7] * num_rows, [8] * num_rows]
    for _ in range(PACK_AFTER + 3):
        for rows in batches:
            world.check(rows)
    world.linear.drop(A)
    world.batch.forget(A)
    world.weights[A] = [None, None, None]
    for _ in range(PACK_AFTER + 2):
        world.check([1, 2, 3] * num_rows)
    assert (num_packed > 0) == can_pack(torch.bfloat16, torch.device("cpu"))


@pytest.mark.parametrize("num_long", [1, 3])
def test_a_prefill_of_long_and_short_runs_is_the_plain_formula(num_long: int, fresh_seed: int) -> None:
    world = World(fresh_seed)
    for _ in range(4):
        rows: list[int] = []
        for _ in range(12):
            length = int(world.rng.integers(MIN_RUN, 3 * MIN_RUN)) if world.rng.integers(12) < 4 * num_long else 1
            rows += [int(world.rng.integers(len(RECIPES)))] * length
        world.check(rows)


def test_one_recipe_after_another_and_all_at_once(fresh_seed: int) -> None:
    world = World(fresh_seed)
    for recipe in range(len(RECIPES)):
        world.check([recipe] * 5)
    world.check([recipe for recipe in range(len(RECIPES)) for _ in range(3)])


def test_a_request_gets_the_same_alone_and_among_others(fresh_seed: int) -> None:
    world = World(fresh_seed)
    plans = {n: plan_of(parse(text)) for n, text in enumerate(RECIPES) if text}
    ranks = {ident(name): rank for name, rank in RANKS.items()}
    x = tensor(world.rng.normal(size=(len(RECIPES), D_IN)))
    together = torch.zeros(len(RECIPES), sum(SLICES))
    world.batch.update(range(len(RECIPES)), plans, ranks)
    assert world.batch.dense
    world.linear.add(together, x)
    for recipe in range(len(RECIPES)):
        alone = torch.zeros(1, sum(SLICES))
        world.batch.update([recipe], plans, ranks)
        world.linear.add(alone, x[recipe : recipe + 1])
        torch.testing.assert_close(alone[0], together[recipe], rtol=1e-4, atol=1e-4)


def test_a_dropped_expert_leaves_nothing_behind(fresh_seed: int) -> None:
    world = World(fresh_seed)
    world.check([1, 2, 3])
    world.linear.drop(A)
    world.batch.forget(A)
    world.weights[A] = [None, None, None]
    world.check([1, 2, 3])


def test_the_layout_follows_what_is_used(fresh_seed: int) -> None:
    world = World(fresh_seed)
    world.check([1, 2, 4, 5])
    wide = world.batch.layout.num_ranks
    world.check([1, 6, 6, 6])
    assert world.batch.layout.num_ranks < wide
    assert set(world.batch.layout.offsets) == {A, E}


def test_rows_are_grouped_by_recipe() -> None:
    groups = group_rows([0, 3, 3, 0, 1, 3, 0, 2])
    assert [(recipe, rows if isinstance(rows, slice) else rows.tolist()) for recipe, rows in groups] == [
        (3, [1, 2, 5]),
        (1, slice(4, 5)),
        (2, slice(7, 8)),
    ]
    n = MIN_RUN
    rows = [*[1] * n, 2, *[1] * n, 2, 1, 3, *[1] * n, 2, 1, 3, *[4] * n, 0, 4]
    assert [(recipe, rows if isinstance(rows, slice) else rows.tolist()) for recipe, rows in group_rows(rows)] == [
        (1, slice(0, n)),
        (1, slice(n + 1, 2 * n + 1)),
        (1, slice(2 * n + 4, 3 * n + 4)),
        (1, [2 * n + 2, 3 * n + 5]),
        (2, [n, 2 * n + 1, 3 * n + 4]),
        (3, [2 * n + 3, 3 * n + 6]),
        (4, slice(3 * n + 7, 4 * n + 7)),
        (4, slice(4 * n + 8, 4 * n + 9)),
    ]
    assert group_rows([]) == []
    assert group_rows([0, 0]) == []
