"""The resolver finds what a recipe needs in the store, and refuses what is damaged, with the reason."""

import hashlib
import os
from pathlib import Path

import pytest

pytest.importorskip("vllm.entrypoints.openai.models.serving", reason="vLLM is not installed")

from adapters_registry.disk.layout import content_hash, recipe_digest
from adapters_registry.merging.arrow_prototypes import encode, prototypes_of
from server.vllm_plugin.api_server.resolver import RecipeResolver
from server.vllm_plugin.expert_store import ExpertStore
from server.vllm_plugin.plans import RecipeRefused
from tests.support.adapters import make_adapter


class Store:
    """A store with real adapters in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.resolver = RecipeResolver(ExpertStore(root), num_slots=2)
        (root / ".prototypes").mkdir(parents=True)
        (root / ".recipes").mkdir()

    def add(self, name: str, seed: int) -> str:
        folder = make_adapter(self.root / "new", seed=seed)
        weights = folder / "adapter_model.safetensors"
        config = (folder / "adapter_config.json").read_bytes()
        digest = content_hash(config, hashlib.sha256(weights.read_bytes()).hexdigest())
        (self.root / ".prototypes" / f"{digest}.safetensors").write_bytes(encode(prototypes_of(weights)))
        folder.rename(self.root / digest)
        return f"{name}@{digest[:8]}"

    def folder(self, expert: str) -> Path:
        return next(self.root.glob(expert.rpartition("@")[2] + "*"))

    async def path(self, name: str) -> str | None:
        request = await self.resolver.resolve_lora("base", name)
        assert request is None or request.lora_name == name
        return request.lora_path if request else None


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


async def test_an_expert_is_its_folder_and_other_recipes_are_their_text(store: Store) -> None:
    a, b = store.add("a", 1), store.add("b", 2)
    assert await store.path(a) == str(store.folder(a))
    mix = f"mix({a}*0.5,{b}*0.5)"
    assert await store.path(mix) == mix
    gate = f"gate(arrow,k=1,t=1;{a},{b})"
    assert await store.path(gate) == gate


async def test_a_long_recipe_is_found_by_its_hash(store: Store) -> None:
    text = f"mix({store.add('a', 1)}*0.5)"
    name = f"set:{recipe_digest(text)}"
    assert await store.path(name) is None
    (store.root / ".recipes" / recipe_digest(text)).write_text(text)
    assert await store.path(name) == text
    (store.root / ".recipes" / recipe_digest(text)).write_text(text + " ")
    with pytest.raises(RecipeRefused, match="damaged"):
        await store.path(name)


@pytest.mark.parametrize("name", ["sql", "sql@00000000", "../x@1f3a9c02", "sql@1f3a9c0", "base", "", "a@1f3a9c02\n"])
async def test_anything_else_is_not_found(name: str, store: Store) -> None:
    store.add("a", 1)
    assert await store.path(name) is None


async def test_a_recipe_over_an_unknown_expert_is_not_found(store: Store) -> None:
    assert await store.path(f"mix({store.add('a', 1)}*0.5,b@00000000*0.5)") is None


async def test_a_recipe_that_needs_more_slots_than_there_are_is_refused(store: Store) -> None:
    experts = [store.add(name, seed) for seed, name in enumerate("abc")]
    with pytest.raises(RecipeRefused, match="needs 3 experts at once, but the engine has only 2 slots"):
        await store.path(f"mix({','.join(f'{expert}*0.3' for expert in experts)})")


async def test_an_ambiguous_version_is_not_found(store: Store) -> None:
    expert = store.add("a", 1)
    twin = store.root / (expert.rpartition("@")[2] + "f" * 56)
    twin.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (twin / name).write_bytes(b"")
    assert await store.path(expert) is None


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
async def test_files_that_changed_after_registration_are_refused(file: str, store: Store) -> None:
    expert, other = store.add("a", 1), store.add("b", 2)
    assert await store.path(expert)
    damaged = store.folder(expert) / file
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    os.utime(damaged, ns=(1, 1))
    with pytest.raises(RecipeRefused, match=f"{expert} are damaged"):
        await store.path(f"mix({expert}*0.5,{other}*0.5)")
    assert await store.path(other)


async def test_a_gate_needs_vectors(store: Store) -> None:
    a, b = store.add("a", 1), store.add("b", 2)
    (store.root / ".prototypes" / f"{store.folder(b).name}.safetensors").unlink()
    with pytest.raises(RecipeRefused, match=f"{b} has no vectors"):
        await store.path(f"gate(arrow,k=1,t=1;{a},{b})")
    assert await store.path(f"mix({a}*0.5,{b}*-0.5;agg=ab)")
