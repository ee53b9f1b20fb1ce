"""The gguf package, ggml's codecs written again in numpy: encoders of three formats, decoders of all."""

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from helpers import same
from inputs import MAKE, rows, same_but_nan

import quantize as qz

TYPES = {
    "gguf:q4_0": Type.Q4_0,
    "gguf:q4_1": Type.Q4_1,
    "gguf:q4_k": Type.Q4_K,
    "gguf:iq4_nl": Type.IQ4_NL,
    "gguf:iq4_xs": Type.IQ4_XS,
    "gguf:mxfp4": Type.MXFP4,
    "gguf:nvfp4": Type.NVFP4,
    "gguf:q5_0": Type.Q5_0,
    "gguf:q5_1": Type.Q5_1,
    "gguf:q8_0": Type.Q8_0,
    "gguf:q5_k": Type.Q5_K,
    "gguf:q6_k": Type.Q6_K,
}
BLOCKS = 2048


@pytest.mark.parametrize("kind", [kind for kind in MAKE if kind not in ("float subnormal", "1e30", "largest")])
@pytest.mark.parametrize("name", ["gguf:q4_0", "gguf:q4_1", "gguf:mxfp4", "gguf:q5_0", "gguf:q5_1", "gguf:q8_0"])
def test_encodes_to_the_same_blocks(name, kind):
    """The kinds left out are the deviations that test_ggml.py looks at."""
    # Of 0.0 and -0.0 numpy takes either for the extreme and ggml the first, and the scale gets its sign: all zeros are made positive.
    x = rows(kind, BLOCKS, 32) + np.float32(0)
    if name != "gguf:mxfp4":
        x = x[np.abs(x).max(axis=1) < 65504]  # what a minimum in float16 reaches
    same(qz.quantize(x, name).parts["blocks"], gguf.quantize(x, TYPES[name]), kind)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of infinities and NaN
@pytest.mark.parametrize("name", TYPES)
def test_decodes_any_bytes_to_the_same_values(name):
    _, size = gguf.GGML_QUANT_SIZES[TYPES[name]]
    blocks = np.random.default_rng(5).integers(0, 256, (BLOCKS, size), dtype=np.uint8)
    if name == "gguf:mxfp4":
        blocks = blocks[blocks[:, 0] != 255]  # NaN here, 2^128 there: listed in docs/formats.md
    same_but_nan(qz.from_parts(name, {"blocks": blocks}).dequantize(), gguf.dequantize(blocks, TYPES[name]))


@pytest.mark.parametrize("name", ["gguf:q4_k", "gguf:iq4_xs"])
def test_decodes_what_a_search_found(name):
    """Units of either sign among them."""
    x = np.random.default_rng(7).standard_normal((64, 512), np.float32) + np.repeat(np.float32([-3, 0, 3, 30]), 16)[:, None]
    q = qz.quantize(x, name, method="optimal")
    same(gguf.dequantize(q.parts["blocks"], TYPES[name]), q.dequantize())


def test_the_package_reads_what_is_written_and_the_other_way_round(tmp_path):
    """Every type of tensor and of key that the package writes, through a conversion that changes nothing and one that quantizes."""
    random = np.random.default_rng(6)
    writer = gguf.GGUFWriter(tmp_path / "in.gguf", "llama")
    writer.add_uint8("u8", 200)
    writer.add_int64("i64", -(2**60))
    writer.add_float64("f64", 0.1)
    writer.add_bool("yes", True)
    writer.add_array("texts", ["a", "\u00fc", ""])
    writer.add_array("numbers", [1.5, -2.0])
    stored = {}
    for kind, (_, size) in gguf.GGML_QUANT_SIZES.items():
        if kind == Type.Q8_1:  # of another size there than in ggml, and in no file
            continue
        stored[f"blk.1.{kind.name}"] = random.integers(0, 256, (3, 2 * size), dtype=np.uint8)
        writer.add_tensor(f"blk.1.{kind.name}", stored[f"blk.1.{kind.name}"], raw_dtype=kind)
    values = random.standard_normal((4, 512), np.float32)
    writer.add_tensor("w.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    def contents(path):
        reader = gguf.GGUFReader(path)
        fields = {key: (field.types, field.contents()) for key, field in reader.fields.items() if not key.startswith("GGUF.")}
        return fields, {tensor.name: (tensor.tensor_type, list(tensor.shape), bytes(tensor.data)) for tensor in reader.tensors}

    with qz.open(tmp_path / "in.gguf") as file:
        assert set(file) == {*stored, "w.weight"}
        for name, data in stored.items():
            own = file[name]
            own = own.parts["blocks"] if isinstance(own, qz.QuantizedArray) else own
            assert own.tobytes() == data.tobytes(), name
        assert file.metadata == {key: value for key, (_, value) in contents(tmp_path / "in.gguf")[0].items()}
    qz.convert(tmp_path / "in.gguf", tmp_path / "copy.gguf", format="gguf:q4_0", exclude=["*"])
    assert contents(tmp_path / "copy.gguf") == contents(tmp_path / "in.gguf")
    with pytest.raises(qz.PolicyError, match="would change values"):  # of a tensor that is in another format of 4 bits
        qz.convert(tmp_path / "in.gguf", tmp_path / "small.gguf", format="gguf:q4_0")
    qz.convert(tmp_path / "in.gguf", tmp_path / "small.gguf", format="gguf:q4_0", include=["w.*"])
    fields, tensors = contents(tmp_path / "small.gguf")
    kept_fields, kept = contents(tmp_path / "in.gguf")
    assert fields.pop("general.quantization_version")[1] == 2
    assert fields.pop("general.file_type")[1] == gguf.LlamaFileType.MOSTLY_Q4_0
    assert fields == kept_fields
    assert tensors == kept | {"w.weight": (Type.Q4_0, [512, 4], gguf.quantize(values, Type.Q4_0).tobytes())}


def test_a_model_in_several_files_is_that_of_the_package(tmp_path):
    """What the package splits is read as one; each part that is written is a file that the package reads, and has the keys it writes."""
    random = np.random.default_rng(7)
    arrays = {f"blk.{layer}.attn_q.weight": random.standard_normal((8, 64), np.float32) for layer in range(5)}
    writer = gguf.GGUFWriter(tmp_path / "in.gguf", "llama", split_max_tensors=2)
    writer.add_block_count(5)
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file(tmp_path / "in.gguf")
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    first = tmp_path / "in-00001-of-00003.gguf"
    with qz.open(first) as file:
        assert file.metadata["llama.block_count"] == 5
        for name, array in arrays.items():
            same(file[name], array)
    qz.convert(first, tmp_path / "out.gguf", format="gguf:q4_0", shard_size=2 * 8 * 36)
    number = ("split.no", "split.count", "split.tensors.count")
    seen = {}
    for theirs in sorted(tmp_path.glob("in-*.gguf")):
        reader, before = gguf.GGUFReader(tmp_path / theirs.name.replace("in", "out")), gguf.GGUFReader(theirs)
        for key in number:
            assert reader.fields[key].contents() == before.fields[key].contents(), key
            assert reader.fields[key].types == before.fields[key].types, key
        seen |= {tensor.name: tensor.data for tensor in reader.tensors}
    assert set(seen) == set(arrays)
    for name, array in arrays.items():
        same(np.ascontiguousarray(seen[name]), gguf.quantize(array, Type.Q4_0))
