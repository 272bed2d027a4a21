"""The one exception for what the user can mend: bad input, a wrong setting, a missing file."""


class InputError(Exception):
    """Wrong input or arguments, said in one line: what was found, where, what was expected, what to do.

    Every command turns it into that line on standard error and exit code 2 (`srsjax.cli.run`). Raise it
    only for what the user can mend; a bug in srsjax stays an ordinary exception with its traceback.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(str(message).split()))
