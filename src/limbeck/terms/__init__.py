"""Distillation terms: each owns what it reads, its projector, its norms and its loss.

Every :class:`Term` is called with what student and teacher computed at their taps. Of features: :class:`FeatureTerm`,
through a projector, and :class:`RelationTerm`, for losses that take any two widths. Of logits: :class:`LogitTerm` and
:class:`LabelledLogitTerm`. :func:`mean_of_rows` is for terms of your own on several processes.
"""

from limbeck.terms.feature import FeatureTerm, LossForm, Sides
from limbeck.terms.interface import CorrelationLoss, LabelledLoss, Loss, Term
from limbeck.terms.logits import LabelledLogitTerm, LogitTerm, mean_of_rows
from limbeck.terms.relation import RelationTerm

__all__ = [
    "CorrelationLoss",
    "FeatureTerm",
    "LabelledLogitTerm",
    "LabelledLoss",
    "LogitTerm",
    "Loss",
    "LossForm",
    "RelationTerm",
    "Sides",
    "Term",
    "mean_of_rows",
]
