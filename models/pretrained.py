"""Checkpoints of generators: their contents, and how a model or a new training starts from one."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from models.generator import VISUAL_PREFIXES, LiteAVSEMamba, SEMamba
from models.lite_visual_encoder import LiteVisualEncoderA
from utils.checkpoint import check_fit, check_weights, load_checkpoint, load_state
from utils.config import complete_config

LEVEL_KEY, LARGEST_LEVEL_DB = "level_db", 20.0
DEFAULT_SIZE = 64**2 * 4 * 4 * 16  # of SEMamba's recipe, as `_is_large` counts
ARCHITECTURES = {"SEMamba": SEMamba, "LiteAVSEMamba": LiteAVSEMamba}


def third_party_keys(model: nn.Module) -> set[str]:
    """State-dict keys of the weights that others have published (the frozen ImageNet backbone): not in our checkpoints."""
    encoder = getattr(model, "visual_encoder", None)
    if not isinstance(encoder, LiteVisualEncoderA):
        return set()
    return {f"visual_encoder.{key}" for key in encoder.third_party_keys()}


def pack_generator(model: nn.Module, cfg: Mapping, meta: Mapping | None = None) -> dict[str, Any]:
    """The contents of a generator checkpoint: its own weights, the configuration and the architecture's name."""
    left_out = third_party_keys(model)
    weights = {key: value.detach().cpu() for key, value in model.state_dict().items() if key not in left_out}
    return {
        "generator": weights, "config": dict(cfg), "architecture": type(model).__name__, "meta": dict(meta or {}),
    }


def load_generator(
    path: str | os.PathLike, config: Mapping | None = None, device: str | torch.device = "cpu"
) -> tuple[SEMamba, dict]:
    """Build the model of a checkpoint and load its weights -> (model in eval mode, its complete configuration).

    Our checkpoints contain their configuration. SEMamba's own files contain only weights: their configuration is `config`,
    or SEMamba's defaults. ValueError if `config` contradicts the checkpoint in a key that changes the output. Where the
    checkpoint's meta has a `level_db` (evaluation/match_level.py), the output is louder by that.
    """
    checkpoint = load_checkpoint(path)
    weights = checkpoint.get("generator")
    if not isinstance(weights, Mapping):
        kind = "a discriminator/optimiser file; load the g_*.pth beside it" if "discriminator" in checkpoint else "no generator"
        raise ValueError(f"checkpoint {path} holds {kind}")
    check_weights(weights, f"checkpoint {path}")
    own = checkpoint.get("config")
    cfg = complete_config(own if own is not None else (config or {}), source=f"config of {path}")
    if own is None:
        _refuse_unless_semambas(path, cfg)
    elif config is not None:
        _refuse_other_model(path, cfg, complete_config(config))
    name = checkpoint.get("architecture", "SEMamba")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ValueError(f"checkpoint {path} is of architecture {reprlib.repr(name)}; this version knows {known}")
    # A backbone whose weights are in the checkpoint (random or fine-tuned) need not be fetched.
    carried = any(key.startswith("visual_encoder.backbone.") for key in weights)
    visual = cfg["visual_cfg"] | {"encoder_weights": None} | ({"backbone_weights": "none"} if carried else {})
    cfg_to_build = cfg | {"visual_cfg": visual}
    if _is_large(cfg):  # no memory is taken before the shapes are known to fit; this takes a second, so others go without
        with torch.device("meta"):
            outline = ARCHITECTURES[name](cfg_to_build | {"visual_cfg": visual | {"backbone_weights": "none"}})
        check_fit(outline, weights, f"checkpoint {path}", may_miss=third_party_keys(outline))
    model = ARCHITECTURES[name](cfg_to_build)
    load_state(model, weights, f"checkpoint {path}", may_miss=third_party_keys(model))
    # The mask is in proportion to beta, and the output to its magnitude, which the STFT compresses.
    model.mask_decoder.lsigmoid.beta *= 10 ** (level_db(checkpoint, path) / 20 * cfg["model_cfg"]["compress_factor"])
    return model.to(device).eval(), cfg


def level_db(checkpoint: Mapping, path: str | os.PathLike) -> float:
    """By how many dB a checkpoint's output is to be made louder, 0 where it does not say; ValueError for what is no level."""
    meta = checkpoint.get("meta")
    value = meta.get(LEVEL_KEY, 0.0) if isinstance(meta, Mapping) else 0.0
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -LARGEST_LEVEL_DB <= value <= LARGEST_LEVEL_DB:
        raise ValueError(
            f"checkpoint {path}: {LEVEL_KEY} is {reprlib.repr(value)}, it should be a number of dB up to {LARGEST_LEVEL_DB:g}"
        )
    return float(value)


def _is_large(cfg: Mapping) -> bool:
    """Whether a complete recipe asks for a model of several times the default size."""
    model, visual = cfg["model_cfg"], cfg["visual_cfg"]
    size = model["hid_feature"] ** 2 * model["expand"] * model["num_tfmamba"] * max(model["d_state"], model["d_conv"])
    return size > 4 * DEFAULT_SIZE or visual["visual_dim"] > 2048 or cfg["stft_cfg"]["n_fft"] > 2048


def start_from(model: SEMamba, cfg: Mapping, path: str | os.PathLike, parts: str = "all") -> str:
    """Load the weights of another run into a new model -> a sentence that says what was loaded.

    parts "all": every weight, and none may be missing. "audio": all but those of the visual branch, which keep their first
    values, so an audio-only checkpoint suffices. "fitting": each weight that has the name and the shape of one of the model's,
    so that SEMamba's weights can start LiteAVSEMamba; the sentence names what does not fit. Mamba blocks that the checkpoint
    has not begin as the identity, so a deeper model starts where a shallower one ended. ValueError for a checkpoint of another
    STFT, norm or size, or if nothing fits.
    """
    checkpoint, cfg = load_checkpoint(path), complete_config(cfg)
    weights = checkpoint.get("generator")
    if not isinstance(weights, Mapping):
        raise ValueError(f"training_cfg.init_checkpoint {path} holds no generator")
    check_weights(weights, f"training_cfg.init_checkpoint {path}")
    if parts == "fitting":
        return _start_from_fitting(model, cfg, path, checkpoint)
    if checkpoint.get("config") is None:
        _refuse_unless_semambas(path, cfg)
    else:
        own = complete_config(checkpoint["config"], source=f"config of {path}")
        _refuse_other_model(path, own, cfg, ("stft_cfg", "model_cfg"))
    may_miss = third_party_keys(model)
    taken = dict(weights)
    if parts == "audio":
        taken = {key: value for key, value in weights.items() if not key.startswith(VISUAL_PREFIXES)}
        may_miss = may_miss | {key for key in model.state_dict() if key.startswith(VISUAL_PREFIXES)}
    load_state(model, taken, f"checkpoint {path}", may_miss)
    return f"starts from {len(taken)} of {len(model.state_dict())} weights of {path} ({parts})"


def _start_from_fitting(model: nn.Module, cfg: Mapping, path: str | os.PathLike, checkpoint: Mapping) -> str:
    weights, own = checkpoint["generator"], model.state_dict()
    taken = {key: value for key, value in weights.items() if key in own and own[key].shape == value.shape}
    if not taken:
        raise ValueError(f"training_cfg.init_checkpoint {path}: none of its {len(weights)} weights fits {type(model).__name__}")
    model.load_state_dict(taken, strict=False)
    deeper = [k for k in range(len(model.TSMamba)) if not any(key.startswith(f"TSMamba.{k}.") for key in taken)]
    if len(deeper) < len(model.TSMamba):
        for k in deeper:
            model.TSMamba[k].become_identity()
    lacking = {
        "not in the checkpoint": [key for key in own if key not in weights],
        "of another shape": [key for key in own if key in weights and key not in taken],
        "of the checkpoint's unknown to the model": [key for key in weights if key not in own],
    }
    said = [f"{len(keys)} {why} ({_modules(keys)})" for why, keys in lacking.items() if keys]
    given = complete_config(checkpoint.get("config") or {}, source=f"config of {path}")
    said += [
        f"{section}.{key} was {given[section][key]}, here {value}"
        for section, keys in (("stft_cfg", tuple(given["stft_cfg"])), ("model_cfg", ("causal", "norm", "phase_residual")))
        for key, value in complete_config(cfg)[section].items() if key in keys and given[section][key] != value
    ]  # fmt: skip
    return f"starts from {len(taken)} of {len(own)} weights of {path} (fitting)" + ("; " + "; ".join(said) if said else "")


def _modules(keys: Sequence[str]) -> str:
    """The parts of the model, such as "dense_encoder", that weights belong to, in their order."""
    return ", ".join(dict.fromkeys(key.split(".")[0] for key in keys))


def _refuse_other_model(
    path: str | os.PathLike, own: Mapping, given: Mapping, sections: Sequence[str] = ("stft_cfg", "model_cfg", "lite_cfg")
) -> None:
    """ValueError for the first key of these sections in which two complete recipes differ."""
    for section in sections:
        for key, value in own[section].items():
            if given[section][key] != value:
                raise ValueError(
                    f"checkpoint {path} was trained with {section}.{key}: {value}, the given config says "
                    f"{given[section][key]}; use the checkpoint's own configuration, which it contains"
                )


def _refuse_unless_semambas(path: str | os.PathLike, given: Mapping) -> None:
    """ValueError if weights without a configuration, which are SEMamba's own, do not fit the recipe `given`.

    The two settings do not change any shape, so only a recorded configuration can tell such weights apart.
    """
    for key, semambas in (("norm", "instance"), ("phase_residual", False)):
        value = given["model_cfg"][key]
        if value != semambas:
            raise ValueError(
                f"checkpoint {path} contains no configuration, so it is one of SEMamba's own (model_cfg.{key}: "
                f"{str(semambas).lower()}); the given config says {key}: {str(value).lower()}, which its weights do not fit"
            )
