"""Weights: what is saved comes back, what doesn't fit or can't be trusted is refused in a sentence."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from common import weights
from common.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[2]


def small_net() -> nn.Module:
    torch.manual_seed(0)  # the initial weights of torch's layers come from the global generator
    net = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 2))
    net.register_buffer("index", torch.tensor([3, 1, 2]))
    return net


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    weights.save(tmp_path / "net", small_net(), {"width": 7, "kind": "tiny"}, dtype=torch.float32)
    return tmp_path / "net"


def refusal(name_or_path: str | Path, expect: nn.Module | None = None) -> str:
    with pytest.raises(InputError) as caught:
        weights.from_pretrained(name_or_path, expect)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    return sentence


@pytest.mark.parametrize(
    ("dtype", "tolerance"),  # half of the spacing of numbers below one: 8, 11 and 24 bits of significand
    [(torch.bfloat16, 2**-9), (torch.float16, 2**-12), (torch.float32, 0.0)],
)
def test_saved_weights_come_back_within_the_rounding_of_their_dtype(
    tmp_path: Path, dtype: torch.dtype, tolerance: float
) -> None:
    net = small_net()
    weights.save(tmp_path, net, {}, dtype=dtype)
    state, _ = weights.from_pretrained(tmp_path, expect=net)
    for key, tensor in net.state_dict().items():
        assert state[key].dtype == tensor.dtype
        assert (state[key] - tensor).abs().max() <= tolerance
    stored, _ = weights.from_pretrained(tmp_path)
    assert {t.dtype for t in stored.values()} == {dtype, torch.int64}
    assert stored["index"].tolist() == [3, 1, 2]


def test_loading_into_a_module_gives_the_saved_function(folder: Path) -> None:
    net, x = small_net().eval(), torch.linspace(-1, 1, 15).reshape(3, 5)
    other = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 2)).eval()
    other.register_buffer("index", torch.zeros(3, dtype=torch.int64))
    state, _ = weights.from_pretrained(folder)
    assert torch.equal(weights.load_into(other, state, folder)(x), net(x))


def test_same_weights_give_same_bytes_whatever_the_order(tmp_path: Path) -> None:
    state = small_net().state_dict()
    weights.save(tmp_path / "a", state, {"b": 1, "a": [1, 2]})
    weights.save(tmp_path / "b", dict(reversed(state.items())), {"a": [1, 2], "b": 1})
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_views_and_tied_tensors_are_saved_as_what_they_look_like(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    weights.save(tmp_path, {"tied": base, "same": base, "turned": base.T}, {}, dtype=torch.float32)
    state, _ = weights.from_pretrained(tmp_path)
    assert torch.equal(state["tied"], base)
    assert torch.equal(state["same"], base)
    assert torch.equal(state["turned"], base.T)


def test_failed_save_leaves_the_old_pair_and_nothing_else(folder: Path) -> None:
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(ValueError, match=r"0\.weight.*float16"):
        weights.save(folder, {"0.weight": torch.tensor([1e6])}, {}, dtype=torch.float16)
    with pytest.raises(TypeError):
        weights.save(folder, {"0.weight": torch.ones(1)}, {"model": object()})
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_save_overwrites_its_two_files_and_keeps_the_rest(folder: Path) -> None:
    (folder / "README.md").write_text("model card")
    weights.save(folder, {"a": torch.ones(2)}, {"new": True})
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    state, config = weights.from_pretrained(str(folder))
    assert list(state) == ["a"]
    assert config == {"new": True}


def test_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="choose another place"):
        weights.save(tmp_path / "file" / "net", {"a": torch.ones(1)}, {})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=40, deadline=None)
@given(config=st.dictionaries(st.text(), json_values, max_size=4))
def test_any_json_config_makes_the_round_trip(tmp_path_factory: pytest.TempPathFactory, config: dict) -> None:
    folder = tmp_path_factory.mktemp("config")
    weights.save(folder, {"a": torch.ones(1)}, config)
    assert weights.from_pretrained(folder)[1] == config


def test_every_difference_from_the_model_is_named(folder: Path) -> None:
    state, _ = weights.from_pretrained(folder)
    changed = {key: tensor for key, tensor in state.items() if key != "0.bias"}
    changed["extra"] = torch.ones(1)
    changed["2.weight"] = torch.ones(3, 7)
    with pytest.raises(InputError) as caught:
        weights.check(changed, small_net(), "net")
    for part in ("0.bias is missing", "extra is not expected", "2.weight has the shape [3, 7] instead of [2, 7]"):
        assert part in str(caught.value)
    with pytest.raises(InputError, match="index holds float32 instead of int64"):
        weights.check({**state, "index": torch.ones(3)}, small_net(), "net")
    many = {f"{i}.weight": torch.ones(1) for i in range(100, 200)}
    with pytest.raises(InputError, match="more differences") as caught:
        weights.check(many, small_net(), "net")
    assert len(str(caught.value)) < 400


def test_a_module_on_the_meta_device_is_enough_to_check_against(folder: Path) -> None:
    state, _ = weights.from_pretrained(folder, expect=small_net().to("meta"))
    assert {tensor.device.type for tensor in state.values()} == {"cpu"}


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_truncated_or_altered_safetensors_never_escape_as_another_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    weights.save(folder, {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4)}, {})
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans(), label="truncate"):
        del content[data.draw(st.integers(0, len(content) - 1), label="length") :]
        path.write_bytes(content)
        assert str(path) in refusal(folder)
        return
    for _ in range(data.draw(st.integers(1, 4), label="changes")):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        weights.from_pretrained(folder, expect={"a": torch.ones(2, 3), "b": torch.ones(4)})
    except InputError as error:
        assert "model" in str(error)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1, 2]", b"null", b'"text"', b"\xff\xfe\x00", b"[" * 100_000, b'{"a": 1,}']
)
def test_a_config_that_is_no_json_object_is_refused_by_name(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    sentence = refusal(folder)
    assert str(folder / "config.json") in sentence
    assert "fresh copy" in sentence


def test_missing_files_and_pickles_are_refused_with_what_to_do(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").unlink()
    assert "has no config.json" in refusal(folder)
    old = tmp_path / "old"
    old.mkdir()
    torch.save(small_net().state_dict(), old / "pytorch_model.bin")
    assert "pytorch_model.bin, a pickled file, which can run code" in refusal(old)
    assert "pickled file, which can run code" in refusal(str(old / "pytorch_model.bin"))
    assert "check the spelling" in refusal(str(tmp_path / "nowhere"))


def test_the_weights_file_itself_stands_for_its_folder(folder: Path) -> None:
    assert weights.find(str(folder / "model.safetensors")) == folder


def test_an_unknown_built_in_name_lists_those_there_are() -> None:
    sentence = refusal("small/nosuchpart")
    assert "No built-in weights are called 'small/nosuchpart'" in sentence
    for name in weights.built_in():
        assert name in sentence


def test_built_in_names_do_not_reach_outside_their_folder() -> None:
    assert "No built-in weights" in refusal("small/../../examples")


def test_built_in_weights_can_be_read_by_their_names() -> None:
    for name in weights.built_in():
        state, config = weights.from_pretrained(name)
        assert state, name
        assert config, name


def test_a_mistyped_path_below_a_folder_is_not_taken_for_a_hub_id(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent.parent)
    assert "There are no weights at" in refusal(f"{folder.parent.name}/nett")


def in_the_hubs_layout(cache: Path, repo_id: str, revision: str) -> Path:
    """A repository in the hub's cache, as its own client leaves it: blobs, and snapshots that link to them."""
    root = cache / ("models--" + repo_id.replace("/", "--"))
    snapshot = root / "snapshots" / ("0123456789abcdef" * 3)[:40]
    snapshot.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / revision).write_text(snapshot.name)
    weights.save(root / "blobs", small_net(), {"width": 7})
    for blob in sorted((root / "blobs").iterdir()):
        (snapshot / blob.name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


def test_a_hub_id_is_served_from_the_cache_and_its_absence_is_one_sentence(tmp_path: Path) -> None:
    cache = tmp_path / "hub"
    snapshot = in_the_hubs_layout(cache, "duet-test/net", "main")
    # A process of its own: the hub's client reads its settings once, when it is imported.
    script = """
import json, sys
from common import weights
from common.errors import InputError
state, config = weights.from_pretrained("duet-test/net")
answers = [sorted(state), config, str(weights.find("duet-test/net@" + sys.argv[1]))]
for name in ("duet-test/other", "duet-test/net@v9"):
    try:
        weights.from_pretrained(name)
    except InputError as error:
        answers.append(str(error))
print(json.dumps(answers))
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache), "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", script, snapshot.name],
        capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    keys, config, found, absent, revision = json.loads(done.stdout)
    assert keys == sorted(small_net().state_dict())
    assert config == {"width": 7}
    assert Path(found) == snapshot
    for sentence, name in ((absent, "duet-test/other"), (revision, "duet-test/net@v9")):
        assert f"Can't get the weights '{name}'" in sentence
        assert str(cache) in sentence
        assert "unset HF_HUB_OFFLINE" in sentence


class Runs:
    """A pickle of this writes a file when it is opened carelessly."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


def test_checkpoints_of_tensors_are_read_and_none_of_their_code_is_run(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.ckpt", tmp_path / "bad.pt"
    state = {"state_dict": small_net().state_dict(), "step": 3, "names": ["a", "b"]}
    torch.save(state, good)
    read = weights.read_checkpoint(good)
    assert read["step"] == 3
    assert torch.equal(read["state_dict"]["0.weight"], state["state_dict"]["0.weight"])  # type: ignore[index]
    torch.save({"a": torch.ones(1), "hook": Runs(tmp_path / "ran")}, bad)
    with pytest.raises(InputError, match=r"bad\.pt safely"):
        weights.read_checkpoint(bad)
    bad.write_bytes(pickle.dumps(Runs(tmp_path / "ran"), protocol=2))
    with pytest.raises(InputError, match=r"bad\.pt safely"):
        weights.read_checkpoint(bad)
    assert not (tmp_path / "ran").exists()


@settings(max_examples=40, deadline=None)
@given(length=st.integers(0, 2000), noise=st.binary(max_size=40))
def test_damaged_checkpoints_are_refused(tmp_path_factory: pytest.TempPathFactory, length: int, noise: bytes) -> None:
    path = tmp_path_factory.mktemp("checkpoint") / "net.pth"
    torch.save(small_net().state_dict(), path)
    assert path.stat().st_size > 2000
    path.write_bytes(path.read_bytes()[:length] + noise)
    with pytest.raises(InputError, match=r"net\.pth"):
        weights.read_checkpoint(path)


def test_a_checkpoint_that_is_no_dictionary_or_not_there_is_refused(tmp_path: Path) -> None:
    torch.save(torch.ones(3), tmp_path / "tensor.pt")
    with pytest.raises(InputError, match="holds a Tensor: a dictionary"):
        weights.read_checkpoint(tmp_path / "tensor.pt")
    with pytest.raises(InputError, match="There is no checkpoint at"):
        weights.read_checkpoint(tmp_path / "none.pt")
