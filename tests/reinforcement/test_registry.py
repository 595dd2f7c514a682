import dataclasses
import json

import pytest

from satisfice.reinforcement import OBJECTIVES, Objective, ObjectiveError, describe_objective, objective_from
from satisfice.reinforcement.thinkprune import ThinkPrune
from satisfice.reinforcement.tldr import TLDR


def test_parameters_are_given_by_name_and_read_as_their_types():
    assert objective_from("tldr", {"price_short": "0.75", "shape": "group-relative"}) == TLDR(
        price_short=0.75, shape="group-relative"
    )
    assert objective_from("tldr", {}) == TLDR()
    assert objective_from("thinkprune", {"limits": [300, 200]}) == ThinkPrune(limits=(300, 200))
    assert objective_from("tldr", {"price_unlabelled": None}) == TLDR()


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("tdlr", {}, "there is no objective 'tdlr', did you mean 'tldr'; `satisfice objectives` lists them all"),
        ("zzzzz", {}, "there is no objective 'zzzzz'; `satisfice objectives` lists them all"),
        ("kimi", {"wieght": 1}, "kimi has no parameter 'wieght', did you mean 'weight'; it has weight, warmup"),
        ("kimi", {"_step": 3}, "kimi has no parameter '_step'"),
        ("dr-grpo", {"alpha": 1}, "dr-grpo has no parameter 'alpha'; it has none"),
        ("tldr", {"price_short": "much"}, "tldr: price_short cannot be 'much': input should be a valid number"),
        ("tldr", {"shape": "round"}, "tldr: shape cannot be 'round': input should be 'linear', 'clipped' or"),
        ("tldr", {"price_short": 1.5}, "tldr: price_short must lie between -1 and 1"),
        ("laser", {"target": 10.5}, "laser: target cannot be 10.5"),
    ],
)
def test_mistakes_are_one_clear_sentence(name, parameters, message):
    with pytest.raises(ObjectiveError) as caught:
        objective_from(name, parameters)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", OBJECTIVES.values(), ids=str)
def test_every_objective_describes_itself(kind: type[Objective]):
    described = describe_objective(kind)
    assert described["name"] == kind.name
    assert described["summary"]
    assert described["paper"]
    public = [parameter.name for parameter in dataclasses.fields(kind) if parameter.init]
    assert [parameter["name"] for parameter in described["parameters"]] == public
    assert all(parameter["meaning"] for parameter in described["parameters"])
    json.dumps(described)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_name_and_its_parameters_make_the_same_objective_again(name):
    objective = objective_from(name, {})
    assert str(objective) == name
    public = {field.name: getattr(objective, field.name) for field in dataclasses.fields(objective) if field.init}
    assert objective_from(name, json.loads(json.dumps(public))) == objective


def test_changed_parameters_are_spelled_out():
    assert str(objective_from("laser", {"target": 100})) == "laser:target=100"


def test_all_are_there():
    assert set(OBJECTIVES) == {
        *("tldr", "dr-grpo", "l1-exact", "l1-max", "arora-zanette", "kimi", "dler", "laser", "laser-d"),
        *("shorter-better", "thinkprune", "dapo-overlong", "grpo-lead"),
        *("aalc", "depo", "smartthinker", "crt", "dot", "adaptthink"),
    }
