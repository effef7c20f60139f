"""The private names of DeepSpeed that mmadapter uses, each asked for by name: one that has vanished fails here."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from mmadapter.distributed.deepspeed import (
    end_engines,
    find_shares,
    held_bytes,
    is_sharded,
    keep_whole,
    load_deepspeed,
    start_engine,
    whole_size,
    whole_tensors,
    write_parameter,
)
from mmadapter.distributed.ranks import connected
from mmadapter.errors import InputError
from mmadapter.training.settings import EngineConf
from mmadapter.training.zero import deepspeed_configuration
from tests.distributed.several import Several, joined
from tests.training.zero_cases import toy

OF_THE_LIBRARY = ("ops.__compatible_ops__", "comm.comm.cdb", "utils.groups._WORLD_GROUP")
OF_AN_ENGINE = ("basic_optimizer", "optimizer", "module", "destroy", "allreduce_gradients", "enable_backward_allreduce")
OF_AN_OPTIMIZER = {
    1: ("single_partition_of_fp32_groups", "cpu_offload"),
    3: (
        *("grad_position", "get_param_id", "fp32_partitioned_groups_flat", "offload_optimizer"),
        "persistent_parameters",
    ),
}
OF_A_PARAMETER = {
    1: ("_hp_mapping", "_index_in_param_group", "_hp_mapping.lp_fragment_address.start")
    + ("_hp_mapping.get_hp_fragment_address", "_hp_mapping.get_lp_grad_fragment"),
    3: ("ds_id", "ds_numel", "ds_shape", "ds_tensor", "ds_persist", "all_gather"),
}


def missing(owner: object, names: tuple[str, ...]) -> list[str]:
    """Those of the dotted names that the owner does not have."""
    absent = []
    for name in names:
        found = owner
        for part in name.split("."):
            if not hasattr(found, part):
                absent.append(f"{type(owner).__name__}.{name}")
                break
            found = getattr(found, part)
    return absent


def look_for_private_names():
    with connected("cpu", group_of_one=True):
        deepspeed = load_deepspeed("cpu")
        found = missing(deepspeed, OF_THE_LIBRARY)
        import deepspeed.runtime.zero.parameter_offload as offload

        found += missing(offload, ("FWD_MODULE_STACK",))
        for stage in (1, 2, 3):
            model = nn.Linear(3, 2)
            settings = deepspeed_configuration(EngineConf(f"zero{stage}"), 1)
            optimizer = torch.optim.AdamW(model.parameters())
            engine = start_engine("cpu", model=model, optimizer=optimizer, config=settings)
            kind = 3 if stage == 3 else 1
            found += missing(engine, OF_AN_ENGINE) + missing(engine.optimizer, OF_AN_OPTIMIZER[kind])
            found += missing(model.weight, OF_A_PARAMETER[kind])
            assert is_sharded(model) == (stage == 3) and whole_size(model.weight) == 6
            if stage == 3:
                keep_whole(engine, model.parameters())
                assert model.weight.shape == (2, 3) and held_bytes([model.weight]) == 2 * 6 * 4
            parameters = {"weight": model.weight, "bias": model.bias}
            shares = find_shares(engine, stage, dict.fromkeys(parameters, 0), parameters)
            engine.backward(engine(torch.ones(1, 3)).sum())
            assert torch.equal(shares["weight"].gradient(), torch.ones(6)), stage
            value = torch.arange(6.0).view(2, 3)
            write_parameter(shares["weight"], value)
            parts = {name: share.own(share.master.data) for name, share in shares.items()}
            of_all = whole_tensors(shares, parts, False, torch.device("cpu"))
            assert torch.equal(of_all["weight"], value) and torch.equal(model.weight, value), stage
        assert "auto_mpi_discovery" in inspect.signature(deepspeed.init_distributed).parameters
        assert found == [], found


def test_every_private_name_is_there_and_means_what_it_did(tmp_path):
    alone = Several(1, look_for_private_names, folder=tmp_path)
    assert alone.end() == [0], alone.said(0)


def run_a_sharded_engine(folder):
    linear = nn.functional.linear
    with joined():
        toy("zero3", folder)
        assert nn.functional.linear is not linear
        end_engines()
    assert nn.functional.linear is linear


def test_torchs_linear_layer_is_back_when_stage_3_has_ended(tmp_path):
    """DeepSpeed's rounds otherwise, so the next run of this process would not have the bits that it has alone."""
    alone = Several(1, run_a_sharded_engine, tmp_path, folder=tmp_path)
    assert alone.end() == [0], alone.said(0)


@pytest.mark.parametrize("version", ["0.9.5", "0.18.9", "0.20.0", "1.0"])
def test_versions_that_nobody_has_tried_are_refused(monkeypatch, version):
    import deepspeed

    monkeypatch.setattr(deepspeed, "__version__", version)
    with pytest.raises(InputError, match=rf"needs deepspeed 0\.19; this is {version}. To fix: pip install"):
        load_deepspeed(torch.device("cpu"))
