"""One file of code: its language, its licence, what speaks against it, and its quality tier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from puyulm.data.code.languages import Language, detect_language, language_named, path_of
from puyulm.data.code.licences import find_licence, is_allowed, is_licence_file, normal_expression
from puyulm.data.code.rules import features_of, is_test, problem, rules_score
from puyulm.data.code.settings import CodeSettings, TierThresholds, Unknown
from puyulm.data.documents import Document
from puyulm.data.pipeline.counts import Dropped, Outcome

RULES_SCORE = "code.rules"
TIERS = ("low", "moderate", "high")


def judge(document: Document, settings: CodeSettings) -> Outcome:
    """Keeps or drops one document of the language "code"; any other passes as it is.

    A kept one has `metadata["programming_language"]` (empty if unknown; what stands there already counts),
    `metadata["tier"]`, `licence` where one was found, and `scores["code.rules"]`.
    """
    if document.language != "code":
        return document
    path = path_of(document)
    language = language_of(document, path)
    licence = find_licence(document.text) or normal_expression(document.licence)
    document = replace(
        document,
        licence=licence,
        metadata={**document.metadata, "programming_language": language.name if language is not None else ""},
    )
    reason = licence_problem(licence, settings.licences, settings.unknown_licence)
    if reason and not is_licence_file(path):  # the stage `repositories` reads those for the files beside them
        return Dropped(document, reason)
    if settings.drop_tests and is_test(path):
        return Dropped(document, "code: test")
    features = features_of(document.text, language)
    if reason := problem(features, document.text, path, language, settings.limits):
        return Dropped(document, reason)
    if language is None or language.kind == "code":
        score = round(rules_score(features, settings.limits), 4)
        document = replace(document, scores={**document.scores, RULES_SCORE: score})
    tier = tier_of(document, language, settings)
    if tier == "low":
        return Dropped(document, "code: low tier")
    return replace(document, metadata={**document.metadata, "tier": tier})


def language_of(document: Document, path: str) -> Language | None:
    """The document's language as its metadata names it, or else as its path and text tell."""
    named = document.metadata.get("programming_language")
    found = language_named(named) if isinstance(named, str) else None
    return found or detect_language(path, document.text)


def licence_problem(licence: str, allowed: Sequence[str], unknown: Unknown) -> str | None:
    """Why a licence expression ("" if unknown) does not do, as a reason; None if it does."""
    if not allowed or (not licence and unknown == "keep"):
        return None
    if not licence:
        return "code: licence unknown"
    return None if is_allowed(licence, allowed) else "code: licence not allowed"


def tier_of(document: Document, language: Language | None, settings: CodeSettings) -> str:
    """The quality tier: by the scorer where it is trusted, else by the rules; "moderate" for what neither judges."""
    name = language.name if language is not None else ""
    trusted = not settings.scorer_languages or name in settings.scorer_languages
    if settings.scorer and trusted and settings.scorer in document.scores:
        tier = _tier(document.scores[settings.scorer], settings.scorer_tiers)
    elif RULES_SCORE in document.scores:
        tier = _tier(document.scores[RULES_SCORE], settings.rules_tiers)
    else:
        tier = "moderate"
    return "moderate" if tier == "low" and name in settings.always_keep else tier


def _tier(score: float, thresholds: TierThresholds) -> str:
    if score < thresholds.low:
        return "low"
    return "high" if thresholds.high is not None and score >= thresholds.high else "moderate"
