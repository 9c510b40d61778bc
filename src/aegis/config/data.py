"""`data`: where records come from, and what they must be like to stay."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from aegis.config.settings import AtLeastOne, Count, OpenShare, PathText, Positive, Settings, Share


class GenerateSettings(Settings):
    """Stage 1: new quadruple-thinking samples from the local model."""

    samples: Count = 12
    """Topics that the local model is asked to think about; more cost time, 0 asks none."""
    topics: PathText | None = None
    """JSON Lines file of topics; null for those that AEGIS ships."""
    max_new_tokens: AtLeastOne = 48
    """Tokens a section may have; raise it if sections break off."""
    batch_size: AtLeastOne = 12
    """Sections sampled at once; higher is faster and takes more memory."""
    temperature: Positive = 0.7
    """Sampling temperature; higher writes more varied and less reliable text."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Probability mass that tokens are sampled from; higher allows unlikelier words."""


class QualitySettings(Settings):
    """Stage 2: what a record must be like to stay."""

    min_characters: Count = 2
    """Characters that a prompt, section or answer needs; higher sets more records aside."""
    max_characters: AtLeastOne = 4000
    """Characters that a prompt, section or answer may have; higher keeps longer records."""
    max_repetition: Share = 0.5
    """Share of a text that may repeat itself; higher keeps text of a stuck generator."""
    near_duplicate: Share = 0.8
    """Jaccard similarity of 4-character shingles from which a prompt is a duplicate; higher keeps
    more that are alike."""
    balance_ratio: Annotated[float, Field(ge=1)] = 1.5
    """How many times the rarest decision's records another may have; higher keeps more of them."""

    min_score: Share = 0.7
    """Quality score, a product of parts that are 1 for ordinary text, that a record needs; higher
    sets more records aside."""
    route_toxic: bool = False
    """Whether sexual and hateful prompts are set aside unless they are to be refused; no response
    that is sexual or hateful stays either way."""
    max_outlier: Positive = 10.0
    """Robust standard deviations that a text's length, on a logarithmic scale, may lie from the
    median of its kind and language; higher keeps stranger ones."""
    check_decisions: bool = False
    """Whether records whose decision a judge contradicts are set aside for a person: by default a
    probe that is trained on the other records (confident learning)."""
    balance: Literal["cap", "weights", "off"] = "cap"
    """What is done about a decision with over `balance_ratio` times the rarest's records: set lone
    ones aside, write weights into statistics.json, or nothing."""

    @model_validator(mode="after")
    def _some_length(self) -> QualitySettings:
        if self.min_characters > self.max_characters:
            raise ValueError(
                f"min_characters must be at most max_characters, got {self.min_characters}"
            )
        return self


class SplitSettings(Settings):
    """Shares held out; contrast twins, items of one page and near-duplicates stay on one side."""

    validation: OpenShare = 0.08
    """Share for calibration and model choice; higher measures more finely and trains on less."""
    test: OpenShare = 0.12
    """Share for the report alone; higher narrows its intervals and trains on less."""
    by_source: bool = False
    """Whether all records of one source stay on one side, too: what is held out then comes from
    sources that training never saw, and the shares hold less exactly."""

    @model_validator(mode="after")
    def _leave_something(self) -> SplitSettings:
        if self.validation + self.test >= 1:
            raise ValueError(
                "validation + test must leave something to train on, "
                f"got {self.validation + self.test}"
            )
        return self


class DataSettings(Settings):
    """Where records come from and how they are cleaned."""

    seed_records: bool = True
    """Whether the Japanese and English records that AEGIS ships are used."""
    registers: bool = False
    """Whether those in other registers (chats, mails, slang, blunt and long wishes) are used too:
    the verdict learns other people's manners, and training takes three times as long an epoch."""
    records: Annotated[tuple[PathText, ...], Field(strict=False)] = ()
    """Files or folders of your records, with at least `prompt` and `decision`: JSON Lines, JSON,
    CSV, Parquet, Arrow, Hugging Face data sets, instruction data, chats."""
    pairs: Annotated[tuple[PathText, ...], Field(strict=False)] = ()
    """Files or folders of preference pairs, with `prompt`, `chosen`, `rejected`, in the same
    formats."""
    skip_bad: bool = False
    """Whether bad lines are set aside in rejected.jsonl instead of stopping the run."""
    generate: GenerateSettings = GenerateSettings()
    """Stage 1: new samples from the local model."""
    quality: QualitySettings = QualitySettings()
    """Stage 2: what a record must be like to stay."""
    split: SplitSettings = SplitSettings()
    """Shares of the records that training never sees."""

    @model_validator(mode="after")
    def _some_source(self) -> DataSettings:
        if self.registers and not self.seed_records:
            raise ValueError("registers needs seed_records: true; set it, or registers: false")
        if not self.seed_records and not self.records:
            raise ValueError(
                "needs a source of records: set seed_records: true or name files under records"
            )
        return self
