"""The plan that is left when a GPU is lost."""

from __future__ import annotations

from loraplan.errors import BadInputError, did_you_mean
from loraplan.plan import Plan


def without(plan: Plan, gpu_id: str) -> Plan:
    """The plan after the loss of a GPU: its adapters are where its ``fallbacks`` say; predictions are the old ones.

    Raises:
        BadInputError: the plan has no such GPU, or was made without a reserve.
    """
    ids = [gpu.id for gpu in plan.gpus]
    if gpu_id not in ids:
        raise BadInputError(f"the plan has no GPU {gpu_id!r}{did_you_mean(gpu_id, ids)}")
    goes = plan.fallbacks.get(gpu_id)
    if goes is None:
        raise BadInputError("this plan does not say what happens if a GPU is lost; solve with constraints.reserve=true")
    lost = next(gpu for gpu in plan.gpus if gpu.id == gpu_id)
    gpus = [
        gpu.model_copy(update={"adapters": (*gpu.adapters, *(a for a in lost.adapters if goes.get(a.name) == gpu.id))})
        for gpu in plan.gpus
        if gpu.id != gpu_id
    ]
    return Plan.model_validate(plan.model_copy(update={"gpus": tuple(gpus), "fallbacks": {}}).model_dump())
