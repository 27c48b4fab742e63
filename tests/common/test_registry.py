"""Test registries of implementations: names, decorators, dotted paths, and moved names."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from microdit.common import moved
from microdit.common.errors import ConfigError
from microdit.common.registry import Registry, import_plugins
from microdit.config.schema import config_from_mapping
from microdit.model.layers.feed_forward import FEED_FORWARDS

# Former paths that users' YAML may contain, and the present paths of the same objects.
FORMER_PATHS = {
    "microdit.model.masking.DeferredMasking": "microdit.model.masking.base.DeferredMasking",
    "microdit.model.masking.NaiveMasking": "microdit.model.masking.base.NaiveMasking",
    "microdit.model.maskdit.MaskDiT": "microdit.model.masking.maskdit.MaskDiT",
    "microdit.model.routing.TokenRouting": "microdit.model.masking.tread.TokenRouting",
    "microdit.model.routing.SparseDenseFusion": "microdit.model.masking.sprint.SparseDenseFusion",
    "microdit.model.feed_forward.SwiGLU": "microdit.model.layers.feed_forward.SwiGLU",
    "microdit.model.widths.layerwise": "microdit.model.width_schedules.layerwise",
    "microdit.training.optim.muon": "microdit.training.optim.optimizers.muon",
    "microdit.training.optim.adamw": "microdit.training.optim.optimizers.adamw",
    "microdit.alignment.encoders.Lite0Patches": "microdit.alignment.patch_encoders.Lite0Patches",
    "microdit.data.base.Item": "microdit.data.dataset.Sample",
    "microdit.data.emoji.EmojiCaptions": "microdit.data.emoji.dataset.EmojiCaptions",
    "microdit.data.folder.ImageFolder": "microdit.data.image_folder.dataset.ImageFolder",
    "microdit.data.latents.LatentImages": "microdit.data.latents.dataset.LatentImages",
}


class Base:
    pass


def roles() -> Registry[type]:
    return Registry("model.role", {"first": Base}, base=Base)


def test_a_decorator_registers_a_class_by_name() -> None:
    registry = roles()

    @registry.register("second")
    class Second(Base):
        pass

    assert registry.resolve("second") is Second
    assert sorted(registry) == ["first", "second"]


def test_names_are_unique_but_a_definition_may_be_repeated() -> None:
    registry = roles()

    def define() -> type:
        class Second(Base):
            pass

        return Second

    registry.register("second")(define())
    newer = registry.register("second")(define())
    assert registry.resolve("second") is newer
    for name in ("first", "second"):
        with pytest.raises(ConfigError, match=f"'{name}' is already registered for 'model.role'"):
            registry.register(name)(type("Third", (Base,), {}))


@pytest.mark.parametrize("name", ["", "a.b", "a b", "1st"])
def test_names_with_other_characters_are_rejected(name: str) -> None:
    with pytest.raises(ConfigError, match=r"can't be registered for 'model.role'"):
        roles().register(name)(Base)


def test_a_class_must_derive_from_the_roles_base() -> None:
    with pytest.raises(ConfigError, match=r"no class derived from .*Base"):
        roles().register("second")(int)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"no class derived from .*Base"):
        roles().resolve("microdit.model.masking.base.NoMasking")


def test_an_unknown_name_is_rejected_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'model\.role' is 'frist'; did you mean 'first'\?"):
        roles().resolve("frist")


def test_a_plugin_registers_names_for_its_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "registering_plugin.py").write_text(
        "from microdit.model.layers.feed_forward import GELU, register_feed_forward\n"
        "from microdit.model.width_schedules import register_width_schedule\n"
        "@register_feed_forward('mine')\n"
        "class Mine(GELU):\n"
        "    pass\n"
        "@register_width_schedule('mine-widths')\n"
        "def widths(start, end, depth):\n"
        "    return [start] * depth\n"
    )
    monkeypatch.chdir(tmp_path)
    from sweeps.config.hydra_compose import compose_mapping

    words = ["model.ffn.type=mine", "model.ffn_width.schedule=mine-widths"]
    with pytest.raises(ConfigError, match=r"is 'm[a-z-]+';"):
        config_from_mapping(compose_mapping(words))
    config = config_from_mapping(compose_mapping([*words, "plugins=[registering_plugin]"]))
    assert FEED_FORWARDS.resolve(config.model.ffn.type).__module__ == "registering_plugin"


@pytest.mark.parametrize("path", FORMER_PATHS)
def test_former_class_paths_still_name_the_same_class(path: str) -> None:
    module, _, name = FORMER_PATHS[path].rpartition(".")
    assert Registry("any", {}).resolve(path) is getattr(importlib.import_module(module), name)
    assert moved.present_path(path) == FORMER_PATHS[path]


@pytest.mark.parametrize(
    ("line", "present"),
    [
        ("import microdit.model.mask_plan", "microdit.model.masking.patch_mask"),
        ("from microdit.model.masking import DeferredMasking", "microdit.model.masking.base.DeferredMasking"),
        ("from microdit.model.masking.patch_mask import plan_from_keep", "masking.patch_mask.mask_from_keep"),
        ("from microdit.data.base import Item", "microdit.data.dataset"),
        ("from microdit.errors import ConfigError", "microdit.common.errors"),
    ],
)
def test_the_error_of_a_former_import_names_the_present_one(
    line: str, present: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = "former_" + "".join(filter(str.isalpha, line))
    (tmp_path / f"{plugin}.py").write_text(line + "\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=rf"'plugins' names module.*it was moved, write \S*{present}$"):
        import_plugins([plugin])


def test_an_unknown_name_gets_no_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wrong_import.py").write_text("import no_such_package\n")
    monkeypatch.chdir(tmp_path)
    importlib.invalidate_caches()
    with pytest.raises(ConfigError, match=r"No module named 'no_such_package'$"):
        import_plugins(["wrong_import"])


def test_the_registry_needs_no_torch() -> None:
    code = "import sys, microdit.common.registry; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_asking_for_a_name_imports_no_entry() -> None:
    registry: Registry[object] = Registry("test", {"lazy": "no_such_module.Part"})
    assert "lazy" in registry
    assert "other" not in registry
    with pytest.raises(ModuleNotFoundError):
        registry["lazy"]
