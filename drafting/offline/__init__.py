"""The offline model: it drafts a non-disclosure agreement without a key and without a network."""

from drafting.offline.model import OfflineModel

__all__ = ["OfflineModel"]
