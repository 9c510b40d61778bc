from __future__ import annotations

from collections.abc import Callable

import pytest

from aegis.data.personal.check_digits import corporate_number, iban, luhn, my_number


def test_published_examples_hold() -> None:
    assert my_number("123456789018")
    assert corporate_number("7000012050002")  # the National Tax Agency
    assert luhn("4111111111111111")
    assert iban("GB82WEST12345698765432")
    assert iban("DE89370400440532013000")


@pytest.mark.parametrize(
    ("check", "template"),
    [
        (my_number, "52601815908{}"),
        (my_number, "00000000000{}"),
        (corporate_number, "{}799075116372"),
        (luhn, "411111111111111{}"),
    ],
)
def test_of_ten_check_digits_one_holds(check: Callable[[str], bool], template: str) -> None:
    assert sum(check(template.format(digit)) for digit in range(10)) == 1


def test_a_changed_digit_is_seen() -> None:
    number = "378657975438"
    for at in range(len(number)):
        changed = number[:at] + str((int(number[at]) + 1) % 10) + number[at + 1 :]
        assert not my_number(changed)
    for at in range(4, 22):
        account = "GB82WEST12345698765432"
        if account[at].isdigit():
            changed = account[:at] + str((int(account[at]) + 1) % 10) + account[at + 1 :]
            assert not iban(changed)
