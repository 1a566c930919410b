"""Early stopping: a run ends when its metric has not improved for a number of evaluations."""

from collections.abc import Sequence

# Step and metric; None where the metric was not finite.
Evaluation = tuple[int, float | None]


def reason_to_stop(evaluations: Sequence[Evaluation], patience: int) -> str:
    """Why a run ends now; "" if it goes on.

    Depends on the saved metrics alone, so a continued run ends where an uninterrupted one does.

    Args:
      evaluations: of the run so far, in order.
      patience: evaluations in a row that may be no better than the best before them; 0: any.
    """
    best = -1
    for number, (_, metric) in enumerate(evaluations):
        if metric is not None and (best < 0 or metric > evaluations[best][1]):
            best = number
    since = len(evaluations) - 1 - best
    if not patience or since < patience:
        return ""
    if best < 0:
        return f"none of {since} evaluations has a finite metric"
    step, metric = evaluations[best]
    return f"{since} evaluations in a row are not above {metric:.4f} of step {step}"
