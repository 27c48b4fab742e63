"""Test the architecture from YAML: every key takes effect, and invalid values give an error with a fix."""

from __future__ import annotations

import sys
import textwrap

import pytest
import torch
import yaml

from microdit.common.errors import ConfigError
from microdit.common.parsing import parse, to_mapping
from microdit.common.registry import import_plugins
from microdit.config.schema import config_from_mapping
from microdit.model import DiT, DiTConfig, list_presets, preset

SMALL = {"input_size": 8, "width": 64, "depth": 3, "head_dim": 16, "caption_channels": 12, "mixer": {"depth": 2}}


def shapes(values: dict) -> dict[str, torch.Size]:
    net = DiT(parse(DiTConfig, SMALL | values, "study.yaml", "model"), seed=None)
    return {name: value.shape for name, value in net.state_dict().items()} | {"pos_embed": net.pos_embed.shape}


def test_a_configuration_round_trips_through_yaml():
    config = parse(DiTConfig, SMALL)
    assert parse(DiTConfig, yaml.safe_load(yaml.safe_dump(to_mapping(config)))) == config


@pytest.mark.parametrize(
    "values",
    [
        {"in_channels": 16},
        {"input_size": 16},
        {"patch_size": 4},
        {"width": 96},
        {"depth": 4},
        {"caption_channels": 16},
        {"bias": True},
        {"caption_ffn_ratio": 2.0},
        {"attn_width": {"schedule": "layerwise", "start": 0.5, "end": 1.0}},
        {"attn_width": {"start": 0.25, "end": 0.25, "multiple_of": 48}},
        {"ffn_width": {"start": 2.0, "end": 2.0}},
        {"ffn_width": {"start": 4.0, "end": 4.0, "multiple_of": 256}},
        {"ffn": {"type": "gelu"}},
        {"experts": {"every_n": 2}},
        {"experts": {"every_n": 2, "num": 4}},
        {"mixer": {"depth": 1}},
        {"mixer": {"depth": 2, "width": 32}},
        {"mixer": {"depth": 2, "attn_ratio": 0.5}},
        {"mixer": {"depth": 2, "ffn_ratio": 2.0}},
        {"masking": {"method": "naive"}},
        {"masking": {"method": "none", "ratio": 0.0}},
    ],
    ids=str,
)
def test_every_key_changes_the_network(values):
    assert shapes(values) != shapes({})


@pytest.mark.parametrize(
    "values",
    [
        {"head_dim": 32},
        {"pos_interp_scale": 2.0},
        {"norm_eps": 0.1},
        {"qk_norm": False},
        {"mixer": {"depth": 2, "head_dim": 32}},
    ],
    ids=str,
)
def test_keys_that_change_no_shape_change_the_output(values):
    def output(changes: dict) -> torch.Tensor:
        net = DiT(parse(DiTConfig, SMALL | changes), seed=None)
        draw = torch.Generator().manual_seed(0)
        for parameter in net.parameters():
            parameter.data = torch.randn(parameter.shape, generator=draw) * 0.2
        x, y = torch.randn(1, 4, 8, 8, generator=draw), torch.randn(1, 5, 12, generator=draw)
        return net(x, torch.zeros(1), y)

    with torch.no_grad():
        assert not torch.allclose(output(values), output({}), rtol=1e-3)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"width": 100}, ["'model.width' is 100", "multiple of 16", "nearest is 96"]),
        ({"width": 0}, ["'model.width' is 0"]),
        ({"width": 8}, ["'model.width' is 8", "multiple of 16", "nearest is 16"]),
        ({"depth": 0}, ["'model.depth' is 0"]),
        ({"patch_size": 3}, ["'model.input_size' is 8", "multiple of 3", "nearest is 9"]),
        ({"norm_eps": 0.0}, ["'model.norm_eps'", "above 0"]),
        ({"pos_interp_scale": -1.0}, ["'model.pos_interp_scale'", "above 0"]),
        ({"mixer": {"width": 40}}, ["'model.mixer.width' is 40", "multiple of 16", "nearest is 32"]),
        ({"mixer": {"width": 0}}, ["'model.mixer.width' is 0"]),
        ({"mixer": {"depth": -1}}, ["'model.mixer.depth' is -1"]),
        ({"mixer": {"ffn_ratio": 0.0}}, ["'model.mixer.ffn_ratio' is 0.0"]),
        ({"attn_width": {"start": 0.5}}, ["'model.attn_width.schedule' is constant", "0.5", "layerwise"]),
        ({"attn_width": {"schedule": "layerwize"}}, ["'model.attn_width.schedule'", "'layerwise'"]),
        ({"attn_width": {"multiple_of": 24}}, ["'model.attn_width.multiple_of' is 24", "multiple of 16", "32"]),
        ({"ffn_width": {"start": -1.0, "end": -1.0}}, ["'model.ffn_width.start' is -1.0"]),
        ({"ffn_width": {"multiple_of": 0}}, ["'model.ffn_width.multiple_of' is 0"]),
        ({"ffn": {"typ": "gelu"}}, ["'model.ffn.typ'", "'type'"]),
        ({"masking": {"ratio": 1.5}}, ["'model.masking.ratio' is 1.5"]),
        ({"widht": 64}, ["'model.widht'", "'width'"]),
    ],
    ids=str,
)
def test_the_error_of_an_impossible_setting_has_file_key_and_fix(values, words):
    with pytest.raises(ConfigError) as caught:
        parse(DiTConfig, SMALL | values, "study.yaml", "model")
    assert all(word in str(caught.value) for word in ["study.yaml", *words]), caught.value


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"ffn": {"type": "swiglue"}}, ["'model.ffn.type'", "'swiglu'"]),
        ({"masking": {"method": "defered"}}, ["'model.masking.method'", "'deferred'"]),
    ],
    ids=str,
)
def test_the_error_of_an_unknown_part_has_file_key_and_fix(smoke_config, values, words):
    with pytest.raises(ConfigError) as caught:
        config_from_mapping(to_mapping(smoke_config) | {"model": SMALL | values}, "study.yaml")
    assert all(word in str(caught.value) for word in ["study.yaml", *words]), caught.value


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    (tmp_path / "my_parts.py").write_text(
        textwrap.dedent(
            """
            import torch
            from microdit.model.layers.feed_forward import FeedForward
            from microdit.model.masking.base import NaiveMasking

            class Relu(FeedForward):
                matrices = 2

                def __init__(self, width, hidden, bias):
                    super().__init__()
                    self.up = torch.nn.Linear(width, hidden, bias=bias)
                    self.down = torch.nn.Linear(hidden, width, bias=bias)

                def forward(self, x):
                    return self.down(self.up(x).relu())

            class Learned(NaiveMasking):
                '''Add a learned vector after the backbone.'''

                def __init__(self, config):
                    super().__init__(config)
                    self.shift = torch.nn.Parameter(torch.zeros(1, 1, config.width))

                def backbone(self, blocks, x, c, y, plan):
                    return super().backbone(blocks, x, c, y, plan) + self.shift

            def hourglass(start, end, depth):
                return [max(start, abs(2 * i / max(depth - 1, 1) - 1) * end) for i in range(depth)]
            """
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_parts"
    sys.modules.pop("my_parts", None)


def test_user_defined_parts_are_used(plugin):
    import_plugins([plugin])
    config = parse(
        DiTConfig,
        SMALL
        | {
            "ffn": {"type": f"{plugin}.Relu"},
            "masking": {"method": f"{plugin}.Learned", "ratio": 0.5},
            "attn_width": {"schedule": f"{plugin}.hourglass", "start": 0.5, "end": 1.0},
        },
    )
    first, again = DiT(config, seed=0), DiT(config, seed=0)
    assert [block.attn.proj.in_features for block in first.blocks] == [64, 32, 64]
    assert first.masking.kept == 8
    assert first.masking.shift.abs().max() > 0  # initialized with all others
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_a_plugin_that_is_not_listed_is_not_imported():
    config = parse(DiTConfig, SMALL | {"ffn": {"type": "subprocess.Popen"}})
    with pytest.raises(ConfigError, match=r"'model\.ffn\.type' is 'subprocess\.Popen'.*list its module"):
        DiT(config)


def test_a_missing_plugin_is_named():
    with pytest.raises(ConfigError, match="'plugins' names module 'no_such_module'"):
        import_plugins(["no_such_module"])


def test_a_missing_class_of_a_plugin_is_named(plugin):
    import_plugins([plugin])
    with pytest.raises(ConfigError, match=r"'model\.ffn\.type' is 'my_parts\.Nothing', which can't be imported"):
        DiT(parse(DiTConfig, SMALL | {"ffn": {"type": f"{plugin}.Nothing"}}))


def test_a_network_is_built_by_a_presets_name() -> None:
    assert list_presets() == ("DiT-Tiny/2", "DiT-XL/2", "MicroDiT-Tiny/2", "MicroDiT-XL/2")
    with torch.device("meta"):
        net = DiT.from_preset("DiT-Tiny/2", seed=None)
    assert (net.config.width, net.config.depth, net.config.patch_size) == (512, 16, 2)
    assert preset("MicroDiT_XL_2") == preset("MicroDiT-XL/2")  # the released code's name
    with pytest.raises(ConfigError, match="no preset 'DiT-Tini/2'; did you mean 'DiT-Tiny/2'"):
        DiT.from_preset("DiT-Tini/2")
