"""Published values beside a result."""

from satisfice.measurement.published import doubt, published
from satisfice.measurement.statistics import Estimate


def test_a_result_far_from_what_was_published_is_doubted():
    model = "vllm:deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"
    said = doubt("math500", model, Estimate(0.6, 0.55, 0.65))
    assert said is not None
    assert "83.1 and 83.9 %" in said
    assert doubt("math500", model, Estimate(0.8, 0.76, 0.84)) is None
    assert doubt("math500", model, Estimate(0.7, 0.6, 0.76)) is None  # 7 points of interval and frameworks
    assert doubt("aime24", model, Estimate(0.6, 0.5, 0.7)) is not None
    assert doubt("aime24", model, Estimate(0.6, None, None)) is None


def test_nothing_is_said_of_what_nobody_published():
    assert published("gsm8k", "transformers:Qwen/Qwen3-8B") == ()
    assert published("aime24", "Qwen/Qwen3-8B") == (0.752, 0.760)
    assert doubt("sums", "lab", Estimate(0.1, 0.0, 0.2)) is None
