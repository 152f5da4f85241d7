"""The errors of xfn: each says what it got, what it wanted, and what to write instead."""


class ShapeError(ValueError):
    """A tensor's shape contradicts its letters or another tensor's."""


class KeyRequired(ValueError):
    """Something random was asked for without a source of randomness."""


class Unsupported(NotImplementedError):
    """No backend can run the call; the text lists each backend's reasons."""
