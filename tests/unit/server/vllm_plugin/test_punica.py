"""The grouped LoRA arithmetic against the plain formula, row by row in float64."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm", reason="vLLM is not installed")

from server.vllm_plugin.punica import GroupedPunicaWrapper, group_rows  # noqa: E402

NUM_SLOTS, RANK, D_IN = 4, 8, 24
SLICES = (16, 8, 8)


@pytest.mark.parametrize(
    "slots",
    [
        [-1, -1, -1],
        [0, 0, 0],
        [-1, 3, 3, -1, 0, 3, -1, 1],
        [2, -1, 2, -1, 2],
        [],
    ],
)
def test_grouped_products_are_the_plain_formula(slots: list[int]) -> None:
    generator = torch.Generator().manual_seed(len(slots))
    x = torch.randn(len(slots), D_IN, generator=generator)
    a = tuple(torch.randn(NUM_SLOTS, 1, RANK, D_IN, generator=generator) for _ in SLICES)
    b = tuple(torch.randn(NUM_SLOTS, 1, d_out, RANK, generator=generator) for d_out in SLICES)
    before = torch.randn(len(slots), sum(SLICES), generator=generator)

    wrapper = GroupedPunicaWrapper.__new__(GroupedPunicaWrapper)
    wrapper._groups = group_rows(torch.tensor(slots, dtype=torch.long))
    y = before.clone()
    wrapper.add_lora_linear(y, x, a, b, 0.5, SLICES)

    expected = before.double()
    for row, slot in enumerate(slots):
        if slot >= 0:
            parts = [
                b_[slot, 0].double() @ (a_[slot, 0].double() @ x[row].double()) for a_, b_ in zip(a, b, strict=True)
            ]
            expected[row] += 0.5 * torch.cat(parts)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-4)


def test_rows_without_an_expert_keep_their_bits() -> None:
    slots = torch.tensor([-1, 2, -1])
    wrapper = GroupedPunicaWrapper.__new__(GroupedPunicaWrapper)
    wrapper._groups = group_rows(slots)
    y = torch.randn(3, 16)
    before = y.clone()
    ones = (torch.ones(NUM_SLOTS, 1, RANK, D_IN),), (torch.ones(NUM_SLOTS, 1, 16, RANK),)
    wrapper.add_lora_linear(y, torch.ones(3, D_IN), *ones, 1.0, (16,))
    assert torch.equal(y[[0, 2]], before[[0, 2]])
    assert not torch.equal(y[1], before[1])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of vLLM's own imports
def test_what_the_plugin_relies_on_is_there() -> None:
    from server.vllm_plugin.requirements import check_vllm

    check_vllm()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_changed_vllm_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from server.vllm_plugin import requirements

    monkeypatch.setattr(requirements, "SUPPORTED", ("0.1",))
    monkeypatch.delattr("vllm.lora.request.LoRARequest")
    with pytest.raises(requirements.UnsupportedVllm, match=r"tested are 0\.1; .*LoRARequest is missing"):
        requirements.check_vllm()
