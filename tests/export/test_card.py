from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from aegis.cli import app
from aegis.errors import ArtifactError, BadInputError, ModelError
from aegis.export.card import MARKER, write_card
from aegis.export.licences import licence_of, licence_of_base
from aegis.storage.artifact import verify, writing


def rate(value: float, n: int = 200) -> dict[str, Any]:
    return {"value": value, "n": n, "interval": [value - 0.05, value + 0.05]}


def metrics(shift: float) -> dict[str, Any]:
    return {
        "judge": "decision head",
        "n": 600,
        "confidence": 0.95,
        "accuracy": rate(0.7 + shift, 600),
        "macro_f1": rate(0.6 + shift),
        "false_positive_rate": rate(0.2 - shift, 300),
        "over_refusal_rate": rate(0.1 + shift),
        "per_language": {"en": {}, "ja": {}},
    }


SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture
def session(folded: Path, tmp_path: Path) -> Path:
    """A run's folder: model, and results beside it."""
    shutil.copytree(folded, tmp_path / "run" / "model")
    with writing(tmp_path / "run" / "results", kind="results", fingerprint="r") as staging:
        for name, shift in (("base", -0.3), ("candidate", 0.05)):
            (staging / name).mkdir()
            (staging / name / "metrics.json").write_text(json.dumps(metrics(shift)))
    return tmp_path / "run"


def front_matter(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("---\n")[1])


def test_the_card_says_what_was_measured(session: Path) -> None:
    text = write_card(session / "model", name="guard", licence="apache-2.0")
    data = front_matter(text)
    assert data["language"] == ["en", "ja"]
    assert (data["license"], data["library_name"], data["pipeline_tag"]) == (
        "apache-2.0",
        "transformers",
        "text-generation",
    )
    results = data["model-index"][0]["results"][0]["metrics"]
    assert {metric["type"]: metric["value"] for metric in results} == {
        "accuracy": 0.75,
        "f1": 0.65,
        "false_positive_rate": 0.15,
        "over_refusal_rate": 0.15,
    }
    assert ModelCard(text).data.to_dict() == data  # the hub's own reader
    assert "| accuracy | 0.400 [0.350, 0.450] | 0.750 [0.700, 0.800] | 600 |" in text
    assert (
        "| false positive rate (miss rate) | 0.500 [0.450, 0.550] | 0.150 [0.100, 0.200] | 300 |"
        in text
    )
    certificate = json.loads((session / "model" / "certificate.json").read_text())
    assert f"{certificate['kl']:.1e}" in text
    assert "shows all that the model writes" in text
    assert "GGUF file" not in text
    assert "\n\n\n" not in text


def test_gguf_files_are_in_the_card_with_their_distance(session: Path) -> None:
    path = session / "model" / "certificate.json"
    entry = {
        "file": "model-Q4_K_M.gguf",
        "bytes": 100 << 20,
        "kl_mean": 0.5,
        "kl_max": 3.0,
        "top1_agreement": 0.8,
    }
    entry |= {"limit": 0.4, "within": False, "positions": 4231}
    path.write_text(json.dumps({**json.loads(path.read_text()), "gguf": {"Q4_K_M": entry}}))
    text = write_card(session / "model")
    assert (
        "| `model-Q4_K_M.gguf` | 100 | 5.0e-01 | 3.0e+00 | 80.00 % | **over the limit 0.4** |"
        in text
    )


def test_what_is_not_known_is_not_said(folded: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(folded, tmp_path / "alone" / "model"))
    text = write_card(model)
    data = front_matter(text)
    assert data["license"] == "unknown"
    assert "base_model" not in data
    assert "model-index" not in data
    assert "No evaluation lies beside this model" in text
    assert "licence is not known to AEGIS" in text
    assert str(folded.parent) not in text  # nobody else has that path


def test_the_licence_is_the_bases(session: Path, tmp_path: Path) -> None:
    path = session / "model" / "metadata.json"
    metadata = json.loads(path.read_text())
    assert metadata.pop("licence") == {}  # of a model that an earlier AEGIS folded
    path.write_text(json.dumps({**metadata, "base": {"spec": "embedded"}}))
    data = front_matter(write_card(session / "model"))
    assert (data["license"], data["base_model"]) == ("apache-2.0", SMOLLM2)
    path.write_text(json.dumps({**metadata, "base": {"spec": str(tmp_path)}}))
    assert licence_of(session / "model") == {}
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# A base\n")
    assert licence_of(session / "model") == {"id": "mit"}
    path.write_text(json.dumps({**metadata, "base": {"spec": "someone/some-model"}}))
    assert front_matter(write_card(session / "model"))["base_model"] == "someone/some-model"
    path.unlink()
    assert front_matter(write_card(session / "model"))["license"] == "unknown"


def test_terms_that_have_to_go_along_are_told(session: Path) -> None:
    path = session / "model" / "metadata.json"
    metadata, spec = json.loads(path.read_text()), "embedded-multilingual"
    licence = licence_of_base(spec, Path())
    path.write_text(json.dumps({**metadata, "base": {"spec": spec}, "licence": licence}))
    text = write_card(session / "model")
    data = front_matter(text)
    assert (data["license"], data["base_model"]) == ("gemma", "google/gemma-3-270m")
    assert licence["notice"] in text
    assert f"]({licence['url']})" in text
    assert licence["notice"] not in write_card(session / "model", licence="mit")


def test_results_that_were_changed_or_are_none_are_told(session: Path, tmp_path: Path) -> None:
    (session / "results" / "candidate" / "metrics.json").write_text("{}")
    with pytest.raises(ArtifactError, match="has changed"):
        write_card(session / "model")
    with writing(tmp_path / "empty", kind="results", fingerprint="r") as staging:
        (staging / "x").write_text("")
    with pytest.raises(ArtifactError, match="no candidate/metrics"):
        write_card(session / "model", results=tmp_path / "empty")
    with pytest.raises(ModelError, match="cannot be read; give a model folder"):
        write_card(tmp_path)


def test_the_card_goes_to_a_file_that_may_be_written(session: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke(app, ["export", "card", str(session / "model")])
    assert run.exit_code == 0, run.output
    assert MARKER in run.stdout
    for _ in range(2):  # an earlier card may be replaced
        again = CliRunner().invoke(
            app, ["export", "card", str(session / "model"), "-o", str(tmp_path / "new" / "card.md")]
        )
        assert again.exit_code == 0, again.output
    assert (tmp_path / "new" / "card.md").read_text(encoding="utf-8") == run.stdout
    (tmp_path / "README.md").write_text("# My own")
    for path, message in {
        tmp_path / "README.md": "is no card that",
        session / "model" / "README.md": "count as damaged",
        tmp_path: "is a folder",
    }.items():
        refused = CliRunner().invoke(
            app, ["export", "card", str(session / "model"), "-o", str(path)]
        )
        assert isinstance(refused.exception, BadInputError)
        assert message in str(refused.exception)
    assert verify(session / "model")


def test_what_decides_is_told(folded: Path, deciding: Path) -> None:
    assert "Beside them lies a small head" in write_card(folded)
    assert "Four tokens of its own decide **ALLOW**" in write_card(deciding)
