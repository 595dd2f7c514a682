import dataclasses
import json
import random

import pytest

from satisfice.reinforcement import OBJECTIVES, Need, Objective, ObjectiveError, describe_objective, objective_from
from satisfice.reinforcement.objectives.thinkprune import ThinkPrune
from satisfice.reinforcement.objectives.tldr import TLDR


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
        ("tldr", {"price_short": "much"}, "tldr: price_short is 'much'; it must be a number above -1 and below 1"),
        ("tldr", {"shape": "round"}, "tldr: shape is 'round'; it must be linear, clipped or group-relative"),
        ("tldr", {"price_short": 1.5}, "tldr: price_short is 1.5; it must be above -1 and below 1"),
        ("laser", {"target": 10.5}, "laser: target is 10.5; it must be a whole number, at least 1"),
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


KNOWN = {
    *("tldr", "dr-grpo", "l1-exact", "l1-max", "arora-zanette", "kimi", "dler", "laser", "laser-d"),
    *("shorter-better", "thinkprune", "dapo-overlong", "grpo-lead"),
    *("aalc", "depo", "smartthinker", "crt", "dot", "adaptthink"),
}
"""Objectives whose needs stand below; one that is added has a test of its own."""


def test_all_are_there():
    assert set(OBJECTIVES) >= KNOWN


def test_needs_are_typed_and_complete():
    needs = {name: set(kind.needs) for name, kind in OBJECTIVES.items() if kind.needs and name in KNOWN}
    assert needs == {
        "aalc": {Need.VALIDATION},
        "adaptthink": {Need.REFERENCE, Need.DIRECT},
        "crt": {Need.REFERENCE, Need.OWN},
        "depo": {Need.BOUNDARY},
        "dr-grpo": {Need.LOSS_TYPE},
        "l1-exact": {Need.BUDGET},
        "l1-max": {Need.BUDGET},
        "laser-d": {Need.OWN},
        "smartthinker": {Need.STEPS},
        "thinkprune": {Need.BUDGET},
    }
    for kind in OBJECTIVES.values():
        assert all(isinstance(need, Need) for need in kind.needs)
        assert (Need.DIRECT in kind.needs) == (kind.direct_share > 0)
        assert (Need.LOSS_TYPE in kind.needs) == (kind.loss_type is not None)
        states_budgets = any(kind().condition(random.Random(seed)).budget for seed in range(9))
        assert (Need.BUDGET in kind.needs) == states_budgets
