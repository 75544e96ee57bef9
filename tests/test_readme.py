"""The commands of README.md and docs/: each one parses with today's options, and each one is run, page by page, in order."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import socket
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile
import yaml

from data import download
from evaluation import complexity_analysis, readme_results, streaming_check
from evaluation.reporting import figures
from helpers.paths import ROOT
from helpers.processes import InThisProcess
from helpers.tiny import all_files, face_crops, save_tiny_checkpoint, voice, write_mpg
from helpers.zenodo import Zenodo, serving, zipped
from models.pretrained import ARCHITECTURES
from utils.checkpoint import load_checkpoint
from utils.config import Config, load_config
from utils.media.clip_writer import write_clip
from utils.util import read_csv

# In the order in which a reader would follow them: what one page makes, the next may use.
PAGES = [ROOT / "docs" / f"{name}.md" for name in (
    "enhance", "streaming", "web_page", "data", "train", "evaluate", "audio_only", "recipes", "architecture", "kernels",
    "troubleshooting", "limits_and_licences",
)] + [ROOT / "README.md"]  # fmt: skip
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
RECIPES_PAGE = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
LARGEST_README = 9_000  # bytes
SOURCES = [path for part in ("models", "utils", "dataloaders", "evaluation", "data") for path in (ROOT / part).rglob("*.py")]
CHECKPOINT = ROOT / "ckpts" / "LiteAVSE_small.pth"
LARGEST_CHECKPOINT = 15e6  # bytes

# What is appended where a command is run here, so that it takes a second; the options before it stay as they are.
TINY = [
    "env_setting.num_workers=0", "env_setting.shown_clips=0", "training_cfg.max_steps=2", "training_cfg.batch_size=1",
    "training_cfg.segment_size=4000",
    "training_cfg.valid_clips=1", "env_setting.validation_interval=1", "model_cfg.hid_feature=8", "model_cfg.num_tfmamba=1",
    "model_cfg.d_state=4", "visual_cfg.visual_dim=32",
]  # fmt: skip
SPEAKERS = ("s1", "s29", "s32")
SHORTER = {
    "data.download": ["--speakers", *SPEAKERS],
    "train": ["--device", "cpu", "--override", *TINY],
    "evaluation.score_folder": ["--workers", "1"],
    "data.make_synthetic": ["--speakers", "3", "--clips_per_speaker", "2", "--duration_sec", "1", "--noise_sec", "1"],
    "data.prepare_faces": ["--workers", "1"],
    "evaluation.streaming_check": ["--duration_sec", "0.5"],
    "evaluation.make_testset": ["--kinds", "noise", "--snr_db", "0"],
    "evaluation.snr_breakdown": ["--workers", "1", "--device", "cpu"],
    "evaluation.report": ["--kinds", "noise", "--snr_db", "0", "--conditions", "clean", "none", "--workers", "1", "--device",
                          "cpu", "--compare_with", "--n_runs", "1", "--duration_sec", "0.5"],
}


def shorter(command: Command) -> list[str]:
    """What to append to a command so that it takes a second."""
    if command.module != "train_lite":
        return SHORTER.get(command.module, [])
    device = ["--device", "cpu"]
    # Where the README overrides keys itself the list that it begins goes on.
    return TINY + device if "--override" in command.arguments else [*device, "--override", *TINY]


class Block(NamedTuple):
    language: str
    text: str


class Command(NamedTuple):
    module: str  # e.g. "data.make_grid_json"
    arguments: list[str]


def blocks() -> list[Block]:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    return [Block(*match) for match in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)]


def lines(block: Block) -> list[str]:
    return [line for line in block.text.replace("\\\n", " ").splitlines() if shlex.split(line, comments=True)]


def python_command(line: str) -> Command | None:
    words = shlex.split(line, comments=True)
    if words[0] == "torchrun":  # run here by this process alone; tests/helpers/processes.py starts several
        words = ["python", *words[3:]]
    if words[0] != "python":
        return None
    if words[1] == "-m":
        return Command(words[2], words[3:])
    return Command(words[1].removesuffix(".py").replace("/", "."), words[2:])


BASH = [block for block in blocks() if block.language == "bash"]
# Indented commands need more than is here to be run: data, a cluster.
INDENTED = re.findall(r"^ {4}(python .*)", "\n".join(page.read_text(encoding="utf-8") for page in PAGES), re.MULTILINE)
PYTHON_LINES = [line for block in BASH for line in lines(block) if not line.startswith("make ")]
MAKE_LINES = [line for block in BASH for line in lines(block) if line.startswith("make ")]


class _ParsedError(BaseException):
    """Carries out of a script what its parser made of the arguments; no `except Exception` keeps it."""


def parsed(command: Command, monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """The arguments as the script's own parser sees them; the script goes no further."""
    parse_args = argparse.ArgumentParser.parse_args

    def parse_and_stop(self, args=None, namespace=None):
        raise _ParsedError(parse_args(self, args, namespace))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    with pytest.raises(_ParsedError) as stopped:
        importlib.import_module(command.module).main(command.arguments)
    return stopped.value.args[0]


def test_the_readme_is_short_and_every_page_is_tested() -> None:
    assert (ROOT / "README.md").stat().st_size <= LARGEST_README
    assert {*PAGES, ROOT / "docs" / "benchmarks.md"} == {*(ROOT / "docs").glob("*.md"), ROOT / "README.md"}


def test_every_block_says_what_it_is() -> None:
    assert {block.language for block in blocks()} == {"bash", "python"}
    assert len(PYTHON_LINES) >= 10


@pytest.mark.parametrize("line", PYTHON_LINES + INDENTED)
def test_options_are_those_of_today(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command = python_command(line)
    assert command is not None, f"neither make nor python: {line}"
    written = ROOT / (command.module.replace(".", "/") + ".py")
    assert written.is_file()
    parsed(command, monkeypatch)
    for word in command.arguments:
        if word.split("/")[0] in ("recipes", "samples"):
            assert (ROOT / word).exists(), f"{word} is not in this repository"


@pytest.mark.parametrize("line", MAKE_LINES + re.findall("^make .*", CONTRIBUTING.read_text(encoding="utf-8"), re.MULTILINE))
def test_make_targets_exist(line: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in shlex.split(line, comments=True)[1:] + re.findall(r"`make ([\w-]+)`", line):
        assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), f"make {target}"


def test_there_are_two_commands() -> None:
    assert [shlex.split(line, comments=True) for line in MAKE_LINES] == [["make", "demo"], ["make", "test"]]


def make_place(place: Path) -> Path:
    """What a reader has beside the repository's own files: recordings, a corpus, noises, checkpoints; all tiny."""
    (place / "recipes").symlink_to(ROOT / "recipes")
    sound = voice(1.0) + 0.02 * np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    for folder in ("samples", "recordings"):
        (place / folder).mkdir()
        write_clip(place / folder / "talker_awb.mp4", face_crops(25), sound)
    soundfile.write(place / "samples" / "talker_awb_clean.flac", voice(1.0), 16000)
    soundfile.write(place / "recordings" / "meeting.wav", sound, 16000)
    soundfile.write(place / "noisy.wav", voice(1.0, 44100), 44100)
    write_clip(place / "face.mp4", face_crops(25), sound)
    for speaker in SPEAKERS:
        write_mpg(place / f"{speaker}.mpg", face_crops(25), voice(1.0, 44100))
    talk = (place / "face.mp4").read_bytes()
    (place / "data" / "lrs2" / "mvlrs_v1").mkdir(parents=True)
    (place / "data" / "lrs2" / "mvlrs_v1" / "train.txt").write_text("100/00001\n")
    for name in ("lrs2/mvlrs_v1/main/100", *(f"vox2/dev/mp4/id{n:05d}/21Uxsk56VDQ" for n in range(12, 15))):
        (place / "data" / name).mkdir(parents=True)
        (place / "data" / name / "00001.mp4").write_bytes(talk)
    for kind in ("clean", "noisy"):
        for part, speakers in (("trainset_28spk", ("p226", "p227", "p287")), ("testset", ("p232",))):
            folder = place / "data" / "vbd" / f"{kind}_{part}_wav"
            folder.mkdir(parents=True)
            noise = 0.02 * np.random.default_rng(0).standard_normal(48000) * (kind == "noisy")
            for speaker in speakers:
                soundfile.write(folder / f"{speaker}_001.wav", voice(1.0, 48000) + noise, 48000)
    (place / "data" / "noise").mkdir()
    for number in range(4):
        noise = np.random.default_rng(number).standard_normal(20000) * 0.05
        soundfile.write(place / "data" / "noise" / f"{number}.wav", noise, 16000)
    (place / "ckpts").mkdir()
    save_tiny_checkpoint(place / "ckpts" / "LiteAVSE_small.pth", model_cfg={"causal": True})
    save_tiny_checkpoint(place / "ckpts" / "g_00500000.pth", "SEMamba")
    return place


# By the place in the README where it must have come into being.
LEAVES_BEHIND = {
    "results/talker_awb_enhanced.wav", "clean.wav", "results/recordings/meeting_enhanced.wav", "face_clean.mp4",
    "results/recordings/meeting_enhanced.png", "results/recordings/enhanced.csv", "results/videos/talker_awb_enhanced.mp4",
    "results/recordings/talker_awb_enhanced.wav", "enhanced.wav", "results/semamba/meeting.wav",
    "results/streamed/talker_awb_enhanced.wav", "live.wav", "results/meeting_all_channels.wav",
    "results/seen/talker_awb_crop.mp4", "results/in_step/talker_awb_enhanced.wav",
    "data/lists/raw/grid_train.json", "data/lists/grid_train.json", "data/lists/grid_valid.json", "data/lists/grid_test.json",
    "data/lists/noise_train.json", "exp/grid/best.pth", "exp/grid/config.yaml", "exp/grid/environment.json",
    "exp/grid/log.jsonl", "results/grid/talker_awb_enhanced.wav", "data/synthetic/synth_train.json", "exp/smoke/log.jsonl",
    "results/grid_demo/talker_awb_audio_visual.wav", "results/grid_demo/talker_awb.png",
    "data/grid/s1/bbaf2n.mpg", "data/lists/raw/lrs_train.json", "data/lists/raw/vox_valid.json",
    "data/shards/vox_train/vox_train-000000.tar", "exp/vox/best.pth",
    "data/train_clean.json", "data/test_noisy.json", "exp/semamba/best.pth", "exp/semamba/do_00000002.pth",
    "results/vbd/p232_001.wav", "results/vbd.csv", "exp/grid_audio_only/best.pth",
    "results/report/report.html", "results/testset.json", "results/ours/table.tex", "results/semamba/scores.csv",
}  # fmt: skip


def build_page_only(monkeypatch: pytest.MonkeyPatch, served: list) -> None:
    """Keep app.py from waiting for visitors (tests/evaluation/web lets it), and from changing this process."""
    from evaluation.web import layout
    from evaluation.web import page as web_page

    def serve_page(page, *_: object) -> None:
        served.append(layout.build_page(page))

    monkeypatch.setattr(web_page, "serve_page", serve_page)
    monkeypatch.setattr("app.listening_socket", lambda host, port: socket.socket())  # the port may be in use here
    monkeypatch.setattr(tempfile, "tempdir", tempfile.gettempdir())
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "")  # so that what app.py sets is undone


def test_all_of_it_runs_in_the_order_in_which_it_stands_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = make_place(tmp_path)
    monkeypatch.chdir(place)
    import inference_av

    monkeypatch.setattr(inference_av, "DEFAULT_CHECKPOINT", Path("ckpts/LiteAVSE_small.pth"))
    monkeypatch.setenv("no_proxy", "*")
    served = []
    build_page_only(monkeypatch, served)
    # How figures look, where models are measured and what streams in odd chunks give is tested elsewhere.
    monkeypatch.setattr(figures, "DPI", 60)
    monkeypatch.setattr(complexity_analysis, "ProcessPoolExecutor", InThisProcess)
    monkeypatch.setattr(streaming_check, "CHUNKS", {"400": [400]})
    site = Zenodo({f"{name}.zip": zipped({f"{name}/bbaf2n.mpg": (place / f"{name}.mpg").read_bytes()}) for name in SPEAKERS})
    with serving(site) as url:
        monkeypatch.setattr(download, "BASE_URL", url)
        run_all_of_it(capsys)
    said = capsys.readouterr().out
    assert len(served) == 1
    left = all_files(place)
    assert left >= LEAVES_BEHIND, sorted(LEAVES_BEHIND - left)
    assert soundfile.info(place / "enhanced.wav").samplerate == 44100
    table = said.index("PESQ-WB", said.index("seed 1234"))
    assert said.index("noisy ", table) < said.index("sound only ", table) < said.index("sound and video ", table)


def run_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    for block in blocks():
        if block.language == "python":
            exec(compile(block.text, "README.md", "exec"), {"__name__": "readme"})
            continue
        for line in lines(block):
            command = python_command(line)
            if command is None:
                continue
            arguments = command.arguments + shorter(command)
            assert importlib.import_module(command.module).main(arguments) == 0, f"{line}\n{capsys.readouterr().err}"


def test_five_lines_of_python_are_five() -> None:
    (program,) = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert len(program.splitlines()) == 5


def test_links_into_the_repository_lead_somewhere() -> None:
    for page in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md", CONTRIBUTING]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert target.startswith("https://") or (page.parent / target).exists(), f"{page.name}: {target}"
        for target, anchor in re.findall(r"\]\(((?!https)[^)#]*)#([^)]+)\)", page.read_text(encoding="utf-8")):
            there = (page.parent / target if target else page).read_text(encoding="utf-8")
            headings = re.findall("^#+ (.+)", there, re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{page.name}: {target}#{anchor}"
    assert len(re.findall(r"\]\(docs/", README)) >= 8


def test_keys_that_are_explained_exist() -> None:
    table = RECIPES_PAGE.split("| key | |")[1].split("\n\n")[0]
    section, known = None, 0
    for cell in re.findall(r"^\| (.+?) \|", table, re.MULTILINE)[1:]:
        for key in re.findall(r"`([\w.]+)`", cell):
            section, _, leaf = key.rpartition(".") if "." in key else (section, "", key)
            fields = Config.model_fields[section].annotation.model_fields
            assert leaf in fields, f"{section}.{leaf}"
            known += 1
    assert known > 10


@pytest.mark.parametrize("stem", sorted(path.stem for path in (ROOT / "recipes" / "LiteAVSE").glob("*.yaml")))
def test_parameter_counts_are_true(stem: str) -> None:
    row = next(line for line in RECIPES_PAGE.splitlines() if line.startswith(f"| `{stem}.yaml`"))
    cfg = load_config(ROOT / "recipes" / "LiteAVSE" / f"{stem}.yaml", ["visual_cfg.backbone_weights=none"])
    weights = list(ARCHITECTURES["LiteAVSEMamba"](cfg).parameters())
    every, trained = sum(w.numel() for w in weights), sum(w.numel() for w in weights if w.requires_grad)
    told = f"{every / 1e6:.2f} M" + (f", {trained / 1e6:.2f} M trained" if trained < every else "")
    assert f"| {told} |" in row


def test_files_in_the_map_exist() -> None:
    section = README.split("## Map")[1].split("\n## ")[0]
    folders = re.findall(r"^\| ((?:`\w+/`(?:, )?)+) \|", section, re.MULTILINE)
    named = [folder for cell in folders for folder in re.findall(r"`(\w+)/`", cell)]
    assert len(named) >= 8
    for folder in named:
        assert (ROOT / folder).is_dir(), folder


NAMED = re.compile(r"`((?:(?:models|utils|dataloaders|evaluation|data|tests)/[\w/]+|\w+)\.py)(?::([\w.]+))?`")


@pytest.mark.parametrize(("page", "fewest"), [("docs/architecture.md", 30), ("CONTRIBUTING.md", 20)])
def test_names_of_files_and_functions_exist(page: str, fewest: int) -> None:
    named = [(file, member) for file, member in NAMED.findall((ROOT / page).read_text(encoding="utf-8")) if "NAME" not in file]
    assert len(named) >= fewest
    for file, member in named:
        found = [ROOT / file] if (ROOT / file).is_file() else [path for path in SOURCES if path.name == file]
        assert len(found) == 1, f"{file} is {len(found)} files"
        if member:
            defined = rf"^ *(?:class |def )?{re.escape(member.split('.')[-1])}\b"
            assert re.search(defined, found[0].read_text(encoding="utf-8"), re.MULTILINE), f"{file}:{member}"


def test_the_citation_is_valid_and_names_what_it_is_built_on() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["cff-version"] == "1.2.0" and cited["message"] and cited["title"] and cited["authors"]
    assert f'version = "{cited["version"]}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (paper,) = cited["references"]
    assert paper["type"] == "conference-paper" and paper["title"] and paper["authors"] and paper["url"].startswith("https://")


def results_table() -> list[list[str]]:
    """Cells of the table of results, without its head and the names of its rows."""
    table = README.split("<!-- results -->")[1].split("<!-- /results -->")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("|")]
    return [row[1:] for row in rows[2:]]


def test_the_results_are_those_of_the_report() -> None:
    assert readme_results.made() == README
    # The test can fail: another number in the CSV is another table.
    rows = read_csv(readme_results.RESULTS / "snr" / "summary.csv")
    visual = read_csv(readme_results.RESULTS / "visual" / "summary.csv")
    worse = [row | ({"mean": "0.5"} if row["snr_db"] == "0" else {}) for row in rows]
    assert readme_results.results_table(worse, visual) != readme_results.results_table(rows, visual)


def test_the_checkpoint_behind_the_results_is_there() -> None:
    numbers = [cell for row in results_table() for cell in row]
    if not any(numbers):
        pytest.skip("no results in README.md yet, and so no checkpoint to look for")
    assert all(re.fullmatch(r"-?\d+\.\d+", number) for number in numbers), numbers
    assert CHECKPOINT.stat().st_size <= LARGEST_CHECKPOINT
    held = load_checkpoint(CHECKPOINT)
    assert held["architecture"] == "LiteAVSEMamba" and held["config"]["model_cfg"]["causal"]
