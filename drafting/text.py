"""Text as UTF-8 and PostgreSQL can hold it."""

REPLACEMENT = "\ufffd"  # for half a surrogate pair, and for NUL, which PostgreSQL refuses


def storable(text: str) -> str:
    """The text with its surrogate pairs joined, and REPLACEMENT in place of each character that can't be stored."""
    return text.replace("\0", REPLACEMENT).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
