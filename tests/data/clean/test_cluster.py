from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from aegis.config import QualitySettings
from aegis.data.clean import shards
from aegis.data.clean.cluster import clean_on_cluster, read_cluster
from aegis.data.clean.run import Cleaning, clean_files
from aegis.data.seed import SEED_FOLDER
from aegis.errors import BadInputError, ConfigError
from tests.data.clean.test_run import digests

pytest.importorskip("datatrove", reason="needs the extra `data`")
EXAMPLE = Path(__file__).parents[3] / "examples" / "cluster.yaml"


def test_datatroves_executor_gives_the_same_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_MOST_LINES", 60)
    cleaning = Cleaning((SEED_FOLDER / "dialogues.jsonl",), QualitySettings(balance="off"))
    cluster = read_cluster(EXAMPLE).model_copy(update={"tasks": 3, "workers": 1})
    assert clean_on_cluster(cleaning, tmp_path / "cluster", cluster)
    clean_files(cleaning, tmp_path / "here")
    assert digests(tmp_path / "cluster") == digests(tmp_path / "here")
    # what datatrove calls finished counts for this cleaning alone
    other = Cleaning(cleaning.inputs, QualitySettings(balance="off", min_characters=25))
    assert clean_on_cluster(other, tmp_path / "cluster", cluster)
    shutil.rmtree(tmp_path / "cluster")
    assert clean_on_cluster(other, tmp_path / "cluster", cluster.model_copy(update={"tasks": 2}))
    log = (tmp_path / "cluster" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert any(json.loads(line)["reasons"] for line in log)


def test_an_option_that_the_executor_lacks_is_told(tmp_path: Path) -> None:
    cleaning = Cleaning((SEED_FOLDER / "pairs.jsonl",), QualitySettings())
    cluster = read_cluster(EXAMPLE).model_copy(update={"options": {"partition": "cpu"}})
    with pytest.raises(BadInputError, match=r"local: options: .*partition"):
        clean_on_cluster(cleaning, tmp_path / "out", cluster)
    path = tmp_path / "cluster.yaml"
    path.write_text("executor: pbs\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"executor: .*examples/cluster\.yaml"):
        read_cluster(path)
