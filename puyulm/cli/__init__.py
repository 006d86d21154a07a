"""`puyu VERB`: each verb lives in a module of its own, imported only when it is called."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from puyulm import __version__
from puyulm.errors import Preempted, PuyuError

# verb -> (module, one line for --help). A module has `configure(parser)` and `run(args) -> int | None`.
VERBS = {
    "info": ("puyulm.cli.info", "shape, parameters and memory of a model; without a name, all presets"),
    "check": ("puyulm.cli.check", "run a checkpoint on recorded inputs and compare its outputs"),
    "convert": ("puyulm.cli.convert", "write a checkpoint in another published layout"),
    "quantize": ("puyulm.cli.quantize", "write a checkpoint with weights in 8 or 4 bits"),
    "tokenizer": ("puyulm.cli.tokenizer", "train or inspect a tokenizer"),
    "generate": ("puyulm.cli.generate", "continue prompts or answer questions"),
    "chat": ("puyulm.cli.chat", "talk to a model in the terminal"),
    "serve": ("puyulm.cli.serve", "answer programs over HTTP, in the OpenAI protocol"),
    "data": ("puyulm.cli.data", "collect text and make token shards"),
    "train": ("puyulm.cli.train", "pretrain a model from a recipe"),
    "sft": ("puyulm.cli.sft", "fine-tune a model on conversations from a recipe"),
    "report": ("puyulm.cli.report", "show how training runs went, and compare them"),
    "eval": ("puyulm.cli.eval", "score a model on benchmarks or your own questions, and compare runs"),
    "demo": ("puyulm.cli.demo", "the whole life in miniature: make a small model from scratch"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb.

    Returns:
        The exit status: 0, or what the verb returns; 2 for bad input; 130 after Ctrl-C; 75 where a run should be
        started again.
    """
    # Before PyTorch is loaded: by default its threads spin while they wait for one another, and where another program
    # wants a core too, steps of a small model then take 20 times as long. With short spins they do not, and lose
    # nothing.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser(arguments)
    args = parser.parse_args(arguments, argparse.Namespace(arguments=arguments))
    if not hasattr(args, "run"):
        parser.print_help()
        return 0
    try:
        return args.run(args) or 0
    except PuyuError as error:
        print(f"puyu {args.verb}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except Preempted as preempted:
        return preempted.EXIT_STATUS
    except RuntimeError as error:
        if not _lost_another_process(error):
            raise
        print(
            f"puyu {args.verb}: another process of the run has ended (its own message says why); "
            "the same command goes on from the last checkpoint",
            file=sys.stderr,
        )
        return 1
    except BrokenPipeError:  # the reader (`| head`) has left; say nothing, and keep the interpreter from flushing
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # a full disk, a file where a folder should be, no permission, ...
        where = f"{error.filename}: " if error.filename is not None else ""
        print(f"puyu {args.verb}: {where}{error.strerror or error}", file=sys.stderr)
        return 2


def _lost_another_process(error: RuntimeError) -> bool:
    """Whether a collective failed because a process at its other end is gone: this one has nothing to say of it."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    lost = ("connection closed by peer", "connection reset by peer", "remote process exited", "broken pipe")
    return several and any(words in str(error).lower() for words in lost)


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="puyu", description="The whole life of an InternLM.")
    parser.add_argument("--version", action="version", version=f"puyulm {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs")
    called = next((word for word in arguments if not word.startswith("-")), None)
    for verb, (module_name, summary) in VERBS.items():
        child = verbs.add_parser(verb, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if verb == called:
            module = importlib.import_module(module_name)
            module.configure(child)
            child.set_defaults(run=module.run)
    return parser
