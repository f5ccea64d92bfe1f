"""Why an adapter cannot be taken, said by whoever finds it out."""


class Refusal(Exception):
    """The adapter cannot be imported; `code` is one of the publish check's or of import's own."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
