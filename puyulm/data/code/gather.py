"""One repository: its files in, one Markdown document out, or several where it is large."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from puyulm.data.code.imports import import_edges
from puyulm.data.code.imports.index import ancestors, folder_of
from puyulm.data.code.judge import TIERS, language_of, licence_problem
from puyulm.data.code.languages import Language, path_of
from puyulm.data.code.licences import find_licence, is_licence_file, licences_in, normal_expression
from puyulm.data.code.markdown import repository_text
from puyulm.data.code.order import dependency_order, place_documents
from puyulm.data.code.settings import RepositorySettings
from puyulm.data.documents import Document
from puyulm.data.pipeline.counts import Counts, Dropped, Outcome


@dataclass(frozen=True)
class File:
    """A file of a repository."""

    path: str
    document: Document
    language: Language | None
    licence: str


@dataclass
class _Folders:
    """Licences of folders, as their LICENSE files tell; several files of a folder leave the choice."""

    found: dict[str, list[str]] = field(default_factory=dict)

    def add(self, path: str, text: str) -> None:
        licence = find_licence(text)
        known = self.found.setdefault(folder_of(path), [])
        if licence and licence not in known:
            known.append(licence)

    def licence_of(self, path: str) -> str:
        for folder in ancestors(folder_of(path)):
            if known := self.found.get(folder):
                return _joined(known, " OR ")
        return ""


def gather(
    source: str, name: str, documents: Iterable[Document], settings: RepositorySettings, counts: Counts
) -> Iterator[Outcome]:
    """Makes a repository's documents.

    A single file passes as it is. Of several copies of a path the newest counts.

    Args:
        source, name: Of the repository.
        documents: Its files, licence files first, else by path; read once, held up to `max_repository_mb`.
        settings: Of the stage.
        counts: Its notes are added to.
    """
    folders = _Folders()
    limit = settings.max_repository_mb * 1e6
    held: list[File] = []
    size = part = 0
    for path, copies in groupby(documents, key=_path):
        document, *older = sorted(copies, key=lambda copy: (copy.date, copy.id), reverse=True)
        yield from (Dropped(copy, "code: older copy of a file") for copy in older)
        if is_licence_file(path):
            folders.add(path, document.text)
        file = File(path, document, language_of(document, path), _licence(document, path, folders))
        if reason := licence_problem(file.licence, settings.licences, settings.unknown_licence):
            yield Dropped(document, reason)
            continue
        if held and size + document.num_bytes > limit:
            yield _joined_document(source, name, held, part, settings, counts)
            held, size, part = [], 0, part + 1
        held.append(file)
        size += document.num_bytes
    if held:
        yield _joined_document(source, name, held, part or None, settings, counts)


def _joined_document(
    source: str, name: str, files: Sequence[File], part: int | None, settings: RepositorySettings, counts: Counts
) -> Document:
    if len(files) == 1:
        return files[0].document
    by_path = {file.path: file for file in files}
    code = [file.path for file in files if file.language is not None and file.language.kind in ("code", "markup")]
    imports = import_edges({path: file.document.text for path, file in by_path.items()})
    order = dependency_order(code, imports, settings.circle_start)
    paths = place_documents(order.paths, sorted(by_path.keys() - set(code)))
    sections = [(path, by_path[path].document.text, by_path[path].language) for path in paths]
    metadata = {
        "repository": name,
        "files": len(files),
        "edges": order.edges,
        "cycles": order.cycles,
        "licences": sorted({licence for file in files for licence in licences_in(file.licence)}),
        "programming_language": _heaviest(
            (file.language.name, file.document.num_bytes)
            for file in files
            if file.language is not None and file.language.kind == "code"
        ),
    }
    tiers = [(tier, file.document.num_bytes) for file in files if (tier := file.document.metadata.get("tier")) in TIERS]
    if tiers:
        metadata["tier"] = _heaviest(sorted(tiers, key=lambda pair: TIERS.index(pair[0])))
    counts.note("repositories joined")
    counts.note("files joined", len(files))
    counts.note("imports between files", order.edges)
    counts.note("circles of imports", order.cycles)
    return Document(
        id=f"{source}:{name}" + (f"#{part}" if part is not None else ""),
        text=repository_text(name, sections),
        language="code",
        source=source,
        url=name,
        date=max(file.document.date for file in files),
        licence=_joined(sorted({part for file in files for part in _conditions(file.licence)}), " AND "),
        metadata=metadata if part is None else {**metadata, "part": part},
    )


def _conditions(licence: str) -> list[str]:
    """What an expression asks for together."""
    return [part for part in ([licence] if " OR " in licence else licence.split(" AND ")) if part]


def _path(document: Document) -> str:
    return path_of(document) or document.id


def _licence(document: Document, path: str, folders: _Folders) -> str:
    own = normal_expression(document.licence)
    if not own and "programming_language" not in document.metadata:  # the stage `code` has not looked yet
        own = find_licence(document.text)
    return own or folders.licence_of(path)


def _heaviest(sized: Iterable[tuple[str, int]]) -> str:
    """The name with the largest sum; of equals the first."""
    sums: dict[str, int] = {}
    for name, size in sized:
        sums[name] = sums.get(name, 0) + size
    return max(sums, key=lambda name: sums[name], default="")


def _joined(expressions: Sequence[str], word: str) -> str:
    if len(expressions) < 2:
        return "".join(expressions)
    return word.join(f"({each})" if " " in each else each for each in expressions)
