"""The HTTP edge: a thin shell around `core.Router`. Start reading in `handler`, which holds the life of a request.

`app` wires everything together. `client` is the client's side of a request. `openai_request` reads its body,
`body_reader` reads a large one in a process of its own, `lenient_json` reads JSON, and `transcript` turns a
conversation into the bytes that the engine will see. `decider` is what the data path needs of a router. `upstream`
talks to engines, each over an `engine_connection`, `relay` passes their answers on, and `observe` and `stream_observer`
read the answers as they pass. `headers` has every rule about headers, and `exchange` carries one request through all of
this. `admin` has the routes for operators, and `metrics` those counts that Prometheus reads. `trace_writer` and
`snapshot` write files. `garbage` keeps the garbage collector from pausing the gateway.
"""
