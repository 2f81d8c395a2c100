"""A job: one request inside a simulated engine, what it asks for and how far it is."""

from __future__ import annotations

from dataclasses import dataclass, field

from router.types import BlockKey, Stop


@dataclass(slots=True, eq=False)
class Job:
    """One request inside an engine. The caller sets the fields up to `stop`, the engine keeps the others."""

    keys: tuple[BlockKey, ...]
    """The keys of the full blocks of prompt and answer, as far as another request could find them again."""
    prompt_tokens: int
    output_tokens: int
    tag: object = None
    """Whatever the caller wants to find again."""
    session: str | None = None
    """The session that the eviction order is told; None: it is told of none."""
    arrival_s: float = 0.0
    """When the request came, as the order is told."""
    parent: str | None = None
    """The session that started this one, of a sub-agent."""
    stop: Stop | None = None
    """How the answer is going to end; None: nobody knows."""
    cached_tokens: int | None = None
    """Tokens of the prompt that were cached when the job was first admitted."""
    first_s: float | None = None
    """When its first token came out."""
    preemptions: int = 0
    blocks: list[int] = field(default_factory=list)
    keyed_blocks: int = 0  # How many of them, from the first on, are full and cached under their key.
    prefill_tokens: int = 0  # Tokens to compute before one comes out: the prompt, and the answer before a preemption.
    computed: int = 0  # Tokens; while the job decodes, as of `decoding_since`.
    generated: int = 0  # Tokens, likewise.
    decoding_since: int = -1  # How many steps were over when it began to decode; -1 while it does not.
    version: int = 0  # Raised whenever the job stops running, which voids the step events set for it before.
