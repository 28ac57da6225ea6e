from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn.utils import prune
from torch.utils.flop_counter import FlopCounterMode

import usdcore_gatenets
from usdcore.hooks import build_registry

REGISTRY = build_registry(usdcore_gatenets)
NAMES = [f"G{number}" for number in range(1, 10)]
MACS = {"G1": 768, "G2": 768, "G3": 2304, "G4": 9264, "G5": 9264, "G6": 18528, "G7": 18528, "G8": 37056, "G9": 37056}
TWELVE_LAYERS = {
    "G1": 18_456,
    "G2": 18_456,
    "G3": 55_320,
    "G4": 222_648,
    "G5": 222_648,
    "G6": 445_272,
    "G7": 445_272,
    "G8": 890_520,
    "G9": 890_520,
}
PARAMS_WITHOUT_NORM = [770, 770, 2306, 9290, 9290, 18578, 18578, 37154, 37154]


def build(name, width=384, outputs=2, **options):
    config = REGISTRY.config("gate-network", name)(**options)
    return REGISTRY.load("gate-network", name)(config, width, outputs)


def counted_macs(net, width, batch):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.randn(batch, width))
    return counter.get_total_flops() / 2 / batch


def test_all_nine_are_registered():
    assert REGISTRY.names("gate-network") == tuple(NAMES)
    assert all(record.state == "ok" for record in REGISTRY.records())


@pytest.mark.parametrize("name", NAMES)
def test_logits_have_one_column_per_output(name):
    net = build(name, width=32, outputs=3).eval()
    assert net(torch.randn(5, 32)).shape == (5, 3)
    assert isinstance(net.head, nn.Linear | nn.Conv1d)
    assert net.head.weight.shape[0] == 3
    with torch.no_grad():
        net.head.weight.zero_()
        net.head.bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
    assert net(torch.randn(5, 32)).tolist() == [[1.0, 2.0, 3.0]] * 5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("width", "outputs", "batch"), [(384, 2, 4), (50, 1, 3), (448, 2, 1)])
def test_macs_are_what_torch_counts(name, width, outputs, batch):
    net = build(name, width, outputs).eval()
    assert net.macs == counted_macs(net, width, batch)


@pytest.mark.parametrize("name", NAMES)
def test_counts_on_deit_small(name):
    net = build(name)
    assert net.macs == MACS[name]
    assert 12 * net.paper_flops == TWELVE_LAYERS[name]
    params = sum(p.numel() for key, p in net.named_parameters() if not key.startswith("norm"))
    assert params == PARAMS_WITHOUT_NORM[NAMES.index(name)]


def test_figure_5_and_the_searched_model():
    cost = {name: build(name).paper_flops for name in NAMES}
    assert 5 * cost["G8"] + cost["G9"] + 3 * cost["G2"] + 3 * cost["G1"] == 454_488
    assert 10 * cost["G9"] + 2 * cost["G2"] == 745_176


def test_counts_on_t2t_19():
    assert (build("G1", width=448).paper_flops, build("G9", width=448).paper_flops) == (1_794, 100_914)


def test_names_rise_in_cost():
    costs = [build(name).paper_flops for name in NAMES]
    assert costs == sorted(costs)


@pytest.mark.parametrize(("width", "hidden"), [(384, 24), (40, 3), (24, 2), (23, 1), (4, 1)])
def test_the_hidden_width_is_rounded_to_the_nearest(width, hidden):
    assert build("G4", width=width).hidden.out_features == hidden


def test_options():
    assert build("G9", hidden_ratio=0.5).hidden.out_features == 192
    assert build("G2", kernel=5).macs == 5 * 768
    for name, options in (("G1", {"kernel": 1}), ("G2", {"kernel": 2}), ("G4", {"hidden_ratio": 0})):
        with pytest.raises(ValidationError):
            build(name, **options)


def test_only_the_middle_tap_of_a_wide_kernel_matters():
    net, pooled = build("G3", width=8), torch.randn(3, 8)
    before = net(pooled)
    with torch.no_grad():
        net.head.weight[:, :, [0, 2]] = 7.0
    assert torch.equal(net(pooled), before)


def test_batch_norm_sees_the_batch_in_training_only():
    net, pooled = build("G9", width=16), torch.randn(6, 16)
    assert not torch.allclose(net(pooled)[:2], net(pooled[:2]))
    net.eval()
    assert torch.allclose(net(pooled)[:2], net(pooled[:2]), atol=1e-6)


@pytest.mark.parametrize("name", ["G1", "G3", "G8", "G9"])
def test_networks_can_be_exported_for_any_batch_size(name):
    net = build(name, width=16).eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(net, (torch.randn(4, 16),), dynamic_shapes=({0: batch},))
    pooled = torch.randn(7, 16)
    assert torch.allclose(program.module()(pooled), net(pooled), atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_layers_that_were_changed_are_called(name):
    net = build(name, width=32).eval()
    x = torch.randn(2, 32)
    before = net(x)
    net.head.register_forward_hook(lambda module, args, output: output + 1)
    assert torch.allclose(net(x), before + 1)
    prune.identity(net.head, "weight")  # from now on the weight is computed by a hook
    assert torch.allclose(net(x), before + 1)
