"""Settings classes: registers choose them, mappings become typed objects and back, what does not fit is refused."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from omegaconf import OmegaConf

from mmadapter.errors import InputError
from mmadapter.settings import (
    Register,
    choice,
    chosen,
    entries,
    leaves,
    listing,
    named,
    number,
    open_defaults,
    problems_of,
    to_plain,
    typed,
    with_overrides,
)

TOOLS, VEHICLES, ENGINES = Register("tool"), Register("vehicle"), Register("engine")


@dataclass
class Saw:
    teeth: int = number(3, at_least=1)
    kind: str = choice("hand", "band")

    def contradictions(self, key):
        if self.kind == "band" and self.teeth == 13:
            yield f"{key}.teeth=13: no band saw has 13 teeth."


@dataclass
class Drill:
    speeds: list[int] = listing(1, 2)


@dataclass
class Shelf:
    labels: list[str] = listing()


@dataclass
class Workshop:
    tools: dict[str, object] = entries(TOOLS, beside=True)
    shelves: dict[str, Shelf] = named()
    owner: str | None = None


@dataclass
class Vehicle:
    kind: str = ""


@dataclass
class Bicycle(Vehicle):
    gears: int = number(1, at_least=1)


@dataclass
class Engine:
    name: str = "steam"


@dataclass
class Steam(Engine):
    boilers: int = 1


@dataclass
class Diesel(Engine):
    cylinders: int = 4


@dataclass
class Town:
    size: int = 0
    workshop: Workshop = field(default_factory=Workshop)
    vehicles: dict[str, Vehicle] = entries(VEHICLES, chosen_by="kind")
    engine: Engine = chosen(ENGINES, "name", Steam)


TOOLS.add("saw", Saw, "tests.test_settings:Saw")
TOOLS.add("drill", Drill, Drill)
VEHICLES.add("bicycle", Bicycle, "none:Bicycle")
ENGINES.add("steam", Steam, Steam)
ENGINES.add("diesel", Diesel, Diesel)

CONTENT = {
    "workshop": {"saw": {"teeth": 4}, "drill": None, "shelves": {"top": {"labels": ["x"]}}},
    "vehicles": {"mine": {"kind": "bicycle", "gears": 3}},
    "engine": {"name": "diesel"},
}


def test_registers_choose_the_classes_and_null_leaves_an_entry_out():
    town = typed(Town, CONTENT)
    assert town.workshop == Workshop({"saw": Saw(4)}, {"top": Shelf(["x"])}, None)
    assert town.vehicles == {"mine": Bicycle("bicycle", 3)} and town.engine == Diesel("diesel", 4)
    assert typed(Town, {}).engine == Steam("steam", 1)


def test_plain_content_gives_an_equal_object_again():
    town = typed(Town, CONTENT)
    assert typed(Town, to_plain(town)) == town
    assert to_plain(town)["workshop"] == {
        "saw": {"teeth": 4, "kind": "hand"},
        "shelves": {"top": {"labels": ["x"]}},
        "owner": None,
    }


def test_leaves_are_named_as_they_are_typed():
    values = {leaf.key: leaf.value for leaf in leaves(typed(Town, CONTENT))}
    assert values["workshop.saw.teeth"] == 4 and values["workshop.shelves.top.labels"] == ["x"]
    assert values["vehicles.mine.gears"] == 3 and values["engine.cylinders"] == 4
    assert "workshop" not in values and "workshop.drill" not in values


REFUSED = [
    ({"sizes": 3}, "There is no setting 'sizes'. Did you mean size?"),
    ({"size": None}, "size=null: it needs a value."),
    ({"size": "big"}, "size: Value 'big'"),
    ({"workshop": {"saws": {}}}, "There is no setting 'workshop.saws'. Did you mean workshop.saw?"),
    ({"workshop": {"teeth": 2}}, "There is no setting 'workshop.teeth'. Did you mean workshop.saw.teeth?"),
    ({"workshop": {"saw": {"tooth": 2}}}, "There is no setting 'workshop.saw.tooth'. Did you mean workshop.saw.teeth?"),
    ({"workshop": {"saw": 2}}, "workshop.saw=2: it must be a mapping of settings, or null."),
    ({"workshop": {"saw": False}}, "workshop.saw=False: it must be a mapping of settings, or null."),
    ({"vehicles": 3}, "vehicles=3: it must be a mapping of names to settings."),
    ({"workshop": {"shelves": [1]}}, "workshop.shelves=[1]: it must be a mapping of names to settings."),
    ({"workshop": 3}, "workshop=3: it must be a mapping of settings, or null."),
    ({"workshop": {"saw": {"teeth": "x"}}}, "workshop.saw.teeth: Value 'x'"),
    ({"workshop": {"shelves": {"top": {"label": []}}}}, "There is no setting 'workshop.shelves.top.label'."),
    ({"vehicles": {"mine": {"kind": "bycicle"}}}, "vehicles.mine.kind='bycicle'. Did you mean bicycle?"),
    ({"vehicles": {"mine": {}}}, "vehicles.mine.kind is not set."),
    ({"engine": {"name": "stem"}}, "engine.name='stem'. Did you mean steam? Registered engines: steam, diesel."),
    ({"engine": {"name": "diesel", "boilers": 2}}, "There is no setting 'engine.boilers'."),
]


@pytest.mark.parametrize("content,message", REFUSED)
def test_what_does_not_fit_is_refused_by_name(content, message):
    with pytest.raises(InputError) as error:
        typed(Town, content)
    assert message in str(error.value)


def test_values_outside_of_bounds_are_all_named_and_contradictions_only_among_allowed_values():
    town = typed(Town, {"workshop": {"saw": {"teeth": 0, "kind": "toy"}}})
    assert list(problems_of(town)) == [
        "workshop.saw.teeth=0: must be at least 1.",
        "workshop.saw.kind=toy: allowed are hand, band.",
    ]
    town = typed(Town, {"workshop": {"saw": {"teeth": 13, "kind": "band"}}})
    assert list(problems_of(town)) == ["workshop.saw.teeth=13: no band saw has 13 teeth."]


def test_overrides_reach_components_that_were_not_there():
    town = with_overrides(typed(Town, CONTENT), ["workshop.drill.speeds=[7]", "engine.cylinders=6"], "variants.x")
    assert town.workshop.tools["drill"] == Drill([7]) and town.engine == Diesel("diesel", 6)
    with pytest.raises(InputError, match=r"variants\.x: There is no setting 'workshop\.dril'"):
        with_overrides(town, ["workshop.dril.speeds=[7]"], "variants.x")


def test_what_hydra_starts_from_has_all_defaults_and_takes_any_key():
    assert typed(Town, OmegaConf.to_container(open_defaults(Town))) == typed(Town, {})
    composed = OmegaConf.merge(open_defaults(Town), CONTENT)
    assert typed(Town, OmegaConf.to_container(composed)) == typed(Town, CONTENT)


def test_an_implementation_is_loaded_from_its_text_or_taken_as_it_is():
    from tests.test_settings import Saw as loaded

    assert TOOLS.load("saw") is loaded and TOOLS.load("drill") is Drill
    with pytest.raises(InputError, match="There is no tool 'axe'"):
        TOOLS.load("axe")
