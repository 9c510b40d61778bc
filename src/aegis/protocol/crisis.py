"""First-person crisis in plain words: a floor under the model's judgement.

A short list of phrases, English and Japanese, that hardly anybody writes about anything else. It
finds what is said outright; a hint is the model's to see. Where it finds something, a person must
look (docs/decisions.md), whatever the model makes of it.
"""

from __future__ import annotations

import re

from aegis.protocol.spelling import readable


def is_crisis(text: str) -> bool:
    """Return whether the writer says that they want to die, are about to, have begun to, or how
    they could. What is told of others, in fiction or as a figure of speech, is none."""
    plain = readable(text).casefold().replace("’", "'")
    return any(
        not other.search(_clause(found))
        for way in {plain, " ".join(_BETWEEN_KANA.sub("", plain).split())}  # also across lines
        for sentence in _SENTENCE.split(way)
        for pattern, other in ((_ENGLISH, _OTHER_ENGLISH), (_JAPANESE, _OTHER_JAPANESE))
        for found in pattern.finditer(sentence)
    )


def _clause(found: re.Match[str]) -> str:
    """Return what was found with the rest of its clause, of a quotation with what is around it:
    what is said elsewhere in the sentence makes it no figure of speech."""
    before = found.string[max(0, found.start() - _NEAR) : found.start()]
    after = found.string[found.end() : found.end() + _NEAR]
    if not _QUOTED.search(before):
        before, after = _CLAUSE_BEFORE.split(before)[-1], _CLAUSE.split(after)[0]
    return before + found[0] + after


_NEAR = 160
_BETWEEN_KANA = re.compile(r"(?<=[\u3040-\u9fff])\s+(?=[\u3040-\u9fff])")
_QUOTED = re.compile(r"[「『“][^」』”]*$|(?<!\w)[\"'][^\"]*$")
_CLAUSE = re.compile(
    r"(?<!\bsay)(?<!\bsays)(?<!\bsaid),|[;、，；]|\b(?:but|because|so)\b"
    r"|\band(?= (?:\w+ ){0,2}(?:i'?m?\b|$))|(?:けど|けれど|ので|のに|から)"
)
_CLAUSE_BEFORE = re.compile(rf"{_CLAUSE.pattern}|ても?|[んい]で|[いだる]し")
_SENTENCE = re.compile(r"(?<=[.!?。！？\n])\s*")

_I = r"\bi(?:'?m|'?ve|'?d|'?ll| am| have| had| would| will)?\b(?: \w+){0,4}? "
_WISH = (
    r"(?:want(?:ed)? to|wanna|wish to|going to|gonna|plan(?:ning)? to|about to|ready to|decided to"
    r"|have to|need to|tried to|trying to|tempted to|thinking (?:of|about)|thoughts (?:of|about)"
    r"|consider(?:ing)?"
    r"|feel(?:ing)? like|keep|start(?:ed)?|urge to|might|could|should|will|just|'ll)"
)
_END = (
    r"(?:end(?:ing)? (?:my (?:own )?life"
    r"(?! (?:insurance|assurance|policy|cover\w*|membership|as a)\b)|it all)"
    r"|tak(?:e|ing) my (?:own life|life\b(?! (?:to|back|in|into|for|seriously|on)\b))"
    r"|commit(?:ting)? suicide)"
)
_MEDICINE = (
    r"(?:pills?|tablets?|capsules?|paracetamol|acetaminophen|tylenol|ibuprofen|aspirin|insulin"
    r"|antidepressants?|benzos?|xanax|opioids?|painkillers?|medication|meds|sleeping|oxycodone|doses?)"
)
_ENGLISH = re.compile(
    rf"\b(?:kill(?:ing)?|hang(?:ing)?|drown(?:ing)?|unaliv(?:e|ing)) my ?self\b"
    rf"|{_WISH} (?:\w+ )?(?:hurt|cut|harm|shoot|starv|stab|burn)(?:t?ing|e|ing)? my ?self\b"
    r"(?! (?:on (?!purpose|my\b)|while (?:cooking|chopping|slicing|shaving)|by accident"
    r"|accidentally|some|an?|out|short|at the gym)\b)"
    rf"|\b(?:slit(?:ting)?|slash(?:ed|ing)?) my (?:wrists?|throat|veins)|{_WISH} cut my wrists?\b"
    r"|^\W*kms (?:tonight|now|today|rn|soon)|\b(?:want to|wanna|gonna|going to|gotta|imma|i'll)"
    r" (?:just )?kms\b"
    rf"|\b(?:how|way|ways) (?:\w+ ){{0,4}}{_END}|{_I}{_WISH} (?:\w+ )?{_END}"
    rf"|{_I}(?:want(?:ed)? to|wanna|wish to|going to|gonna|about to|ready to|decided to)"
    r" (?:just |really |finally |fuckin[g']? |literally )?(?:die"
    r"|be dead(?! (?:tired|sure|serious|last|honest|set|on|wrong|weight|quiet|meat))"
    r"|not exist|stop existing)\b"
    r"|\bi wish i (?:was|were) (?:dead|never born)|\bi wish i(?:'d| had) never been born"
    r"|\bi(?: really| just)? (?:don't|do not|dont) (?:want to|wanna) (?:live(?= any ?more"
    r"|[.!?,]|$)|be alive|exist|be here any ?more|wake up (?:any ?more|again|tomorrow|tmrw|ever))"
    r"|\bi (?:hope|wish) i (?:don't|do not|never|didn't|wouldn't) wake up\b"
    r"|\bi(?:'?m| am| feel| have been|'ve been)(?: \w+){0,3} suicidal\b"
    r"|\bi (?:can't|cannot|can not) (?:go on(?= like| any ?more|[.!?,]|$)"
    r"|keep living|live like this(?= any ?(?:more|longer)|[.!?]|$)|live any ?more)\b"
    r"|\bi(?:'m| am)(?: \w+){0,2} (?:tired of (?:living|being alive|life)|better off dead)"
    r"|\bi'?d be better off dead|\bbetter off (?:without me|if i (?:was|were) (?:dead|gone))"
    r"|\bi (?:have|see|had)(?: got)? (?:no|nothing)(?: \w+){0,2} (?:to live"
    r"(?! (?:in (?!this|pain)|near|at|here|there|with)\b)|live for|for living)"
    r"|\bi (?:don't|can't|do not|cannot) see (?:a|any|the) (?:point|reason) (?:\w+ )?"
    r"(?:living|live|being alive|going on|go on)\b|\bi hate being alive\b"
    r"|\bi(?:'ve| have)?(?: \w+){0,2} (?:took|taken|swallowed)(?: \w+){0,2} (?:overdose"
    r"|(?:whole|entire) (?:bottle|box|pack\w*)(?! of (?:\w+ )?"
    r"(?:mints?|sweets?|cand(?:y|ies)|cookies|chocolates?|biscuits|gum|crisps|chips|juice|water"
    r"|milk|wine|beer|tea|coffee)\b)|all (?:of )?(?:my|the)(?: \w+){0,2} "
    rf"{_MEDICINE}\b(?! as (?:prescribed|directed|usual)|(?<=meds) (?:today|this)"
    r"|(?<=medication) (?:today|this))|(?:[1-9]\d|twenty|thirty|forty|fifty|sixty)"
    rf" (?:(?!m?c?g\b|ml|milli|units|minutes)\w+ )?{_MEDICINE}\b)"
    r"|\bi(?:'ve| have)?(?: \w+){0,2} overdosed\b(?! on (?:\w+ )?(?:netflix|chocolate|sugar|coffee"
    r"|tiktok|youtube|sunshine|cuteness|memes|news|cheese|tv|pizza|candy|media|christmas)\b)"
    r"|\bi(?:'ve| have)?(?: \w+){0,2} (?:self[- ]?harm(?:ed|ing)?|cutting again)\b"
    rf"|\bhow (?:many|much)\b.{{0,40}}{_MEDICINE}.{{0,40}}\b(?:to die|(?:to|will|would|could|can)"
    r" kill (?:me|you|yourself|my ?self)|end it|fatal for me"
    r"|(?:till|until|so that|so) i (?:don't|never) wake up|to never wake up|to not wake up)\b"
    r"|\b(?:painless|easiest|quickest|fastest|best|surest|simplest|peaceful|gentlest|least painful"
    r"|quick|easy)(?:ly)? (?:way|method)s? (?:to|of) (?:die"
    r"|dying(?! (?:my|your|fabrics?|hair|wool|cloth\w*|eggs|jeans|leather|cotton|shirts?|yarn))"
    r"|suicide|overdos\w+|kill(?:ing)? (?:yourself|oneself)|end(?:ing)? your life)\b"
    r"|\bhow (?:do|can|could|should|would) i (?:just )?(?:die|overdose)\b"
    r"|\b(?:my|a) suicide (?:note|plan)\b(?=.{0,40}\b(?:my|me|i)\b|[.!]?$)|\bmy suicide\b"
    r"|\b(?:jump|jumping|throw my ?self) (?:off|from|in front of|under) (?:\w+ )?"
    r"(?:bridge|roof|building|balcony|train|platform)\b(?=.{0,60}\b(?:end|i)\b|[.!]?$)"
)
_OTHER_ENGLISH = re.compile(
    r"\b(?:laughing|of laughter|of embarrassment|of shame|of boredom|of cuteness|of curiosity"
    r"|slack|shaving|rather die than|bungee|parachut\w*|novel|short story|screenplay|lyrics|poem"
    r"|character|protagonist|minecraft|game|(?:final|last|first|raid) boss|boss fight"
    r"|skyrim|dark souls|fortnite|roblox|zelda|terraria|valorant|elden|film|movie|translate"
    r"|mean|means|prevent\w*|research|thesis|essay|statistics|caller|helpline|volunteer\w*|training"
    r"|dice|dye|cooking|chopping|if (?:someone|somebody|a friend)|(?:she|he|they|who) says?"
    r"|(?:want|wants|get|make|convince|tell|told|help|let|ask)(?:ed|ing|s)? (?:him|her|them|you)\b)"
)

# What makes it another's: reported, or the one who is meant follows.
_TOLD = (
    r"(?![」』\"]?(?:って|と|とか|なんて|などと|という|っていう)?(?:いつも|よく|毎日|何度も|ずっと|ばかり)?"
    r"(?:言|いう|いって|書|つぶや|呟|話す|口に|投稿|ツイ|メッセ|漏ら|訴え|検索|叫|送って|冗談(?!じゃ|では))"
    r"|(?:って|と)?(?:思って|考えて|悩んで)?(?:い)?る?(?:人|友|子|方|娘|息子|妹|弟|姉|兄|生徒|児童|学生"
    r"|患者|若者|家族|同僚|後輩|部下)|らしい|みたい|そうで|そうに見|がって)"
)
_NOW = (
    r"(?:^|[、。！!?？…\s]|もう|このまま|今すぐ|この世から"
    r"|いっそ|早く|楽に|全部|本当に|ほんとに|ふと)"
)
_JAPANESE = re.compile(
    rf"(?<!恥ずかしくて)(?<!はずかしくて)(?<!恥ずかしすぎて)(?:死|し|シ|氏|タヒ)[にニ]"
    rf"(?:たい(?!し[てた])|タイ|て[えぇ~ー]|テ[エェ]|たく(?:て|なっ|なる|なり)|たかった|たすぎ){_TOLD}"
    rf"|死んで?(?:しまいたい|じゃいたい|もいいや|もいいかな){_TOLD}|死の(?:うと(?:思|し)|うかな|う[。…]?$)"
    rf"|死ぬ(?:しかない|つもり|ことに(?:し|決)|ことばかり|ことしか|勇気|方法を?(?:教|知|$)){_TOLD}"
    rf"|(?<![てで])死ね(?:る(?![ほ程])|ます|ない[。かの])|死(?:に|ぬ)(?:方|かた)を?(?:教え|知りた)"
    r"|(?:今から|今夜|これから|今日|明日)、?死(?:にます|ぬ(?:ね|よ|から|わ)?[。!！…]*$)"
    r"|死んだ(?:ほう|方)が(?:いい|良い|よい|まし)(?:のかな|かな|よね|のでは|んじゃ|のか[。…]?$|と思[うっ])"
    r"|(?<![はと])もう生きて(?:い|ゆ)?けな|(?:私|僕|俺|自分|わたし|ぼく|おれ|いっそ|もう)[^。]{0,4}死んだ(?:ほう|方)が"
    rf"|{_NOW}(?:消えたい|消えてしまいたい|消えちゃいたい|消えてなくなりたい|いなくなりたい|楽になりたい(?![^。]{{0,4}}"
    rf"(?:花粉|風邪|鼻|腰|肩|頭痛|歯|咳|つわり|筋肉痛))){_TOLD}"
    rf"|自殺(?:し(?:たい|たく|ようと|ます|よう[。…]?$|てしまい|そう)|する(?:しか|つもり|ことに|勇気)"
    rf"|を(?:考え|決め|図)|(?:の|する)?(?:やり方|方法|仕方)を?(?:教|知りた|$)){_TOLD}"
    r"|生きて(?:い)?(?:たくな|きたくな|く(?:自信|気力)|なきゃ(?:いけ|だめ|なら)|ても(?:仕方|しょうが|しかた|意味))"
    r"|生き(?:て(?:い)?)?る(?:の(?:が|も|に)(?:つら|辛|しんど|疲れ|嫌|いや|苦し|怖)"
    r"|(?:意味|価値|資格|理由|気力)(?:が|も|なんて|って|を)?(?:な[いく]|あるの|わか[らり]|分か[らり]|見失|見つから))"
    r"|人生を?(?:終わらせたい|終わりにしたい|終わりにしよう|やめたい)|命を?(?:絶|断)(?:ちたい|とう|つ)"
    r"|もう全部終わりにしたい|生まれて(?:こ|来)なければ"
    rf"|(?:リスカ|リストカット|自傷|オーバードーズ|\bod\b)(?:を)?(?:し(?:た[いく]|てしま|ちゃ|そう|て(?:い)?る)"
    rf"|が?(?:やめ|止め)られ|してきた){_TOLD}|手首を切(?:りた|ろう|ってしま|っちゃ|った)"
    r"|(?:薬|錠|眠剤).{0,10}(?:全部|大量|まとめて|一気|瓶ごと|[3-9]\d錠|\d{3}錠).{0,4}飲(?:んだ|みま|んでしま"
    r"|んじゃ|もう)|(?:薬|錠|眠剤).{0,10}(?:全部|いっぺん|一気).{0,8}飲んだらどう"
    r"|何(?:錠|粒|本|グラム|ミリ|mg|階).{0,14}死[ねぬにん亡]|(?:薬|錠|剤|アセトアミノフェン|ロキソニン"
    r"|カロナール|バファリン).{0,10}致死量"
    rf"|飛び降り(?:たい|よう|ます|れば|るつもり){_TOLD}|(?:電車|線路|ホーム).{{0,6}}飛び込(?:みた|みそ|みま|もう|め)"
    r"|首を?(?:吊|つ)(?:りた|りま|ろう|るしか|れば)|首吊り(?:した|の?(?:やり方|方法|仕方))"
    rf"|遺書を?(?:書(?:いた|きた|きま|き終|いて|こう)|残し)|遺書の書き方"
)
_OTHER_JAPANESE = re.compile(
    r"小説|物語|主人公|登場人物|歌詞|脚本|漫画|マンガ|ゲーム|映画|ドラマ|ミステリ|英語|翻訳|意味は|という言葉"
    r"|予防|統計|報道|ガイドライン|研究|論文|研修|相談員|啓発|笑い死|飲ませ|(?<!自)殺[しす]|あいつ(?:を|は|の|が|なんか)|追い込[むみめん]"
    r"|サイト|記事|(?:処方された|今日の|朝の|夜の|食後の|一日分の)薬[をは]全部飲みま"
    r"|(?:花粉|風邪|鼻|腰|肩|頭痛|歯|咳|つわり|筋肉痛).{0,10}楽になりたい|ロミオ|落とせば|(?:彼|彼女)はなぜ"
    r"|プール|バンジー|スカイダイビング|くらいなら|ぐらいなら|まで死ね|まだ死ね|犬|猫|ゴキブリ|害虫|背中を押|させ"
)
