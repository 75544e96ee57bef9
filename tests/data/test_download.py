"""data/download.py against a local server: whole, broken off, resumed, damaged, missing, and never outside its folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data import download
from data.tools import archives
from helpers.tiny import all_files, only_line
from helpers.zenodo import Zenodo, serving, zipped

VIDEO = np.random.default_rng(0).bytes(300_000)
ARCHIVES = {
    "s1.zip": zipped({"s1/bbaf2n.mpg": VIDEO, "s1/bbaf3s.mpg": VIDEO[:1000]}),
    "s2.zip": zipped({"s2/lwbz1s.mpg": VIDEO[::-1]}),
    "audio_25k.zip": zipped({"audio_25k/s1/bbaf2n.wav": VIDEO[:500]}),
}


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Zenodo]:
    monkeypatch.setattr(archives, "WAIT_SEC", 0.0)
    monkeypatch.setenv("no_proxy", "*")
    made = Zenodo(ARCHIVES)
    with serving(made) as made.url:
        yield made


def grid(site: Zenodo, folder: Path, *more: str) -> int:
    return download.main(["grid", "--output_dir", str(folder), "--base_url", site.url, *more])


def test_speakers_are_fetched_checked_and_unpacked_once(site: Zenodo, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "grid"
    assert grid(site, folder, "--speakers", "s1", "2", "--audio") == 0
    assert (folder / "s1" / "bbaf2n.mpg").read_bytes() == VIDEO and (folder / "s2" / "lwbz1s.mpg").read_bytes() == VIDEO[::-1]
    visible = {name for name in all_files(folder) if not name.startswith(".")}
    assert visible == {"s1/bbaf2n.mpg", "s1/bbaf3s.mpg", "s2/lwbz1s.mpg", "audio_25k/s1/bbaf2n.wav"}
    assert [name for name, _ in site.ranges] == ["s1.zip", "s2.zip", "audio_25k.zip"]
    assert "s1.zip: 2 files" in capsys.readouterr().out
    assert grid(site, folder, "--speakers", "s1", "s2") == 0
    assert len(site.ranges) == 3 and "s2.zip: is there" in capsys.readouterr().out


def test_by_default_every_speaker_with_video(site: Zenodo, tmp_path: Path) -> None:
    every = Zenodo({f"s{n}.zip": zipped({f"s{n}/a.mpg": b"video"}) for n in range(1, 35)})
    with serving(every) as every.url:
        assert grid(every, tmp_path) == 0
    assert [name for name, _ in every.ranges] == [f"s{n}.zip" for n in range(1, 35) if n != 21]


def test_what_was_deleted_is_fetched_again(site: Zenodo, tmp_path: Path) -> None:
    assert grid(site, tmp_path, "--speakers", "s1") == 0
    (tmp_path / "s1" / "bbaf3s.mpg").unlink()
    assert grid(site, tmp_path, "--speakers", "s1") == 0 and (tmp_path / "s1" / "bbaf3s.mpg").is_file()


def test_a_broken_connection_goes_on_where_it_broke(site: Zenodo, tmp_path: Path) -> None:
    site.plan = ["broken off", "busy", "broken off"]
    assert grid(site, tmp_path, "--speakers", "s1", "--keep_archives") == 0
    third = len(ARCHIVES["s1.zip"]) // 3
    assert [wanted for _, wanted in site.ranges] == [None, f"bytes={third}-", f"bytes={third}-", f"bytes={2 * third}-"]
    assert (tmp_path / "s1.zip").read_bytes() == ARCHIVES["s1.zip"] and (tmp_path / "s1" / "bbaf2n.mpg").read_bytes() == VIDEO


def test_a_later_run_goes_on_with_the_part_that_is_there(site: Zenodo, tmp_path: Path, capsys) -> None:
    site.plan = ["broken off"] + ["busy"] * archives.ATTEMPTS
    assert grid(site, tmp_path, "--speakers", "s1") == 1
    third = len(ARCHIVES["s1.zip"]) // 3
    assert f"go on from {third} bytes" in only_line(capsys.readouterr().err)
    assert all_files(tmp_path) == {"s1.zip.part"}
    site.ranges.clear()
    assert grid(site, tmp_path, "--speakers", "s1") == 0
    assert site.ranges == [("s1.zip", f"bytes={third}-")] and (tmp_path / "s1" / "bbaf2n.mpg").read_bytes() == VIDEO


def test_a_server_without_ranges_begins_anew(site: Zenodo, tmp_path: Path) -> None:
    site.knows_ranges = False
    site.plan = ["broken off"]
    assert grid(site, tmp_path, "--speakers", "s1") == 0
    assert (tmp_path / "s1" / "bbaf2n.mpg").read_bytes() == VIDEO and len(site.ranges) == 2


def test_what_is_not_what_was_promised_is_not_unpacked(site: Zenodo, tmp_path: Path, capsys) -> None:
    site.files["s1.zip"] = ARCHIVES["s1.zip"][:-1] + b"?"
    assert grid(site, tmp_path, "--speakers", "s1", "s2") == 1
    assert "md5" in only_line(capsys.readouterr().err)
    assert {name for name in all_files(tmp_path) if not name.startswith(".")} == {"s2/lwbz1s.mpg"}  # the next one was fetched


def test_a_file_that_is_gone_is_named(site: Zenodo, tmp_path: Path, capsys) -> None:
    site.plan = ["gone"]
    assert grid(site, tmp_path, "--speakers", "s1", "s2") == 1
    assert "s1.zip?download=1: the server answers 404" in only_line(capsys.readouterr().err) and len(site.ranges) == 2
    assert grid(site, tmp_path, "--speakers", "s5") == 2
    assert "s5.zip is not in record 3625687" in only_line(capsys.readouterr().err)
    assert download.main(["grid", "--output_dir", str(tmp_path), "--base_url", f"{site.url}/wrong"]) == 2
    assert "answers 404" in only_line(capsys.readouterr().err)


@pytest.mark.parametrize("name", ["../bad.mpg", "/bad.mpg", "s1/../../bad.mpg", "..\\bad.mpg", "C:\\bad.mpg"])
def test_archives_write_nothing_outside_their_folder(tmp_path: Path, name: str) -> None:
    archive = tmp_path / "in" / "bad.zip"
    archive.parent.mkdir()
    archive.write_bytes(zipped({"s1/good.mpg": b"good", name: b"bad"}))
    with pytest.raises(ValueError, match="outside"):
        archives.unpack(archive, tmp_path / "in" / "grid")
    assert all_files(tmp_path) == {"in/bad.zip"}
    archive.write_bytes(b"no archive")
    with pytest.raises(ValueError, match="no zip archive"):
        archives.unpack(archive, tmp_path / "in" / "grid")


def test_offline_and_full_disks_are_one_line(site: Zenodo, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 10**12, 1000))
    assert grid(site, tmp_path / "not" / "yet", "--speakers", "s1") == 2
    assert "disk has 0.0 GB left" in only_line(capsys.readouterr().err) and not site.ranges
    assert download.main(["grid", "--output_dir", str(tmp_path), "--base_url", "http://127.0.0.1:9"]) == 2
    assert "are you offline?" in only_line(capsys.readouterr().err)


@pytest.mark.parametrize(("speaker", "said"), [("s21", "without video"), ("s35", "s1 to s34"), ("bob", "'bob'")])
def test_speakers_that_do_not_exist(tmp_path: Path, capsys, speaker: str, said: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        download.main(["grid", "--speakers", speaker, "--output_dir", str(tmp_path)])
    assert stopped.value.code == 2 and said in only_line(capsys.readouterr().err)
