"""Profiles: shipped ones load, wrong ones are named by field, and the memory law is vLLM's."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from loraplan.errors import BadInputError
from loraplan.profiles import H100_LLAMA, H100_QWEN, PROFILES, Profile, load_profile, read_profile

DATA: dict[str, Any] = yaml.safe_load(H100_LLAMA.read_text())
LLAMA, QWEN = read_profile(H100_LLAMA), read_profile(H100_QWEN)


def field_places(model: type[BaseModel], above: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], bool]]:
    """Every field of a model and its parts, and whether it must be given."""
    places = []
    for name, field in model.model_fields.items():
        places.append(((*above, name), field.is_required()))
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                places += field_places(kind, (*above, name))
    return places


PLACES = field_places(Profile)


def wrong_profile(folder: Path, data: Any) -> str:
    path = folder / "wrong.yaml"
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data))
    with pytest.raises(BadInputError) as error:
        read_profile(path)
    assert "\n" not in str(error.value)
    prefix = f"profile {path}: "
    assert str(error.value).startswith(prefix)
    return str(error.value).removeprefix(prefix)


def parent(data: dict[str, Any], place: tuple[str, ...]) -> dict[str, Any]:
    for part in place[:-1]:
        data = data[part]
    return data


@pytest.mark.parametrize("name", PROFILES.names())
def test_every_registered_profile_loads_under_its_name(name: str) -> None:
    assert load_profile(name).name == name
    assert PROFILES.entry(name).summary


def test_profiles_load_from_files_relative_to_a_folder(tmp_path: Path) -> None:
    (tmp_path / "own.yml").write_text(H100_LLAMA.read_text())
    assert load_profile(str(tmp_path / "own.yml")) == LLAMA
    with pytest.raises(BadInputError, match=r"absent\.yaml: No such file"):
        load_profile(str(tmp_path / "absent.yaml"))
    with pytest.raises(BadInputError, match="unknown profile 'h100'"):
        load_profile("h100")


@pytest.mark.parametrize("place", [place for place, required in PLACES if required], ids=".".join)
def test_a_missing_field_is_named(tmp_path: Path, place: tuple[str, ...]) -> None:
    data = copy.deepcopy(DATA)
    del parent(data, place)[place[-1]]
    assert wrong_profile(tmp_path, data) == f"{'.'.join(place)}: Field required"


@pytest.mark.parametrize("place", [place for place, _ in PLACES], ids=".".join)
def test_a_wrong_field_is_named(tmp_path: Path, place: tuple[str, ...]) -> None:
    data = copy.deepcopy(DATA)
    parent(data, place)[place[-1]] = {"nonsense": -1} if len(place) == 1 and place[0] in {"name", "gpu"} else -1
    assert wrong_profile(tmp_path, data).startswith(f"{'.'.join(place)}: ")


@pytest.mark.parametrize("part", [(), ("kv",), ("step_ms",), ("load_ms",), ("frontend",), ("limits",)], ids=".".join)
def test_an_unknown_field_is_named(tmp_path: Path, part: tuple[str, ...]) -> None:
    data = copy.deepcopy(DATA)
    parent(data, (*part, "x"))["nonsense"] = 1
    assert wrong_profile(tmp_path, data).startswith(f"{'.'.join((*part, 'nonsense'))}: ")


@pytest.mark.parametrize(
    ("place", "value", "complaint"),
    [
        (("limits", "max_num_seqs"), 4096, "limits.max_num_seqs must not exceed limits.max_num_batched_tokens"),
        (("kv", "tokens"), 1000, "kv.tokens is below limits.max_model_len"),
        (("limits", "lora_ranks"), [], "limits.lora_ranks: Tuple should have at least 1 item"),
        (("limits", "lora_ranks"), [8, 10**30], "limits.lora_ranks.1: Input should be less than or equal to 1000000"),
        (("limits", "max_model_len"), 10**10, "limits.max_model_len: Input should be less than or equal to 1000000000"),
        (("limits", "max_num_seqs"), 10**30, "limits.max_num_seqs: Input should be less than or equal to 1000000000"),
        (("limits", "max_num_batched_tokens"), 10**30, "limits.max_num_batched_tokens: Input should be less than or"),
        (("kv", "tokens"), 1e300, "kv.tokens: Input should be less than or equal to 10000000000 (got 1e+300)"),
        (("kv", "block_tokens"), 10**30, "kv.block_tokens: Input should be less than or equal to 1000000000"),
        (("kv", "per_slot_rank"), 1e-300, "kv.per_slot_rank: Input should be greater than or equal to "),
        (("step_ms", "base"), 1e300, "step_ms.base: Input should be less than or equal to 10000000000 (got 1e+300)"),
        (
            ("step_ms", "per_slot_shrink"),
            1e11,
            "step_ms.per_slot_shrink: Input should be less than or equal to 10000000000",
        ),
        (("load_ms", "disk"), 1e11, "load_ms.disk: Input should be less than or equal to 10000000000"),
        (("step_ms", "base"), float("inf"), "step_ms.base: Input should be a finite number"),
    ],
)
def test_values_that_cannot_be_are_named(tmp_path: Path, place: tuple[str, ...], value: Any, complaint: str) -> None:
    data = copy.deepcopy(DATA)
    parent(data, place)[place[-1]] = value
    assert complaint in wrong_profile(tmp_path, data)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: [", "not valid YAML"),
        ("- 1", "expected a mapping of fields, got list"),
        ("", "the file is empty"),
        ("name: a\nname: b\n", "key 'name' is given twice, on line 1 and on line 2"),
    ],
)
def test_a_file_that_is_no_mapping_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    assert complaint in wrong_profile(tmp_path, text)


def test_kv_law_numbers() -> None:
    # Not the shipped numbers: a calibration may change those.
    law = LLAMA.kv.model_copy(update={"tokens": 307_529.0, "per_slot": 48.55, "per_slot_rank": 43.98})
    profile = LLAMA.model_copy(update={"kv": law})
    assert profile.kv_tokens(0, 8) == 307_529
    assert profile.kv_tokens(100, 8) == pytest.approx(307_529 - 100 * (48.55 + 43.98 * 8))
    assert profile.kv_blocks(100, 8) == 16_718 - 1  # 267,490 tokens in blocks of 16, one kept as the null block


@given(st.sampled_from([LLAMA, QWEN]), st.sampled_from([8, 16, 32, 64, 128, 256]), st.integers(0, 3000))
def test_a_server_starts_exactly_up_to_its_largest_number_of_slots(profile: Profile, rank: int, slots: int) -> None:
    assert profile.starts(slots, rank) == (slots <= profile.max_slots(rank))
    assert profile.kv_tokens(slots + 1, rank) < profile.kv_tokens(slots, rank)


@given(st.integers(1, 256))
def test_an_adapter_is_padded_to_the_next_server_rank(rank: int) -> None:
    allowed = LLAMA.server_rank(rank)
    assert allowed in LLAMA.limits.lora_ranks
    assert allowed >= rank
    assert not any(rank <= other < allowed for other in LLAMA.limits.lora_ranks)


def test_a_rank_that_no_server_takes_is_refused() -> None:
    with pytest.raises(BadInputError, match="carries an adapter of rank 257"):
        LLAMA.server_rank(257)
