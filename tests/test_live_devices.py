"""liteavse stream between devices: mistakes in one line, and a PulseAudio null sink where there is one to test with."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from helpers.paths import LONGEST_SEC, ROOT
from helpers.processes import mind_signals
from helpers.tiny import only_line
from liteavse import live
from liteavse.__main__ import main

RATE, TONE_HZ = 48000, 440


class PortAudioError(Exception):
    pass


def fake_sounddevice() -> SimpleNamespace:
    """One device that is both, at 44.1 or 48 kHz; sounddevice's messages."""

    def query_devices(device: object = None, kind: str | None = None) -> dict:
        if device not in (None, 0, "mic"):
            raise ValueError(f"No {kind} device matching {device!r}")
        return {"name": "mic", "default_samplerate": 44100.0}

    def check(device: object, channels: int, samplerate: int, dtype: str) -> None:
        if samplerate not in (44100, 48000):
            raise PortAudioError("Invalid sample rate [PaErrorCode -9997]")

    return SimpleNamespace(
        PortAudioError=PortAudioError, query_devices=query_devices, check_input_settings=check, check_output_settings=check
    )


def test_help_names_devices_and_files(capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["stream", "--help"])
    said = capsys.readouterr().out
    assert stop.value.code == 0 and "--list_devices" in said and "--camera" in said and "--chunk_ms" in said
    assert main(["stream"]) == 2 and "--list_devices" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--list_devices", "--list-devices"])
def test_a_machine_without_devices_says_so(option: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr(live, "load_sounddevice", lambda: SimpleNamespace(query_devices=list))
    assert main(["stream", option]) == 0 and "no sound devices" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--input_device", "gone"], "input device 'gone' cannot be used: No input device matching 'gone' (--list_devices"),
        (["--input_device", "mic", "--output_device", "7"], "output device 7 cannot be used"),
        (["--input_device", "mic", "--rate", "12345"], "'mic' cannot be had at 12345 Hz: Invalid sample rate"),
        (["--input_device", "mic", "--block_ms", "0"], "--block_ms is 0"),
        (["--input_device", "mic", "--checkpoint_file", "gone.pth"], "gone.pth does not exist"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], words: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr(live, "load_sounddevice", fake_sounddevice)
    try:
        assert main(["stream", *arguments]) == 2
    except SystemExit as stop:
        assert stop.code == 2
    line = only_line(capsys.readouterr().err)
    assert line.startswith("liteavse stream: ") and words in line


def test_the_rate_is_the_inputs_own_unless_another_is_asked_for() -> None:
    sd = fake_sounddevice()
    assert live.checked_device(sd, "mic", "input", None) == ("mic", 44100)
    assert live.checked_device(sd, 0, "output", 48000) == (0, 48000)


@pytest.fixture
def pulse(tmp_path: Path):
    """A PulseAudio of the test's own with two null sinks, `mic` and `out`; gives the environment that leads to it."""
    pytest.importorskip("sounddevice", reason="sounddevice or PortAudio is missing", exc_type=(ImportError, OSError))
    if shutil.which("pulseaudio") is None or shutil.which("parec") is None:
        pytest.skip("PulseAudio is not installed: apt-get install pulseaudio pulseaudio-utils libasound2-plugins libportaudio2")
    environment = os.environ | {
        "XDG_RUNTIME_DIR": str(tmp_path), "PULSE_RUNTIME_PATH": str(tmp_path / "p"), "PULSE_STATE_PATH": str(tmp_path / "s"),
        "HOME": str(tmp_path), "PULSE_SOURCE": "mic.monitor", "PULSE_SINK": "out", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    sinks = [part for name in ("mic", "out") for part in ("-L", f"module-null-sink sink_name={name} rate={RATE}")]
    command = ["pulseaudio", "-n", "--daemonize=no", "--exit-idle-time=-1", "-L", "module-native-protocol-unix", *sinks,
               "-L", f"module-sine sink=mic frequency={TONE_HZ}"]  # fmt: skip
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            found = subprocess.run(["pactl", "list", "short", "sinks"], env=environment, capture_output=True, text=True)
            if "out" in found.stdout:
                break
            if server.poll() is not None:
                pytest.skip("PulseAudio does not start on this machine")
            time.sleep(0.1)
        import sounddevice

        listed = subprocess.run(
            [sys.executable, "-c", "import sounddevice; print(sounddevice.query_devices())"], env=environment,
            capture_output=True, text=True,
        ).stdout  # fmt: skip
        if "pulse" not in listed:
            pytest.skip(f"PortAudio {sounddevice.__version__} knows no device `pulse`: apt-get install libasound2-plugins")
        yield environment
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(10)


def test_a_null_sink_gets_what_a_microphone_hears(pulse: dict, tmp_path: Path, causal_checkpoint: Path) -> None:
    """With an attenuation limit of 0 dB the input comes out again: the tone that the microphone hears arrives at the output.

    It goes on until enough has arrived: how fast this machine is has no part in the verdict.
    """
    got = tmp_path / "got.raw"
    command = [sys.executable, "-m", "liteavse", "stream", "--input_device", "pulse", "--output_device", "pulse",
               "--rate", str(RATE), "--attenuation_limit_db", "0", "--checkpoint_file", str(causal_checkpoint),
               "--device", "cpu"]  # fmt: skip
    recorder = ["parec", "-d", "out.monitor", "--raw", "--format=float32le", "--channels=1", f"--rate={RATE}"]

    def heard() -> np.ndarray:
        samples = np.fromfile(got, np.float32)
        return samples[np.abs(samples) > 1e-3]

    with open(got, "wb") as file:
        recording = subprocess.Popen(recorder, env=pulse, stdout=file)
        streaming = subprocess.Popen(
            command, cwd=ROOT, env=pulse, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=mind_signals
        )
        try:
            until = time.monotonic() + 240
            while len(heard()) < RATE and streaming.poll() is None and time.monotonic() < until:
                time.sleep(0.5)
            streaming.send_signal(signal.SIGINT)
            said, complaint = streaming.communicate(timeout=LONGEST_SEC)
        finally:
            for process in (streaming, recording):
                process.kill()
                process.wait(10)
    assert streaming.returncode == 0, complaint
    last = said.splitlines()[-1]
    assert "pulse -> pulse at 48000 Hz" in said and last.startswith("at the end: latency ") and "load " in last
    samples = np.fromfile(got, np.float32)
    samples = samples[np.flatnonzero(np.abs(samples) > 1e-3)[0] :]
    power = np.square(np.abs(np.fft.rfft(samples)))
    frequency = np.fft.rfftfreq(len(samples), 1 / RATE)
    assert abs(frequency[np.argmax(power)] - TONE_HZ) < 2 and power[np.abs(frequency - TONE_HZ) < 50].sum() > 0.5 * power.sum()
