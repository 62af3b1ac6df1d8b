"""The demo library's routing figures: the real embedder, the default policy, held-out and out-of-scope prompts."""

import json

import pytest

from routers.base import LibraryExpert, Matrix, RouteQuery, no_progress
from routers.embedders.factory import make_encoder
from routers.fitting import fit_data
from routers.methods.knn import KnnConfig, KnnRouter
from routers.text.templates import bare_texts
from server.engine.base_model import default_cache_dir
from tests.engine.conftest import LIBRARY

pytestmark = pytest.mark.model


def lines(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (LIBRARY / name).read_text("utf-8").splitlines()]


def test_held_out_prompts_reach_their_expert_and_others_the_base() -> None:
    encoder = make_encoder("all-MiniLM-L6-v2", default_cache_dir())
    manifests = json.loads((LIBRARY / "library.json").read_text("utf-8"))
    experts = tuple(LibraryExpert(m["name"] + "@00000000", examples=tuple(m["examples"])) for m in manifests)
    embeddings: dict[str, Matrix] = {e.expert_id: encoder.encode(e.examples) for e in experts}
    bare: dict[str, Matrix] = {e.expert_id: encoder.encode(bare_texts(e.examples)) for e in experts}
    config = KnnConfig()
    data = fit_data(experts, embeddings, encoder.name, bare)
    router = KnnRouter.load(config, KnnRouter.fit(config, data, no_progress))

    held_out, strangers = lines("held_out.jsonl"), lines("out_of_scope.jsonl")
    assert len(strangers) == 200
    decisions = [router.route(RouteQuery(r["prompt"], encoder.encode([r["prompt"]])[0])) for r in held_out + strangers]
    encoder.close()
    own = decisions[: len(held_out)]
    right = [
        not d.abstained and d.experts[0].expert_id.startswith(r["expert"] + "@")
        for d, r in zip(own, held_out, strict=True)
    ]
    abstained = [d.abstained for d in decisions[len(held_out) :]]
    print(f"right expert {sum(right)}/{len(right)}, abstained {sum(abstained)}/{len(abstained)}")
    assert sum(right) / len(right) >= 0.95
    assert sum(abstained) / len(abstained) >= 0.90
