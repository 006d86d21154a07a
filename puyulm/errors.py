"""The one exception family of PuyuLM.

Every message says what was wrong, where, and what to do. The command line prints it as one line on stderr and
exits with 2; a traceback therefore always means a bug.
"""


class PuyuError(Exception):
    """Base of everything PuyuLM raises on purpose."""


class ConfigError(PuyuError):
    """A model configuration cannot be understood or is inconsistent."""


class CheckpointError(PuyuError):
    """A checkpoint's files are missing, damaged, or do not fit the model."""


class HubError(PuyuError):
    """A model name could not be resolved to files on this machine."""


class TokenizerError(PuyuError):
    """A tokenizer file is missing or damaged, or training one failed."""


class ChatError(PuyuError):
    """Messages cannot be rendered in a chat format."""


class RecipeError(PuyuError):
    """A recipe holds unknown keys or values of the wrong kind."""


class DataError(PuyuError):
    """Documents, shards or samples are missing or damaged."""


class TrainError(PuyuError):
    """A training run cannot start, resume or go on."""


class GenerationError(PuyuError):
    """A request to generate cannot be served as asked."""


class EngineLost(GenerationError):
    """The engine cannot go on, whatever it is asked: the process must be started again."""


class QueueFull(GenerationError):
    """Too many requests are waiting."""


class SandboxError(PuyuError):
    """Code cannot be run in a sandbox on this machine, or as asked."""


class Preempted(Exception):
    """A run was told by a signal to stop, has saved a checkpoint, and should be started again (exit status 75)."""

    EXIT_STATUS = 75  # EX_TEMPFAIL: schedulers can be told to put such a job back into the queue
