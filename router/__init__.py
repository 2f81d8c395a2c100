"""Leafcutter's router: one OpenAI-compatible endpoint in front of several vLLM engines.

Imports go one way only (`<-`: may be imported by what stands to its right):

    types, errors, option, config <- blocks, prefix, fleet, features, learners <- policies <- core
                                  <- { gateway <- app ; sim <- bench } <- cli

`core` and everything left of it does no I/O and takes time and chance as arguments; `gateway` and what stands right of
it are the thin shell around it. Start reading at `gateway.Gateway` (a request's life) and `core.Router` (its decision).
"""
