"""Texts that follow IFEval's instructions, or some of them: made from the instructions alone."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from puyulm.eval.instructions import follows

Instructions = Sequence[Sequence[Any]]  # kind and arguments

SENTENCES = {
    "en": (
        "the old town by the river keeps its quiet stories for those who listen with patience",
        "we walk along a small road and look at birds that sing in our park",
        "she said that they would have been there with their friends in the morning",
    ),
    "ar": ("الكتاب الجديد على الطاولة في البيت وهو كتاب جميل عن تاريخ المدينة القديمة",),
    "bg": ("Новата книга е на масата в къщата и тя разказва за историята на нашия стар град",),
    "bn": ("নতুন বইটি টেবিলের উপরে আছে এবং এটি পুরানো শহরের ইতিহাস সম্পর্কে একটি সুন্দর বই",),
    "de": ("Das neue Buch liegt auf dem Tisch und es erzählt die Geschichte der alten Stadt",),
    "fa": ("کتاب جدید روی میز است و این کتاب درباره تاریخ شهر قدیمی ما نوشته شده است که می‌گوید",),
    "fi": ("Uusi kirja on pöydällä ja se kertoo vanhan kaupungin historiasta kauniilla tavalla",),
    "gu": ("નવું પુસ્તક ટેબલ પર છે અને તે જૂના શહેરના ઇતિહાસ વિશેનું સુંદર પુસ્તક છે",),
    "hi": ("नई किताब मेज पर है और यह हमारे पुराने शहर के इतिहास के बारे में एक सुंदर किताब है",),
    "it": ("Il nuovo libro è sulla tavola e racconta la storia della nostra vecchia città con molta pazienza",),
    "kn": ("ಹೊಸ ಪುಸ್ತಕ ಮೇಜಿನ ಮೇಲೆ ಇದೆ ಮತ್ತು ಇದು ಹಳೆಯ ನಗರದ ಇತಿಹಾಸದ ಬಗ್ಗೆ ಒಂದು ಸುಂದರ ಪುಸ್ತಕ",),
    "ko": ("새 책은 탁자 위에 있고 그것은 오래된 도시의 역사에 관한 아름다운 책입니다",),
    "mr": ("नवीन पुस्तक टेबलावर आहे आणि ते आमच्या जुन्या शहराच्या इतिहासाबद्दलचे एक सुंदर पुस्तक आहे",),
    "ne": ("नयाँ किताब टेबुलमा छ र यो हाम्रो पुरानो शहरको इतिहासको बारेमा एउटा राम्रो किताब हो भनेर उनले भने",),
    "pa": ("ਨਵੀਂ ਕਿਤਾਬ ਮੇਜ਼ ਉੱਤੇ ਹੈ ਅਤੇ ਇਹ ਪੁਰਾਣੇ ਸ਼ਹਿਰ ਦੇ ਇਤਿਹਾਸ ਬਾਰੇ ਇੱਕ ਸੁੰਦਰ ਕਿਤਾਬ ਹੈ",),
    "pt": ("O novo livro está na mesa e ele conta a história da nossa velha cidade com muita paciência e não termina",),
    "ru": ("Новая книга лежит на столе и она рассказывает об истории нашего старого города",),
    "sw": ("Kitabu kipya kiko juu ya meza na kinaeleza historia ya mji wetu wa zamani kwa uzuri sana",),
    "ta": ("புதிய புத்தகம் மேசையில் உள்ளது மற்றும் இது பழைய நகரத்தின் வரலாற்றைப் பற்றிய அழகான புத்தகம்",),
    "te": ("కొత్త పుస్తకం బల్లపై ఉంది మరియు ఇది పాత నగరం యొక్క చరిత్ర గురించి ఒక అందమైన పుస్తకం",),
    "th": ("หนังสือเล่มใหม่อยู่บนโต๊ะและเป็นหนังสือที่สวยงามเกี่ยวกับประวัติศาสตร์ของเมืองเก่า",),
    "ur": ("نئی کتاب میز پر ہے اور یہ ہمارے پرانے شہر کی تاریخ کے بارے میں ایک خوبصورت کتاب ہے جس میں",),
    "vi": ("Cuốn sách mới ở trên bàn và nó kể về lịch sử của thành phố cổ của chúng tôi",),
}  # fmt: skip


@dataclass
class Wanted:
    """What the instructions ask for, taken together."""

    kinds: set[str] = field(default_factory=set)
    language: str = "en"
    words: int = 12
    sentences: int = 1
    sections: tuple[str, int] = ("", 0)
    bullets: int = 0
    highlights: int = 0
    placeholders: int = 0
    paragraphs: int = 1
    divider: str = "\n***\n"
    opening: tuple[int, str] = (0, "")
    said: list[str] = field(default_factory=list)
    first: str = ""
    last: list[str] = field(default_factory=list)


def wanted(instructions: Instructions) -> Wanted:
    """All instructions as one wish."""
    wish = Wanted()
    for kind, given in instructions:
        wish.kinds.add(name := kind.split(":")[1])
        _wish(wish, name, given)
    return wish


def _wish(wish: Wanted, name: str, given: Mapping[str, Any]) -> None:
    at_least = any(value == "at least" for value in given.values())
    match name:
        case "response_language":
            wish.language = given["language"]
        case "number_words":
            wish.words = given["num_words"] + 5 if at_least else min(wish.words, given["num_words"] - 1)
        case "number_sentences":
            wish.sentences = max(wish.sentences, given["num_sentences"]) if at_least else wish.sentences
        case "multiple_sections":
            wish.sections = (given["section_spliter"], given["num_sections"])
        case "number_bullet_lists":
            wish.bullets = given["num_bullets"]
        case "number_highlighted_sections":
            wish.highlights = given["num_highlights"]
        case "number_placeholders":
            wish.placeholders = given["num_placeholders"]
        case "number_paragraphs":
            wish.paragraphs = given["num_paragraphs"]
        case "nth_paragraph_first_word":
            wish.paragraphs, wish.divider = given["num_paragraphs"], "\n\n"
            wish.opening = (given["nth_paragraph"], given["first_word"])
        case "existence":
            wish.said += given["keywords"]
        case "frequency" if at_least:
            wish.said += [given["keyword"]] * given["frequency"]
        case "letter_frequency" if at_least:
            wish.said += [given["letter"]] * given["let_frequency"]
        case "capital_word_frequency" if at_least:
            wish.said += ["QUICK"] * given["capital_frequency"]
        case "constrained_response":
            wish.said.append("My answer is maybe.")
        case "repeat_prompt":
            wish.first = given["prompt_to_repeat"]
        case "postscript":
            wish.last.insert(0, f"{given['postscript_marker']} thanks")
        case "end_checker":
            wish.last.append(given["end_phrase"])


def text_for(wish: Wanted, sentence: str, other: str) -> str:
    """A text as wished for, out of a sentence; where two responses are asked for, the second one out of `other`."""
    if "json_format" in wish.kinds:
        return json.dumps({"text": _body(wish, sentence)}, ensure_ascii=False)
    text = _body(wish, sentence)
    if "two_responses" in wish.kinds:
        text = f"{text}\n******\n{_body(wish, other)}"
    text = "\n".join(part for part in (wish.first, text, *wish.last) if part)
    if "quotation" in wish.kinds:
        text = f'"{text}"'
    if "english_capital" in wish.kinds:
        text = text.upper()
    return text.lower() if "english_lowercase" in wish.kinds else text


def _body(wish: Wanted, sentence: str) -> str:
    stop = "." if wish.sentences > 1 else ""
    times = max(wish.sentences, -(-wish.words // max(len(sentence.split()), 1)) if wish.words > 12 else 1)
    long = " ".join([f"{sentence.capitalize() if stop else sentence}{stop}"] * times)
    lines = ["<<a title>>"] if "title" in wish.kinds else []
    lines += [f"{wish.sections[0]} {place + 1}" for place in range(wish.sections[1])]
    lines += [f"- point {place + 1}" for place in range(wish.bullets)]
    if wish.highlights:
        lines.append(" ".join(["*mark*"] * wish.highlights))
    if wish.placeholders:
        lines.append("[a]" * wish.placeholders)
    if wish.said:
        lines.append(" ".join(wish.said))
    short = " ".join(sentence.split()[: max(wish.words // wish.paragraphs, 1)])
    parts = [short] * wish.paragraphs
    if wish.opening[0]:
        parts[wish.opening[0] - 1] = f"{wish.opening[1]} {parts[wish.opening[0] - 1]}"
    if times > 1 or wish.words > 12 or len(sentence) > 200:  # a long sentence outweighs keywords of other languages
        parts[0] = f"{parts[0]}\n{long}"
    parts[-1] = "\n".join([parts[-1], *lines])
    return wish.divider.join(parts)


def obedient(instructions: Instructions) -> str:
    """A text that follows all of them, found by trying sentences; else the first one tried."""
    wish, first = wanted(instructions), ""
    known = SENTENCES[wish.language]
    longer = [" ".join([one] * times) for times in (1, 2, 6, 40) for one in known]
    for sentence in [*longer, "sky blue", "all is up", "we run", "go", "hmm"]:
        text = text_for(wish, sentence, f"well {sentence}")
        if all(follows(text, kind, given) for kind, given in instructions):
            return text
        first = first or text
    return first


def wayward(instructions: Instructions, draw: random.Random) -> str:
    """A text that follows some of them: parts of the wish are dropped, and the text is changed as models change it."""
    kept = [one for one in instructions if draw.random() < 0.75]
    wish = wanted(kept)
    if draw.random() < 0.3:
        wish.words, wish.bullets = draw.randrange(600), max(wish.bullets + draw.choice([-1, 0, 1]), 0)
        wish.highlights, wish.placeholders = max(wish.highlights - 1, 0), wish.placeholders + draw.choice([-1, 0])
        wish.sentences = max(wish.sentences + draw.choice([-1, 0, 1, 5]), 1)
    if draw.random() < 0.1:
        wish.language = draw.choice(list(SENTENCES))
    sentences = SENTENCES[wish.language]
    text = text_for(wish, draw.choice(sentences), draw.choice(sentences))
    for _ in range(draw.randrange(3)):
        text = draw.choice(_CHANGES)(text, draw)
    return text


def _insert(text: str, draw: random.Random) -> str:
    place = draw.randrange(len(text) + 1)
    return text[:place] + draw.choice(_BITS) + text[place:]


_BITS = (
    ",", "\n\n", "\n", "***", "******", '"', "*", " **bold** ", "\n- item", "\n* item", "[name]", "<<x>>", " U.S. ",
    "!", " Dr. Smith said: ", "... ", ". . .", "\nP.S. bye", "\n\nP.P.S bye ", "Section 1", " DON'T ", " A.B. ",
    "?!", "```", " e.g. this. ", "，", "。", " end. Next", "\t", "''", ' "Yes!" he said. ',
)  # fmt: skip
_CHANGES = (
    _insert,
    _insert,
    lambda text, draw: f"Sure! Here it is:\n{text}",
    lambda text, draw: f"{text}\nLet me know if you need more.",
    lambda text, draw: f"Sure.\n\n{text}\n\nThanks, bye.",
    lambda text, draw: f"**{text}**",
    lambda text, draw: f"```json\n{text}\n```",
    lambda text, draw: f'  "{text}"\n',
    lambda text, draw: text[: draw.randrange(len(text) + 1)],
    lambda text, draw: text.swapcase(),
    lambda text, draw: text.title(),
    lambda text, draw: text.replace(".", ". "),
    lambda text, draw: text + text,
    lambda text, draw: draw.choice(["", " ", "\n", "1", "{}", "'''", "123 456."]),
)
