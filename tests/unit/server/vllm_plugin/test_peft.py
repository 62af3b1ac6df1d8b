"""The reference of the parity tests against PEFT's own implementations, on a small model with fresh random experts.

So the engine, which is compared with the reference, is compared with PEFT: single experts, mixes (PEFT's ``cat``,
which is exact), and Arrow, with our prototypes injected into PEFT's layers and with PEFT's own.
"""

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
pytest.importorskip("transformers")

from peft import ArrowConfig, PeftModel, create_arrow_model  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM  # noqa: E402

from server.engine.recipes import Single, gate_of, mix_of  # noqa: E402
from tests.support.reference import Reference  # noqa: E402

TARGETS = ("q_proj", "v_proj", "up_proj", "down_proj")
TOKENS = list(range(3, 35))
pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries that are compared with


class World:
    """A base model in a folder, experts in PEFT folders, and the reference that knows them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.seed = seed
        torch.manual_seed(self.seed)
        self.folder = folder
        config = LlamaConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=64,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(folder / "base")
        self.reference = Reference(str(folder / "base"), torch.float32)  # as PEFT computes

    def base(self) -> Any:
        return AutoModelForCausalLM.from_pretrained(self.folder / "base", dtype=torch.float32).eval()

    def add(self, name: str, rank: int, alpha: float) -> Path:
        """An expert whose singular values fall quickly, so that PEFT's power iteration finds the first one."""
        tensors = {}
        for module, layer in self.reference.model.named_modules():
            if module.rpartition(".")[2] in TARGETS:
                d_out, d_in = layer.weight.shape
                left, right = torch.linalg.qr(torch.randn(d_out, rank))[0], torch.linalg.qr(torch.randn(d_in, rank))[0]
                tensors[f"base_model.model.{module}.lora_A.weight"] = right.T.contiguous()
                tensors[f"base_model.model.{module}.lora_B.weight"] = (
                    left * 0.2 * 0.3 ** torch.arange(rank)
                ).contiguous()
        path = self.folder / name
        path.mkdir()
        save_file(tensors, path / "adapter_model.safetensors")
        config = {
            "peft_type": "LORA", "base_model_name_or_path": "base", "r": rank, "lora_alpha": alpha,
            "target_modules": list(TARGETS), "task_type": "CAUSAL_LM", "bias": "none",
        }  # fmt: skip
        (path / "adapter_config.json").write_text(json.dumps(config))
        self.reference.add(f"{name}@00000000", path)
        return path

    def check(self, recipe: Any, model: Any, tolerance: float = 1e-4) -> None:
        ours = self.reference.logprobs(recipe, TOKENS)
        with torch.inference_mode():
            theirs = torch.log_softmax(model(torch.tensor([TOKENS])).logits[0].float(), dim=-1)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance, msg=lambda m: f"seed {self.seed}: {m}")


@pytest.fixture
def world(tmp_path: Path, fresh_seed: int) -> World:
    return World(tmp_path, fresh_seed)


def test_a_single_expert(world: World) -> None:
    path = world.add("a", 4, 8.0)
    world.check(Single("a@00000000"), PeftModel.from_pretrained(world.base(), path).eval())


def test_a_mix_of_unequal_ranks(world: World) -> None:
    paths = {name: world.add(name, rank, alpha) for name, rank, alpha in (("a", 2, 8.0), ("b", 4, 4.0), ("c", 8, 16.0))}
    model = PeftModel.from_pretrained(world.base(), paths["a"], adapter_name="a")
    for name in ("b", "c"):
        model.load_adapter(paths[name], name)
    weights = {"a": 0.5, "b": 0.3, "c": 0.9}
    model.add_weighted_adapter(list(weights), list(weights.values()), "mixed", combination_type="cat")
    model.set_adapter("mixed")
    world.check(mix_of({f"{name}@00000000": weight for name, weight in weights.items()}), model.eval())


@pytest.mark.parametrize("injected", [True, False])
@pytest.mark.parametrize(("k", "temperature"), [(1, 1.0), (2, 0.5), (4, 1.0)])
def test_arrow(k: int, temperature: float, injected: bool, world: World) -> None:
    names = ("a", "b", "c", "d")
    paths = [str(world.add(name, 4, 4.0 + 2 * number)) for number, name in enumerate(names)]
    config = ArrowConfig(top_k=k, router_temperature=temperature, rng_seed=world.seed)
    model = create_arrow_model(world.base(), paths, config).eval()
    experts = [f"{name}@00000000" for name in names]
    with torch.inference_mode():
        model(torch.tensor([TOKENS]))  # PEFT builds its prototypes at the first pass
    for name, module in model.named_modules():
        if hasattr(module, "prototypes"):
            layer = name.removeprefix("base_model.model.").partition(".lora_arrow")[0]
            ours = torch.stack([world.reference.experts[expert][layer].vector for expert in experts])
            if injected:
                module.prototypes = ours
            else:
                cosines = (module.prototypes * ours).sum(dim=-1).abs()
                assert cosines.min() > 1 - 1e-5
    world.check(gate_of("arrow", experts, k, temperature), model, 1e-4 if injected else 1e-3)
