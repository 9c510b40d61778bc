"""Check digits: of ten, eleven or ninety-seven random numbers all but one fail."""

from __future__ import annotations

# The length of an account number by country (the IBAN registry of SWIFT).
_LENGTHS = """
AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28
EE20 EG29 ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26
IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28
NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24 RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25
SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30
"""
IBAN_LENGTHS = {entry[:2]: int(entry[2:]) for entry in _LENGTHS.split()}


def luhn(digits: str) -> bool:
    """Check a payment card's number (ISO/IEC 7812-1)."""
    doubled = [int(digit) * (1 + at % 2) for at, digit in enumerate(reversed(digits))]
    return sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0


def my_number(digits: str) -> bool:
    """Check a My Number: 11 - (sum of P·Q mod 11), and 0 where the remainder is 0 or 1.

    Source: Ministry of Internal Affairs and Communications, ordinance No. 85 of 2014, article 5.
    """
    *rest, check = (int(digit) for digit in digits)
    weighted = sum(
        digit * (at + 1 if at <= 6 else at - 5) for at, digit in enumerate(reversed(rest), 1)
    )
    return check == (0 if weighted % 11 <= 1 else 11 - weighted % 11)


def corporate_number(digits: str) -> bool:
    """Check a corporate number, whose check digit stands first: 9 - (sum of P·Q mod 9).

    Source: ordinance No. 70 of the Ministry of Finance, 2014, article 2.
    """
    check, *rest = (int(digit) for digit in digits)
    weighted = sum(digit * (1 if at % 2 else 2) for at, digit in enumerate(reversed(rest), 1))
    return check == 9 - weighted % 9


def iban(account: str) -> bool:
    """Check an account number of letters and digits (ISO 13616): the whole leaves 1 modulo 97."""
    moved = account[4:] + account[:4]
    return int("".join(str(int(character, 36)) for character in moved)) % 97 == 1
