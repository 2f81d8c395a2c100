"""The HTTP edge: a thin shell around `core.Router`. Start reading at `handler`, which is the life of a request.

`app` wires it. `openai_request` reads what clients send, `transcript` makes it the bytes that the engine will see;
`upstream` speaks with engines, `relay` passes their answers on, `observe` reads these in passing; `client` is the other
side, `headers` has every rule about headers. `admin` is for operators, `metrics` for Prometheus, `trace_writer` and
`snapshot` write files, and `garbage` keeps the collector from stopping all this.
"""
