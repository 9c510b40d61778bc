"""Names of people, only where an honorific, a title or a label says that it is one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.resources import files

from aegis.data.personal.span import Span, context_before

# The commonest surnames of Japan, some 1000.
SURNAMES = frozenset(
    files("aegis.data.personal").joinpath("surnames.txt").read_text("utf-8").split()
)
_LONGEST = max(map(len, SURNAMES))
_GIVEN_ENDINGS = "子美郎太奈香恵介斗菜之彦夫雄朗平助輔樹也哉紀代江乃音花那希真実織穂里"
_NO_NAME_ENDINGS = (
    "者師員客長屋家民親母父兄姉妹弟娘嫁婦店社科課部係所校業手役主市県区町村州国都府道館駅"
)

_KANJI = r"[一-鿿々ヶ]"
# Names without kanji: many are common words, too, and so only before さん, ちゃん and the like.
_GIVEN = (
    "さとう|すずき|たかはし|たなか|いとう|わたなべ|やまもと|なかむら|こばやし|かとう|よしだ|やまだ"
    "|さくら|ゆい|はな|ひなた|あおい|みお|りん|めい|さき|ゆき|あや|まい|かおり|みゆき|あかり|ひかり"
    "|ひろみ|まゆみ|たろう|はるか|なおみ|けんた|ゆうた|しょうた|だいすけ|えり|りか|ゆか|まり|のぞみ"
    "|めぐみ|すみれ|ももか|いちか"
)
_FOREIGN = (
    "サトウ|スズキ|タカハシ|タナカ|イトウ|ワタナベ|ヤマモト|ナカムラ|コバヤシ|カトウ|ヨシダ|ヤマダ"
    "|マイケル|ジョン|ジェームズ|ロバート|デイビッド|デビッド|ウィリアム|トム|トーマス|ポール|マーク"
    "|スティーブ|ピーター|ダニエル|クリス|アレックス|ベン|サム|ジャック|ケビン|ブライアン|メアリー"
    "|マリア|ジェニファー|リサ|サラ|エミリー|アンナ|ジェシカ|エマ|ソフィア|ケイト|ナンシー|スミス"
    "|ジョンソン|ブラウン|ミラー|キム|リー|チェン|グエン|ナオミ|ケン"
)
_HONORIFIC = re.compile(
    r"様(?!々|子|式|相|態|変)|さま|さん(?!ご|か[くいげす]|ざ|まい)|両?氏(?!名|神|族)|くん|君(?!主|臨|が代)|ちゃん"
    "|先生|殿(?!様|堂|下)|教授|課長|部長|社長|係長|主任|店長|会長|校長|園長|院長|次長|室長|所長|局長"
    "|専務|常務|医師|弁護士|看護師|教諭|刑事|記者|議員|監督|コーチ|選手|宛"
)
_BEFORE_HONORIFIC = re.compile(
    rf"(?:(?P<kanji>{_KANJI}{{1,6}}(?: [一-鿿々ぁ-んァ-ヶー]{{1,4}})?)"
    r"(?: ?[(][ぁ-んァ-ヶー ]{2,14}[)])?"
    r"|(?P<kana>[ァ-ヶ][ァ-ヶー]{1,10}(?:[・= ][ァ-ヶー]{1,10}){1,3})"
    rf"|(?<![ぁ-ん])(?P<given>{_GIVEN})|(?<![ァ-ヶー])(?P<foreign>{_FOREIGN})) ?\Z"
)
_JAPANESE_NAME = r"[一-鿿々ぁ-んァ-ヶー]{1,6}(?:[ ・][一-鿿々ぁ-んァ-ヶー]{1,8})?"
_JAPANESE_LABEL = re.compile(
    r"(?:(?P<of_a_name>氏 ?名|(?<![一-鿿ァ-ヶー])[姓名](?=[:=])|お?名前|姓名|宛名"
    r"|[フふ][リり][ガが][ナな]"
    r"|(?:患者|契約者|申請者|申込者|名義|担当者?|代表者|受取人|差出人|届出人|保護者|代理人|請求者|依頼者|受講者"
    r"|参加者|応募者|使用者|利用者|被保険者|顧客|会員|従業員)名)|[名苗]字|本人|世帯主|代表取締役(?:社長)?"
    r"|(?:患者|契約者|申請者|名義人?|担当者?|代表者?|受取人|差出人|届出人|保護者|代理人|利用者|保証人))"
    r"(?:[(][^() ]{1,8}[)])?(?P<mark>[】\])」]? ?[:=] ?|[】\]] ?| |は、?|(?<=担当)の)"
    rf"(?P<value>{_JAPANESE_NAME})(?=です|様|さん|と申|とい|と言|殿|[、。,()（）」 \n]|/|\Z)"
)
_LABEL_CHARACTERS = re.compile("[名者人本姓主役字]|担当|フリガナ|ふりがな")
_INTRODUCED = re.compile(
    rf"(?<![一-鿿々])(?:私|僕|俺)?(?P<value>{_KANJI}{{2,5}}(?: {_KANJI}{{1,3}})?)"
    r"(?=(?P<told>と申し|と申す)|です)"
)
_NO_NAME = re.compile(
    # Behind a label.
    "必須|任意|未記入|未設定|変更|記入|入力|なし|不明|非公開|匿名|秘密|未定|省略"
    # Before an honorific.
    "|お客|皆|奥|神|王|仏|氏神|殿|若|同|両|源|彼|諸|旦那|貴方|取引先|先方|御?一行|団体|各位|何|有|多|一|異|今|左"
    "|息子|弟子|店子|女子|男子|双子|様子|王子|三毛|文春|孫|[一二三四五六七八九十]+[年月日時]"
)
_LETTER = "[A-Za-zÀ-ɏ]"
_INNER = rf"(?:{_LETTER}|['’](?!s\b)(?={_LETTER})|-(?={_LETTER}))"
_ENGLISH = rf"(?:[A-Z]\.|(?!I\b)[A-ZÀ-Þ]{_INNER}{{0,20}}(?!{_LETTER}|/))"
_PARTICLES = "(?:(?:van|von|de|der|den|la|di|da|del) ){0,2}"
_SEVERAL = rf"(?P<value>{_PARTICLES}{_ENGLISH}(?: {_ENGLISH}){{0,3}})"
_TWO = rf"(?P<value>{_ENGLISH}(?: {_ENGLISH}){{1,3}})"
_TITLED = re.compile(
    rf"(?<![A-Za-z])(?:(?:Mr|Mrs|Ms|Dr|Prof|Mx)\.?|Miss|Professor|Doctor) {_SEVERAL}"
)
_GREETED = re.compile(rf"\b(?:Dear|Hi|Hello|Hey) {_SEVERAL}(?= ?[,:!\n])")
_ENGLISH_LABEL = re.compile(
    r"(?<![A-Za-z_-])(?P<of>[A-Za-z]+[ _-])?"
    r"(?:(?:[Ss]ur|[Ll]ast|[Ff]irst|[Ff]ull|[Nn]ick)?[Nn]ame|NAME)"
    r"[\"']? ?[:=] ?[\"']?"
    rf"{_SEVERAL}(?![A-Za-z(])"
)
_OF_A_PERSON = re.compile(
    "(?:cardholder|client|contact|customer|employee|family|first|full|given|holder|last|legal|maiden"
    "|middle|my|patient|student|tenant|user|your)[ _-]",
    re.IGNORECASE,
)
_SAID = re.compile(
    r"\b(?:(?:[Mm]y|[Hh]is|[Hh]er) (?:[a-z]+['’]s )?(?:full |last |first )?name(?: is| was|['’]s)"
    r"|[Ii] am called|[Tt]hey call me|[Ff]ull name|[Nn]amed) "
    rf"{_SEVERAL}"
)
_SIGNED = re.compile(
    r"(?:\b(?:Patient|Attn|Attention|Signed|Recipient|Sender|Tenant|Applicant|Employee)[:,] ?"
    r"|\b(?:Sincerely|[Rr]egards),?\n|\bSir "
    r"|\bI(?:['’]m| am) (?=[^,.\n]{3,40}[,.]|[A-Z][a-z]+ [A-Z][a-z]+ (?:and|from)\b))" + _TWO
)
_THIS_IS = re.compile(rf"\b[Tt]his is {_TWO}(?= (?:from|speaking|calling|here))")
_ROMAN = re.compile(r"(?<![A-Za-z])(?P<value>[A-Z][a-z]{1,15})-(?:san|sama|kun|chan|sensei)\b")
# In lower case.
MARKS_OF_NAMES = (
    "様|さま|さん|氏|くん|君|ちゃん|先生|殿|教授|長|主任|専務|常務|医師|弁護|看護|教諭|刑事|記者|議員|監督"
    "|コーチ|選手|宛|名|人|者|姓|主|役|字|本|担当|ふりがな|フリガナ|と申|です"
    r"|mrs?\b|ms\b|mx\b|dr\b|prof|miss |doctor |dear |h(?:i|ello|ey) |name|amed |called |call me"
    r"|i am |i['’]m |this is |sir |patient|att|signed|recipient|sender|tenant|applic|employee"
    "|sincerely|regards|-(?:san|sama|kun|chan|sensei)"
)
_NO_ENGLISH_NAME = re.compile(
    "(?:AI|All|America|Anonymous|Assistant|Astronaut|Auntie|Bot|Buyer|Clerk|Colleagues?|Community"
    "|Council[a-z]*|Customers?|Diary|Doctor|Editors?|Everyone|False|Federation|Feeling|Folks|Friends?"
    "|God|Guys|HOA|HR|Hiring|Honorary|Judge|Landlord|Lord|Madam|Mayor|Members|Minister|Mom|Mum"
    "|Neighbou?rs?|None|Not|Null|Officer|Pac-Man|Parents?|Pepper|Please|President|Professor|Recruiter|Right|Santa"
    "|Secretary|Senator|Sellers?|Sirs?|So|Sorry|Students?|Support|Sure|Teachers?|Team|The|There|True"
    "|Universe|Unknown|Valued|Veterinary|Ward|Word|World)(?![a-zÀ-ɏ])"
)
_ENGLISH_PATTERNS = (_TITLED, _GREETED, _SAID, _SIGNED, _THIS_IS, _ROMAN, _ENGLISH_LABEL)


def find_names(text: str) -> Iterator[Span]:
    """Yield names without the honorific, title or label that tells them."""
    if not text.isascii():
        yield from _before_honorifics(text)
        yield from _behind_labels(text)
    for pattern in _ENGLISH_PATTERNS:
        for match in pattern.finditer(text):
            value = match["value"]
            of = pattern is _ENGLISH_LABEL and match["of"]
            if of and not _OF_A_PERSON.fullmatch(of):
                continue  # a file name
            if len(value) > 2 and not _NO_ENGLISH_NAME.match(value):
                yield Span(*match.span("value"), "NAME")


def _before_honorifics(text: str) -> Iterator[Span]:
    for honorific in _HONORIFIC.finditer(text):
        before = context_before(text, honorific.start(), 36)
        match = _BEFORE_HONORIFIC.search(before)
        at = honorific.start() - len(before)
        if not match:
            continue
        part = match.lastgroup or "kanji"
        start = 0 if part != "kanji" else _name_at_the_end(match["kanji"], honorific[0])
        if start is not None:
            yield Span(at + match.start(part) + start, at + match.end(part), "NAME")


def _behind_labels(text: str) -> Iterator[Span]:
    for match in _JAPANESE_LABEL.finditer(text) if _LABEL_CHARACTERS.search(text) else ():
        value = match["value"]
        sure = match["mark"].strip() not in ("", "は", "は、", "の") and match["of_a_name"]
        if not value or _NO_NAME.fullmatch(value):
            continue
        before = text[match.start() - 1 : match.start()]
        if before in ("社", "品", "件", "署", "ル"):
            continue
        told = _begins_with_a_surname(value) or re.fullmatch("[ァ-ヶー]+ [ァ-ヶー]+", value)
        if told or sure:
            yield Span(*match.span("value"), "NAME")
    for match in _INTRODUCED.finditer(text):
        if (match["told"] and not _NO_NAME.fullmatch(match["value"])) or _is_full_name(
            match["value"]
        ):
            yield Span(*match.span("value"), "NAME")


def _begins_with_a_surname(name: str) -> bool:
    return any(name[:length] in SURNAMES for length in range(1, _LONGEST + 1))


def _is_full_name(name: str) -> bool:
    """Return whether it is a listed surname and a given name with a usual ending."""
    return name[-1] in _GIVEN_ENDINGS and any(
        name[:length] in SURNAMES and 1 <= len(name[length:].strip()) <= 3
        for length in range(2, _LONGEST + 1)
    )


def _name_at_the_end(name: str, honorific: str) -> int | None:
    """Return where in a run of kanji a surname, with or without a given name, reaches its end."""
    if _NO_NAME.fullmatch(name):
        return None
    for start in range(len(name)):
        for length in range(min(_LONGEST, len(name) - start), 0, -1):
            if name[start : start + length] in SURNAMES:
                rest = name[start + length :].strip()
                given = not rest or (len(rest) <= 4 and rest[-1] not in _NO_NAME_ENDINGS)
                if given and (length > 1 or start == 0):
                    return start
    if name[-1] in _NO_NAME_ENDINGS:
        return None
    given = len(name) <= 3 and (name[-1] in _GIVEN_ENDINGS or honorific in ("くん", "ちゃん"))
    return 0 if len(name) > 1 and given else None
