"""Learning-rate schedules per parameter group, each ending at the same minimum rate."""

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler
from transformers.trainer_utils import SchedulerType

#: schedules that end at a rate, not at a fraction of one -> the option that sets it, and its default
_FLOORS = {
    SchedulerType.COSINE_WITH_MIN_LR: ("min_lr", None),
    SchedulerType.COSINE_WARMUP_WITH_MIN_LR: ("min_lr", None),
    SchedulerType.POLYNOMIAL: ("lr_end", 1e-7),
}


def final_rate(name: SchedulerType, options: dict | None) -> float | None:
    """Return the learning rate at which a schedule ends; None if it ends at a fraction of each group's own rate."""
    option, default = _FLOORS.get(name, (None, None))
    return (options or {}).get(option, default)


def schedule_per_group(
    name: SchedulerType, optimizer: torch.optim.Optimizer, warmup: int, total: int, options: dict | None
) -> LambdaLR:
    """Make transformers' schedule `name` for each parameter group from its own rate.

    transformers makes one for all groups, from the rate that the optimizer was made with: if that is 1e-5 and `min_lr`
    5e-7, a group of rate 1e-4 ends at 5e-6.

    Args:
        warmup, total: steps.
        options: of the schedule (`lr_scheduler_kwargs`).
    """
    rates = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
    return LambdaLR(optimizer, [_alone(name, rate, warmup, total, options).lr_lambdas[0] for rate in rates])


def check_schedule(
    name: SchedulerType, options: dict | None, rates: dict[str, float], warmup: int, total: int
) -> None:
    """Check before training that the schedule accepts its options, and that no rate would rise.

    Args:
        rates: group -> learning rate.

    Raises:
        ValueError: options that the schedule does not have, or a group whose rate is below the final one.
    """
    floor = final_rate(name, options)
    low = [f"{rate:g} of {group}" for group, rate in rates.items() if floor is not None and rate < floor]
    if low:
        option = _FLOORS[name][0]
        share = "; or set min_lr_rate, a fraction of each group's rate, instead" if option == "min_lr" else ""
        raise ValueError(
            f"lr_scheduler_kwargs: {option} {floor:g} is above the learning rate {', '.join(low)}, which would rise to it. "
            f"Lower {option} or raise the rate{share}"
        )
    for rate in rates.values():
        try:
            _alone(name, rate, warmup, total, options)
        except (TypeError, ValueError) as error:
            raise ValueError(f"lr_scheduler_type {name.value} with lr_scheduler_kwargs {options}: {error}") from None


def _alone(name: SchedulerType, rate: float, warmup: int, total: int, options: dict | None):
    """Return the schedule of an optimizer with that one rate."""
    # A rate of 0 stays 0 whatever its factor; the formulas would divide by it.
    alone = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=rate or 1.0)
    return get_scheduler(name, alone, warmup, total, options)


__all__ = ["check_schedule", "final_rate", "schedule_per_group"]
