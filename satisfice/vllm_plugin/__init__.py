"""satisfice inside `vllm serve`: thinking that each request of a server may shorten, stretch or bound.

Installing satisfice beside vLLM is all it takes: vLLM finds the processor by its entry point. What a request may ask
for is in `options`, its keys in `satisfice.intervention.options`, which every door shares;
`processor` is the one class that both of vLLM's model runners accept; `levels` is the part that has to come before
the prompt is written, a middleware. Only `processor` imports vLLM.
"""

from satisfice.vllm_plugin.levels import Levels

__all__ = ["Levels"]
