"""The embedded default: a tiny reasoner made by this package, its problems and its teacher.

The lab exists so that everything in satisfice runs anywhere within a minute. It is a real Llama-type language
model with a real tokenizer and chat template; only its world is small: chains of arithmetic on whole numbers
from 0 to 99. Its teacher was verbose on purpose, so the model has the habit that the field wants to cure: it
keeps verifying an answer that it already has.
"""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
"""Directory of the shipped reasoner (ordinary Hugging Face files)."""

TLDR_WEIGHTS = Path(__file__).parent / "weights-tldr"
"""The same reasoner after recipes/lab/tldr.yaml; see docs/results/reinforcement.md."""

SHIPPED = {"lab": WEIGHTS, "lab-tldr": TLDR_WEIGHTS}
"""The models of this package by the names under which engines and the command line know them."""

ADAPTERS = {
    name: Path(__file__).parents[2] / "recipes" / "smollm2" / "weights" / name
    for name in ("smollm2-words", "smollm2-tldr")
}
"""LoRA adapters that a clone of satisfice holds beside the recipes that made them, by the names of the models that they
make of the packaged SmolLM2; see docs/words.md. An installed wheel has none."""

DEMO_METHODS = {
    "lab": ("plain", "temperature-scaling:t=0.85", "budget-forcing:max_thinking=70"),
    "lab-tldr": ("plain", "tldr:level=short", "tldr:level=medium", "tldr:level=long"),
}
"""What `satisfice compare` runs on each. The parameters were chosen on `lab:calibration`; see docs/lab.md."""
