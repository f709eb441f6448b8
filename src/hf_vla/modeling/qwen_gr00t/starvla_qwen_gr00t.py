"""QwenGR00T in StarVLA's format."""

from ..starvla_flow_matching import DiTMapping


class QwenGR00TMapping(DiTMapping):
    """StarVLA's QwenGR00T."""

    names = ("QwenGR00T",)


MAPPING = QwenGR00TMapping()
