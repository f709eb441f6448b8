"""Closed-loop episodes: chunks, controls, limits, videos, several processes."""

import functools

import av
import numpy as np
import pytest
from PIL import Image
from toy import ConstantPolicy, IdlePolicy, MetaWorldExpert, SightedPolicy, ToyEnvironment

from hf_vla.evaluation.captions import captioned
from hf_vla.evaluation.environments import make_environment
from hf_vla.evaluation.rollout import Episode, evaluate, run_episode, run_episodes, stream_episode
from hf_vla.inference import ChunkRule


def test_a_policy_that_sees_solves_and_stops_at_success():
    policy, environment = SightedPolicy(), ToyEnvironment()
    assert run_episode(policy, environment, seed=5) == (True, 8)
    assert policy.seeds == [5]


def test_a_policy_that_idles_runs_into_the_limit():
    assert run_episode(IdlePolicy(), ToyEnvironment(max_steps=13), seed=5) == (False, 13)


def test_going_on_after_success():
    success, length = run_episode(SightedPolicy(), ToyEnvironment(), seed=5, stop_on_success=False)
    assert (success, length) == (True, 30)


@pytest.mark.parametrize(("horizon", "execute_steps", "chunks"), [(8, None, 3), (8, 1, 12), (8, 8, 2), (2, None, 6)])
def test_a_chunk_is_executed_open_loop(horizon, execute_steps, chunks):
    policy, environment = IdlePolicy(horizon), ToyEnvironment(max_steps=12)
    run_episode(policy, environment, seed=0, execute_steps=execute_steps)
    assert len(policy.seen) == chunks
    # One observation a chunk is all that is drawn.
    assert environment.observations_drawn == chunks
    assert len(environment.executed) == 12


def test_actions_are_clipped():
    environment = ToyEnvironment(max_steps=2)
    run_episode(ConstantPolicy(np.array([[9.0], [-9.0]])), environment, seed=0)
    assert environment.executed == [1.0, -1.0]


def test_blind_images_are_gray_and_of_the_same_size():
    policy = SightedPolicy()
    run_episode(policy, ToyEnvironment(max_steps=5), seed=5, blind=True)
    image = policy.seen[0]["image"][0]
    assert image.size == (16, 16) and image.getcolors() == [(256, (128, 128, 128))]
    assert policy.seen[0]["lang"] == "reach the target"


def test_wrong_instructions_are_those_of_the_scene_or_else_of_other_tasks():
    class Scene(ToyEnvironment):
        def __init__(self, instruction="reach the target", others=()):
            super().__init__(max_steps=1)
            self.instruction, self.others = instruction, list(others)

        def other_instructions(self):
            return self.others

    def told(environments, seeds=range(3)):
        policy = SightedPolicy()
        episodes = [Episode("policy", "scene", seed, wrong_instruction=True) for seed in seeds]
        run_episodes(episodes, {"policy": policy}, environments, progress=False)
        return [observation["lang"] for observation in policy.seen]

    push = functools.partial(Scene, "push the target")
    assert told({"scene": functools.partial(Scene, others=["turn", "lift"]), "push": push}) == ["turn", "lift", "turn"]
    pull = functools.partial(Scene, "pull it")
    assert told({"scene": Scene, "push": push, "again": Scene, "pull": pull}) == [
        "push the target",
        "pull it",
        "push the target",
    ]
    with pytest.raises(ValueError, match="there is no wrong instruction for scene: .* give several tasks"):
        told({"scene": Scene, "again": Scene})

    class Asking(ToyEnvironment):
        """Knows what it asks for when an episode is started."""

        def __init__(self, task="reach", num_episodes=None):
            super().__init__(task, max_steps=1)
            self.instruction, self.num_episodes = "", num_episodes

        def reset(self, seed):
            assert self.num_episodes is None or seed < self.num_episodes
            self.instruction = f"{self.task} {seed}"
            return super().reset(seed)

    touch = functools.partial(Asking, "touch", num_episodes=2)
    for seeds in (range(3), [2, 0, 1]):
        assert told({"scene": Asking, "touch": touch}, seeds) == [f"touch {seed % 2}" for seed in seeds]
    with pytest.raises(ValueError, match="there is no wrong instruction for scene"):
        told({"scene": Asking, "again": Asking})


@pytest.mark.parametrize(
    ("chunk", "execute_steps", "message"),
    [
        (np.zeros(4), None, r"shape \(4,\); toy takes \(H, 1\)"),
        (np.zeros((4, 2)), None, r"shape \(4, 2\); toy takes \(H, 1\)"),
        (np.zeros((0, 1)), None, r"shape \(0, 1\)"),
        (np.full((4, 1), np.nan), None, "NaN or infinite"),
        (np.zeros((4, 1)), 5, "set execute_steps to 4 at most"),
    ],
)
def test_bad_chunks(chunk, execute_steps, message):
    with pytest.raises(ValueError, match=message):
        run_episode(ConstantPolicy(chunk), ToyEnvironment(), seed=0, execute_steps=execute_steps)


def test_evaluate_runs_each_seed():
    results = evaluate(SightedPolicy(), ToyEnvironment, seeds=range(4, 8), progress=False)
    assert [result.episode.seed for result in results] == [4, 5, 6, 7]
    assert [result.length for result in results] == [7, 8, 9, 10]
    blind = evaluate(SightedPolicy(), ToyEnvironment, seeds=range(4, 8), blind=True, progress=False)
    assert [result.success for result in blind] == [False] * 4


def test_videos(tmp_path):
    evaluate(
        SightedPolicy(), ToyEnvironment, seeds=[1, 2, 3], num_videos=2, video_folder=tmp_path / "clips", progress=False
    )
    assert sorted(path.name for path in (tmp_path / "clips").iterdir()) == ["seed-1.mp4", "seed-2.mp4"]
    with av.open(tmp_path / "clips/seed-1.mp4") as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    # Four steps: the first frame, and every second step's.
    assert len(frames) == 3 and frames[0].shape == (256 + 64, 256, 3)
    assert abs(int(frames[0][:256].mean()) - 168) < 3
    blue = [(frame[256:].astype(int) @ [-1, 0, 1] > 60).sum() for frame in frames]
    assert blue[0] == 0 < blue[1] and blue[2] > 0  # no action before the first
    green = [(frame[:5].astype(int) @ [-1, 1, 0] > 60).sum() for frame in frames]
    assert green[:2] == [0, 0] and green[2] > 500  # solved at the end
    with pytest.raises(ValueError, match="no video_folder"):
        evaluate(SightedPolicy(), ToyEnvironment, seeds=[1], num_videos=1)


def test_captions():
    """The instruction in letters that the font has, in two lines; each dimension of the action as a bar within its limits."""
    view = Image.new("RGB", (256, 256))
    low, high = np.array([-1, 0, -np.inf, 2], np.float32), np.array([1, 10, np.inf, 2], np.float32)
    short, long = (captioned(view, text, 3, None, low, high, False) for text in ("go", "put the \u676f on it " * 20))
    assert short.shape == (320, 256, 3) and short.dtype == np.uint8
    assert (long[256:283] > 128).sum() > 5 * (short[256:283] > 128).sum() > 0
    assert not (short[:256].any() or long[:256].any())
    bars = captioned(view, "go", 3, np.array([1, 0, 0.5, 2], np.float32), low, high, False)
    drawn = (bars[-22:].astype(int) @ [-1, 0, 1] > 60).reshape(22, 4, 64)
    above, below = drawn[:10].sum((0, 2)), drawn[12:].sum((0, 2))
    assert above[0] > 400 and above[2] > 200 and below[1] > 400 and below[0] == 0 and above[1] < 40


@pytest.mark.slow
def test_the_number_of_workers_changes_nothing():
    episodes = [Episode(policy, "toy", seed) for policy in ("sighted", "idle") for seed in range(3)]
    policies = {"sighted": functools.partial(SightedPolicy, 8), "idle": IdlePolicy}
    one, two = (
        run_episodes(episodes, policies, {"toy": ToyEnvironment}, num_workers=n, progress=False) for n in (1, 2)
    )
    assert one == two
    assert [result.episode for result in one] == episodes
    assert [result.success for result in one] == [True] * 3 + [False] * 3


@pytest.mark.parametrize(
    ("rule", "asked"),
    [
        (ChunkRule(execute=2, inference_delay=2), [0, 2, 4, 6, 8, 10]),
        (ChunkRule("temporal_ensemble"), list(range(12))),
        (ChunkRule("real_time_chunking", execute=3, inference_delay=1), [0, 3, 6, 9]),
    ],
)
def test_other_chunk_rules(rule, asked):
    """Only the observations that the policy is asked with are drawn, and a delayed policy's last words are not waited for."""
    policy, environment = IdlePolicy(), ToyEnvironment(max_steps=12)
    steps = list(stream_episode(policy, environment, 0, chunk_rule=rule))
    assert len(policy.seen) == environment.observations_drawn == len(asked)
    late = [step for step in asked if step + (rule.inference_delay or 0) < 12 and step]
    new = [1, *(step + (rule.inference_delay or 0) + 1 for step in late)]
    assert [step.number for step in steps if step.new_chunk] == new


def test_a_delay_is_as_on_a_robot():
    """A policy that repeats what is right for now overshoots by as many steps as it is late.

    With a delay of two it is asked at every second step only: at step 7 it sees one more step to go, which is executed at 9 and 10.
    """

    class Repeating(SightedPolicy):
        def infer(self, observation):
            return np.repeat(super().infer(observation)[:1], 8, axis=0)

    furthest = []
    for delay in (0, 1, 2):
        environment = ToyEnvironment()
        rule = ChunkRule(execute=1, inference_delay=delay)
        run_episode(Repeating(), environment, 5, chunk_rule=rule, stop_on_success=False)
        furthest.append(np.cumsum(environment.executed).max() - environment.target)
    assert furthest == [0, 1, 3]


def test_unknown_keys_and_numbers():
    episode = Episode("a", "toy", 0)
    with pytest.raises(ValueError, match=r"policies: \['b'\]"):
        run_episodes([episode], {"b": IdlePolicy}, {"toy": ToyEnvironment})
    with pytest.raises(ValueError, match="num_workers is 0; give a whole number from 1"):
        run_episodes([episode], {"a": IdlePolicy}, {"toy": ToyEnvironment}, num_workers=0)
    with pytest.raises(ValueError, match="execute is 0; give a whole number from 1"):
        run_episodes([episode], {"a": IdlePolicy}, {"toy": ToyEnvironment}, execute_steps=0)
    with pytest.raises(ValueError, match="execute_steps is 3 and chunk_rule .*; give one of them"):
        run_episodes([episode], {"a": IdlePolicy}, {"toy": ToyEnvironment}, execute_steps=3, chunk_rule=ChunkRule())


def test_metaworlds_expert_in_closed_loop(tmp_path):
    environment = make_environment("metaworld", "button-press-topdown")
    success, length = run_episode(MetaWorldExpert(environment), environment, seed=3, video=tmp_path / "button.mp4")
    assert success and 30 < length < 120
    with av.open(tmp_path / "button.mp4") as container:
        assert container.streams.video[0].average_rate == 40
        assert len(list(container.decode(video=0))) == 1 + (length + 1) // 2
    environment.close()


def test_a_chunk_ends_where_the_instruction_changes():
    class TwoTasks(ToyEnvironment):
        def step(self, action):
            result = super().step(action)
            if self.steps == 2:
                self.instruction = "go back"
            return result

    policy = ConstantPolicy(np.zeros((4, 1), np.float32))
    seen = []
    policy.infer = lambda observation: seen.append(observation["lang"]) or policy.chunk
    run_episode(policy, TwoTasks(max_steps=7), 0, execute_steps=4)
    assert seen == ["reach the target", "go back", "go back"]  # after 2 of 4 actions, then after 4
