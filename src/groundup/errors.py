"""The one exception for a mistake that the user can fix."""


class InputError(ValueError):
    """What is wrong, where it is, and what to write instead.

    Recipes print it without a traceback and exit with status 2 (`configs.run`).
    """

    def __init__(self, what: str, where: str = "", fix: str = ""):
        self.what, self.where, self.fix = what, where, fix
        lines = [what]
        if where:
            lines.append(f"  where: {where}")
        if fix:
            lines.append(f"  fix:   {fix}")
        super().__init__("\n".join(lines))
