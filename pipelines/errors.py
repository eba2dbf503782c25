"""Every error that a user can cause or cure. `str(error)` is what the user reads: it says what to do."""


class PipelineError(Exception):
    """Shown to the user as it is. Anything else that is raised is a bug and is logged with its traceback."""


class ModelNotFound(PipelineError): ...


class UnknownChoice(PipelineError):
    """A sampler, schedule or the like that does not exist; the text names those that do."""

    def __init__(self, what: str, value: str, choices: list[str]) -> None:
        super().__init__(f"There is no {what} named {value!r}. Choose one of: {', '.join(choices) or 'none is there'}.")


class BadModel(PipelineError):
    """A model that cannot be read: truncated, of an unknown architecture, or with parts missing."""


class OutOfMemory(PipelineError): ...


class WorkerDied(PipelineError):
    """The worker process ended in the middle of a job. The job is not lost: whoever ran it queues it again."""
