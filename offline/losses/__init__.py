"""Losses between EEG and target embeddings, as the methods' papers have them; a method's file puts its own together.

What cosines are multiplied by is a :class:`LogitScale`. A loss takes the whole batch, of several processes too: it is
:mod:`offline.distributed` that brings the rows of all together.
"""

from .adaptive import BLUR_LEVELS, Adjustment, BlurChoice, DynamicLossAdjustment
from .combined import (
    atm_reconstruction,
    atm_retrieval,
    orthogonality,
    representational_similarity,
    thought2text,
)
from .contrastive import (
    Diagonal,
    LogitScale,
    ScaleKind,
    paired_logits,
    semantic_guidance,
    softened_info_nce,
    symmetric_info_nce,
)
from .processes import gathered

__all__ = [
    "BLUR_LEVELS",
    "Adjustment",
    "BlurChoice",
    "Diagonal",
    "DynamicLossAdjustment",
    "LogitScale",
    "ScaleKind",
    "atm_reconstruction",
    "atm_retrieval",
    "gathered",
    "orthogonality",
    "paired_logits",
    "representational_similarity",
    "semantic_guidance",
    "softened_info_nce",
    "symmetric_info_nce",
    "thought2text",
]
