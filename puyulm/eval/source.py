"""Where a benchmark's rows come from: the official files in a local folder, the hub, or a generator.

Rows have *roles*: "test" is asked, "dev" gives examples; some benchmarks have more. Local files come first: for a
benchmark NAME below the data folder, either the original distribution's files (patterns in the benchmark's definition)
or the hub's own layout in parquet. Without them the hub's parquet copy is downloaded; a run that is offline takes
what was downloaded before.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puyulm.errors import DataError

if TYPE_CHECKING:
    from puyulm.eval.model import LanguageModel

PARQUET_BRANCH = "refs/convert/parquet"  # where the hub keeps every data set as parquet: CONFIG/SPLIT/NNNN.parquet
csv.field_size_limit(1 << 28)


@dataclass(frozen=True, kw_only=True)
class SourceContext:
    """What sources may use.

    Attributes:
        data_dir: Folder with a folder for each benchmark; None: there is none.
        model: For sources that count tokens.
        options: Settings of generated benchmarks (lengths, depths, ...), by name.
        seed: Of generated rows and shuffles.
        offline: Never ask the hub; what was downloaded before is used.
    """

    data_dir: Path | None = None
    model: LanguageModel | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    offline: bool = False


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Published rows.

    Attributes:
        hub: Name on the hub; "": it is not there.
        splits: Our role -> the hub's split.
        config: The hub's configuration; "{subset}" stands for the subset.
        files: Our role -> original files below `DATA_DIR/NAME/`, the first that exists is read; "{subset}" stands for
            the subset, and with "*" all that fit are read.
        columns: Names of the columns of csv files without header (a header that is there after all counts).
        unfold: The rows that a record of the original files holds, where it holds several (a text and its questions).
        texts: Field -> text files below `DATA_DIR/NAME/`, the first that exists is put into the field of every row.
        belongs: Role and record: whether it is one of the role's, where original files hold several roles.
        page: Where the original files are to be had.
        gated: The hub asks for an agreement first.
        folder: Instead of NAME, where several benchmarks share one.
    """

    hub: str = ""
    splits: Mapping[str, str] = field(default_factory=lambda: {"test": "test"})
    config: str = "default"
    files: Mapping[str, Sequence[str]] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    unfold: Callable[[Mapping[str, Any]], Iterable[Mapping[str, Any]]] | None = None
    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    belongs: Callable[[str, Mapping[str, Any]], bool] | None = None
    page: str = ""
    gated: bool = False
    folder: str = ""

    def records(self, name: str, subset: str, role: str, context: SourceContext) -> Iterator[Mapping[str, Any]]:
        """Rows of a subset.

        Args:
            name: The benchmark's.

        Raises:
            DataError: They are not to be had; says which files to place where.
        """
        folder = None if context.data_dir is None else context.data_dir / (self.folder or name)
        files = [] if folder is None else self._local(folder, subset, role)
        if not files and self.hub and role in self.splits:
            files = self._download(name, subset, role, folder, offline=context.offline or _hub_is_off())
        if not files:
            raise DataError(self._missing(name, subset, role, folder))
        texts = {one: self._text(name, subset, one, folder) for one in self.texts}
        for file in files:
            for record in read_records(file, self.columns):
                for row in self._rows(record, file):
                    if self.belongs is None or self.belongs(role, row):
                        yield {**row, **texts} if texts else row

    def _rows(self, record: Mapping[str, Any], file: Path) -> Iterable[Mapping[str, Any]]:
        if self.unfold is None:
            return (record,)
        try:
            return list(self.unfold(record))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DataError(f"{file}: not as published: {type(error).__name__}: {error}") from None

    def _text(self, name: str, subset: str, field: str, folder: Path | None) -> str:
        places = [pattern.format(subset=subset) for pattern in self.texts[field]]
        for file in [] if folder is None else [folder / place for place in places]:
            if file.is_file():
                try:
                    return file.read_text("utf-8-sig")
                except (OSError, UnicodeDecodeError) as error:
                    raise DataError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from None
        where = f"{folder}" if folder is not None else f"FOLDER/{self.folder or name} and give --data-dir FOLDER"
        page = f"; original files: {self.page}" if self.page else ""
        raise DataError(f"{name}: no '{field}' text of '{subset}': place {' or '.join(places)} in {where}{page}")

    def _local(self, folder: Path, subset: str, role: str) -> list[Path]:
        for pattern in self.files.get(role, ()):
            place = pattern.format(subset=subset)
            if "*" in place:
                if files := sorted(folder.glob(place)):
                    return files
            elif (file := folder / place).is_file():
                return [file]
        if role not in self.splits:
            return []
        config, split = self.config.format(subset=subset), self.splits[role]
        for pattern in (f"{config}/{split}/*.parquet", f"{config}/{split}-*.parquet", f"data/{split}-*.parquet"):
            fits = config == "default" or not pattern.startswith("data/")
            if fits and (files := sorted(folder.glob(pattern))):
                return files
        return []

    def _download(self, name: str, subset: str, role: str, folder: Path | None, *, offline: bool) -> list[Path]:
        """From the hub, or what earlier runs have downloaded."""
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        pattern = f"{self.config.format(subset=subset)}/{self.splits[role]}/*.parquet"
        try:
            snapshot = snapshot_download(
                self.hub, repo_type="dataset", revision=PARQUET_BRANCH, allow_patterns=[pattern], etag_timeout=10,
                local_files_only=offline,
            )  # fmt: skip
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            if offline:
                return []
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise DataError(f"{self._missing(name, subset, role, folder)} (the hub: {reason})") from None
        return sorted(Path(snapshot).glob(pattern))

    def there(self, name: str, subsets: Iterable[str], context: SourceContext) -> list[str]:
        """Those of the subsets whose "test" rows are in the data folder."""
        if context.data_dir is None:
            return []
        folder = context.data_dir / (self.folder or name)
        return [subset for subset in subsets if self._local(folder, subset, "test")]

    def _missing(self, name: str, subset: str, role: str, folder: Path | None) -> str:
        where = f"{folder}" if folder is not None else f"FOLDER/{self.folder or name} and give --data-dir FOLDER"
        of = f" of '{subset}'" if subset else ""
        ways = [pattern.format(subset=subset) for pattern in self.files.get(role, ())]
        if self.hub and role in self.splits:
            ways.append(f"{self.config.format(subset=subset)}/{self.splits[role]}/*.parquet")
        text = f"{name}: no '{role}' rows{of}: place {' or '.join(ways)} in {where}"
        if self.page:
            text += f"; original files: {self.page}"
        if self.hub:
            agreement = ", which asks for an agreement and a token" if self.gated else ""
            text += f"; on the hub: {self.hub}{agreement}"
        return text


@dataclass(frozen=True)
class Made:
    """Rows that are made, from the context's options and seed, and with its tokenizer.

    Attributes:
        make: Subset and context -> rows.
        subsets: Context -> subsets and their groups, where they follow from options (lengths); None: the benchmark's.
        data: What it reads in the data folder, in a few words; "": nothing.
    """

    make: Callable[[str, SourceContext], Iterator[Mapping[str, Any]]]
    subsets: Callable[[SourceContext], Mapping[str, str]] | None = None
    data: str = ""

    def records(self, name: str, subset: str, role: str, context: SourceContext) -> Iterator[Mapping[str, Any]]:
        """Rows of a subset; there are no other roles than "test"."""
        if role != "test":
            raise DataError(f"{name}: makes no '{role}' rows")
        return self.make(subset, context)


def read_records(file: Path, columns: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Rows of a .jsonl, .json, .csv, .tsv or .parquet file; the first three may be gzipped.

    Args:
        columns: Of a csv without header.

    Raises:
        DataError: The file is damaged; with the line where one is known.
    """
    kind = (file.suffixes[-2] if file.suffix == ".gz" and len(file.suffixes) > 1 else file.suffix).lower()
    if kind == ".parquet":
        yield from _parquet(file)
        return
    try:
        content = file.read_bytes()
        text = (gzip.decompress(content) if file.suffix == ".gz" else content).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from None
    if kind == ".jsonl":
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield _object(_json(line, f"{file}:{number}"), f"{file}:{number}")
    elif kind == ".json":
        data = _json(text, str(file))
        for number, row in enumerate(_list(data, file)):
            yield _object(row, f"{file}: row {number}")
    elif kind in (".csv", ".tsv"):
        yield from _table(text, file, columns, "\t" if kind == ".tsv" else ",")
    else:
        raise DataError(f"{file}: rows are read from .jsonl, .json, .csv, .tsv and .parquet files")


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON ({error})") from None


def _object(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected an object, not {type(row).__name__}")
    return row


def _list(data: Any, file: Path) -> list[Any]:
    """The rows of a json file: a list, the one list in an object, an object of rows by id, or a single row."""
    if isinstance(data, list):
        return data
    if isinstance(data, dict):
        lists = [value for value in data.values() if isinstance(value, list)]
        if len(lists) == 1:
            return lists[0]
        if data and all(isinstance(value, dict) for value in data.values()):
            return [{"_key": key, **value} for key, value in data.items()]
        if data and not any(isinstance(value, dict | list) for value in data.values()):
            return [data]
    raise DataError(f"{file}: expected a list of rows")


def _table(text: str, file: Path, columns: Sequence[str], delimiter: str) -> Iterator[dict[str, Any]]:
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=delimiter == ","))
        # Copies of headerless originals are about with a header added.
        has_header = not columns or (rows and {"question", "answer"} <= {cell.lower() for cell in rows[0]})
        names = rows.pop(0) if has_header and rows else list(columns)
        for number, row in enumerate(rows, 1):
            if not row:
                continue
            if len(row) != len(names):
                raise DataError(f"{file}: row {number} has {len(row)} columns instead of {len(names)}")
            yield dict(zip(names, row, strict=True))
    except csv.Error as error:
        raise DataError(f"{file}: not valid csv ({error})") from None


def _parquet(file: Path) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise DataError(f"{file}: reading parquet needs pyarrow: pip install 'puyulm[eval]'") from None
    try:
        with parquet.ParquetFile(file) as opened:
            for batch in opened.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except (OSError, arrow.ArrowException) as error:
        raise DataError(f"cannot read {file}: {error}") from None


def _hub_is_off() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
