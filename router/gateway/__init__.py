"""The HTTP edge: a thin shell around `core.Router`. Start reading in `handler`, which holds the life of a request.

`app` wires everything together. `client_connection` is a client's connection, with the limits of `client_limits`, and
`turn` one request on it; `server`, `listeners` and `server_tls` serve them. `front` lets in whom `access` knows:
`key_file` has the keys, `tenants` what each may see, `key_limits` what each may take, and `usage_log` what it has
taken. `admission` says whose turn it is. `client` is the client's side of a request. `openai_request` reads its body,
with `lenient_json` or `multipart`, and `apis` knows what the fields mean on each route. `body_edit` changes the body
for the engine, `body_reader` reads a large one in a process of its own, and `transcript` turns a conversation into the
bytes that the engine will see. `routes` says which paths are open, and `error_forms` how errors are told on them.
`decider` is what the data path needs of a router. `upstream` talks to engines, each over an `engine_connection`,
`relay` passes their answers on, and `observe` and `stream_observer` read the answers as they pass. `headers` has every
rule about headers, and `exchange` carries one request through all of this. `admin` has the routes for operators, and
`metrics` those counts that Prometheus reads. `trace_writer` and `snapshot` write files. `garbage` keeps the garbage
collector from pausing the gateway.
"""
