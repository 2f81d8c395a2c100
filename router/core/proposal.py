"""How one policy scores the candidates for a request: what it proposes, and how it rates another policy's choice.

These functions only ask the policies, so nothing is changed by them. `core.experiment` decides which policy is heeded.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from router.policies.base import Policy, RoutingContext, pick
from router.types import Candidate, EngineId, Score, Scores, ShadowChoice


class Proposal(NamedTuple):
    """The answer of a policy that may decide."""

    scores: Scores
    chosen: Score
    trouble: str | None
    """Why the policy says that it must not be heeded now; None: it may be."""


def propose(policy: Policy[Any], routing: RoutingContext, candidates: Sequence[Candidate]) -> Proposal:
    """The scores and the choice of a policy, and whether it may be heeded. Raises as `choose`."""
    return Proposal(*choose(policy, routing, candidates), policy.trouble(routing.now))


def choose(
    policy: Policy[Any], routing: RoutingContext, candidates: Sequence[Candidate], also: Collection[EngineId] = ()
) -> tuple[Scores, Score]:
    """The scores of a policy, with those of the engines in `also` among them, and its choice.

    Raises ValueError if a score is not a number or if the scores are not those of the candidates, and whatever the
    policy raises.
    """
    scores = policy.choose(routing, candidates, also)
    if scores.eligible != len(candidates):
        raise ValueError("the scores are not those of the candidates")
    return scores, pick(scores, routing.chance)


def judge(
    policy: Policy[Any],
    routing: RoutingContext,
    candidates: Sequence[Candidate],
    chosen: Score,
    costs: Scores,
    decider: Policy[Any] | None,
) -> ShadowChoice:
    """The choice of a policy that does not decide, compared with the engine that was chosen. Raises as `choose`.

    chosen, costs: the score of that engine, and the scores that it was chosen by. decider: the policy that gave them,
    if they are seconds, so that regret can be counted; None if they are not.
    """
    scores, own = choose(policy, routing, candidates, (chosen.engine,))
    regret_s = None
    if decider is not None:
        cost = costs.find(own.engine) or score_of(decider, own.engine, routing, candidates)
        regret_s = cost.total - chosen.total
    return ShadowChoice(policy.name, own.engine, regret_s, scores, _require_score(scores, chosen.engine))


def overruled(
    policy: Policy[Any],
    proposal: Proposal,
    routing: RoutingContext,
    candidates: Sequence[Candidate],
    chosen: Score,
) -> ShadowChoice:
    """The choice of the policy that should have decided but was in trouble. chosen: the score of the chosen engine."""
    scores = proposal.scores
    if scores.find(chosen.engine) is None:
        scores = policy.choose(routing, candidates, (chosen.engine,))
    return ShadowChoice(policy.name, proposal.chosen.engine, None, scores, _require_score(scores, chosen.engine))


def score_of(policy: Policy[Any], engine: EngineId, routing: RoutingContext, candidates: Sequence[Candidate]) -> Score:
    """The score of an engine that the policy did not weigh of itself. Raises ValueError if the policy gives none."""
    return _require_score(policy.choose(routing, candidates, (engine,)), engine)


def _require_score(scores: Scores, engine: EngineId) -> Score:
    score = scores.find(engine)
    if score is None:
        raise ValueError(f"the policy gave no score of {engine}")
    return score
