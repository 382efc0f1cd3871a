"""SAMA, instruction-guided video editing: a plain PyTorch library. Importing it imports nothing heavy."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sama.diffusers_pipeline import SamaEditPipeline

__all__ = ["SamaEditPipeline"]


def __getattr__(name: str) -> Any:
    if name == "SamaEditPipeline":
        from sama.diffusers_pipeline import SamaEditPipeline

        return SamaEditPipeline
    raise AttributeError(f"module sama has no attribute {name}")
