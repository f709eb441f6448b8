"""What errors say of names that are nearly right."""

from hf_vla.utils.suggestions import did_you_mean, nearest_first

KNOWN = ["episodes", "task", "episode_length"]


def test_near_names_are_offered():
    assert did_you_mean("episode", KNOWN) == "; did you mean episodes or episode_length?"


def test_what_to_say_otherwise():
    assert did_you_mean("seed", KNOWN) == "" and did_you_mean("seed", KNOWN, "possible: …") == "; possible: …"


def test_all_names_with_the_nearest_first():
    assert nearest_first("tsk", KNOWN) == ["task", "episodes", "episode_length"]
