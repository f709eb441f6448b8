"""What a mixture's YAML file may hold, and what is said of what it may not."""

import pytest

from hf_vla.data import DatasetMixture


@pytest.fixture
def mixture(reference_datasets, tmp_path):
    """A function that opens the mixture of one member with these further fields."""

    def open_mixture(fields, member="v21_video"):
        file = tmp_path / "mixture.yaml"
        file.write_text(f"- {{dataset: {member}, action_horizon: 4, {fields}}}")
        return DatasetMixture.from_name(file, reference_datasets)

    return open_mixture


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("weight: 0", "weight of the entry of v21_video is 0, not a positive number"),
        ("weight: -1", "weight.*-1, not a positive number"),
        ("weight: '2'", "weight.*'2', not a positive number"),
        ("weight: heavy", "weight.*'heavy', not a positive number"),
        ("weight: .nan", "weight.*nan, not a positive number"),
        ("weight: true", "weight.*True, not a positive number"),
        ("robot: [arm]", r"robot.*\['arm'\], not a robot type"),
        ("episodes: '3'", "episodes.*'3', not a list of whole numbers"),
        ("episodes: 3", "episodes.*3, not a list of whole numbers"),
        ("episodes: [1.5]", "episodes.*not a list of whole numbers"),
        ("cameras: front", "cameras.*'front', not a list of names"),
        ("columns: 5", "columns.*5, not a YAML file or what it would hold"),
        ("absolute_dims: -1", "absolute_dims.*-1, not a list of whole numbers"),
        ("max_table_bytes: lots", "max_table_bytes.*'lots', not a whole number"),
    ],
)
def test_fields_of_another_type(mixture, fields, message):
    with pytest.raises(ValueError, match=f"mixture.yaml: {message}"):
        mixture(fields)


def test_null_is_the_default(mixture):
    whole = mixture("episodes: null, cameras: null, columns: null")
    assert len(whole) == 77 and len(whole.datasets[0].cameras) == 2
    with pytest.raises(ValueError, match="weight.*None, not a positive number"):
        mixture("weight: null")


@pytest.mark.parametrize("member", ["5", "[v21_video]", "null"])
def test_member_that_is_no_name(mixture, member):
    with pytest.raises(ValueError, match="dataset of the entry of .*, not a folder or Hub repository"):
        mixture("weight: 1", member)


def test_horizon_of_another_type(mixture, tmp_path, reference_datasets):
    for horizon in ("'4'", "0", "2.5"):
        (tmp_path / "mixture.yaml").write_text(f"- {{dataset: v21_video, action_horizon: {horizon}}}")
        with pytest.raises(ValueError, match="action_horizon.*not a positive whole number"):
            DatasetMixture.from_name(tmp_path / "mixture.yaml", reference_datasets)


def test_robot_type_that_is_mistyped(tmp_path, reference_datasets):
    (tmp_path / "mixture.yaml").write_text("- {dataset: v21_video, robot: oxe_brigde}")
    with pytest.raises(ValueError, match="'oxe_brigde' is not a known robot type.*did you mean oxe_bridge"):
        DatasetMixture.from_name(tmp_path / "mixture.yaml", reference_datasets)


def test_unknown_robot_that_is_nearly_a_known_one_is_told(mixture, caplog):
    assert mixture("robot: oxe_brigde").datasets[0].unnorm_key == "oxe_brigde"
    assert "'oxe_brigde' is not a known robot type" in caplog.text and "did you mean oxe_bridge?" in caplog.text
    caplog.clear()
    assert mixture("robot: my_arm").datasets[0].unnorm_key == "my_arm" and not caplog.text


def test_columns_lie_beside_the_mixture(mixture, tmp_path):
    (tmp_path / "mine.yaml").write_text("action: [{column: action, end: 3}]")
    assert mixture("columns: mine.yaml").datasets[0].action_dim == 3
    assert mixture(f"columns: {tmp_path / 'mine.yaml'}").datasets[0].action_dim == 3


def test_file_that_is_no_text(tmp_path):
    (tmp_path / "mixture.yaml").write_bytes("- {dataset: höhe}".encode("latin1"))
    with pytest.raises(ValueError, match="mixture.yaml is not valid YAML"):
        DatasetMixture.from_name(tmp_path / "mixture.yaml")
