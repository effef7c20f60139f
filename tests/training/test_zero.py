"""The DeepSpeed engine against the plain one: 1, 2 and 4 gloo processes, ZeRO stages 0 to 3, offload.

All processes of one count run every case in one go (zero_worker.py); `single` runs the same cases here.
"""

import math

import pytest
import torch

from mmadapter.training.settings import EngineConf
from tests.distributed.several import Several
from tests.training import zero_cases
from tests.training.zero_cases import ENGINES, STAGES
from tests.training.zero_worker import cases, work

# Sums of float32 gradients are taken in another order: FIRST_GRADIENTS is what that makes in the first step's norms.
# Adam divides by the gradient's size: where a gradient is all rounding (around 1e-8 of the others) a step has any size
# up to the learning rate, which shows in single elements of the parameters.
FIRST_GRADIENTS = 1e-6
SUMMATION = {"loss": 2e-6, "parameters": 2e-4, "exp_avg": 1e-5, "exp_avg_sq": 2e-5}
# A bfloat16 host keeps 8 bits: another micro-batch shape rounds every activation anew.
BFLOAT16_LOSS = 5e-3
PATIENCE = 900.0  # seconds; far beyond what a group takes


class Group:
    """What the processes of one count gave, and `single` beside it."""

    def __init__(self, count, which, folder):
        self.count, self.folder, self.cases, self.alone = count, folder, cases(count, which), {}
        torch.set_num_threads(1)
        torch.save(zero_cases.passed_on("single", folder)["middle"], folder / "middle.pt")
        several = Several(count, work, count, folder, which, PATIENCE, folder=folder)
        statuses = several.end(PATIENCE + 20)
        assert statuses == [0] * count, "\n".join(several.said(rank)[-3000:] for rank in range(count))
        self.found = torch.load(folder / "found.pt", weights_only=False)

    def single(self, key):
        case = self.cases[key]
        kind = key.rpartition(" ")[0]
        if kind not in self.alone:
            self.alone[kind] = case.func("single", self.folder, **case.keywords)
        return self.alone[kind]


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")  # else it takes a GPU that it finds
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401 (seconds, which forked processes are spared)
    made = {}

    def group(count, which):
        if (count, which) not in made:
            made[count, which] = Group(count, which, tmp_path_factory.mktemp(f"{count}-{which}"))
        return made[count, which]

    return group


SMALL_GROUPS = [(1, "few"), (2, "few")]
ALL_GROUPS = [*SMALL_GROUPS, *[pytest.param(n, "all", marks=pytest.mark.slow) for n in (1, 2, 4)]]
every_group = pytest.mark.parametrize(("count", "which"), ALL_GROUPS)
also_four = pytest.mark.parametrize(("count", "which"), [(4, "few"), *ALL_GROUPS])


def distances(one, other):
    """The largest difference of the parameters and of each moment, by the largest element of the tensor."""
    assert one.keys() == other.keys()
    found = dict.fromkeys(["parameters", "exp_avg", "exp_avg_sq", "steps"], 0.0)
    for name, tensor in one.items():
        kind = name.split(" ")[0] if " " in name else "parameters"
        difference = (tensor.double() - other[name].double()).abs().max() / other[name].double().abs().max()
        found[kind] = max(found[kind], float(difference.nan_to_num()))
    return found


def differing(one, other, names=None):
    names = one.keys() if names is None else names
    assert names
    return [name for name in names if not torch.equal(one[name], other[name])]


@also_four
def test_losses_and_adapters_agree_with_one_plain_process(groups, count, which):
    group = groups(count, which)
    for key, found in group.found.items():
        kind = key.rpartition(" ")[0]
        if count > 1 and kind in ("disjoint", "instructions", "broken"):
            continue  # with dropout: each process draws its own
        alone = group.single(key)
        for here, there in zip(found["results"], alone["results"], strict=True):
            tolerance = BFLOAT16_LOSS if kind == "bfloat16" else SUMMATION["loss"]
            assert here["loss"] == pytest.approx(there["loss"], abs=tolerance, nan_ok=True), key
            assert here["tokens_by_source"] == there["tokens_by_source"]
            assert here["skipped_groups"] == there["skipped_groups"]
            assert here["grad_norms"].keys() == there["grad_norms"].keys()
        if kind != "bfloat16":
            first = found["results"][0]["grad_norms"]
            wanted = pytest.approx(alone["results"][0]["grad_norms"], rel=FIRST_GRADIENTS, nan_ok=True)
            assert first == wanted, key
        far = distances(found["state"], alone["state"])
        assert far["steps"] == 0, key
        if kind != "bfloat16":
            assert all(far[name] < SUMMATION[name] for name in far if name != "steps"), (key, far)


@pytest.mark.parametrize("which", ["few", pytest.param("all", marks=pytest.mark.slow)])
def test_one_process_equals_single_to_the_bit(groups, which):
    """Stage 3 only on the toy: its linear layer is DeepSpeed's, which rounds otherwise than torch's on a real host."""
    group = groups(1, which)
    small = ("toy", "disjoint", "instructions", "broken", "idle", "passed on", "taken over")
    for key, found in group.found.items():
        if "zero3" not in key or key.startswith(small):
            alone = group.single(key)
            assert differing(found["state"], alone["state"]) == [], key
            assert [str(result) for result in found["results"]] == [str(result) for result in alone["results"]], key


@also_four
def test_what_captions_teach_never_touches_the_instruction_group(groups, count, which):
    """To the bit: with dropout, decay, momentum, clipping, accumulation; pictures on the first process only."""
    found = groups(count, which).found
    pairs = [("disjoint", "instructions"), ("joint recomputed", "alone recomputed"), ("joint kept", "alone kept")]
    seen = 0
    for joint, alone in pairs:
        for name in ENGINES:
            if {f"{joint} {name}", f"{alone} {name}"} <= found.keys():  # "few" leaves some out
                one, other = found[f"{joint} {name}"], found[f"{alone} {name}"]
                assert differing(other["state"], one["state"]) == [], (joint, name)
                losses = [result["loss_by_source"]["instructions"] for result in one["results"]]
                assert losses == [result["loss"] for result in other["results"]]
                seen += 1
    assert seen >= len(ENGINES[1:])


@pytest.mark.parametrize(("count", "which"), ALL_GROUPS[1:])  # one process: slow only
def test_checkpointing_changes_nothing(groups, count, which):
    found = groups(count, which).found
    for name in STAGES if which == "all" else ["zero3"]:
        assert differing(found[f"joint kept {name}"]["state"], found[f"joint recomputed {name}"]["state"]) == []


@every_group
def test_a_non_finite_source_on_one_process_skips_its_group_only(groups, count, which):
    found = groups(count, which).found
    for name in ENGINES:
        broken, alone = found[f"broken {name}"], found[f"instructions {name}"]
        assert [result["skipped_groups"] for result in broken["results"]] == [("visual",)] * zero_cases.STEPS
        assert all(math.isnan(result["grad_norms"]["visual"]) for result in broken["results"])
        assert differing(alone["state"], broken["state"], alone["state"].keys()) == []
        assert not any("visual" in key and key.startswith("steps") for key in broken["state"])


@every_group
def test_a_group_without_a_supervised_token_stays_as_it_is(groups, count, which):
    found = groups(count, which).found
    for name in ENGINES:
        states = found[f"idle {name}"]["states"]
        visual = [key for key in states["joint"] if "visual" in key]
        instruction = [key for key in states["joint"] if "layer." in key]
        assert differing(states["joint"], states["instructions"], visual) == []
        assert len(differing(states["joint"], states["instructions"], instruction)) == len(instruction)
        assert len(differing(states["instructions"], states["one sample"])) == len(visual + instruction)
        assert differing(states["one sample"], states["nothing"]) == []
        assert found[f"idle {name}"]["results"][-1]["loss"] == 0.0


@every_group
def test_the_state_in_a_fresh_engine_goes_on_to_the_bit(groups, count, which):
    found = groups(count, which).found
    for name in ENGINES:
        passed = found[f"passed on {name}"]
        assert differing(zero_cases.plain(passed["middle"]), passed["loaded"]) == []
        assert passed["results"] == found[f"toy {name}"]["results"]
        assert differing(found[f"toy {name}"]["state"], passed["state"]) == []


def test_the_plain_engine_takes_over_what_several_processes_wrote(groups):
    group = groups(2, "few")
    for name in ENGINES:
        torch.save(group.found[f"passed on {name}"]["middle"], group.folder / "middle.pt")
        taken = zero_cases.taken_over("single", group.folder)
        far = distances(taken["state"], group.found[f"toy {name}"]["state"])
        assert all(far[kind] <= SUMMATION.get(kind, 0.0) for kind in far), (name, far)


@every_group
def test_stage_3_shares_out_the_base_and_leaves_it_unchanged(groups, count, which):
    found = groups(count, which).found
    for key, case in found.items():
        if "bytes" not in case:
            continue
        assert case["base unchanged"], key
        whole = groups(count, which).single(key)["bytes"][0]
        share = 1 / count if "zero3" in key else 1
        # Vectors (norms, biases) stay whole beside their part.
        assert all(whole * share <= stored <= whole * (share + 0.03) for stored in case["bytes"]), (key, case["bytes"])


@every_group
def test_validation_and_answers_in_the_middle_of_training(groups, count, which):
    group = groups(count, which)
    for key, case in group.found.items():
        if "answers" in case and not key.startswith("bfloat16"):
            assert case["answers"] == group.single(key)["answers"], key
            assert case["validation"] == pytest.approx(group.single(key)["validation"], abs=2e-5), key


def test_engines_are_told_apart_by_name():
    found = [(EngineConf(name).stage, EngineConf(name).offload) for name in ("single", *ENGINES)]
    assert found == [(0, False), (0, False), (1, False), (2, False), (3, False), (2, True), (3, True)]
