"""The one table of checks that do not hold on a target, each with the reason that its user is told.

Such a check runs and has to fail: what begins to hold is taken out of the table.
"""

EXCEPTIONS: dict[str, dict[str, str]] = {}
"""By target: pattern (fnmatch) of a check's name as pytest writes it, without the target, and why."""
