"""The demo library's training loop: its shortcuts change no number."""

from __future__ import annotations

import random

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")

from examples.demo_library.training import answer_loss, batches, shared_prefix  # noqa: E402

HEAD = [1, 5, 6, 7, 8, 9]
ENCODED = [
    ([*HEAD, 10, 11, 12, 13, 14, 2], 9),
    ([*HEAD, 15, 11, 3, 2], 8),
    ([*HEAD, 16, 17, 18, 19, 20, 21, 22, 2], 10),
]


def test_shared_prefix_is_what_all_prompts_begin_with() -> None:
    assert shared_prefix(ENCODED) == HEAD
    assert shared_prefix(ENCODED[:1]) == ENCODED[0][0][:8], "at least the last prompt token is left to predict from"


def test_prefix_once_gives_the_same_loss_and_gradient_as_whole_sequences() -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    model = transformers.LlamaForCausalLM(config)
    weight = model.model.layers[0].self_attn.v_proj.weight
    results = []
    for prefix in (HEAD, HEAD[:1]):
        model.zero_grad()
        loss = answer_loss(model, ENCODED, prefix)
        loss.backward()
        results.append((loss.detach(), weight.grad.clone()))
    expected = []
    for tokens, num_prompt in ENCODED:
        logits = model(torch.tensor([tokens])).logits[0, num_prompt - 1 : -1]
        answer = torch.tensor(tokens[num_prompt:])
        expected.append(torch.nn.functional.cross_entropy(logits, answer, reduction="none"))
    for loss, gradient in results:
        torch.testing.assert_close(loss, torch.cat(expected).mean().detach())
        torch.testing.assert_close(gradient, results[0][1])


def test_batches_pass_over_all_data_before_repeating() -> None:
    encoded = [([index] * (5 + index % 7), 3) for index in range(24)]
    drawn = batches(encoded, batch_size=4, num_steps=12, rng=random.Random(1))
    assert len(drawn) == 12 and all(len(batch) == 4 for batch in drawn)
    first_pass = [ids[0] for batch in drawn[:6] for ids, _ in batch]
    assert sorted(first_pass) == list(range(24))
    assert all(max(len(ids) for ids, _ in batch) - min(len(ids) for ids, _ in batch) <= 2 for batch in drawn)
