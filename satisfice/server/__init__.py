"""An OpenAI-compatible HTTP server on an engine, for those who do not run vLLM: see `satisfice.server.app`.

`protocol` holds the words of the wire, `app` answers requests, `metrics` counts them, `process` runs it all until it
is told to stop.
"""
