"""Leafcutter's router: one OpenAI-compatible endpoint in front of several vLLM engines.

The rooms, and who may import whom (`<-`: may be imported by what stands to its right; `tests/test_layering.py`):

    types, errors, options, saved_state <- prefix, learners <- policies <- core <- config <- { gateway, engines, sim }
    <- cli

`core` and everything left of it does no I/O and takes time and chance as arguments; `gateway` is the thin shell around
it, `sim` another one with a clock that jumps. Start reading at `gateway.handler` (a request's life) and `core.router`
(its decision).
"""
