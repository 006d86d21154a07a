"""What the rules ask of a text, as arrays over a batch; each group is computed once, when a rule first asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from puyulm.data.clean import characters as c
from puyulm.data.clean.characters import Mask, members
from puyulm.data.clean.ngrams import NgramShares, Shares, ngram_shares
from puyulm.data.clean.texts import Integers, Texts, occurred_before
from puyulm.data.words import words_of

TOP_NGRAMS = (2, 3, 4)
DUPLICATE_NGRAMS = (5, 6, 7, 8, 9, 10)
MOJIBAKE = "锟斤拷"  # two U+FFFD, written as UTF-8 and read as GBK

# UTF-8 read as Windows-1252: the first byte of a character of two or three bytes, and what the other bytes become.
_LEADS_OF_TWO = "ÂÃÐÑ"
_LEADS_OF_THREE = "âãäåæçèéï"
_CONTINUATIONS = "€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ" + "".join(map(chr, range(0x80, 0xC0)))
_RUN = 4  # as many equal marks in a row are no punctuation but a drawing


class Features:
    """Figures of D texts, each an array `[D]`; shares are of 1, and 0 where there is nothing to count.

    Args:
        texts: The batch.
        words_per_gram: How many of our words stand for one of the published n-grams' words: 1 where spaces separate
            words, more where each character is a word.
        flagged_words: Words that stood in lines which a line rule flagged, and all words before lines were dropped,
            `[D, 2]`; None if no line rule ran.
    """

    def __init__(self, texts: Texts, words_per_gram: float = 1.0, flagged_words: Integers | None = None) -> None:
        self.texts = texts
        self.words_per_gram = words_per_gram
        self._flagged = flagged_words

    @property
    def languages(self) -> tuple[str, ...]:
        """Language of each text."""
        return self.texts.languages

    # Characters

    @property
    def characters(self) -> Integers:
        """Length of the text."""
        return self.texts.characters

    def count(self, *classes: int) -> Integers:
        """Characters of some classes."""
        return self.texts.histogram[:, list(classes)].sum(axis=1)

    @cached_property
    def solid_characters(self) -> Integers:
        """Characters that are not white space."""
        return self.characters - self.count(c.NEWLINE, c.SPACE)

    def share(self, *classes: int) -> Shares:
        """Characters of some classes in those that are not white space."""
        return ratio(self.count(*classes), self.solid_characters)

    @property
    def cjk_share(self) -> Shares:
        """Share of Chinese characters, kana and Hangul."""
        return self.share(c.HAN, c.SYLLABLE)

    @property
    def letter_share(self) -> Shares:
        """Share of letters of any script."""
        return self.share(*c.ALPHABETIC)

    @property
    def punctuation_share(self) -> Shares:
        """Share of punctuation and symbols."""
        return self.share(*c.MARKS)

    @property
    def abnormal_share(self) -> Shares:
        """Control, private-use, surrogate, replacement and non-characters per character."""
        return ratio(self.count(c.ABNORMAL), self.characters)

    @property
    def uppercase_share(self) -> Shares:
        """Capitals in letters that have case."""
        return ratio(self.count(c.UPPER), self.count(c.UPPER, c.LOWER))

    @cached_property
    def utf8_bytes(self) -> Integers:
        """Length in UTF-8."""
        return np.array([len(text.encode("utf-8", "surrogatepass")) for text in self.texts.strings], dtype=np.int64)

    @cached_property
    def repeated_mark_share(self) -> Shares:
        """Share of characters in runs of four or more equal marks: rules drawn with hyphens, rows of stars."""
        codes = self.texts.codes
        marks = members(*c.MARKS)[self.texts.classes]
        same = np.flatnonzero((codes[1:] == codes[:-1]) & marks[1:])  # place and the next hold the same mark
        fresh = np.flatnonzero(np.diff(same, prepend=-2) != 1)
        lengths = np.diff(np.append(fresh, len(same))) + 1
        owners = self.texts.owners(same[fresh])
        long = np.bincount(owners, np.where(lengths >= _RUN, lengths, 0), len(self.texts))
        return ratio(long, self.solid_characters)

    @cached_property
    def mojibake_share(self) -> Shares:
        """Share of characters in sequences that only a wrong encoding gives (â€™, Ã©, 锟斤拷)."""
        codes = self.texts.codes
        suspects = np.flatnonzero((codes >= 0xC2) & (codes <= 0xEF))
        follows = np.append(codes, [0, 0]).astype(np.uint32)
        first, second = (np.isin(follows[suspects + step], _codes(_CONTINUATIONS)) for step in (1, 2))
        lead = codes[suspects]
        sizes = np.where(np.isin(lead, _codes(_LEADS_OF_TWO)) & first, 2, 0)
        sizes = np.where(np.isin(lead, _codes(_LEADS_OF_THREE)) & first & second, 3, sizes)
        latin = np.bincount(self.texts.owners(suspects), sizes, len(self.texts))
        chinese = self.texts.per_text(self.texts.find(MOJIBAKE)) * len(MOJIBAKE)
        return ratio(latin + chinese, self.solid_characters)

    # Words

    @property
    def words(self) -> Integers:
        """Words; a Chinese character is one."""
        return self.texts.words.counts

    @cached_property
    def mean_word_length(self) -> Shares:
        """Characters in a word."""
        words = self.texts.words
        lengths = np.concatenate([[0], np.cumsum(words.ends - words.starts)])
        return ratio(np.diff(lengths[words.first]), self.words)

    @cached_property
    def single_letter_words(self) -> Shares:
        """Words of one letter or digit, in all words."""
        words = self.texts.words
        return ratio(self.texts.per_text(words.starts[words.ends - words.starts == 1]), self.words)

    @cached_property
    def alphabetic_words(self) -> Shares:
        """Words between spaces that hold a letter, in all such words."""
        solid = self.texts.classes > c.SPACE
        starts = np.flatnonzero(solid & ~np.concatenate([[False], solid[:-1]]))
        if not len(starts):
            return np.zeros(len(self.texts))
        letters = members(*c.ALPHABETIC)[self.texts.classes].view(np.uint8)
        alphabetic = np.maximum.reduceat(letters, starts) > 0
        return ratio(self.texts.per_text(starts[alphabetic]), self.texts.per_text(starts))

    @property
    def hashes_per_word(self) -> Shares:
        """Hash symbols per word."""
        return ratio(self.count(c.HASH), self.words)

    @cached_property
    def ellipses_per_word(self) -> Shares:
        """Ellipses per word; three or more dots are one, and so is a run of the character for it (Chinese has two)."""
        classes, dots = self.texts.classes, np.flatnonzero(self.texts.codes == ord("."))
        signs = (classes == c.ELLIPSIS) & ~np.concatenate([[False], classes[:-1] == c.ELLIPSIS])
        found = self.texts.per_text(np.flatnonzero(signs))
        if len(dots) >= 3:
            begins = np.diff(dots, prepend=-2)[:-2] > 1
            found = found + self.texts.per_text(dots[:-2][begins & (dots[2:] - dots[:-2] == 2)])
        return ratio(found, self.words)

    def different_words(self, lists: dict[str, tuple[str, ...]]) -> Integers:
        """How many different words of its language's list a text has; -1 where there is no list."""
        words, found = self.texts.words, np.full(len(self.texts), -1)
        for language, listed in lists.items():
            mine = np.array([name.partition("-")[0] == language for name in self.languages], dtype=bool)
            if not mine.any():
                continue
            total = np.zeros(len(self.texts), dtype=np.int64)
            for value in np.unique(words_of(listed).hashes):
                places = words.starts[np.flatnonzero(words.hashes == value)]
                total += self.texts.per_text(places) > 0
            found[mine] = total[mine]
        return found

    def top_ngram(self, n: int) -> Shares:
        """Share of the words' characters in the most frequent n-gram; n of `TOP_NGRAMS`, times `words_per_gram`."""
        return self._ngrams.top[self._size(n)]

    def duplicate_ngrams(self, n: int, first: bool = True) -> Shares:
        """Share of the words' characters in n-grams that occur more than once, or, without `first`, that occurred
        before; n of `DUPLICATE_NGRAMS`, likewise."""
        return (self._ngrams.duplicate if first else self._ngrams.later)[self._size(n)]

    @cached_property
    def _ngrams(self) -> NgramShares:
        return ngram_shares(self.texts.words, [*map(self._size, TOP_NGRAMS)], [*map(self._size, DUPLICATE_NGRAMS)])

    def _size(self, n: int) -> int:
        return round(n * self.words_per_gram)

    # Lines; blank ones do not count

    @cached_property
    def lines(self) -> Integers:
        """Lines that are not blank."""
        return self._lines_with(np.ones(len(self.texts.lines.owner), dtype=bool))

    @cached_property
    def line_characters(self) -> Integers:
        """Characters in lines, without the white space around them."""
        return np.bincount(self.texts.lines.owner, self.texts.lines.lengths, len(self.texts)).astype(np.int64)

    @property
    def mean_line_length(self) -> Shares:
        """Characters in a line."""
        return ratio(self.line_characters, self.lines)

    @cached_property
    def longest_line(self) -> Integers:
        """Characters in the longest line."""
        longest = np.zeros(len(self.texts), dtype=np.int64)
        np.maximum.at(longest, self.texts.lines.owner, self.texts.lines.lengths)
        return longest

    def short_lines(self, length: int) -> Shares:
        """Lines of at most `length` characters, in all lines."""
        return self._line_share(self.texts.lines.lengths <= length)

    @cached_property
    def bullet_lines(self) -> Shares:
        """Lines that begin with a bullet, or with a hyphen, star or dash that stands alone."""
        first = self.texts.lines.first
        dashes = (self.texts.classes[first] == c.DASH) & (self.texts.classes[first + 1] <= c.SPACE)
        return self._line_share((self.texts.classes[first] == c.BULLET) | dashes)

    @cached_property
    def ellipsis_lines(self) -> Shares:
        """Lines that end with an ellipsis."""
        last = self.texts.lines.last
        dots = self.texts.lines.lengths >= 3
        for step in range(3):
            dots &= self.texts.codes[np.maximum(last - step, 0)] == ord(".")
        return self._line_share(dots | (self.texts.classes[last] == c.ELLIPSIS))

    @cached_property
    def terminal_lines(self) -> Shares:
        """Lines that end a sentence."""
        return self._line_share(ends_sentence(self.texts))

    @property
    def line_breaks_per_word(self) -> Shares:
        """Breaks between lines per word. Blank lines add none: whether there are some depends on the extractor."""
        return ratio(np.maximum(self.lines - 1, 0), self.words)

    @cached_property
    def sentences(self) -> Integers:
        """Sentences, by punctuation: where one ends, and where a line ends without its end."""
        classes = self.texts.classes
        end = members(*c.SENTENCE_END)
        places = np.flatnonzero(end[classes])
        after = classes[places + 1]  # a text is always followed by a line feed
        follows = members(c.NEWLINE, c.SPACE, c.QUOTE, c.BRACKET, c.HAN, c.SYLLABLE)[after]
        ends = ~end[after] & (follows | (classes[places] == c.WIDE_STOP))
        return self.texts.per_text(places[ends]) + self._lines_with(~ends_sentence(self.texts))

    def broken_lines(self, length: int) -> Shares:
        """Lines of at most `length` characters that break off inside a sentence: they end in a letter, and the next
        line goes on with a small letter or, in a script without capitals, with any letter."""
        lines, classes = self.texts.lines, self.texts.classes
        adjacent = (np.diff(lines.number, append=-1) == 1) & (np.diff(lines.owner, append=-1) == 0)
        goes_on = members(c.LOWER, c.LETTER, c.HAN, c.SYLLABLE)[classes[np.roll(lines.first, -1)]]
        ends_in_letter = members(*c.ALPHABETIC)[classes[lines.last]]
        return self._line_share(adjacent & goes_on & ends_in_letter & (lines.lengths <= length))

    @cached_property
    def duplicate_lines(self) -> Shares:
        """Lines that occurred before in the text, in all lines."""
        return self._line_share(self._seen_lines)

    @cached_property
    def duplicate_line_characters(self) -> Shares:
        """Characters in lines that occurred before, in all lines' characters."""
        return self.repeated_line_characters(0)

    def repeated_line_characters(self, shortest: int) -> Shares:
        """The same of lines of at least `shortest` characters only; in all lines' characters."""
        lines = self.texts.lines
        repeated = np.where(self._seen_lines & (lines.lengths >= shortest), lines.lengths, 0)
        return ratio(np.bincount(lines.owner, repeated, len(self.texts)), self.line_characters)

    @cached_property
    def duplicate_paragraphs(self) -> Shares:
        """Paragraphs that occurred before in the text, in all paragraphs."""
        owner = self._paragraph_owner
        seen = np.bincount(owner, self._seen_paragraphs, len(self.texts))
        return ratio(seen, np.bincount(owner, minlength=len(self.texts)))

    @cached_property
    def duplicate_paragraph_characters(self) -> Shares:
        """Characters in paragraphs that occurred before, in all lines' characters."""
        starts = self.texts.paragraphs
        if not len(starts):
            return np.zeros(len(self.texts))
        lengths = np.add.reduceat(self.texts.lines.lengths, starts)
        repeated = np.bincount(self._paragraph_owner, np.where(self._seen_paragraphs, lengths, 0), len(self.texts))
        return ratio(repeated, self.line_characters)

    # Phrases, and what line rules found

    def occurrences(self, phrase: str) -> Integers:
        """How often a phrase (in lower case) stands in the text, in any case."""
        return self.texts.per_text(self.texts.find(phrase))

    @cached_property
    def spaced_ideographs(self) -> Shares:
        """Pairs of neighbouring Chinese characters with a space between them, in all such pairs."""
        classes = self.texts.classes
        han = np.flatnonzero(classes == c.HAN)
        left, gap = han[:-1], np.diff(han)
        near = left[gap == 1]
        apart = left[gap == 2]
        apart = apart[classes[apart + 1] == c.SPACE]
        pairs, spaced = self.texts.per_text(near), self.texts.per_text(apart)
        return ratio(spaced, pairs + spaced)

    @property
    def flagged_words(self) -> Shares:
        """Words in lines that a line rule flagged, in all words before lines were dropped."""
        if self._flagged is None:
            return np.zeros(len(self.texts))
        return ratio(self._flagged[:, 0], self._flagged[:, 1])

    @cached_property
    def _seen_lines(self) -> Mask:
        return occurred_before(self.texts.lines.owner, self.texts.line_ids)

    @cached_property
    def _seen_paragraphs(self) -> Mask:
        return occurred_before(self._paragraph_owner, self.texts.paragraph_ids)

    @cached_property
    def _paragraph_owner(self) -> Integers:
        return self.texts.lines.owner[self.texts.paragraphs]

    def _lines_with(self, mask: Mask) -> Integers:
        return np.bincount(self.texts.lines.owner[mask], minlength=len(self.texts))

    def _line_share(self, mask: Mask) -> Shares:
        return ratio(self._lines_with(mask), self.lines)


def ratio(part: npt.ArrayLike, whole: npt.ArrayLike) -> Shares:
    """`part / whole`, and 0 where the whole is 0."""
    whole = np.asarray(whole, dtype=np.float64)
    return np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0)


def ends_sentence(texts: Texts) -> Mask:
    """Which lines end with a full stop, a question or exclamation mark or an ellipsis, or with one of these and a
    closing quotation mark or bracket, `[N]`."""
    lines, classes, end = texts.lines, texts.classes, members(*c.SENTENCE_END)
    last, before = classes[lines.last], classes[np.maximum(lines.last - 1, lines.first)]
    return end[last] | (members(c.QUOTE, c.BRACKET)[last] & end[before])


def _codes(characters: Sequence[str]) -> npt.NDArray[np.uint32]:
    return np.array([ord(character) for character in characters], dtype=np.uint32)
