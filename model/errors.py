"""Errors that are answered with a message, never with a traceback."""


class UserError(Exception):
    """Something that the user can mend: the message says what is wrong, where, and how to mend it (exit code 2)."""


class RunFailedError(Exception):
    """A run failed for a reason that is not the user's mistake (exit code 1); the message says how to go on."""


class NotGrantedError(RunFailedError):
    """The cluster did not grant in time what a run asked for."""


class LineError(UserError):
    """A line of an input file that cannot be used.

    Attributes:
        place: `file:line`, 1-based.
        problem: what is wrong with the line and how to mend it.
    """

    def __init__(self, place: str, problem: str) -> None:
        super().__init__(f"{place}: {problem}")
        self.place = place
        self.problem = problem

    def __reduce__(self) -> tuple[type["LineError"], tuple[str, str]]:
        """Between processes it travels as what it was made from."""
        return type(self), (self.place, self.problem)


class DivergedError(UserError):
    """The training loss stopped being a finite number: a setting, most often the learning rate, has to change."""
