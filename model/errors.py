"""Errors that are reported as one message, without a traceback."""


class UserError(Exception):
    """A problem that the user can fix: the message says what is wrong, where, and how to fix it (exit code 2)."""


class RunFailedError(Exception):
    """A run failed for a reason that is not the user's mistake (exit code 1); the message says how to resume it."""


class NotGrantedError(RunFailedError):
    """The cluster did not grant the resources of a run in time."""


class StorageError(OSError):
    """Storage that does not answer (exit code 1); the message names the location."""


class LineError(UserError):
    """A line of an input file that cannot be used.

    Attributes:
        place: `file:line`, 1-based.
        problem: what is wrong with the line and how to fix it.
    """

    def __init__(self, place: str, problem: str) -> None:
        super().__init__(f"{place}: {problem}")
        self.place = place
        self.problem = problem

    def __reduce__(self) -> tuple[type["LineError"], tuple[str, str]]:
        """Pickle the arguments instead of the message, so that the error survives the way between processes."""
        return type(self), (self.place, self.problem)


def first_line(error: BaseException, with_kind: bool = False) -> str:
    """Return the first line of an error's message, after its kind if asked for; of an error without a message its kind."""
    kind, lines = type(error).__name__, str(error).strip().splitlines()
    if not lines:
        return kind
    return f"{kind}: {lines[0]}" if with_kind else lines[0]


class DivergedError(UserError):
    """The training loss is no longer finite; a setting has to change, most often the learning rate."""
