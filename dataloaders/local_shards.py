"""Copies training shards to the disk of each node: data_cfg.copy_shards_to."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from utils.distributed import Group
from utils.media.shards import find_shards, index_path, names_shards
from utils.util import atomic_write

KEYS = ("train_data_json", "train_talkers_json")  # what every epoch reads


def with_local_shards(cfg: Mapping, group: Group) -> Mapping:
    """The recipe with its training shards on the node's own disk, if data_cfg.copy_shards_to asks for it.

    The first process of each node copies what is not there yet; the others wait. A copy gets its name when it is whole, so
    that a killed job leaves none that is not. ValueError names the folder and what is wrong with it.
    """
    wanted = cfg["data_cfg"]["copy_shards_to"]
    sources = {key: cfg["data_cfg"][key] for key in KEYS if cfg["data_cfg"][key]}
    if wanted is None or not any(map(names_shards, sources.values())):
        return cfg
    root = Path(os.path.expandvars(wanted))
    first_of_node = int(os.environ.get("LOCAL_RANK", group.rank)) == 0
    copies: dict[str, str] = {}

    def copy() -> None:
        if "$" in str(root):
            raise ValueError(f"data_cfg.copy_shards_to: {wanted} names a variable that is not set on this node")
        for key, source in sources.items():
            if names_shards(source):
                shards = [shard.path for shard in find_shards(source, f"data_cfg.{key}")]
                copies[key] = "::".join(str(_copy(path, root, first_of_node)) for path in shards)

    group.say(f"the shards of {', '.join(sources[key] for key in sources if names_shards(sources[key]))} are copied to {root}")
    group.together(copy)  # where all wait for each other
    return {**cfg, "data_cfg": {**cfg["data_cfg"], **copies}}


def _copy(path: Path, root: Path, really: bool) -> Path:
    """Where a shard's copy is, or will be; `really` makes it, its index last, if it is not there."""
    folder = path.resolve().parent
    # The folder's name is kept, since it may say who speaks; before it stands what tells folders of one name apart.
    copied = root / f"shards_{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}" / folder.name / path.name
    if not really:
        return copied
    for source, target in ((path, copied), (index_path(path), index_path(copied))):
        if target.is_file() and _same(source, target):
            continue
        try:
            with atomic_write(target) as temporary:
                shutil.copyfile(source, temporary)
                shutil.copystat(source, temporary)
        except OSError as error:
            raise ValueError(
                f"data_cfg.copy_shards_to: {source} cannot be copied to {target.parent}: {error.strerror}; "
                "choose a larger disk, or leave the key out"
            ) from None
    return copied


def _same(source: Path, target: Path) -> bool:
    one, other = source.stat(), target.stat()
    return (one.st_size, int(one.st_mtime)) == (other.st_size, int(other.st_mtime))
