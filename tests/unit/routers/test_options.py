"""No router has an option that nothing reads."""

from __future__ import annotations

from typing import Any

import pytest

from routers.base import RouteQuery, no_progress
from routers.methods.adapter_soup import AdapterSoupRouter
from routers.methods.airoboros import AiroborosRouter
from routers.methods.arrow import ArrowRouter
from routers.methods.centroid import CentroidRouter
from routers.methods.classifier import ClassifierRouter
from routers.methods.dynamic_adapter_merging import DynamicAdapterMergingRouter
from routers.methods.lora_retriever import LoraRetrieverRouter
from routers.methods.molora import MoLoraRouter
from routers.methods.retrieval_of_experts import RetrievalOfExpertsRouter
from routers.methods.tfidf import TfidfRouter
from routers.methods.what_the_weight import WhatTheWeightRouter
from tests.unit.routers.builders import centres, clustered

USES: dict[Any, list[dict[str, object]]] = {
    CentroidRouter: [{}, {"selection": "mixture"}],
    LoraRetrieverRouter: [{}],
    MoLoraRouter: [{}, {"selection": "mixture"}],
    ArrowRouter: [{}],
    AdapterSoupRouter: [{}, {"selection": "mixture"}, {"selection_by": "gmm"}],
    DynamicAdapterMergingRouter: [{}],
    AiroborosRouter: [{}],
    ClassifierRouter: [{}],
    TfidfRouter: [{}],
    RetrievalOfExpertsRouter: [{}],
    WhatTheWeightRouter: [{}],
}


@pytest.mark.parametrize("router_class", USES)
def test_every_option_is_read(router_class: Any) -> None:
    read: set[str] = set()

    class Recording(router_class.config_class):  # type: ignore[misc]
        def __getattribute__(self, name: str) -> Any:
            read.add(name)
            return super().__getattribute__(name)

    for options in USES[router_class]:
        config = Recording.model_validate(
            {"threshold": -1.0, **options} if "threshold" in Recording.model_fields else options
        )
        router = router_class.load(config, router_class.fit(config, clustered(4), no_progress))
        assert not router.route(RouteQuery("example 3", centres(4)[0])).abstained
    assert set(Recording.model_fields) <= read
