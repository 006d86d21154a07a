"""What is kept of a stream that may never end."""

from __future__ import annotations


class Capture:
    """The first and the last bytes of what was fed in, `limit` of them altogether."""

    def __init__(self, limit: int) -> None:
        self._head_size = (limit + 1) // 2
        self._tail_size = limit - self._head_size
        self._head = bytearray()
        self._tail = bytearray()
        self._dropped = 0

    def feed(self, data: bytes) -> None:
        room = self._head_size - len(self._head)
        self._head += data[:room]
        self._tail += data[room:]
        if (over := len(self._tail) - self._tail_size) > 0:
            del self._tail[:over]
            self._dropped += over

    @property
    def truncated(self) -> bool:
        return self._dropped > 0

    def text(self) -> str:
        """UTF-8, with a replacement character for what is not, and a note in place of what was dropped."""
        if not self._dropped:
            return bytes(self._head + self._tail).decode("utf-8", "replace")
        head, tail = (bytes(part).decode("utf-8", "replace") for part in (self._head, self._tail))
        return f"{head}\n[... {self._dropped} bytes left out ...]\n{tail}"
