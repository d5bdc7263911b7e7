"""Opening models: names, shards, caches, refusals; and the span table of what was opened."""

import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hearthd.daemon.model.gguf import ModelError, ModelFile, Tensor, open_model
from hearthd.daemon.model.shapes import SHAPES
from hearthd.daemon.model.spans import PARTS, SpanTable
from hearthd.daemon.model.synth import plan_tensors
from hearthd.daemon.model.synth.write import encode_header, padded

F32, Q8_0 = 0, 8
SIZES = {F32: lambda shape: 4 * int(np.prod(shape)), Q8_0: lambda shape: int(np.prod(shape)) // 32 * 34}


def write(path: Path, tensors: list[tuple[str, tuple[int, ...], int]], **metadata) -> Path:
    described = [(name, shape, type_, SIZES[type_](shape)) for name, shape, type_ in tensors]
    keys = {"general.architecture": "qwen3moe", **{key.replace("__", "."): value for key, value in metadata.items()}}
    path.write_bytes(encode_header(keys, described) + bytes(sum(padded(nbytes) for *_, nbytes in described)))
    return path


def write_shards(folder: Path, count: int = 3) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    return [write(folder / f"m-{i + 1:05d}-of-{count:05d}.gguf", [(f"blk.{i}.attn_norm.weight", (8,), F32)],
                  **{"split__count": count, "split__no": i, "split__tensors__count": count}) for i in range(count)]


def refusal(name) -> ModelError:
    with pytest.raises(ModelError) as caught:
        open_model(name)
    return caught.value


def test_any_shard_opens_all(tmp_path):
    shards = write_shards(tmp_path)
    models = [open_model(shard) for shard in shards]
    assert [model.paths for model in models] == [[str(shard) for shard in shards]] * 3
    assert len({model.identity for model in models}) == 1
    assert [tensor.file for tensor in models[0].tensors.values()] == [0, 1, 2]
    assert models[0].sizes == [shard.stat().st_size for shard in shards]
    assert models[0].name == "m"


def test_a_missing_shard_is_named(tmp_path):
    shards = write_shards(tmp_path)
    shards[1].unlink()
    assert "m-00002-of-00003.gguf is missing" in refusal(shards[0]).reason
    assert "shard 2 of 3 is missing" in refusal(shards[1]).reason


def test_shards_must_agree_with_their_names(tmp_path):
    shards = write_shards(tmp_path)
    shutil.copy(shards[2], shards[1])
    assert "shard number 2" in refusal(shards[0]).reason
    write(shards[1], [("x", (8,), F32)], split__count=4, split__no=1)
    assert "4 shards" in refusal(shards[0]).reason
    lonely = shutil.copy(shards[0], tmp_path / "renamed.gguf")
    assert "one of 3 shards" in refusal(lonely).reason
    write(shards[1], [("x", (8,), F32), ("y", (8,), F32)], split__count=3, split__no=1)
    assert "4 tensors together, 3 are promised" in refusal(shards[0]).reason
    write(shards[1], [("blk.0.attn_norm.weight", (8,), F32)], split__count=3, split__no=1)
    error = refusal(shards[0])
    assert (error.tensor, error.path) == ("blk.0.attn_norm.weight", str(shards[1]))


@pytest.mark.parametrize(("content", "word"), [
    (b"\x7fELF" + bytes(100), "ELF"), (b"", "empty"), (b"PK\x03\x04" + bytes(100), "PyTorch"),
    ((64).to_bytes(8, "little") + b'{"a":{}}' + bytes(64), "safetensors"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS"), (b"\0" * 100, "no GGUF file"),
])
def test_foreign_files_are_called_what_they_are(tmp_path, content, word):
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    assert word in str(refusal(path))


def test_truncation_names_tensor_and_byte(tmp_path):
    path = write(tmp_path / "x.gguf", [("a", (64,), F32), ("b", (64,), Q8_0)])
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    error = refusal(path)
    assert (error.tensor, error.byte) == ("b", len(whole) - 40)


def test_what_is_not_there_and_what_is_no_model(tmp_path):
    assert "no such file" in refusal(tmp_path / "absent.gguf").reason
    assert "directory without" in refusal(tmp_path).reason
    (tmp_path / "x.gguf").write_bytes(encode_header({"general.name": "x"}, []))
    assert "no architecture" in refusal(tmp_path / "x.gguf").reason


def test_names_in_the_hugging_face_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--org--repo-GGUF"
    snapshot = repository / "snapshots" / "abc"
    write_shards(snapshot / "Q4_K_M")
    write(snapshot / "m-Q8_0.gguf", [("a", (8,), F32)])
    write(snapshot / "mmproj-F16.gguf", [("a", (8,), F32)])
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc\n")
    assert len(open_model("org/repo-GGUF:q4_k_m").paths) == 3
    assert open_model("org/repo-GGUF:Q8_0").paths == open_model("org/repo-GGUF:m-Q8_0.gguf").paths
    assert "2 models are there" in refusal("org/repo-GGUF").reason
    assert "no such file" in refusal("org/repo-GGUF:Q4_K").reason
    assert "Hugging Face cache" in refusal("org/other").reason
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "hub").symlink_to(tmp_path)
    assert open_model("org/repo-GGUF:Q8_0").name == "m-Q8_0"


def imagine(tensors: dict[str, tuple[tuple[int, ...], int, int]], **hyper) -> ModelFile:
    """A model without files: (shape, type, bytes) per tensor, one after the other."""
    made, at = {}, 4096
    for name, (shape, type_, nbytes) in tensors.items():
        made[name] = Tensor(name, type_, shape, 0, at, nbytes)
        at += nbytes
    metadata = {"general.architecture": "x", **{f"x.{key}": value for key, value in hyper.items()}}
    return ModelFile(["x.gguf"], [SimpleNamespace(file_size=at)], metadata, made)


def test_shards_agree_on_what_the_model_is(tmp_path):
    shards = write_shards(tmp_path)
    split = {"split__count": 3, "split__no": 1, "split__tensors__count": 3}
    second = [("blk.1.attn_norm.weight", (8,), F32)]
    write(shards[1], second, general__name="another part", **split)
    open_model(shards[0])
    write(shards[1], second, general__architecture="llama", **split)
    refused = refusal(shards[0])
    assert refused.key == "general.architecture" and refused.path == str(shards[1])


def test_a_link_in_a_folder_that_leads_nowhere_is_told(tmp_path):
    (tmp_path / "m.gguf").symlink_to("m.gguf")
    assert "points to a file that is not there" in refusal(tmp_path).reason


def test_spans_of_merged_and_split_experts_are_the_same(tmp_path):
    parts = {"gate": (32, 4), "up": (32, 4), "down": (32, 8)}
    dense = [("token_embd.weight", (32, 4), F32), ("blk.0.ffn_gate_inp.weight", (32, 3), F32),
             ("blk.0.ffn_up_shexp.weight", (32, 4), F32), ("output.weight", (32, 4), F32)]
    merged = open_model(write(tmp_path / "a.gguf", dense + [
        (f"blk.0.ffn_{part}_exps.weight", (*shape, 3), Q8_0) for part, shape in parts.items()]))
    split = open_model(write(tmp_path / "b.gguf", dense + [
        (f"blk.0.ffn_{part}.{e}.weight", shape, Q8_0) for e in range(3) for part, shape in parts.items()]))
    a, b = SpanTable.build(merged), SpanTable.build(split)
    for table, model in ((a, merged), (b, split)):
        assert (len(table), table.n_expert, table.n_layer, table.expert_layers()) == (13, 3, 1, [0])
        assert int(table.nbytes.sum()) == model.nbytes
        assert table.names[table.tensor[table.dense("output.weight")]] == "output.weight"
        for part in parts:
            ids = table.experts(f"blk.0.ffn_{part}_exps.weight")
            assert table.expert[ids].tolist() == [0, 1, 2]
            assert {PARTS[i] for i in table.part[ids]} == {part}
        assert table.layer[table.expert_spans(0, 2)].tolist() == [0, 0, 0]
        assert table.expert[table.dense("blk.0.ffn_up_shexp.weight")] == -1
        assert len(table.expert_spans(1, 0)) == 0
    for name in ("layer", "expert", "part", "nbytes"):
        assert getattr(a, name).tolist() == getattr(b, name).tolist()
    tensor = merged.tensors["blk.0.ffn_down_exps.weight"]
    ids = a.experts(tensor.name)
    assert (a.offset[ids] - tensor.offset).tolist() == [i * tensor.row_bytes * 8 for i in range(3)]


def test_experts_that_do_not_divide_or_are_missing_are_refused():
    with pytest.raises(ModelError, match="three dimensions"):
        SpanTable.build(imagine({"blk.0.ffn_up_exps.weight": ((32, 4), Q8_0, 136)}))
    with pytest.raises(ModelError, match=r"expert 1 of .* is missing"):
        SpanTable.build(imagine({f"blk.0.ffn_up.{e}.weight": ((32, 4), Q8_0, 136) for e in (0, 2)}))
    with pytest.raises(ModelError, match="layer number"):
        SpanTable.build(imagine({"blk.99999999999.x.weight": ((32,), F32, 128)}))


def test_what_is_left_out_or_empty_has_no_span():
    experts = {f"blk.{i}.ffn_up_exps.weight": ((32, 4, 2), Q8_0, 272) for i in range(3)}
    model = imagine(experts | {"blk.0.ffn_gate_exps.weight": ((32, 0, 1 << 40), Q8_0, 0), "marker": ((0,), F32, 0)})
    table = SpanTable.build(model, {"blk.2.ffn_up_exps.weight"})
    assert table.layer.tolist() == [0, 0, 1, 1]
    assert [table.names[i] for i in table.tensor] == ["blk.0.ffn_up_exps.weight"] * 2 + ["blk.1.ffn_up_exps.weight"] * 2


def test_a_large_model_has_all_its_spans():
    shape = SHAPES["kimi-k2"]
    model = imagine({t.name: (t.shape, t.type, t.nbytes) for t in plan_tensors(shape, "Q4_K_M")})
    start = time.perf_counter()
    table = SpanTable.build(model)
    print(f"{len(table)} spans in {time.perf_counter() - start:.3f} s")
    assert int(table.is_expert.sum()) == 60 * 384 * 3
    assert (table.offset[1:] + 0).max() < sum(t.nbytes for t in model.tensors.values()) + 4096
    assert np.all(np.diff(np.where(table.layer < 0, 0, table.layer)[:-2]) >= 0)


def test_opens_every_shared_model(models_dir):
    for path in sorted(models_dir.glob("arch/*.gguf")):
        model = open_model(path)
        table = SpanTable.build(model)
        assert int(table.nbytes.sum()) == model.nbytes
        experts = model.hyper("expert_count", 0)
        assert table.n_expert == experts, path
        assert int(table.is_expert.sum()) == len(table.expert_layers()) * experts * 3
