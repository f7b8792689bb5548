"""The check that backends share: is the backend open, and is the model registered with it?"""

import pytest

import art_core as art


def make_model(folder, name="agent"):
    return art.TrainableModel(
        name=name, project="demo", base_model="base", base_path=folder, sinks=[]
    )


def test_a_registered_model_is_found_also_by_a_new_object_over_the_same_run(tmp_path):
    models: art.RegisteredModels[str] = art.RegisteredModels("cluster")
    models[models.key(make_model(tmp_path))] = "its weights"
    assert models.of(make_model(tmp_path)) == "its weights"


def test_a_run_directory_behind_a_link_is_the_same_run(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "runs", target_is_directory=True)
    keys = [art.RegisteredModels.key(make_model(tmp_path / name)) for name in ("runs", "link")]
    assert keys[0] == keys[1]


def test_a_model_that_is_not_registered_is_an_error_that_says_what_to_call(tmp_path):
    models: art.RegisteredModels[str] = art.RegisteredModels("cluster")
    with pytest.raises(art.ConfigError, match=r"model 'agent' is not registered with this backend.*"
                       r"Call await model\.register"):  # fmt: skip
        models.of(make_model(tmp_path))


def test_a_closed_backend_refuses_every_model_and_says_how_to_make_a_new_one(tmp_path):
    models: art.RegisteredModels[str] = art.RegisteredModels("cluster")
    model = make_model(tmp_path)
    models[models.key(model)] = "its weights"
    models.check_open()
    models.closed = True
    for call in (models.check_open, lambda: models.of(model)):
        with pytest.raises(art.BackendError, match=r'the cluster backend is closed.*"cluster"'):
            call()
