"""Reads a recipe (YAML) into a checked nested mapping in which every default is filled in.

The sections and keys are SEMamba's (`consistancy` is spelt as there) plus visual_cfg and lite_cfg. Every new key is
optional and its default reproduces SEMamba.
"""

from __future__ import annotations

import difflib
import os
import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from utils.recipe_yaml import read_yaml

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Shares = Annotated[list[NonNegativeFloat], Field(min_length=1, max_length=4)]

MOST_MISTAKES = 10  # that are named at once
WHOLE_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d{1,3}")  # YAML reads 1e5 as text


def _is_section(parent: type[BaseModel], key: object) -> bool:
    field = parent.model_fields.get(str(key))
    return field is not None and isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _empty_sections(cls, value: Any) -> Any:
        """Take an empty section for its defaults; YAML reads it as None."""
        if not isinstance(value, Mapping):
            return value
        return {
            key: cls._as_number(key, item) for key, item in value.items() if item is not None or not _is_section(cls, key)
        }

    @classmethod
    def _as_number(cls, key: Any, value: Any) -> Any:
        """Take 1e5 for a whole number; refuse true and false, which are 1 and 0 in Python, where a number belongs."""
        field = cls.model_fields.get(key) if isinstance(key, str) else None
        kinds = set() if field is None else {field.annotation, *get_args(field.annotation)}
        if isinstance(value, bool) and kinds & {int, float}:
            raise ValueError(f"{key} is {str(value).lower()}; write a number")
        if isinstance(value, str) and int in kinds and WHOLE_NUMBER.fullmatch(value) and float(value).is_integer():
            return int(float(value))
        return value


class DistCfg(_Section):
    dist_backend: str = "nccl"
    dist_url: str = "tcp://localhost:19477"  # SEMamba's key, not used: a free port is taken
    world_size: PositiveInt = 1


class EnvSetting(_Section):
    num_gpus: NonNegativeInt | None = None  # left out: all that are there; 0: the CPU; fewer are there: those, and said
    num_workers: NonNegativeInt = 2
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1234  # torch takes no larger one
    stdout_interval: PositiveInt = 10  # steps between lines with the loss terms, which log.jsonl gets too
    checkpoint_interval: PositiveInt = 1000
    validation_interval: PositiveInt = 1000
    summary_interval: PositiveInt = 100  # steps between TensorBoard's numbers
    shown_clips: NonNegativeInt = 2  # validation clips whose sound and spectrograms TensorBoard gets after each validation
    keep_checkpoints: PositiveInt = 3  # newest pairs kept on disk, besides the best
    dist_cfg: DistCfg = DistCfg()


class DataCfg(_Section):
    train_clean_json: str | None = None
    train_noisy_json: str | None = None
    valid_clean_json: str | None = None
    valid_noisy_json: str | None = None
    test_clean_json: str | None = None
    test_noisy_json: str | None = None
    train_data_json: str | None = None
    valid_data_json: str | None = None
    test_data_json: str | None = None
    train_noise_json: str | None = None
    valid_noise_json: str | None = None
    test_noise_json: str | None = None
    train_rir_json: str | None = None
    train_dubbing_bank: str | None = None  # gives a face to voices of a scene that were not filmed (dataloaders.dubbing)
    copy_shards_to: str | None = None  # a node's own disk, such as $SLURM_TMPDIR, that training shards are copied to first
    train_talkers_json: str | None = None  # further competing voices of training_cfg.scene: clips with or without video


class LossCfg(_Section):
    metric: NonNegativeFloat = 0.0
    magnitude: NonNegativeFloat = 0.9
    phase: NonNegativeFloat = 0.3
    complex: NonNegativeFloat = 0.1
    time: NonNegativeFloat = 0.0
    consistancy: NonNegativeFloat = 0.1
    si_sdr: NonNegativeFloat = 0.0  # minus SI-SDR in dB, means removed, held to +-30 dB
    silence: NonNegativeFloat = 0.0  # level of the output where the target is silent, in bels over the input's
    confidence: NonNegativeFloat = 0.0  # BCE of alpha against the per-frame corruption label

    @model_validator(mode="after")
    def _something_to_learn(self) -> LossCfg:
        if not any(self.model_dump().values()):
            raise ValueError("every weight is 0, so there is nothing to learn; SEMamba's recipe has magnitude: 0.9")
        return self


class SceneCfg(_Section):
    """Mixtures of several voices (dataloaders.scene); shares are probabilities of a scene, or of a voice in it."""

    talker_shares: Shares = [0.4, 0.4, 0.15, 0.05]  # of scenes with 0, 1, 2 and 3 competing talkers
    talker_snr_range: tuple[float, float] = (-5.0, 10.0)  # dB, of the target over each competing talker
    noise_share: Probability = 0.6  # of scenes with talkers, at snr_range; without talkers there is always noise
    same_speaker_share: Probability = 0.15  # of competing talkers: another clip of the target's own voice
    pair_share: Probability = 0.0  # the same mixture given once with each of two faces, side by side in the batch
    silent_share: Probability = 0.0  # a mouth is closed while the others talk: silence is wanted, taught by loss.silence
    sync_jitter_ms: NonNegativeFloat = 0.0  # the video is early or late by so much at most, and still to be trusted
    dubbing_variation: Probability = 0.0  # made faces move less with the sound, by this share at most, each feature by its own
    speed_share: Probability = 0.3  # of voices: sound and video faster or slower together, pitch included
    speed_range: tuple[PositiveFloat, PositiveFloat] = (0.9, 1.1)
    equalizer_share: Probability = 0.3  # of voices: coloured
    level_range_db: tuple[float, float] = (-10.0, 5.0)  # of the microphone
    clip_share: Probability = 0.03  # of microphones: overloaded
    narrow_band_share: Probability = 0.03  # of microphones: telephone band
    faceless_target: Literal["everybody", "one"] = "everybody"  # where no face that can be trusted says whom to keep

    @model_validator(mode="after")
    def _ranges_and_shares(self) -> SceneCfg:
        for key in ("talker_snr_range", "speed_range", "level_range_db"):
            low, high = getattr(self, key)
            if low > high:
                raise ValueError(f"{key} {[low, high]} must be [lowest, highest]")
        if not sum(self.talker_shares):
            raise ValueError("talker_shares are all 0; [1] means scenes without competing talkers")
        return self


class TrainingCfg(_Section):
    init_checkpoint: str | None = None  # weights that a new run starts from
    init_parts: Literal["all", "audio", "fitting"] = "all"  # audio: not the visual branch; fitting: what fits, the rest named
    train_only: list[str] | None = None  # parts of the model, such as vce; the others stay as they are. None: all are trained
    training_epochs: PositiveInt = 100
    max_steps: PositiveInt | None = None
    batch_size: PositiveInt = 2
    accumulate_steps: PositiveInt = 1  # batches whose gradients make one update: as a batch so many times as large
    learning_rate: PositiveFloat = 5e-4
    adam_b1: Annotated[float, Field(ge=0, lt=1)] = 0.8
    adam_b2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    lr_decay: Annotated[float, Field(gt=0, le=1)] = 0.99
    warmup_steps: NonNegativeInt = 0
    grad_clip: PositiveFloat | None = None  # norm; None: not clipped, as in SEMamba
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0  # running average of the weights that is validated; 0: none
    precision: Literal["fp32", "tf32", "bf16"] | None = None  # of the network; left out: tf32 on GPUs that have it, else fp32
    segment_size: PositiveInt = 16000  # samples
    clips_per_epoch: PositiveInt | None = None  # None: every clip once
    snr_range: tuple[float, float] = (-5.0, 20.0)  # dB
    rir_prob: Probability = 0.3
    rir_target: Literal["early", "reverberant"] = "early"
    visual_degradation: bool = True
    degradation_shares: dict[str, NonNegativeFloat] | None = None  # how often videos are spoilt, and how; None: augment_video's
    scene: SceneCfg | None = None  # None: one voice and one noise
    crop_jitter: bool = True  # face crops moved, scaled, turned, mirrored and lit at random in training
    video_dropout: Probability = 0.0
    trust_forcing: Probability = 0.0  # of clips: the fusion takes the label of the video in the place of alpha
    valid_clips: PositiveInt | None = None  # None: all of them
    valid_snrs_db: Annotated[list[float], Field(min_length=1)] = [0.0]
    valid_max_sec: PositiveFloat = 10.0
    valid_kinds: Annotated[list[Literal["noise", "talker", "both"]], Field(min_length=1)] = ["noise"]  # in turn over the clips
    valid_conditions: list[str] | None = None  # of the video (evaluation.testset.conditions); None: as it is
    valid_criterion: dict[Literal["pesq", "stoi", "estoi", "si_sdr"], float] | None = None  # weights of the best's score
    validate_at_end: bool = False  # also the last step's weights, averaged if there is an average, may be the best
    nan_patience: PositiveInt = 10  # bad batches in a row before the last checkpoint is reloaded
    loss: LossCfg = LossCfg()
    use_discriminator: bool = False
    use_PCS400: bool = False
    use_pretrainedD: bool = False
    pretrained_discriminator: str = "ckpts/pretrained_discriminator.pth"

    @model_validator(mode="after")
    def _snr_order(self) -> TrainingCfg:
        if self.snr_range[0] > self.snr_range[1]:
            raise ValueError(f"snr_range {list(self.snr_range)} must be [lowest, highest] in dB")
        return self


class StftCfg(_Section):
    sampling_rate: PositiveInt = 16000
    n_fft: Annotated[int, Field(ge=1, le=16384)] = 400
    hop_size: PositiveInt = 100
    win_size: PositiveInt = 400


class ModelCfg(_Section):
    hid_feature: Annotated[int, Field(ge=1, le=1024)] = 64
    compress_factor: Annotated[float, Field(gt=0, le=1)] = 0.3
    num_tfmamba: Annotated[int, Field(ge=1, le=64)] = 4
    d_state: Annotated[int, Field(ge=1, le=256)] = 16
    d_conv: Annotated[int, Field(ge=1, le=64)] = 4
    expand: Annotated[int, Field(ge=1, le=16)] = 4
    norm_epsilon: PositiveFloat = 1e-5
    beta: PositiveFloat = 2.0
    input_channel: Literal[2] = 2  # magnitude and phase
    output_channel: Literal[1] = 1
    mamba_version: Literal[1, 2] = 1
    causal: bool = False  # nothing looks ahead; left out: true in a recipe with visual_cfg or lite_cfg, else false
    norm: Literal["instance", "channel"] | None = None  # None: channel when causal, else instance
    phase_residual: bool = False  # the phase decoder turns the noisy phase instead of drawing a new one

    @model_validator(mode="after")
    def _norm_fits(self) -> ModelCfg:
        if self.norm is None:
            self.norm = "channel" if self.causal else "instance"
        if self.causal and self.norm == "instance":
            raise ValueError("norm: instance averages over all time, so it cannot be causal; use norm: channel")
        return self


class VisualCfg(_Section):
    use_visual: bool = True
    visual_channels: Literal[3] = 3  # crops are RGB; 1 is taken as 3, and said
    freeze_visual_encoder: bool = True
    visual_norm: Literal["frame", "running"] = "frame"  # of the features: each frame by itself, or over the last 2 s
    feature_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of the visual features, in training: missing for a whole clip
    video_fps: Annotated[float, Field(gt=0, le=1000)] = 25.0
    face_size: Annotated[int, Field(ge=1, le=1024)] = 96
    face_crop: Literal["auto", "yunet", "haar", "center", "none"] = "auto"
    backbone_weights: str = "auto"  # auto: fetched once and cached; none: random; or a path
    encoder_weights: str | None = None  # the whole encoder's start, from evaluation/teach_encoder.py; None: random
    visual_lookahead_ms: NonNegativeFloat = 0.0  # how much later video the sound may wait for
    visual_dim: Annotated[int, Field(ge=1, le=8192)] = 512
    remove_mean_frames: NonNegativeInt = 25  # visual features less their mean over so many past frames; 0: as they are

    @field_validator("visual_channels", mode="before")
    @classmethod
    def _one_channel_means_rgb(cls, value: Any) -> Any:
        return 3 if value == 1 else value


class LiteCfg(_Section):
    visual_encoder_type: Literal["mobilenet", "custom3d", "distilled"] = "mobilenet"
    n_freq_enc: PositiveInt = 100
    freq_stride: Literal[2, 4] = 2  # bins of the STFT for each encoded one; 4: kernels 5 wide, n_freq_enc 50
    dense_depth: Annotated[int, Field(ge=1, le=4)] = 4  # layers of each dense block
    encode_first: bool = False  # the encoder's dense block works on the encoded bins, not on those of the STFT
    use_lite_dense: bool = True
    use_vce: bool = True
    use_fsvg: bool = True
    vce_type: Literal["plain", "smoothed", "agreement"] = "smoothed"
    smooth_kernel: Annotated[int, Field(ge=1, le=1000)] = 5  # STFT frames
    agreement_window_sec: Annotated[float, Field(ge=0.1, le=30)] = 1.0  # of sound and video that vce_type agreement compares
    fsvg_type: Literal["plain", "prior"] = "prior"


class Config(_Section):
    env_setting: EnvSetting = EnvSetting()
    data_cfg: DataCfg = DataCfg()
    training_cfg: TrainingCfg = TrainingCfg()
    stft_cfg: StftCfg = StftCfg()
    model_cfg: ModelCfg = ModelCfg()
    visual_cfg: VisualCfg = VisualCfg()
    lite_cfg: LiteCfg = LiteCfg()

    @model_validator(mode="before")
    @classmethod
    def _causal_unless_said(cls, value: Any) -> Any:
        """A recipe with a visual branch is of LiteAVSEMamba, which is causal where nothing says otherwise."""
        if not isinstance(value, Mapping) or not ("visual_cfg" in value or "lite_cfg" in value):
            return value
        model = value.get("model_cfg") or {}
        if not isinstance(model, Mapping) or "causal" in model or model.get("norm") == "instance":
            return value
        return {**value, "model_cfg": {**model, "causal": True}}

    @model_validator(mode="after")
    def _shapes_fit(self) -> Config:
        stft = self.stft_cfg
        if stft.win_size > stft.n_fft:
            raise ValueError(f"stft_cfg.win_size {stft.win_size} must not exceed n_fft {stft.n_fft}")
        if stft.hop_size >= stft.win_size:
            raise ValueError(f"stft_cfg.hop_size {stft.hop_size} must be below win_size {stft.win_size}: windows overlap")
        if stft.n_fft // 2 % self.lite_cfg.freq_stride:
            stride = self.lite_cfg.freq_stride
            cannot = "halved" if stride == 2 else "quartered"
            right = f"choose a multiple of {2 * stride}"
            raise ValueError(f"stft_cfg.n_fft {stft.n_fft} gives bins that cannot be {cannot}; {right}")
        stride = self.lite_cfg.freq_stride
        bins = (stft.n_fft // 2 + 1 - (stride + 1)) // stride + 1
        if self.lite_cfg.n_freq_enc != bins:
            raise ValueError(
                f"lite_cfg.n_freq_enc is {self.lite_cfg.n_freq_enc}, but n_fft {stft.n_fft} gives {bins} encoded bins"
            )
        if self.training_cfg.segment_size < stft.n_fft:
            raise ValueError(f"training_cfg.segment_size {self.training_cfg.segment_size} is under one window")
        return self


def _known_keys(location: Sequence[str | int]) -> list[str]:
    """Keys of the section that holds `location`'s last part."""
    section: type[BaseModel] = Config
    for part in location[:-1]:
        if not _is_section(section, part):
            return []
        section = section.model_fields[str(part)].annotation
    return list(section.model_fields)


def _sentence(error: dict, source: str) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        close = difflib.get_close_matches(str(error["loc"][-1]), _known_keys(error["loc"]), n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]}?" if close else f"; known keys: {', '.join(_known_keys(error['loc']))}"
        return f"{source}: unknown key {where}{hint}"
    message = error["msg"].removeprefix("Value error, ")
    given = "" if isinstance(error["input"], Mapping) else f" (given: {reprlib.repr(error['input'])})"
    return f"{source}: {where + ': ' if where else ''}{message}{given}"


def complete_config(mapping: Mapping, source: str = "config") -> dict:
    """Check a nested mapping against the schema and fill in every default.

    ValueError names the source, the key and what would be right, one line for each thing wrong.
    """
    if not isinstance(mapping, Mapping):
        raise ValueError(f"{source}: should hold sections such as model_cfg, not {type(mapping).__name__}")
    try:
        return Config.model_validate(dict(mapping)).model_dump(mode="json")
    except ValidationError as error:
        found = [_sentence(item, source) for item in error.errors()[:MOST_MISTAKES]]
        more = error.error_count() - len(found)
        raise ValueError("\n".join([*found, *([f"{source}: {more} more mistakes"] if more else [])])) from None


def apply_overrides(mapping: dict, overrides: Sequence[str]) -> dict:
    """Return `mapping` with each "section.key=value" set; the value is read as YAML."""
    for text in overrides:
        path, equals, value = text.partition("=")
        keys = path.strip().split(".")
        if not equals or len(keys) < 2 or not all(keys):
            raise ValueError(f"override {text!r} should look like section.key=value, e.g. training_cfg.batch_size=4")
        node = mapping
        for key in keys[:-1]:
            child = node.get(key)
            node[key] = dict(child) if isinstance(child, Mapping) else {}
            node = node[key]
        node[keys[-1]] = read_yaml(value, f"override {text!r}")
    return mapping


def _says_causal(mapping: Mapping, overrides: Sequence[str]) -> bool:
    model = mapping.get("model_cfg")
    return isinstance(model, Mapping) and "causal" in model or any("model_cfg.causal" in text for text in overrides)


def load_config(path: str | os.PathLike, overrides: Sequence[str] = ()) -> dict:
    """Read a recipe, apply overrides, check it, fill in defaults."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            mapping = read_yaml(file, f"config {path}")
    except FileNotFoundError:
        raise FileNotFoundError(f"config {path} does not exist; recipes are in recipes/") from None
    except IsADirectoryError:
        raise ValueError(f"config {path} is a folder; give one .yaml file of it") from None
    if mapping is None:
        mapping = {}
    if not isinstance(mapping, dict):
        raise ValueError(f"config {path} should hold sections such as model_cfg, not {type(mapping).__name__}")
    if mapping and not ("visual_cfg" in mapping or "lite_cfg" in mapping):  # an override makes no other model of it
        overrides = [*overrides, *(() if _says_causal(mapping, overrides) else ("model_cfg.causal=false",))]
    mapping = apply_overrides(mapping, overrides)
    cfg = complete_config(mapping, source=str(path))
    if (mapping.get("visual_cfg") or {}).get("visual_channels") == 1 and os.environ.get("RANK", "0") == "0":
        print(f"{path}: visual_cfg.visual_channels: 1 is taken as 3: the crops of the face are RGB", flush=True)
    return cfg
