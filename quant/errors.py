"""The one exception that means "the user can fix this": scripts print it as a single line."""


class UserError(ValueError):
    """A mistake in the input: what, what was got, what was expected, what to do."""
