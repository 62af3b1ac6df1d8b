"""The two values around a routing decision: the request that needs one, and the plan that comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from adapters_registry.records import AdapterRecord
from routers.base import Decision, RouteQuery
from server.access.auth import Principal
from server.endpoints import Endpoint
from server.engine.body import JsonBody
from server.engine.recipes import Gate, Mix, Recipe
from server.planning.catalog import Catalog, Target
from server.planning.conversations import Choice, Conversation, conversation_of


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be executed for a request, and why.

    Attributes:
        target: What the caller asked for.
        recipe: What the engine executes.
        records: Records of the experts in the recipe.
        decision: The decision that was executed, if a policy was asked.
        embed_s, route_s: Duration of embedding and of routing, in seconds.
        trial_role: Whether the only expert is the active version or the canary, if it has a canary.
        query: What the router was asked.
        routed: The router's own decision, before near-ties were resolved.
        conversation: The request's conversation, if anything was chosen for it.
        choices: What to remember of this request for the conversation.
    """

    target: Target
    recipe: Recipe
    records: tuple[AdapterRecord, ...] = ()
    decision: Decision | None = None
    embed_s: float = 0.0
    route_s: float = 0.0
    trial_role: Literal["active", "canary"] | None = None
    query: RouteQuery | None = None
    routed: Decision | None = None
    conversation: Conversation | None = None
    choices: tuple[Choice, ...] = ()

    @property
    def policy_name(self) -> str | None:
        """The policy's name, if a policy decided."""
        return self.target.policy.name if self.target.policy else None

    @property
    def expert_name(self) -> str:
        """The expert as metrics label it: its name, ``base``, or ``mix`` or ``gate`` for several experts."""
        match self.recipe:
            case Mix():
                return "mix"
            case Gate():
                return "gate"
            case _:
                return self.records[0].name if self.records else "base"


@dataclass(frozen=True, slots=True)
class RoutingRequest:
    """A request that needs a plan.

    Attributes:
        target: What the request's ``model`` means.
        endpoint: The endpoint that was called.
        body: The request's body.
        catalog: The library as it was when the request arrived.
        principal: The caller.
        request_id: The request's id.
    """

    target: Target
    endpoint: Endpoint
    body: JsonBody
    catalog: Catalog
    principal: Principal
    request_id: str

    def conversation(self) -> Conversation:
        """The conversation that the request belongs to."""
        return conversation_of(self.principal.key_id, self.body, self.request_id)
