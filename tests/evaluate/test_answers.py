"""Plain questions and their answers."""

from __future__ import annotations

import pytest

from aegis.errors import DataError
from aegis.evaluate.answers import (
    Question,
    Reply,
    compare_answers,
    is_right,
    parse_question,
    plain_questions,
    spread,
)


def asked(*answers: str, wrong: tuple[str, ...] = ()) -> Question:
    return Question("q", "?", "en", "dev", answers, wrong)


@pytest.mark.parametrize(
    ("answers", "answer"),
    [
        (["Paris"], "The capital of France is PARIS."),
        (["potato"], "They are made from potatoes, in oil."),
        (["8"], "A spider has eight legs."),
        (["8"], "８本です"),
        (["8"], "足は八本です。"),
        (["24"], "一日は二十四時間です"),
        (["24"], "There are twenty-four hours."),
        (["99"], "Ninety nine."),
        (["1000"], "1,000 grams"),
        (["100"], "a hundred cents"),
        (["富士山"], "富士 山 です"),
        (["H2O"], "It is h2o."),
        (["1月1日"], "1月1日です"),
        (["4"], "It is 4."),
    ],
)
def test_an_accepted_answer_is_seen_in_what_was_said(answers: list[str], answer: str) -> None:
    assert is_right(answer, asked(*answers))


@pytest.mark.parametrize(
    ("answers", "answer"),
    [
        (["8"], "18 legs"),
        (["8"], "It is 8.5"),
        (["8"], "eighteen"),
        (["8"], "八十本"),
        (["5"], "twenty-five"),
        (["20"], "twenty-one"),
        (["2"], "two hundred"),
        (["100"], "1000"),
        (["ear"], "We hear."),
        (["1月"], "11月"),
        (["Paris"], ""),
        (["12"], "\n".join(map(str, range(8, 30)))),
    ],
)
def test_a_part_of_a_word_or_number_is_no_answer(answers: list[str], answer: str) -> None:
    assert not is_right(answer, asked(*answers))


def test_what_is_wrong_undoes_what_is_right() -> None:
    question = asked("car", wrong=("feather is heavier",))
    assert is_right("The car is heavier.", question)
    assert not is_right("A feather is heavier than a car.", question)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"part": "test"}, "part must be one of dev, report"),
        ({"answers": []}, "answers must be a list"),
        ({"answers": "Paris"}, "answers must be a list"),
        ({"answers": [7]}, "answers must be non-empty text, got 7"),
        ({"wrong": None}, "wrong must be a list"),
        ({"question": " "}, "question must be non-empty text"),
        ({"hint": "x"}, "'hint' is not a field"),
    ],
)
def test_a_bad_question_is_told_by_its_field(change: dict, told: str) -> None:
    good = {"id": "q", "question": "Where?", "language": "en", "part": "dev", "answers": ["x"]}
    assert parse_question(good, where="f:1").answers == ("x",)
    with pytest.raises(DataError, match=told):
        parse_question(good | change, where="f:1")


def test_no_shipped_question_gives_its_own_answer_away() -> None:
    for question in plain_questions():
        assert not is_right(question.question, question), question
        assert all(is_right(f"It is {answer}.", question) for answer in question.answers), question


def test_questions_are_spread_over_the_whole_list() -> None:
    questions = plain_questions(part="report", language="en")
    assert spread(questions, 10**6) == questions
    assert spread(questions, 0) == []
    few = [questions.index(each) for each in spread(questions, 4)]
    assert few == [number * len(questions) // 4 for number in range(4)]


def test_only_what_the_model_said_itself_is_right() -> None:
    english = asked("Paris")
    japanese = Question("j", "首都は？", "ja", "report", ("東京",))
    found = compare_answers(
        [english, english, japanese, japanese],
        [Reply("Paris."), Reply("Rome."), Reply("東京です"), Reply("東京です")],
        [
            Reply("It is Paris."),
            Reply("Paris", "withheld"),
            Reply("東京", "ESCALATION"),
            Reply("", "DENY"),
        ],
    )
    shares = {name: found[name]["value"] for name in ("base", "candidate")}
    assert shares == {"base": 0.75, "candidate": 0.25}
    became = {name: found[name]["value"] for name in ("withheld", "escalated", "declined")}
    assert became == dict.fromkeys(became, 0.25)
    assert found["difference"]["value"] == -0.5
    assert found["per_language"]["ja"]["difference"]["value"] == -1
    assert [item["candidate"]["right"] for item in found["items"]] == [True, False, False, False]
    assert found["items"][1]["candidate"] == {
        "text": "Paris",
        "outcome": "withheld",
        "right": False,
    }
