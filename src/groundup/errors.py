"""How a run ends when it does not end well, and the exit status that tells."""

CRASHED, MISTAKEN, SAVED, INTERRUPTED = 1, 2, 75, 130  # 75: EX_TEMPFAIL of sysexits.h, "try again"; 130: what shells make of ^C


class _Told(Exception):
    """What is wrong, where it is, and what to do. Recipes print it without a traceback (`command_line.run`)."""

    status = CRASHED

    def __init__(self, what: str, where: str = "", fix: str = ""):
        self.what, self.where, self.fix = what, where, fix
        lines = [what]
        if where:
            lines.append(f"  where: {where}")
        if fix:
            lines.append(f"  fix:   {fix}")
        super().__init__("\n".join(lines))

    def __reduce__(self):  # one process finds it, and tells the others
        return type(self), (self.what, self.where, self.fix)


class InputError(_Told, ValueError):
    """A mistake that the user can mend: what is wrong, where it is, and what to write instead."""

    status = MISTAKEN


class RunError(_Told, RuntimeError):
    """What ended a run that was asked for rightly: a full disk, no memory left, a loss that is no number."""


class Preempted(SystemExit):
    """Someone asked the run to stop, and it can go on from where it is."""

    def __init__(self):
        super().__init__(SAVED)
