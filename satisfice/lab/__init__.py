"""The embedded default: a tiny reasoner made by this package, its problems and its teacher.

The lab exists so that everything in satisfice runs anywhere within a minute. It is a real Llama-type language
model with a real tokenizer and chat template; only its world is small: chains of arithmetic on whole numbers
from 0 to 99. Its teacher was verbose on purpose, so the model has the habit that the field wants to cure: it
keeps verifying an answer that it already has.
"""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
"""Directory of the shipped checkpoint (ordinary Hugging Face files)."""

DEMO_METHODS = ("plain", "temperature-scaling:t=0.7", "budget-forcing:max_thinking=60")
"""What `satisfice compare lab` runs. The parameters were chosen on `lab:calibration`; see docs/lab.md."""
