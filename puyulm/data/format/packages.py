"""The real texts that a machine has or can fetch, as input: see `puyulm.data.sources`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from puyulm.data import sources
from puyulm.data.documents import Document
from puyulm.data.download import SourceMissingError
from puyulm.data.format.pieces import Piece
from puyulm.data.format.settings import FormatSettings
from puyulm.data.pipeline.counts import Counts, Outcome
from puyulm.errors import DataError

_SOURCES: Mapping[str, Callable[[int], list[Document]]] = {
    "python-stdlib": sources.python_stdlib,
    "python-reference": sources.python_reference,
    "shakespeare": sources.shakespeare,
    "chinese-poetry": sources.chinese_poetry,
}


def source_names() -> tuple[str, ...]:
    """The sources that there are."""
    return tuple(_SOURCES)


def read_packages(piece: Piece, settings: FormatSettings, counts: Counts) -> Iterator[Outcome]:
    """The documents of one source; `piece.stop` is how many bytes of text to take at most.

    Raises:
        DataError: The source cannot be had on this machine.
    """
    given = settings.inputs[piece.input]
    try:
        documents = _SOURCES[piece.name](piece.stop)
    except SourceMissingError as error:
        raise DataError(f"the source {piece.name} cannot be had ({error}): take it out of the input's paths") from None
    for document in documents:
        counts.add_input(document.num_bytes)
        if given.source:
            document = replace(document, source=given.source, id=f"{given.source}:{document.id}")
        yield replace(document, language=given.language or document.language, licence=given.licence or document.licence)
