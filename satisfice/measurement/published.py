"""Published accuracies that say whether a setting is right: far from them it is the prompt, the cap or the grader.

Careful groups differ by 5 points on AIME 2024, so only what lies further off than `FAR` is doubted.
"""

from satisfice.measurement.statistics import Estimate

FAR = 0.08
"""Distance between an interval and all published values above which a setting is doubted (ours): what hardware and
frameworks have been seen to move."""

PUBLISHED = {
    ("aime24", "DeepSeek-R1-Distill-Qwen-1.5B"): (0.307, 0.289),
    ("aime24", "DeepSeek-R1-Distill-Qwen-7B"): (0.508, 0.555),
    ("aime24", "DeepSeek-R1-Distill-Qwen-14B"): (0.659, 0.697),
    ("aime24", "DeepSeek-R1-Distill-Qwen-32B"): (0.697, 0.726),
    ("math500", "DeepSeek-R1-Distill-Qwen-1.5B"): (0.831, 0.839),
    ("math500", "DeepSeek-R1-Distill-Qwen-7B"): (0.945, 0.928),
    ("math500", "DeepSeek-R1-Distill-Qwen-14B"): (0.941, 0.939),
    ("math500", "DeepSeek-R1-Distill-Qwen-32B"): (0.956, 0.943),
    ("aime24", "Qwen3-0.6B"): (0.115, 0.107),
    ("aime24", "Qwen3-1.7B"): (0.459, 0.483),
    ("aime24", "Qwen3-4B"): (0.717, 0.738),
    ("aime24", "Qwen3-8B"): (0.752, 0.760),
    ("aime24", "Qwen3-14B"): (0.796, 0.793),
    ("aime24", "Qwen3-32B"): (0.821, 0.814),
}
"""Shares of right answers by suite and the end of the model's name: open-r1's and DeepSeek's for the distilled models,
those of Kinetics and of Qwen for Qwen3."""


def published(suite: str, model: str) -> tuple[float, ...]:
    """What was published of a model on a suite; empty where nothing is known."""
    name = model.rstrip("/").rpartition("/")[2].rpartition(":")[2]
    return PUBLISHED.get((suite, name), ())


def doubt(suite: str, model: str, accuracy: Estimate) -> str | None:
    """A sentence where a baseline lies far from what was published, None where it does not or nothing is known."""
    known = published(suite, model)
    if not known or accuracy.low is None or accuracy.high is None:
        return None
    if min(known) - accuracy.high <= FAR and accuracy.low - max(known) <= FAR:
        return None
    values = " and ".join(f"{100 * value:.1f}" for value in known)
    return (
        f"{100 * accuracy.value:.1f} % ({100 * accuracy.low:.1f} to {100 * accuracy.high:.1f}) is far from what was "
        f"published of this model on {suite}, {values} %: look at prompt, token limit, sampling and grader first."
    )
