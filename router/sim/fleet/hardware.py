"""What one step of an engine costs on a kind of hardware.

    step = f (a0 + max(w, b P) + q A + c n + d C)          milliseconds

P is the number of prompt tokens computed in the step; A is, summed up over them, the number of tokens that each looks
back at; n is the number of sequences in the step; C is the number of tokens in the caches of those that decode. a0 is
the step's own cost. w is the time to read the weights, which hides behind b P, the arithmetic of the prompt tokens,
when that is longer. f is 1, or how many times slower this one engine is.

The GPU profiles are estimates for Llama-3.1-8B in 16 bits, from arithmetic and bandwidth, not measured:
- w: 16 GB of weights at 760 GB/s (L40) and 3.2 TB/s (H100); d: 128 KiB of keys and values a token, 32 layers of
  8 heads of 128, at about 650 GB/s and 2.4 TB/s;
- b: 2 * 8e9 operations a token at an effective 119 and 571 Tflop/s;
- q: attention takes 4 * 32 layers * 4096 = 524,288 operations for each token a token looks back at, at the same pace:
  q = b * 524,288 / 16e9, so that looking back at 30,500 tokens doubles a token's cost.

`cpu` is measured, by benchmarks/engine/calibrate.py: SmolLM2-135M-Instruct in 16 bits on vLLM 0.32.0, eager, on one
core of an x86-64 server with AMX that does other work beside. Fitted to 1,335 steps, median error 12 %, 1 % over all
their time; prompt tokens hide behind nothing there, so w is 0 and a0 holds the reading of the weights. A fit half an
hour earlier gave constants that were 3 to 19 % away. The mean latency of 160 and 171 requests was 1.26 and 0.89 times
that of a live run (benchmarks/results/calibrate_cpu.json).
"""

from __future__ import annotations

from dataclasses import dataclass

ATTENTION_8B = 524_288 / 16e9  # q / b


@dataclass(frozen=True, slots=True)
class Hardware:
    """The constants above, and how an engine on this hardware is configured."""

    name: str
    step_ms: float
    """a0."""
    weights_ms: float
    """w."""
    prompt_ms: float
    """b, for each prompt token."""
    lookback_ms: float
    """q, for each token that a prompt token looks back at."""
    sequence_ms: float
    """c, for each sequence."""
    context_ms: float
    """d, for each token in the cache of a sequence that decodes."""
    budget_tokens: int
    """The most tokens of one step, max_num_batched_tokens in vLLM."""
    cache_tokens: int
    most_sequences: int = 256
    """The most sequences of one step, max_num_seqs in vLLM."""

    def step_s(self, prompt: float, lookback: float, sequences: float, context: float) -> float:
        """Return the seconds of a step at f = 1; the arguments are P, A, n and C above."""
        compute_ms = max(self.weights_ms, self.prompt_ms * prompt)
        rest_ms = self.lookback_ms * lookback + self.sequence_ms * sequences + self.context_ms * context
        return (self.step_ms + compute_ms + rest_ms) / 1e3


HARDWARE = {
    each.name: each
    for each in (
        Hardware("l40-8b", 4, 21, 0.135, 0.135 * ATTENTION_8B, 0.05, 2e-4, 2048, 150_000),
        Hardware("h100-8b", 4, 5, 0.028, 0.028 * ATTENTION_8B, 0.03, 5.5e-5, 8192, 400_000),
        Hardware("cpu", 47.5, 0, 0.362, 8.26e-4, 0.311, 4.09e-3, 2048, 40_000),
    )
}
"""The profiles by name. A benchmark adds the one that it measured."""
