"""Fixtures shared by all tests: checkpoints of tiny models, a clip, the real data where there is some, the web page."""

# ruff: noqa: E402 (imports follow what numpy and torch read when they are imported)
from __future__ import annotations

import os

# One thread each: the tests' tensors are tiny, and on a busy machine threads spend more time waiting than working.
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from helpers.paths import ROOT, SHARED
from helpers.tiny import face_crops, save_tiny_checkpoint, voice
from helpers.web import Server
from utils.media.clip_writer import write_clip

# No test goes to the network, or depends on what somebody fetched before; the scripts they start inherit this.
os.environ["LITEAVSE_OFFLINE"] = "1"
os.environ["LITEAVSE_CACHE"] = str(ROOT / "tests" / "no_cache_folder")
os.environ.pop("LITEAVSE_FACE_MODEL", None)
torch.set_num_threads(1)
# A process inherits which signals are blocked, and some schedulers block them: Ctrl-C would then never arrive in a test.
signal.pthread_sigmask(signal.SIG_SETMASK, ())


@pytest.fixture(scope="session")
def av_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of a tiny offline LiteAVSEMamba."""
    return save_tiny_checkpoint(tmp_path_factory.mktemp("ckpt") / "tiny_av.pth")


@pytest.fixture(scope="session")
def causal_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of a tiny causal LiteAVSEMamba."""
    return save_tiny_checkpoint(tmp_path_factory.mktemp("ckpt") / "tiny_causal.pth", model_cfg={"causal": True})


@pytest.fixture(scope="session")
def semamba_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of a tiny SEMamba, configuration inside."""
    return save_tiny_checkpoint(tmp_path_factory.mktemp("ckpt") / "g_00000001.pth", "SEMamba")


@pytest.fixture(scope="session")
def talking_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One second of 96 x 96 frames, which are taken as crops as they are, with sound, H.264 and FLAC in .mp4."""
    path = tmp_path_factory.mktemp("media") / "talk.mp4"
    write_clip(path, face_crops(25), voice(1.0))
    return path


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real recordings kept beside the repository; tests that need them are skipped where there are none."""
    if not (SHARED / "data").is_dir():
        pytest.skip("no real data beside the repository (../shared/data)")
    return SHARED / "data"


@pytest.fixture(scope="session")
def server(causal_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The web page with the tiny model, served by a process of its own to all tests of a session."""
    pytest.importorskip("gradio", reason="the web page's packages are missing: pip install -r requirements-app.txt")
    server = Server(causal_checkpoint, tmp_path_factory.mktemp("served"))
    yield server
    server.stop()
