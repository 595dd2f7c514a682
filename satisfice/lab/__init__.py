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

DEMO_METHODS = {
    "lab": ("plain", "temperature-scaling:t=0.7", "budget-forcing:max_thinking=60"),
    "lab-tldr": ("plain", "tldr:level=short", "tldr:level=medium", "tldr:level=long"),
}
"""What `satisfice compare` runs on each. The parameters were chosen on `lab:calibration`; see docs/lab.md."""

ALL_METHODS = (
    *DEMO_METHODS["lab"],
    "no-thinking",
    # By its default list it makes all of the lab's openers of a check impossible, so it shows what checks are worth.
    "no-wait",
    # Every opener is a turn of thought, and the answer is asked for in trained words, in which the lab is sure of
    # nearly everything: hence thresholds far above the paper's.
    r'deer:threshold=0.999,markers="Wait|But wait|Hmm|Alternatively",inducer="</think>\n\nThe answer is \\boxed"',
    'deer-pro:threshold=0.999,markers="Wait|But wait|Hmm|Alternatively",'
    r'inducer="</think>\n\nThe answer is \\boxed|</think>\n\nThe final answer is \\boxed"',
    # The one token behind the cue is the whole answer; tau is about what `satisfice calibrate` finds.
    r'entrocut:tau=0.01,k=1,cue="The answer is \\boxed{"',
    # A paragraph is a whole pass over the chain, so each is a step; alpha as with the thresholds above.
    r'adaptive-think:alpha=0.005,merge=0,cue="The answer is \\boxed{"',
    # Solutions of 16 tokens: a complete one has 7, and one cut in mid-calculation would go on calculating.
    "fractured:n=4,depths=4,m=1,max_solution=16",
    "fractured-stop:start=60,interval=15,max_solution=16",
    # Four to eight responses tell voting from no voting, and stay below ten times plain.
    "self-consistency:k=4",
    "length-filtered-vote:n=8",
    "best-of-n:n=4",
    # A lab response wavers only where a check may begin, between few tokens: a small varentropy, a small tree.
    "decoding-tree:traces=3,tau_v=0.2,max_active=8",
    # Runs, but means nothing here: the lab cannot read what it is asked, see docs/methods/cothink.md.
    "cothink",
    # Needs a model that was trained on levels; with the shipped weights `all` leaves it out and says so.
    "tldr:level=short",
)
"""What `all` stands for on the lab: one spelling of every method, chosen on `lab:calibration`; see docs/lab.md."""
