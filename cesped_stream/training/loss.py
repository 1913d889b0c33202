"""The paper's loss, eq. 10."""

import torch


def pose_loss(logits: torch.Tensor, index: torch.Tensor, mass: torch.Tensor, confidence: torch.Tensor) -> torch.Tensor:
    """Return eq. 10: cross entropy to the target rotations, weighted by each particle's given confidence.

    `logits` `(batch, rotations)`; `index` and `mass` `(batch, group)`: the grid point of each symmetry mate of the
    true pose and its probability (1/|G|, added where two mates share a point); `confidence` `(batch,)` in 0-1,
    rlnMaxValueProbDistribution. Scalar, the mean over the batch; no division by the sum of confidences, as in eq. 10.
    """
    log_mass = logits.gather(1, index) - logits.logsumexp(1, keepdim=True)
    return -(confidence * (mass * log_mass).sum(1)).mean()
