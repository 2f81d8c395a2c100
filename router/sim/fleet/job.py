"""One request inside a simulated engine: what was asked, and how far it is."""

from __future__ import annotations

from dataclasses import dataclass, field

from router.types import BlockKey


@dataclass(slots=True, eq=False)
class Job:
    """keys: of the full blocks of prompt and answer, as far as they can be found again."""

    keys: tuple[BlockKey, ...]
    prompt_tokens: int
    output_tokens: int
    tag: object = None
    """The caller's."""
    cached_tokens: int | None = None
    """Of the prompt, found when it was first admitted."""
    first_s: float | None = None
    preemptions: int = 0
    blocks: list[int] = field(default_factory=list)
    keyed_blocks: int = 0  # of them, those that have their key
    prefill_tokens: int = 0  # tokens to compute until a token comes out: prompt, and answer before a preemption
    computed: int = 0  # tokens; while it decodes, those of the step numbered `since`
    generated: int = 0  # tokens, likewise
    decoding_since: int = -1  # the step it decodes from; -1: it does not
    version: int = 0  # counts preemptions in what is due, so that what was due before is void
