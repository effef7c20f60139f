"""Every trainable parameter has a role, every role one group; anything else is refused by name."""

import pytest
from torch import nn

from mmadapter.errors import InputError
from mmadapter.methods.groups import parameter_groups, trainable_parameters
from mmadapter.methods.settings import GroupConf
from tests.models import model_on

ALL = ["prompt", "gate", "visual_projection"]


@pytest.fixture(scope="module")
def trainable():
    return model_on().trainable_parameters()


def test_each_parameter_lands_in_exactly_one_group(trainable):
    groups = parameter_groups(
        trainable, {"text": GroupConf(["prompt", "gate"]), "eyes": GroupConf(["visual_projection"])}
    )
    names = [name for group in groups for name, _ in group.parameters]
    assert sorted(names) == sorted(item.name for item in trainable)
    assert {group.name: group.size for group in groups} == {
        "text": 3 * (4 * 32 + 4),
        "eyes": 32 * 8 + 8 + 8 * 32 + 32,
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"a": ["prompt", "gate"]}, "has the roles gate, prompt, this adapter gate, prompt, visual_projection"),
        ({"a": ALL, "b": ["gate"]}, "has the roles gate, gate, prompt"),
        ({"a": [*ALL, "scale"]}, "prompt, scale, visual_projection, this adapter gate, prompt, visual_projection"),
        ({"a": ALL, "b": []}, "no group is empty"),
        ({}, "the roles of no group"),
    ],
)
def test_other_assignments_are_refused(trainable, settings, message):
    with pytest.raises(InputError, match=message):
        parameter_groups(trainable, {name: GroupConf(roles) for name, roles in settings.items()})


def test_an_undeclared_parameter_is_an_error_of_the_code():
    with pytest.raises(TypeError, match=r"Linear declares no role for its parameter 0\.weight"):
        trainable_parameters(nn.Sequential(nn.Linear(2, 2)))
