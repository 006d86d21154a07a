"""What Python in the sandbox runs for a session: cells, one after another, in one namespace. Orders and replies are
lines of JSON. It is put behind the text of `inside_program.py` and runs by its text."""

import ast
import base64
import io
import json
import marshal
import os
import re
import signal
import sys
import warnings
from contextlib import suppress
from types import ModuleType
from typing import Any

if __name__ != "__main__":  # for whoever reads or checks it alone; in the sandbox they stand above
    from puyulm.sandbox.inside_program import prepare, show

MAGIC = re.compile(r"^(?=%matplotlib\b)", re.MULTILINE)
MAX_IMAGES = 16
MAX_IMAGE_BYTES = 8 << 20


def execute(code: str, name: str, space: dict[str, Any]) -> str | None:
    """Runs a cell; its last expression's value is shown, and kept as `_`."""
    tree = ast.parse(MAGIC.sub("# ", code), name)
    last = tree.body[-1] if tree.body else None
    if isinstance(last, ast.Expr):
        del tree.body[-1]
    exec(compile(tree, name, "exec", dont_inherit=True), space)
    if not isinstance(last, ast.Expr):
        return None
    value = eval(compile(ast.Expression(last.value), name, "eval", dont_inherit=True), space)
    if value is None:
        return None
    space["_"] = value
    return repr(value)


def images() -> list[str]:
    """Figures that the cell has drawn, as PNG in base64; they are closed."""
    plots, found, size = sys.modules.get("matplotlib.pyplot"), [], 0
    if plots is None:
        return []
    try:
        for number in plots.get_fignums()[:MAX_IMAGES]:
            file = io.BytesIO()
            plots.figure(number).savefig(file, format="png", bbox_inches="tight")
            size += file.tell()
            if size <= MAX_IMAGE_BYTES:
                found.append(base64.b64encode(file.getvalue()).decode())
    finally:
        plots.close("all")
    return found


def cell(order: dict[str, Any], space: dict[str, Any], sources: dict[str, str]) -> dict[str, Any]:
    name, limit = f"<cell {len(sources) + 1}>", order["limit"]
    sources[name] = order["code"]
    reply: dict[str, Any] = {"result": None, "error": None, "kind": None, "images": []}
    try:
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            result = execute(order["code"], name, space)
            reply["images"] = images()
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        if result is not None:
            reply["result"] = result if len(result) <= limit else result[:limit] + "..."
    except BaseException as error:
        reply["kind"] = type(error).__name__
        try:
            reply["error"] = show(error, sources)[-limit:]
        except BaseException:  # the exception's own text raises, or no memory is left
            reply["error"] = type(error).__name__
    for stream in (sys.stdout, sys.stderr):
        with suppress(BaseException):
            stream.flush()
    return reply


def files(order: dict[str, Any]) -> dict[str, Any]:
    """Reads, writes or lists files of the home folder."""
    try:
        if order["do"] == "write":
            if folder := os.path.dirname(order["path"]):
                os.makedirs(folder, exist_ok=True)
            with open(order["path"], "wb") as file:
                file.write(base64.b64decode(order["data"]))
            return {"done": True}
        if order["do"] == "read":
            with open(order["path"], "rb") as file:
                data = file.read(order["limit"] + 1)
            if len(data) > order["limit"]:
                return {"failed": f"longer than {order['limit']} bytes"}
            return {"data": base64.b64encode(data).decode()}
        home = os.environ["HOME"]
        found = [os.path.relpath(os.path.join(top, one), home) for top, _, names in os.walk(home) for one in names]
        return {"names": sorted(found)[: order["limit"]]}
    except (OSError, ValueError, MemoryError) as error:
        return {"failed": getattr(error, "strerror", None) or str(error) or type(error).__name__}


def serve() -> None:
    job_fd, reply_fd, order_fd = map(int, sys.argv[1:4])
    with open(job_fd, "rb") as file:
        job = marshal.loads(file.read())
    prepare(job, (reply_fd, order_fd))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.filterwarnings("ignore", message=".*non-interactive.*")  # plt.show() in every second cell
    me, sources = os.getpid(), dict[str, str]()
    program = ModuleType("__main__")
    ours, sys.modules["__main__"] = sys.modules["__main__"], program
    program.__dict__["display"] = lambda *values: [print(repr(value)) for value in values] and None
    orders = os.fdopen(order_fd, "rb")

    def say(reply: dict[str, Any] | str) -> None:
        line = reply if isinstance(reply, str) else json.dumps(reply)
        data = line.encode() + b"\n"
        while data:
            data = data[os.write(reply_fd, data) :]

    say(f"started {me}")
    while line := orders.readline():
        order = json.loads(line)
        reply = cell(order, program.__dict__, sources) if order["do"] == "cell" else files(order)
        if os.getpid() != me:  # a cell has forked, and this is the child
            os._exit(0)
        say({"id": order["id"], **reply})
    del ours
