"""From what a request says of its thinking to a method: by name, by effort, by a budget, or by a switch."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from satisfice.engines.base import Engine, EngineError
from satisfice.intervention import Method, MethodError, parse_method
from satisfice.intervention.composed import Composed
from satisfice.intervention.methods.budget_forcing import BudgetForcing
from satisfice.intervention.methods.no_thinking import NoThinking
from satisfice.intervention.methods.plain import Plain
from satisfice.levels import LEVELS
from satisfice.runs.certificate import read_certificate
from satisfice.server.protocol import EFFORTS, ChatRequest, Refusal, quoted
from satisfice.thinking import ThinkingFormat

REMEDY = (
    "to this server ({known}): start it with --effort NAME=METHOD, serve a model trained on levels, or name a method"
)
"""How a refusal of a `reasoning_effort` goes on, where a server gives it."""


def efforts_from(given: Mapping[str, str], levels: Mapping[str, str]) -> dict[str, Method]:
    """Methods by `reasoning_effort`: what a model was trained on, with what the operator says in its place.

    Args:
        given: by effort, a method as spelled or the file of a certificate.
        levels: of the engine.

    Raises:
        ValueError: no such effort, method or file.
    """
    efforts: dict[str, Method] = {}
    for effort, level in zip(("low", "medium", "high"), LEVELS, strict=True):
        if level in levels:
            efforts[effort] = parse_method(f"tldr:level={level}")
    for effort, spelled in given.items():
        if effort not in EFFORTS:
            raise ValueError(f"--effort {effort}: there is no such reasoning_effort; it is one of {', '.join(EFFORTS)}")
        if spelled.endswith(".json"):
            spelled = str(read_certificate(spelled).chosen())
        efforts[effort] = parse_method(spelled)
    return {effort: efforts[effort] for effort in EFFORTS if effort in efforts}


def method_of(
    chat: ChatRequest,
    default: Method,
    efforts: Mapping[str, Method],
    engine: Engine,
    *,
    standing: Callable[[Method], Method] = lambda method: method,
    remedy: str = REMEDY,
) -> Method:
    """The method that a request names, or means by an effort, a budget or a switch.

    Args:
        chat: the request.
        default: for a request that says nothing.
        efforts: methods by `reasoning_effort`.
        engine: what has to serve the method.
        standing: what stands in for a method that the operator chose.
        remedy: how the refusal of an effort goes on that is not in `efforts`; `{known}` names those that are.

    Raises:
        Refusal: there is no such method or effort, the engine cannot serve it, or two keys say different things.
    """
    wish = chat.wish()
    if wish.effort is not None:
        if wish.effort == "none" and "none" not in efforts:
            return NoThinking()
        if wish.effort not in efforts:
            known = f"it knows {', '.join(efforts)}" if efforts else "it knows none"
            message = f"reasoning_effort {quoted(wish.effort)} means nothing {remedy.format(known=known)}"
            raise Refusal(400, message, param="reasoning_effort")
        return standing(efforts[wish.effort])
    if wish.off:
        return NoThinking()
    if wish.method is None:
        method = standing(default)
        if wish.budget is not None:
            return _capped(method, wish.budget, engine.thinking)
        return Plain() if chat.wants_thinking and isinstance(method, NoThinking) else method
    try:
        method = parse_method(wish.method)
        method.check(engine)
    except (MethodError, EngineError) as error:
        raise Refusal(400, str(error), param="method") from None
    return method


def _capped(method: Method, most: int, thinking: ThinkingFormat) -> Method:
    """A method with another cap on thinking: its control stays, its strategy is budget forcing."""
    strategy, bending = (method.strategy, method.bending) if isinstance(method, Composed) else (method, None)
    if strategy.control(thinking) is not None:
        strategy, bending = Plain(), strategy
    forcing = strategy if isinstance(strategy, BudgetForcing) else BudgetForcing()
    forcing = replace(forcing, max_thinking=most)
    return forcing if bending is None else Composed(forcing, bending)
