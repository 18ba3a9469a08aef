"""The one exception of this package."""


class UsageError(ValueError):
    """Something that the user gave cannot work; the message names the value and the remedy."""
