"""The model card of a training, made from what it logged: the `README.md` of the trained directory."""

from collections.abc import Sequence

from jinja2 import Template

from satisfice.lab import SHIPPED
from satisfice.reinforcement.objective import Objective
from satisfice.training.recipe import Recipe

CARD = Template(
    """---
library_name: transformers
{%- if recipe.model not in shipped %}
base_model: {{ recipe.model }}
{%- endif %}
tags: [satisfice, reasoning, grpo{% if recipe.adapter %}, lora{% endif %}]
---
# {{ recipe.model }} with {{ objective.name }}

Trained by satisfice from `{{ recipe.model }}` with the objective `{{ objective }}`
({{ objective.summary }}{% if objective.paper %}; arXiv {{ objective.paper }}{% endif %}) on `{{ recipe.problems }}`
{%- if recipe.split %}, split `{{ recipe.split }}`{% endif %}:
{{ recipe.steps }} steps of {{ recipe.prompts_per_step }} prompts with {{ recipe.responses_per_prompt }} responses each,
temperature {{ recipe.temperature }}, at most {{ recipe.max_tokens }} tokens, seed {{ recipe.seed }}, loss `{{ loss }}`.
{%- if recipe.validation %} Validated on `{{ recipe.validation }}`
{%- if recipe.validation_split %}, split `{{ recipe.validation_split }}`{% endif %}.{% endif %}
`recipe.yaml` has every setting, `log.jsonl` every number.
{% if levels %}
## Levels

Put one of these after the question, with an empty line between. The model was also trained without any.
{% for level, instruction in levels.items() %}
* {{ level }}: `{{ instruction }}`
{%- endfor %}

    satisfice evaluate-levels THIS_DIRECTORY --problems ...
{% endif %}
## What the training saw

Means over rollouts on training problems, of the first and the last {{ window }} steps; no held-out result.
{%- if recipe.explore or objective.direct_share %} Only responses that the model wrote by itself count here:
{%- if recipe.explore %} in {{ "%g" % recipe.explore.share }} of each group endings were made likelier
{%- if recipe.explore.levels|length < 4 %} (levels: {{ recipe.explore.levels|join(", ") }}){% endif %}.
{%- else %} {{ "%g" % objective.direct_share }} of each group was made to answer without thinking.{% endif %}
{%- endif %}

| | first | last |
|---|---|---|
{%- for name, first, last in rows %}
| {{ name }} | {{ first }} | {{ last }} |
{%- endfor %}
"""
)


def model_card(
    recipe: Recipe, objective: Objective, history: Sequence[dict[str, float]], loss: str, window: int = 10
) -> str:
    """The card as Markdown.

    Args:
        recipe: as it was carried out.
        objective: the recipe's.
        history: what was logged, in order; entries without a reward are left out.
        loss: TRL's loss type.
        window: steps at the beginning and at the end that are compared, at most half of them.
    """
    steps = [entry for entry in history if "reward" in entry]
    window = min(window, max(1, len(steps) // 2))
    names = ["accuracy", "tokens", "thinking_tokens", "truncated"]
    names += sorted({name for entry in steps for name in entry if name.startswith("levels/")})

    def mean(entries: Sequence[dict[str, float]], name: str) -> str:
        values = [entry[name] for entry in entries if entry.get(name) is not None]
        return f"{sum(values) / len(values):.3g}" if values else ""

    rows = [(name, mean(steps[:window], name), mean(steps[-window:], name)) for name in names]
    filled = CARD.render(
        recipe=recipe, shipped=SHIPPED, objective=objective, rows=rows, levels=objective.instructions, window=window,
        loss=loss,
    )  # fmt: skip
    return f"{filled}\n"
