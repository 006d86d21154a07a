"""What the tests of reading share: running readers over pieces, and pages made by hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from puyulm.data.documents import Document
from puyulm.data.format.pieces import Piece
from puyulm.data.format.read import plan_tasks, read_piece, with_languages
from puyulm.data.format.settings import FormatSettings, InputSettings
from puyulm.data.pipeline.counts import Counts, Dropped, Outcome


def settings_for(*paths: Path | str, kind: str = "auto", source: str = "s", **options: Any) -> FormatSettings:
    """Settings with one input; `options` go to it or to the stage, whichever has such a field."""
    of_input = {name: options.pop(name) for name in list(options) if name in InputSettings.__dataclass_fields__}
    given = InputSettings(tuple(map(str, paths)), kind=kind, source=source, **of_input)  # type: ignore[arg-type]
    return FormatSettings((given,), **options)


def read_all(settings: FormatSettings, task_bytes: int = 1 << 40) -> tuple[list[Outcome], Counts]:
    """All outcomes, with languages, and what was counted; checks that every item of input is accounted for."""
    counts = Counts()
    outcomes: list[Outcome] = []
    for task in plan_tasks(settings, task_bytes):
        found = (outcome for piece in task for outcome in read_piece(piece, settings, counts))
        outcomes += with_languages(found, settings)
    for outcome in outcomes:
        counts.add(outcome)
    skipped = sum(amount for name, amount in counts.notes.items() if name.startswith("skipped: "))
    dropped = sum(documents for documents, _ in counts.dropped.values())
    assert counts.documents_in == counts.documents_out + dropped + skipped
    ids = [(outcome.document if isinstance(outcome, Dropped) else outcome).id for outcome in outcomes]
    assert len(set(ids)) == len(ids)
    return outcomes, counts


def kept(outcomes: Iterable[Outcome]) -> list[Document]:
    """The documents."""
    return [outcome for outcome in outcomes if isinstance(outcome, Document)]


def reasons(outcomes: Iterable[Outcome]) -> list[str]:
    """Why the others were dropped."""
    return [outcome.reason for outcome in outcomes if isinstance(outcome, Dropped)]


def whole_piece(settings: FormatSettings) -> Piece:
    """The one file of the input."""
    [[piece]] = plan_tasks(settings, 1 << 40)
    return piece


def read_ranges(settings: FormatSettings, cuts: Sequence[int]) -> tuple[list[Outcome], Counts]:
    """The outcomes of the one file of the input, read in ranges that end at the given bytes."""
    piece = whole_piece(settings)
    counts = Counts()
    ends = sorted({0, piece.stop, *(cut for cut in cuts if 0 < cut < piece.stop)})
    outcomes: list[Outcome] = []
    for start, stop in pairwise(ends):
        outcomes += read_piece(replace(piece, start=start, stop=stop), settings, counts)
    return outcomes, counts


def page(title: str, paragraphs: Sequence[str], charset: str = "utf-8", declare: bool = True) -> bytes:
    """A page as sites have them: navigation, an article, a list of links, a footer."""
    menu = "".join(f'<li><a href="/{name}">{name}</a></li>' for name in ("Home", "Subscribe now", "Log in", "Shop"))
    more = "".join(f'<li><a href="/{i}">Related story number {i}</a></li>' for i in range(12))
    meta = f'<meta charset="{charset}">' if declare else ""
    html = f"""<!DOCTYPE html>
<html><head>{meta}<title>{title}</title><style>body {{ color: red }}</style>
<script>var tracker = "do not read me";</script></head>
<body><nav class="navbar"><ul>{menu}</ul></nav>
<main><article><h1>{title}</h1>
{"".join(f"<p>{paragraph}</p>" for paragraph in paragraphs)}
</article></main>
<aside class="sidebar"><h3>Most read</h3><ul>{more}</ul></aside>
<footer id="footer"><p>Copyright 2024 Example Media. All rights reserved. Cookie settings.</p></footer>
</body></html>"""
    return html.encode(charset)


BOILERPLATE = ("Subscribe now", "Log in", "Related story", "Cookie settings", "tracker", "color: red")

TEXTS: dict[str, list[str]] = {
    "en": [
        "The harbour froze early that winter, and the fishing boats stayed on the beach until the middle of March.",
        "Nobody in the village could remember such a long frost, although the oldest of them had seen ninety years.",
        "When the ice broke at last, the men pushed the boats down to the water and sang as their fathers had done.",
    ],
    "zh": [
        "那年冬天港口结冰很早，渔船一直停在沙滩上，直到三月中旬才重新下水。",
        "村里没有人记得这样漫长的严寒，虽然最年长的老人已经活了九十多年。",
        "冰终于化开的时候，人们把船推到水里，像他们的父辈那样唱起了歌，孩子们在岸上奔跑欢呼。",
    ],
    "de": [
        "Der Hafen fror in jenem Winter früh zu, und die Fischerboote blieben bis Mitte März am Strand liegen.",
        "Niemand im Dorf konnte sich an einen so langen Frost erinnern, obwohl die Ältesten neunzig Jahre alt waren.",
        "Als das Eis endlich brach, schoben die Männer die Boote ins Wasser und sangen wie einst ihre Väter.",
    ],
    "fr": [
        "Le port gela tôt cet hiver-là, et les bateaux de pêche restèrent sur la plage jusqu'à la mi-mars.",
        "Personne au village ne se souvenait d'un froid aussi long, bien que les plus vieux eussent cent ans.",
        "Quand la glace céda enfin, les hommes poussèrent les bateaux à l'eau en chantant comme leurs pères.",
    ],
    "es": [
        "El puerto se heló pronto aquel invierno y las barcas de pesca se quedaron en la playa hasta marzo.",
        "Nadie en el pueblo recordaba una helada tan larga, aunque los más viejos tenían ya noventa años cumplidos.",
        "Cuando por fin se rompió el hielo, los hombres empujaron las barcas al agua y cantaron como sus padres.",
    ],
    "ru": [
        "В ту зиму гавань замёрзла рано, и рыбацкие лодки лежали на берегу до середины марта.",
        "Никто в деревне не помнил таких долгих морозов, хотя самым старым было уже за девяносто лет.",
        "Когда лёд наконец тронулся, мужчины столкнули лодки в воду и запели, как пели когда-то их отцы.",
    ],
    "ja": [
        "その冬、港は早くから凍りつき、漁船は三月の半ばまで浜辺に置かれたままだった。",
        "村の誰もこれほど長い寒さを覚えていなかった。いちばんの年寄りは九十を越えていたのだが。",
        "ようやく氷が割れると、男たちは船を海へ押し出し、父親たちがしたように歌をうたった。",
    ],
    "ko": [
        "그해 겨울에는 항구가 일찍 얼어붙어서 고깃배들이 삼월 중순까지 바닷가에 머물러 있었다.",
        "마을에서 가장 나이 많은 노인도 이렇게 긴 추위를 겪어 본 기억이 없다고 말했다.",
        "마침내 얼음이 풀리자 사람들은 배를 물로 밀어 넣으며 아버지들이 그랬듯이 노래를 불렀다.",
    ],
    "ar": [
        "تجمد الميناء مبكرا في ذلك الشتاء وبقيت قوارب الصيد على الشاطئ حتى منتصف شهر مارس.",
        "لم يتذكر أحد في القرية بردا طويلا كهذا مع أن أكبرهم سنا كان قد تجاوز التسعين من عمره.",
        "وعندما ذاب الجليد أخيرا دفع الرجال القوارب إلى الماء وهم يغنون كما كان آباؤهم يغنون.",
    ],
    "it": [
        "Quell'inverno il porto gelò presto e le barche dei pescatori rimasero sulla spiaggia fino a metà marzo.",
        "Nessuno nel villaggio ricordava un gelo così lungo, benché i più vecchi avessero ormai novant'anni.",
        "Quando finalmente il ghiaccio si ruppe, gli uomini spinsero le barche in acqua cantando come i loro padri.",
    ],
    "he": [
        "באותו חורף קפא הנמל מוקדם, וסירות הדיג נשארו על החוף עד אמצע חודש מרץ.",
        "איש בכפר לא זכר קור ממושך כל כך, אף שהזקנים ביותר כבר עברו את גיל תשעים.",
        "כשנשבר הקרח סוף סוף, דחפו הגברים את הסירות אל המים ושרו כמו שאבותיהם שרו.",
    ],
    "pl": [
        "Tamtej zimy port zamarzł wcześnie, a łodzie rybackie leżały na plaży aż do połowy marca.",
        "Nikt we wsi nie pamiętał tak długiego mrozu, chociaż najstarsi mieli już ponad dziewięćdziesiąt lat.",
        "Kiedy lód wreszcie puścił, mężczyźni zepchnęli łodzie do wody i śpiewali, jak niegdyś ich ojcowie.",
    ],
}
