"""Every step is shown once, whatever happens in between, and nothing that a tracker does reaches
the training."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from aegis.config import Config, LoraSettings, RewardSettings, parse_config
from aegis.errors import ConfigError, MissingPackageError, StoppedError
from aegis.model.adapted import attach
from aegis.runs.events import Event, Metrics, Reporter, TrainingBegun
from aegis.runs.trackers import (
    TensorBoard,
    Trackers,
    last_step,
    open_trackers,
    require_trackers,
)
from aegis.storage.snapshots import SnapshotStore
from aegis.train.figures import draw_reward
from aegis.train.reward import EncodedPair, train_reward
from aegis.train.services import LoopSettings, TrainServices
from aegis.train.sft import SupervisedData, train_sft
from aegis.train.snapshot_policy import SnapshotPolicy
from aegis.train.state import RandomState, random_state_kept
from tests.conftest import tagged_tokenizer, tiny_model
from tests.train.test_ppo import bandit
from tests.train.test_ppo import train as train_ppo
from tests.train.test_sft import encoded, settings
from tests.train.test_state import MODEL, StopAt


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """The tiny tokenizer, with the protocol's tags."""
    return tagged_tokenizer()


class KilledError(Exception):
    """What nobody catches: the process is gone."""


def shown(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard would draw: (step, value) by name."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    return {
        tag: [(event.step, event.value) for event in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def timeless(curves: dict[str, list[tuple[int, float]]]) -> dict[str, list[tuple[int, float]]]:
    return {name: values for name, values in curves.items() if name != "tokens_per_second"}


def attempt(
    tokenizer: Any,
    tracker: Trackers,
    folder: Path | None = None,
    *,
    stop: int | None = None,
    kill: int | None = None,
) -> Any:
    """A training; stopped after `stop` step ends, or killed at step `kill`, when its newest
    snapshot is an epoch's."""
    torch.manual_seed(0)
    adapted = attach(tiny_model(), MODEL)
    examples = encoded(tokenizer)[0]
    snapshots = None
    if folder:
        snapshots = SnapshotPolicy(
            SnapshotStore(folder, fingerprint="f", keep=3), interval_s=1e9, check=StopAt(stop)
        )

    def kill_at(event: Event) -> None:
        if isinstance(event, Metrics) and event.step == kill:
            raise KilledError

    with tracker:
        services = TrainServices(Reporter(tracker, kill_at), snapshots)
        data, loop = SupervisedData(examples, examples[:8]), LoopSettings(pad_id=1, seed=3)
        result = train_sft(adapted, data, settings(epochs=2.5), loop, services)
    return adapted, result


def board(folder: Path) -> Trackers:
    return Trackers(
        {"tensorboard": lambda: TensorBoard(folder)}, say=lambda _: None, guard=random_state_kept
    )


@pytest.fixture(scope="module")
def whole(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("whole")
    return attempt(tokenizer, board(folder)), folder


def test_every_step_and_every_check_is_shown(whole: tuple[Any, Path]) -> None:
    (_, result), folder = whole
    curves = shown(folder)
    for name in ("loss", "gradient_norm", "learning_rate", "alpha", "g", "parts/decision"):
        values = [(log.step, log.scalars()[name]) for log in result.history]
        assert curves[name] == [(step, pytest.approx(value, rel=1e-6)) for step, value in values]
    assert [step for step, _ in curves["validation_loss"]] == [
        check["step"] for check in result.validation
    ]
    assert last_step(folder) == len(result.history)


def test_a_tracker_does_not_reach_the_training(tokenizer: Any, whole: tuple[Any, Path]) -> None:
    (tracked, with_tracker), _ = whole
    state = RandomState().capture()
    plain, without = attempt(tokenizer, Trackers({}, say=lambda _: None))
    RandomState().restore(state)
    assert [log.loss for log in with_tracker.history] == [log.loss for log in without.history]
    assert all(
        torch.equal(a, b)
        for a, b in zip(tracked.state_dict().values(), plain.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("end", [{"stop": 1}, {"stop": 4}, {"kill": 5}, {"kill": 1}])
@pytest.mark.parametrize("loss", ["nothing", "the tail", "everything", "the clock"])
def test_resumed_anywhere_every_step_is_shown_once(
    tokenizer: Any, tmp_path: Path, whole: tuple[Any, Path], end: dict[str, int], loss: str
) -> None:
    events = tmp_path / "events"
    with pytest.raises((StoppedError, KilledError)):
        attempt(tokenizer, board(events), tmp_path / "snapshots", **end)
    for path in events.iterdir():
        content = path.read_bytes()
        if loss == "the tail":
            path.write_bytes(content[: len(content) * 2 // 3 + 1])
        if loss == "everything":
            path.unlink()
        else:
            made_at(path, 0 if loss != "the clock" else 9_999_999_999)
    attempt(tokenizer, board(events), tmp_path / "snapshots")
    assert timeless(shown(events)) == timeless(shown(whole[1]))


def made_at(path: Path, second: int) -> None:
    """The file's name says so; TensorBoard reads files in that order."""
    path.rename(path.with_name(re.sub(r"tfevents\.\d{10}", f"tfevents.{second:010d}", path.name)))


def test_a_new_training_in_an_old_folder_supersedes_it(
    tokenizer: Any, tmp_path: Path, whole: tuple[Any, Path]
) -> None:
    attempt(tokenizer, board(tmp_path))
    for path in tmp_path.iterdir():
        made_at(path, 0)
    attempt(tokenizer, board(tmp_path))
    assert len(list(tmp_path.iterdir())) == 2
    assert timeless(shown(tmp_path)) == timeless(shown(whole[1]))


def train(subscriber: Trackers, *, steps: int) -> None:
    """A training of so many steps, with a loss of 1 / step."""
    subscriber(TrainingBegun(training="sft", done=0, steps=steps))
    for step in range(1, steps + 1):
        loss = {"loss": 1.0 / step}
        subscriber(Metrics(training="sft", step=step, steps=steps, values=loss))


class Broken:
    def __init__(self, at: str) -> None:
        self.at = at

    def begin(self, done: int) -> int:
        return self._fail("begin") or done

    def write(self, step: int, values: Any) -> None:
        self._fail("write")

    def close(self, finished: bool) -> None:
        self._fail("close")

    def _fail(self, here: str) -> int:
        if here == self.at:
            raise OSError(f"no {here}\nand more")
        return 0


@pytest.mark.parametrize("at", ["begin", "write", "close"])
def test_one_that_fails_is_told_once_and_left_out(at: str, tmp_path: Path) -> None:
    said: list[str] = []
    trackers: dict[str, Callable[[], Any]] = {
        "broken": lambda: Broken(at),
        "tensorboard": lambda: TensorBoard(tmp_path),
    }
    with Trackers(trackers, say=said.append) as subscriber:
        train(subscriber, steps=3)
    assert said == [f"tracking: broken failed (OSError: no {at}); the training goes on without it"]
    assert [step for step, _ in shown(tmp_path)["loss"]] == [1, 2, 3]


def test_ppo_shows_every_update_once(tmp_path: Path) -> None:
    def check(left: list[int] = [9]) -> None:  # noqa: B006 - counts across calls
        left[0] -= 1
        if left[0] == 0:
            raise StoppedError("asked to")

    def run(
        check: Callable[[], None], look: Callable[[Any], Any] = lambda _: None
    ) -> list[dict[str, Any]]:
        store = SnapshotStore(tmp_path / "snapshots", fingerprint="same", keep=3)
        snapshots = SnapshotPolicy(store, interval_s=1e9, check=check)
        with board(tmp_path / "events") as tracker:
            services = TrainServices(Reporter(tracker, look), snapshots)
            return train_ppo(bandit(updates=3), services)

    with pytest.raises(StoppedError):
        run(check)
    begun: list[TrainingBegun] = []
    logs = run(lambda: None, lambda e: isinstance(e, TrainingBegun) and begun.append(e))
    assert [(event.done, event.steps) for event in begun] == [(len(begun[0].history), 3)]
    objective = bandit(updates=3)
    assert objective.measurements(2 * objective.steps_an_update) == 2
    curves = shown(tmp_path / "events")
    assert curves["reward"] == [
        (log["update"], pytest.approx(log["reward"], rel=1e-6)) for log in logs
    ]
    assert {"kl", "entropy", "clip_fraction", "gradient_norm", "reward/share"} <= curves.keys()


def test_the_reward_model_is_shown_and_drawn(tmp_path: Path) -> None:
    torch.manual_seed(0)
    adapted = attach(tiny_model(), MODEL)
    adapted.add_reference()
    reward = RewardSettings(epochs=3, batch_tokens=64, lora=LoraSettings(rank=2, layers=(0.5, 1.0)))
    adapted.add_reward(reward.lora)
    pairs = [EncodedPair((20 + i, 30, 31), (20 + i, 40, 41), 1) for i in range(8)]
    with board(tmp_path / "events") as tracker:
        services = TrainServices(Reporter(tracker))
        loop = LoopSettings(pad_id=1, seed=0)
        _, report, logs = train_reward(adapted, pairs, pairs, reward, loop, services)
    assert [step for step, _ in shown(tmp_path / "events")["parts/accuracy"]] == [
        log.step for log in logs
    ]
    draw_reward(tmp_path / "curve.png", logs, held_out=report.accuracy)
    assert (tmp_path / "curve.png").stat().st_size > 5000


def test_a_missing_package_is_told_before_anything_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from aegis.pipeline import run_pipeline

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: None if name == "mlflow" else real(name, *more),
    )
    require_trackers(["tensorboard"])
    config = Config(
        base="no/such/model", runs=str(tmp_path / "runs"), tracking=("tensorboard", "mlflow")
    )
    with pytest.raises(
        MissingPackageError, match="tracking: mlflow is not installed; run: pip install mlflow"
    ):
        run_pipeline(config)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_must_be_a_known_one(name: str) -> None:
    assert parse_config({"tracking": ["mlflow", "tensorboard"]}, where="t").tracking == (
        "mlflow",
        "tensorboard",
    )
    with pytest.raises(
        ConfigError,
        match=rf"tracking\.0: should be 'tensorboard' or 'mlflow', got '{name}'",
    ):
        parse_config({"tracking": [name]}, where="t")


def test_tensorboard_lies_in_the_session_by_step(tmp_path: Path) -> None:
    session = tmp_path / "aegis_v2_x"
    with open_trackers(
        ("tensorboard",), session=session, training="sft", fingerprint="0" * 64
    ) as trackers:
        train(trackers, steps=1)
    assert shown(session / "tensorboard" / "sft") == {"loss": [(1, 1.0)]}


@pytest.mark.filterwarnings("ignore")
def test_mlflow_gets_every_step_once(
    tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: tuple[Any, Path],
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    pytest.importorskip("mlflow")
    said: list[str] = []

    def trackers() -> Trackers:
        return open_trackers(
            ("mlflow",),
            session=tmp_path / "aegis_v2_x",
            training="sft",
            fingerprint="f" * 64,
            say=said.append,
        )

    with pytest.raises(KilledError):
        attempt(tokenizer, trackers(), tmp_path / "snapshots", kill=5)
    attempt(tokenizer, trackers(), tmp_path / "snapshots")
    assert said == []
    expected = timeless(shown(whole[1]))
    kept = timeless(in_mlflow(tmp_path))
    assert kept.keys() == expected.keys()
    for curve, values in expected.items():
        assert kept[curve] == [(step, pytest.approx(value, rel=1e-5)) for step, value in values]


def in_mlflow(runs: Path) -> dict[str, list[tuple[int, float]]]:
    from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]

    client = MlflowClient(tracking_uri=f"sqlite:///{(runs / 'mlflow.db').as_posix()}")
    (run,) = client.search_runs([client.get_experiment_by_name("aegis").experiment_id])
    assert run.info.status == "FINISHED"
    histories = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
    return {
        key: sorted((metric.step, metric.value) for metric in history)
        for key, history in histories.items()
    }
