"""What PPO does to a policy: reward, distance, decisions, form and ordinary language, against the
supervised model.

Starts from a finished run (`--run`): its `sft/`, `reward/` and `records/`. For each seed the policy
is trained as stage 3 does it (`train/stage.py`), with the run's config but for the seed; the run's
own `adapter/` serves for its own seed. SFT and the reward model are the run's, the same for all
seeds. Policies are kept in `--keep`, and taken from there the next time.

Both models answer the same held-out validation prompts, one response each, from the same sampling
seeds, under the settings of the training (lengths; no longer prompts than it asks; its temperature
unless `--temperature` says another one). The verified reward is the sum of the terms that need no
model; the total adds the reward model's. Rise: mean difference over prompts, in standard deviations
of SFT's reward; bootstrap over prompts, which are the same for both. KL(PPO‖SFT): mean over PPO's
own responses of the summed log-ratio of the tokens that it chose.
Decisions: the run's test split, hidden state and n-grams weighed as fitted on validation by the
same procedure for both; the limit is that the paired bootstrap interval of PPO − SFT is not wholly
below 0, and its ends are printed.
Form: share of PPO's responses that `thinking.parse(compose(…))` accepts. Perplexity: every token
but the first of plain texts, without any template.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from claims import Claim, Interval, macro_f1_difference, mean
from torch.nn import functional

from aegis.config import Config
from aegis.data.records import Record
from aegis.data.stage import read_split
from aegis.engine.judge import Judge
from aegis.engine.verdict import CalibratedHead
from aegis.errors import DataError
from aegis.evaluate.metrics import macro_f1
from aegis.model.adapted import Adapted
from aegis.model.adapter_folder import load_adapter, read_card, require_base
from aegis.model.base import Base, resolve_base
from aegis.model.calibration import fit
from aegis.model.device import fast_dtype, pick_device, quick_attention
from aegis.model.lexical import LexicalHead
from aegis.model.prompt import PromptEncoder, by_length, pad
from aegis.model.tags import add_tags
from aegis.protocol.thinking import compose, parse
from aegis.runs.events import Event, LogMessage, Reporter
from aegis.runs.record import locate
from aegis.runs.reporter import bar
from aegis.storage.artifact import is_current, read_manifest, writing
from aegis.storage.files import fingerprint
from aegis.train.examples import EncodingSettings, encode_all
from aegis.train.job import TrainingData, TrainingJob
from aegis.train.reward import load_reward
from aegis.train.rollout import RolloutCollector, make_rollout
from aegis.train.services import TrainServices
from aegis.train.sft import validate
from aegis.train.stage import write_policy
from aegis.train.task import QuadrupleThinking

LIMITS = {"rise": 0.5, "kl": 10.0, "format": 1.0, "perplexity": 0.05}
TEXT_FIELDS = ("text", "context", "question", "prompt")
TEXT_TOKENS = 256


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run", type=Path, default=Path("runs/latest"), help="learn: a finished run"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="learn")
    parser.add_argument("--prompts", type=int, default=96, help="learn: held-out prompts to answer")
    parser.add_argument(
        "--temperature",
        type=float,
        help="learn: of the answers; the training's by default, 0.7 is served",
    )
    parser.add_argument(
        "--keep",
        type=Path,
        default=Path("runs/benchmark_ppo"),
        help="learn: where trained policies stay",
    )
    parser.add_argument(
        "--text",
        type=Path,
        help="learn: plain text or JSON Lines; the validation prompts by default",
    )
    parser.add_argument("--text-items", type=int, default=200, help="learn: at most so many texts")


@dataclass(frozen=True)
class Answers:
    """What a model answered to n prompts: rewards, log-ratio to SFT in nats, form, and the mean of
    each term."""

    verified: np.ndarray
    total: np.ndarray
    kl: np.ndarray
    valid: np.ndarray
    tokens: float
    terms: dict[str, float]


@dataclass(frozen=True)
class Found:
    """Everything about one model; `predicted` for every test record, by both eyes and by the hidden
    state alone."""

    answers: Answers
    predicted: np.ndarray
    deep: np.ndarray
    perplexity: float


def measure_learning(
    config: Config,
    options: argparse.Namespace,
    claims: list[Claim],
    lines: list[str],
    details: dict[str, Any],
) -> None:
    run, base = locate(options.run), resolve_base(config.base)
    for name in ("sft", "reward", "records"):
        if not (run / name).is_dir():
            raise SystemExit(
                f"{run} has no {name}/; give --run with a finished run of train.algorithm: ppo"
            )
    folders = {
        seed: policy(config, base, run, seed=seed, keep=options.keep) for seed in options.seeds
    }
    texts = read_texts(options.text, options.text_items)
    bench = Bench(
        config, base, run, prompts=options.prompts, texts=texts, temperature=options.temperature
    )
    sft = bench.measure(run / "sft", label="SFT")
    found = {
        seed: bench.measure(folder, label=f"PPO seed {seed}") for seed, folder in folders.items()
    }
    truth = np.array([int(record.decision) for record in bench.test])
    claims += claims_of(sft, found, truth, texts=len(bench.texts))
    lines += [
        f"learn. {len(bench.asked)} held-out prompts, a response each at temperature "
        f"{bench.asking.temperature}; {len(truth)} test records; {len(bench.texts)} texts "
        f"({options.text or 'validation prompts'}); perplexity of the bare base "
        f"{bench.base_perplexity:.2f}",
        row("SFT", sft, truth),
        *(row(f"PPO seed {seed}", one, truth) for seed, one in found.items()),
    ]
    details |= {
        "SFT": summary(sft, truth),
        **{f"PPO {seed}": summary(one, truth) for seed, one in found.items()},
    }
    details["base_perplexity"] = bench.base_perplexity


def claims_of(sft: Found, found: dict[int, Found], truth: np.ndarray, *, texts: int) -> list[Claim]:
    """Judge every seed by itself, for a mean over seeds could hide one that failed."""
    claims, n = [], len(sft.answers.total)
    for seed, one in found.items():
        name = f"seed {seed}: "
        for kind in ("verified", "total"):
            found_rise = rise(getattr(sft.answers, kind), getattr(one.answers, kind))
            claims.append(
                Claim(
                    f"{name}rise of the {kind} reward, SD of SFT",
                    found_rise,
                    LIMITS["rise"],
                    n,
                    floor=True,
                )
            )
        claims.append(
            Claim(f"{name}KL(PPO‖SFT), nats a response", mean(one.answers.kl), LIMITS["kl"], n)
        )
        apart = macro_f1_difference(truth, sft.predicted, one.predicted)
        claims.append(
            Claim(f"{name}macro F1, PPO − SFT, upper end", apart, 0.0, len(truth), floor=True, by=2)
        )
        claims.append(
            Claim(
                f"{name}share of valid responses",
                mean(one.answers.valid),
                LIMITS["format"],
                n,
                floor=True,
            )
        )
        moved = abs(one.perplexity / sft.perplexity - 1)
        claims.append(
            Claim(
                f"{name}|perplexity PPO / SFT − 1|",
                (moved, moved, moved),
                LIMITS["perplexity"],
                texts,
            )
        )
    return claims


def rise(before: np.ndarray, after: np.ndarray) -> Interval:
    """Return the mean difference in standard deviations of `before`, resampled in pairs."""

    def of(chosen: np.ndarray) -> float:
        return float((after[chosen] - before[chosen]).mean() / max(1e-9, before[chosen].std()))

    rng, n = np.random.default_rng(0), len(before)
    low, high = np.percentile([of(rng.integers(0, n, n)) for _ in range(2000)], [2.5, 97.5])
    return of(np.arange(n)), float(low), float(high)


def policy(config: Config, base: Base, run: Path, *, seed: int, keep: Path) -> Path:
    """Return the folder of the policy that PPO makes of the run's SFT with this seed."""
    own = read_card(run / "adapter").training if (run / "adapter").is_dir() else {}
    wanted = config.train.ppo.model_dump(mode="json")
    if own.get("ppo", {}).get("settings") == wanted and own.get("seed") == seed:
        return run / "adapter"
    made_of = [read_manifest(run / name).files for name in ("sft", "reward", "records")]
    mark, target = fingerprint("benchmark policy", wanted, seed, *made_of), keep / f"policy_{seed}"
    if not is_current(target, mark):
        keep.mkdir(parents=True, exist_ok=True)
        with writing(target, kind="adapter", fingerprint=mark) as staging:

            def show(event: Event, seed: int = seed) -> None:
                if isinstance(event, LogMessage):
                    print(f"seed {seed}: {event.text}", flush=True)

            train, validation = (
                read_split(run / "records", name) for name in ("train", "validation")
            )
            own = config.model_copy(update={"seed": seed})
            job = TrainingJob(staging, own, base, TrainServices(Reporter(show)))
            data = TrainingData(train, validation)
            write_policy(job, data, supervised=run / "sft", reward=run / "reward")
    return target


class Bench:
    """What every model is put through."""

    def __init__(
        self,
        config: Config,
        base: Base,
        run: Path,
        *,
        prompts: int,
        texts: list[str] | None,
        temperature: float | None = None,
    ) -> None:
        self.config, self.base, self.run = config, base, run
        given = {} if temperature is None else {"temperature": temperature}
        self.asking = config.train.ppo.model_copy(update=given)
        self.tokenizer = base.load_tokenizer()
        self.validation, self.test = (
            self.fitting(read_split(run / "records", name), limit=config.train.max_length)
            for name in ("validation", "test")
        )
        short = self.fitting(self.validation, limit=config.train.ppo.prompt_tokens)
        self.asked = short[:: max(1, len(short) // prompts)][:prompts]
        self.texts = texts or [record.prompt for record in self.validation]
        self.base_perplexity = math.nan

    def measure(self, folder: Path, *, label: str) -> Found:
        adapted, tokenizer = self.load(folder)
        head = CalibratedHead.load(folder, adapted.head)
        answers = self.answers(adapted, Judge(adapted.base, tokenizer, head), label=label)
        both, deep = self.decisions(adapted, tokenizer, head.lexical)
        if math.isnan(self.base_perplexity):
            with adapted.acting_as("base"):
                self.base_perplexity = self.perplexity(adapted)
        return Found(answers, both, deep, self.perplexity(adapted))

    def fitting(self, records: Sequence[Record], *, limit: int) -> list[Record]:
        encoder = PromptEncoder(self.tokenizer, self.config.model.system_prompt)
        return [record for record in records if len(encoder.ids(record.prompt)) <= limit]

    def load(self, folder: Path) -> tuple[Adapted, Any]:
        """Load the adapter as the policy, with the run's SFT as its reference."""
        adapted, tokenizer = self.attach(folder)
        adapted.add_reference()
        supervised, _ = self.attach(self.run / "sft")
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if ".lora_" in name and ".reference." in name:
                    parameter.copy_(
                        supervised.get_parameter(name.replace(".reference.", ".default."))
                    )
        adapted.reference_gates = copy.deepcopy(supervised.gates).requires_grad_(False)
        for name, parameter in (adapted.rows or torch.nn.Module()).named_parameters():
            if not supervised.rows or not torch.equal(
                parameter, supervised.rows.get_parameter(name)
            ):
                raise SystemExit(
                    f"{folder}: its tag rows are not those of sft/, so that sft/ cannot be its "
                    "reference"
                )
        return adapted, tokenizer

    def attach(self, folder: Path) -> tuple[Adapted, Any]:
        device, tokenizer, card = pick_device(), self.base.load_tokenizer(), read_card(folder)
        require_base(card, self.base, folder=folder)
        model: Any = self.base.load_model(dtype=fast_dtype(), attention=quick_attention(device))
        return load_adapter(folder, model, card, tags=add_tags(tokenizer, model)).to(
            device
        ), tokenizer

    def answers(self, adapted: Adapted, judge: Judge, *, label: str) -> Answers:
        config, settings, tokenizer = self.config, self.asking, judge.tokenizer
        reward = load_reward(
            self.run / "reward",
            adapted,
            base_fingerprint=self.base.fingerprint,
            settings=config.train.reward,
        )
        adapted.to(pick_device()).eval()
        encoder = PromptEncoder(tokenizer, config.model.system_prompt)
        prompts = [tuple(encoder.ids(record.prompt)) for record in self.asked]
        task = QuadrupleThinking(adapted, judge, self.asked, prompts, settings)
        pad_id = tokenizer.pad_token_id
        collector = RolloutCollector(adapted, task, settings, pad_id=pad_id, reward=reward)
        rows: list[dict[str, float]] = []
        terms: list[dict[str, float]] = []
        with bar(f"answering: {label}", len(prompts)) as advance:
            for start in range(0, len(prompts), settings.batch):
                indices = list(range(start, min(start + settings.batch, len(prompts))))
                torch.manual_seed(1_000_003 + start)  # the same for every model
                with torch.no_grad():
                    paths = task.sample([prompts[index] for index in indices])
                    rollout = make_rollout(paths, task, pad_id=pad_id, device=adapted.device)
                    scores = collector.score(rollout)[3]
                assert scores is not None
                kl = ((rollout.logprobs - rollout.reference) * rollout.real).sum(1)
                batch = task.terms(indices, paths)
                terms += batch
                for at, path in enumerate(paths):
                    verified = sum(batch[at].values())
                    facts = {
                        "verified": verified,
                        "total": verified + float(scores[at]),
                        "kl": float(kl[at]),
                    }
                    rows.append(
                        {**facts, "valid": float(is_valid(path)), "tokens": float(sum(path.chosen))}
                    )
                advance(len(indices))
        columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
        means = {name: float(np.mean([term[name] for term in terms])) for name in terms[0]}
        tokens = float(columns.pop("tokens").mean())
        return Answers(**columns, tokens=tokens, terms=means)

    def decisions(
        self, adapted: Adapted, tokenizer: Any, lexical: LexicalHead | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Decide on the test split, with the n-grams weighed on validation and without."""
        settings = replace(EncodingSettings.of(self.config), thinking_records=0)
        deep, second, spelled, truth = {}, {}, {}, {}
        for name, records in (("validation", self.validation), ("test", self.test)):
            examples, _ = encode_all(tokenizer, records, [], settings)
            found = validate(adapted, examples, self.config.train, pad_id=tokenizer.pad_token_id)[1]
            prompts = [record.prompt for record in records]
            deep[name], truth[name] = found
            second[name] = lexical.logits(prompts) if lexical else None
            spelled[name] = PromptEncoder(tokenizer).spelled_in_bytes(prompts)
        adapted.eval()
        if not np.array_equal(truth["test"], [int(record.decision) for record in self.test]):
            raise SystemExit("the encoded test records are not in the order of the records")
        weights = fit(*(column["validation"] for column in (deep, second, spelled, truth)))
        both = weights.combine(*(column["test"] for column in (deep, second, spelled)))
        return both.argmax(1), deep["test"].argmax(1)

    @torch.no_grad()
    def perplexity(self, adapted: Adapted) -> float:
        """Return exp of the mean −log p of the texts' tokens after the first."""
        rows = [
            self.tokenizer(text, add_special_tokens=False)["input_ids"][:TEXT_TOKENS]
            for text in self.texts
        ]
        rows = [row for row in rows if len(row) > 1]
        lost, count = 0.0, 0
        with bar("reading texts", len(rows)) as advance:
            for batch in by_length([len(row) for row in rows], batch_tokens=2048):
                ids, mask = (
                    x.to(adapted.device)
                    for x in pad([rows[n] for n in batch], value=self.tokenizer.pad_token_id)
                )
                wanted = mask[:, 1:].bool()
                logits = adapted.logits(adapted.hidden(ids, mask)[:, :-1][wanted]).float()
                lost += float(functional.cross_entropy(logits, ids[:, 1:][wanted], reduction="sum"))
                count += int(wanted.sum())
                advance(len(batch))
        return math.exp(lost / count)


def is_valid(path: Any) -> bool:
    """Return whether the response, read back from its text, is in the protocol's form."""
    try:
        return parse(compose(path.thinking())) is not None
    except DataError:
        return False


def read_texts(path: Path | None, limit: int) -> list[str] | None:
    """Read texts evenly from a file of JSON lines with a usual field, or of paragraphs."""
    if path is None:
        return None
    content = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in content.splitlines() if line.strip()]
        field = next((name for name in TEXT_FIELDS if name in rows[0]), None)
        if field is None:
            raise SystemExit(
                f"{path}: no field of {', '.join(TEXT_FIELDS)}; give such a file or plain text"
            )
        texts = [row[field] for row in rows]
    else:
        texts = [part.strip() for part in content.split("\n\n") if part.strip()]
    return texts[:: max(1, len(texts) // limit)][:limit]


def row(name: str, found: Found, truth: np.ndarray) -> str:
    facts = summary(found, truth)
    terms = " ".join(f"{term} {value:+.2f}" for term, value in facts["terms"].items())
    parts = [
        *(
            f"{kind} {facts[kind]:+.3f} ± {facts[f'{kind}_std']:.3f}"
            for kind in ("verified", "total")
        ),
        f"({terms})",
        f"KL {facts['kl']:.2f}",
        f"F1 {facts['macro_f1']:.3f} (hidden state alone {facts['macro_f1_deep']:.3f})",
        f"valid {facts['valid']:.3f}",
        f"perplexity {facts['perplexity']:.2f}",
        f"{facts['tokens']:.0f} tokens",
    ]
    return f"   {name:11} " + "  ".join(parts)


def summary(found: Found, truth: np.ndarray) -> dict[str, Any]:
    answers = found.answers
    return {
        **{
            name: float(getattr(answers, name).mean())
            for name in ("verified", "total", "kl", "valid")
        },
        "verified_std": float(answers.verified.std()),
        "total_std": float(answers.total.std()),
        "terms": answers.terms,
        "tokens": answers.tokens,
        "macro_f1": macro_f1(truth, found.predicted),
        "macro_f1_deep": macro_f1(truth, found.deep),
        "perplexity": found.perplexity,
    }
