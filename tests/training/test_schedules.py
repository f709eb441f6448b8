"""Every schedule moves every parameter group by its own rate, down to the minimum that is stated."""

import math

import pytest
from tiny_policy import tiny_trainer
from transformers.trainer_utils import SchedulerType

STEPS, WARMUP = 20, 5
RATES = {"default": 1e-3, "^action_head": 1e-2, "action_queries": 4e-3}


def warm(step):
    return step / WARMUP


def progress(step):
    return (step - WARMUP) / (STEPS - WARMUP)


def half_cosine(rate, floor, x):
    return floor + (rate - floor) * 0.5 * (1 + math.cos(math.pi * x))


# schedule, its options, the rate after warm-up, the rate in warm-up (None: that of all)
CASES = [
    ("linear", {}, lambda rate, k: rate * (1 - progress(k)), None),
    ("cosine", {}, lambda rate, k: half_cosine(rate, 0, progress(k)), None),
    (
        "cosine_with_restarts",
        {"num_cycles": 2},
        lambda rate, k: half_cosine(rate, 0, 2 * progress(k) % 1) if k < STEPS else 0,
        None,
    ),
    (
        "polynomial",
        {"lr_end": 1e-4, "power": 2.0},
        lambda rate, k: 1e-4 + (rate - 1e-4) * (1 - progress(k)) ** 2,
        None,
    ),
    ("constant", {}, lambda rate, k: rate, lambda rate, k: rate),
    ("constant_with_warmup", {}, lambda rate, k: rate, None),
    ("inverse_sqrt", {}, lambda rate, k: rate * math.sqrt(WARMUP / k), None),
    ("cosine_with_min_lr", {"min_lr": 1e-4}, lambda rate, k: half_cosine(rate, 1e-4, progress(k)), None),
    ("cosine_with_min_lr", {"min_lr_rate": 0.1}, lambda rate, k: half_cosine(rate, rate / 10, progress(k)), None),
    (
        "cosine_warmup_with_min_lr",
        {"min_lr": 1e-4},
        lambda rate, k: half_cosine(rate, 1e-4, (k - WARMUP + 1) / (STEPS - WARMUP)) if k < STEPS else None,
        lambda rate, k: rate * (k + 1) / WARMUP,
    ),
    (
        "warmup_stable_decay",
        {"num_decay_steps": 5, "decay_type": "linear", "min_lr_ratio": 0.1},
        lambda rate, k: rate * (1 - 0.9 * max(0, k - 15) / 5),
        lambda rate, k: rate * (0.1 + 0.9 * warm(k)),
    ),
]


@pytest.mark.parametrize(("name", "options", "later", "early"), CASES)
def test_rates_of_the_optimizer_over_a_whole_schedule(tmp_path, name, options, later, early):
    trainer = tiny_trainer(
        tmp_path,
        learning_rate=RATES["default"],
        module_learning_rates={pattern: rate for pattern, rate in RATES.items() if pattern != "default"},
        lr_scheduler_type=name,
        lr_scheduler_kwargs=options,
        warmup_steps=WARMUP,
        weight_decay=0.1,
    )
    trainer.create_optimizer_and_scheduler(num_training_steps=STEPS)
    groups = list(zip(trainer.group_names, trainer.optimizer.param_groups, strict=True))
    assert {group for group, _ in groups} == set(RATES) and groups[0][0] == "default"
    for step in range(STEPS + 1):
        for group, options_of_group in groups:
            rate = RATES[group]
            if step < WARMUP:
                expected = early(rate, step) if early else rate * warm(step)
            else:
                expected = later(rate, step)
            if expected is not None:
                assert options_of_group["lr"] == pytest.approx(expected, rel=1e-9, abs=1e-15), (group, step)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("reduce_lr_on_plateau", {"factor": 0.5, "patience": 0}),
        ("greedy", {"factor": 0.5, "patience": 0, "min_lr": 1e-9}),
    ],
)
def test_schedules_by_the_evaluation_scale_every_group(tmp_path, name, options):
    rates = {"^action_head": 1e-2}
    trainer = tiny_trainer(
        tmp_path,
        module_learning_rates=rates,
        learning_rate=1e-3,
        lr_scheduler_type=name,
        lr_scheduler_kwargs=options,
        eval_strategy="steps",
    )
    trainer.create_optimizer_and_scheduler(num_training_steps=STEPS)
    before = [group["lr"] for group in trainer.optimizer.param_groups]
    for metric in (1.0, 2.0):  # better than nothing, then worse
        trainer.optimizer.step()
        trainer.lr_scheduler.step(metric)
    after = [group["lr"] for group in trainer.optimizer.param_groups]
    factors = {a / b for a, b in zip(after, before, strict=True)}
    assert len(set(before)) == 2 and len(factors) == 1
    assert factors.pop() == pytest.approx(
        1.0 if name == "greedy" else 0.5
    )  # greedy: up by the first, down by the second


def test_every_schedule_of_transformers_is_here():
    by_evaluation = {"reduce_lr_on_plateau", "greedy"}
    assert {name for name, *_ in CASES} | by_evaluation == {kind.value for kind in SchedulerType}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr_scheduler_kwargs": {"min_lr": 2e-3}}, "min_lr 0.002 is above the learning rate 0.001 of default"),
        ({"lr_scheduler_kwargs": {}}, "One of min_lr or min_lr_rate"),
        ({"lr_scheduler_kwargs": {"min_rl": 1e-5}}, "unexpected keyword argument 'min_rl'"),
        ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 5e-3}}, "lr_end 0.005 is above"),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "num_decay_steps"),
    ],
)
def test_schedules_that_can_not_be_are_refused_before_training(tmp_path, arguments, message):
    defaults = {"learning_rate": 1e-3, "module_learning_rates": {"action_head": 1e-2}}
    with pytest.raises(ValueError, match=message):
        tiny_trainer(tmp_path, **{"lr_scheduler_type": "cosine_with_min_lr", **defaults, **arguments})


def test_numbers_that_yaml_reads_as_text(tmp_path):
    trainer = tiny_trainer(
        tmp_path,
        module_learning_rates={"action_head": "1e-2"},
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr": "5e-7"},
    )
    assert trainer.args.module_learning_rates == {"action_head": 0.01}
    assert trainer.args.lr_scheduler_kwargs == {"min_lr": 5e-7}
