"""QwenPI in StarVLA's format."""

from ..starvla_flow_matching import LayerwiseMapping


class QwenPIMapping(LayerwiseMapping):
    """StarVLA's QwenPI, QwenFM in older configurations."""

    names = ("QwenPI", "QwenFM")

    def repeated_diffusion_steps(self, tree: dict) -> int:
        return 2  # whatever the YAML says


MAPPING = QwenPIMapping()
