"""Who offers what, and where: as pure as the core. Transports only carry what is decided here."""

from .nodes import Node, View

__all__ = ["Node", "View"]
