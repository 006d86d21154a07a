"""Figures for other programs that draw them: TensorBoard's event files, and Weights & Biases."""

from __future__ import annotations

import json
import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from puyulm.errors import TrainError
from puyulm.train.metrics import AppendFile

TENSORBOARD_FOLDER, WANDB_FILE = "tensorboard", "wandb.json"


class Tracker(Protocol):
    """Takes named figures of steps."""

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Hands over figures of a step."""
        ...

    def rewind(self, step: int) -> None:
        """The run has gone back to a step: what was handed over of later ones does not count."""
        ...

    def close(self) -> None:
        """Everything is where it should be when this returns."""
        ...


class EventFile:
    """An event file of TensorBoard: records (TFRecord) of `Event` messages with a scalar a figure.

    It is written here, byte by byte, because that takes a screen of code, while the package takes seconds to import.
    As TensorBoard reads it, a run that begins at a step takes the place of all that earlier files say of that step and
    later ones.

    Args:
        folder: Of the run; the file is in its `tensorboard/`.
        step: Done before.
    """

    def __init__(self, folder: Path, step: int) -> None:
        path = folder / TENSORBOARD_FOLDER
        path.mkdir(parents=True, exist_ok=True)
        # Files are read in the order of their names: this one must be the last, whatever the clock says.
        others = [int(file.name.split(".")[3]) for file in path.glob("events.out.tfevents.[0-9]*[0-9].*")]
        number = max([int(time.time()), *(other + 1 for other in others)])
        name = f"events.out.tfevents.{number:010d}.{socket.gethostname()}.{os.getpid()}"
        self._file = AppendFile(path / name, keep=0)
        self._file.write(_event(0, _bytes(3, b"brain.Event:2")))
        if others:
            self.rewind(step)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        values = [_bytes(1, _bytes(1, name.encode()) + _float(2, value)) for name, value in figures.items()]
        self._file.write(_event(step, _bytes(5, b"".join(values))))

    def rewind(self, step: int) -> None:
        self._file.write(_event(step + 1, _bytes(7, b"\x08\x01")))  # SessionLog, status START

    def close(self) -> None:
        self._file.close()


class WeightsAndBiases:
    """A run of wandb; resumed runs go on with the same.

    Args:
        project: To log to.
        folder: Of the run; its name is the run's, and it keeps the run's id.
        step: Done before; with none, a new run begins.
        config: The recipe.

    Raises:
        TrainError: The package is missing, or the run cannot be opened.
    """

    def __init__(self, project: str, folder: Path, step: int, config: Mapping[str, Any]) -> None:
        try:
            import wandb  # type: ignore[import-not-found, unused-ignore]
        except ImportError:
            raise TrainError(
                "settings.wandb needs the package wandb: pip install 'puyulm[wandb]', or leave the setting out"
            ) from None
        known = folder / WANDB_FILE
        try:
            before = json.loads(known.read_text("utf-8"))["id"] if step else None
        except (OSError, ValueError, KeyError):
            before = None
        try:
            self._run: Any = wandb.init(
                project=project, name=folder.resolve().name, dir=str(folder), id=before,
                resume="allow" if before else None, config=dict(config),
            )  # fmt: skip
        except Exception as error:  # it has many, of several packages
            raise TrainError(
                f"settings.wandb: the run cannot be opened ({error}); with WANDB_MODE=offline it is kept on this "
                "machine, to be sent later with `wandb sync`"
            ) from error
        known.write_text(json.dumps({"id": self._run.id}) + "\n", "utf-8")
        # Their own counter cannot go back; as a figure like others, our step can.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log({"step": step, **figures})

    def rewind(self, step: int) -> None:
        pass

    def close(self) -> None:
        self._run.finish()


def checksum(data: bytes) -> int:
    """CRC-32C (Castagnoli), masked as TFRecord wants it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _table()


def _record(data: bytes) -> bytes:
    """A TFRecord: length and data, each with its checksum."""
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", checksum(length)) + data + struct.pack("<I", checksum(data))


def _event(step: int, what: bytes) -> bytes:
    """A record with an `Event` message of protocol buffers: wall_time, step, and one more field."""
    return _record(b"\x09" + struct.pack("<d", time.time()) + b"\x10" + _varint(step) + what)


def _bytes(number: int, data: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(data)) + data


def _float(number: int, value: float) -> bytes:
    return bytes([number << 3 | 5]) + struct.pack("<f", value)


def _varint(value: int) -> bytes:
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*data, value])
