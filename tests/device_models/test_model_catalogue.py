"""The catalogue's models against what their authors publish, and the loader."""

import pytest

from pimserve.device_models import catalogue
from pimserve.device_models.catalogue import device_names, load_device_document, load_model, model_names
from pimserve.device_models.model import DenseFfn, MixtureOfExperts
from pimserve.errors import InputError

KIB = 1024
ASSUMED = [name for name in model_names() if name.startswith("switch-like-")]  # shapes that are partly ours
PUBLISHED = [name for name in model_names() if name not in ASSUMED]


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_as_published(name: str) -> None:
    spec = load_model(name)
    assert spec.published is not None
    assert spec.parameters == pytest.approx(spec.published.parameters, rel=spec.published.relative_tolerance)


@pytest.mark.parametrize("name", [name for name in PUBLISHED if load_model(name).moe and name != "grok-1"])
def test_active_parameters_as_published(name: str) -> None:
    spec = load_model(name)
    published = spec.published
    assert published is not None
    assert published.active_parameters is not None
    active = spec.active_parameters - (0 if published.active_counts_lookup else spec.lookup_parameters)
    assert active == pytest.approx(published.active_parameters, rel=published.active_relative_tolerance)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # Elements in the released checkpoints (of DeepSeek-V3: without its multi-token prediction module).
        ("deepseek-v3", 671_026_419_200),
        ("gpt-oss-20b", 20_914_757_184),
        ("gpt-oss-120b", 116_829_156_672),
        ("gpt2-large", 774_030_080),
        ("gpt2-medium", 354_823_168),
        ("llama-2-70b", 68_976_648_192),
        ("llama-3-70b", 70_553_706_496),
        ("llama-3.1-8b", 8_030_261_248),
        ("llama-3.1-405b", 405_853_388_800),
        ("mixtral-8x7b", 46_702_792_704),
        ("qwen3-235b-a22b", 235_093_634_560),
        ("qwen3-30b-a3b", 30_532_122_624),
        ("qwen3-32b", 32_762_123_264),
    ],
)
def test_parameters_to_the_last_one(name: str, parameters: int) -> None:
    assert load_model(name).parameters == parameters


@pytest.mark.parametrize("name", ASSUMED)
def test_assumed_shapes_say_so_and_claim_no_published_count(name: str) -> None:
    spec = load_model(name)
    assert spec.published is None
    assert any(source.startswith("assumed: ") for source in spec.sources)


def test_largest_switch_like_model_is_the_one_of_the_reference_case() -> None:
    # 51,812,770,816 weights there: the same matrices, 9 positions, and no norms.
    spec = load_model("switch-like-51b")
    norms = (48 * 4 + 2) * 1024
    assert spec.parameters - norms - 1024 * 1024 == 51_812_770_816 - 9 * 1024


@pytest.mark.parametrize(
    ("name", "experts", "active"),
    [
        # layers x 128 experts x 2 matrices, of which one expert's works for a token
        ("switch-like-2b", 6 * 128 * 2 * 512 * 2048, 6 * 2 * 512 * 2048),
        ("switch-like-7b", 12 * 128 * 2 * 768 * 3072, 12 * 2 * 768 * 3072),
        ("switch-like-51b", 48 * 128 * 2 * 1024 * 4096, 48 * 2 * 1024 * 4096),
    ],
)
def test_experts_of_the_switch_like_models(name: str, experts: int, active: int) -> None:
    spec = load_model(name)
    assert spec.routed_parameters == experts
    assert spec.parameters - spec.active_parameters == experts - active


def test_deepseek_active_parameters_as_in_its_weight_documentation() -> None:
    spec = load_model("deepseek-v3")
    assert spec.active_parameters - spec.lookup_parameters == pytest.approx(36.6e9, abs=0.05e9)


@pytest.mark.parametrize(
    ("name", "kv_bytes"),
    [
        # arXiv 2409.01141, table I
        ("mixtral-8x7b", 128 * KIB),
        ("glam-143b", 512 * KIB),
        ("grok-1", 256 * KIB),
        ("opt-66b", 2304 * KIB),
        ("llama-3-70b", 320 * KIB),
        # 2 (key and value) x kv heads x head width x layers x 2 bytes
        ("llama-2-70b", 320 * KIB),
        ("llama-3.1-70b", 320 * KIB),
        ("llama-3.1-8b", 2 * 8 * 128 * 32 * 2),
        ("llama-3.1-405b", 2 * 8 * 128 * 126 * 2),
        ("mixtral-8x22b", 2 * 8 * 128 * 56 * 2),
        ("qwen3-235b-a22b", 2 * 4 * 128 * 94 * 2),
        ("qwen3-30b-a3b", 2 * 4 * 128 * 48 * 2),
        ("qwen3-32b", 2 * 8 * 128 * 64 * 2),
        # the latent and the rotary key: 576 elements x 61 layers x 2 bytes
        ("deepseek-v3", 70_272),
        ("deepseek-r1", 70_272),
        # 2 x width x layers x 2 bytes: every head has its own key and value
        ("opt-13b", 2 * 5120 * 40 * 2),
        ("gpt2-medium", 2 * 1024 * 24 * 2),
        ("gpt2-large", 2 * 1280 * 36 * 2),
        ("megatron-1.2b", 2 * 1536 * 40 * 2),
        ("switch-like-2b", 2 * 512 * 6 * 2),
        ("switch-like-7b", 2 * 768 * 12 * 2),
        ("switch-like-51b", 2 * 1024 * 48 * 2),
        # the 18 layers without a window
        ("gpt-oss-20b", 2 * 8 * 64 * 12 * 2),
        ("gpt-oss-120b", 2 * 8 * 64 * 18 * 2),
    ],
)
def test_kv_bytes_per_token(name: str, kv_bytes: int) -> None:
    assert load_model(name).kv_bytes_per_token == kv_bytes


def test_windowed_layers_of_gpt_oss() -> None:
    spec = load_model("gpt-oss-120b")
    assert spec.windowed_layers == 18
    assert spec.kv_window_bytes_per_request == 2 * 8 * 64 * 2 * 18 * 128


@pytest.mark.parametrize(
    ("name", "duplex_table_i"),
    [
        # layers, hidden, intermediate, heads, group, experts, top-k, MoE layers, FFN matrices
        ("mixtral-8x7b", (32, 4096, 14336, 32, 4, 8, 2, 32, 3)),
        ("glam-143b", (32, 4096, 16384, 32, 1, 64, 2, 16, 2)),
        ("grok-1", (64, 6144, 32768, 48, 6, 8, 2, 64, 3)),
        ("opt-66b", (64, 9216, 36864, 72, 1, 0, 0, 0, 2)),
        ("llama-3-70b", (80, 8192, 28672, 64, 8, 0, 0, 0, 3)),
    ],
)
def test_shapes_of_the_duplex_paper(name: str, duplex_table_i: tuple[int, ...]) -> None:
    spec = load_model(name)
    attention = spec.attention
    assert attention.kind == "gqa"
    assert attention.head_dim == 128
    experts, top_k = (spec.moe.experts, spec.moe.top_k) if spec.moe else (0, 0)
    group = attention.heads // attention.kv_heads
    networks: list[DenseFfn | MixtureOfExperts] = [ffn for ffn in (spec.ffn, spec.moe) if ffn is not None]
    assert {(ffn.intermediate, ffn.matrices) for ffn in networks} == {(duplex_table_i[2], duplex_table_i[8])}
    assert duplex_table_i[:2] == (spec.layers, spec.hidden)
    assert duplex_table_i[3:8] == (attention.heads, group, experts, top_k, spec.moe_layers)


def test_flops_of_llama_8b() -> None:
    # Weights that multiply: all but the 128256 x 4096 input embedding. Attention: 4 x 4096 x 32 per context token.
    weights = 8_030_261_248 - 128_256 * 4096
    assert load_model("llama-3.1-8b").flops_per_token(1000) == 2 * weights + 4 * 4096 * 32 * 1000


def test_flops_of_mixtral() -> None:
    # Of 8 experts of 3 x 4096 x 14336 weights in each of 32 layers, 6 rest.
    weights = 46_702_792_704 - 32_000 * 4096 - 32 * 6 * 3 * 4096 * 14336
    assert load_model("mixtral-8x7b").flops_per_token(2048) == 2 * weights + 4 * 4096 * 32 * 2048


def test_flops_of_deepseek_attention() -> None:
    # Absorbed: 128 heads x (576 for the scores + 512 for the values) multiply-adds per context token and layer.
    spec = load_model("deepseek-v3")
    assert spec.flops_per_token(4096) - spec.flops_per_token(0) == 2 * 128 * (576 + 512) * 61 * 4096


@pytest.mark.parametrize(("name", "gib"), [("gpt-oss-20b", 12.8), ("gpt-oss-120b", 60.8)])
def test_checkpoint_size_of_gpt_oss(name: str, gib: float) -> None:
    # arXiv 2508.10925, table 1: experts in MXFP4 and the rest in BF16.
    assert load_model(name).weight_bytes / 2**30 == pytest.approx(gib, rel=0.002)


def test_r1_has_the_shapes_of_v3() -> None:
    differing = {"name", "title", "sources"}
    v3, r1 = load_model("deepseek-v3"), load_model("deepseek-r1")
    assert v3.model_dump(exclude=differing) == r1.model_dump(exclude=differing)


def test_llama_2_differs_from_llama_3_in_vocabulary_context_and_data_type() -> None:
    differing = {"name", "title", "sources", "published", "vocab", "max_model_len_tokens", "dense_dtype", "kv_dtype"}
    two, three = load_model("llama-2-70b"), load_model("llama-3-70b")
    assert two.model_dump(exclude=differing) == three.model_dump(exclude=differing)


def test_gb200_is_the_72nd_part_of_its_rack() -> None:
    # NVIDIA GB200 NVL72: PFLOP/s with sparse operands, twice the dense figure; TB and TB/s of memory.
    gpu = load_device_document("gb200")
    rack = {"fp16": 360, "bf16": 360, "fp8": 720, "mxfp4": 1440}
    assert gpu["peak_tflop_per_s"] == {dtype: 1000 * peak / 72 / 2 for dtype, peak in rack.items()}
    built = float(gpu["memory_gb"].removesuffix(" GiB"))  # sold by the GB, and built by the GiB
    assert built == pytest.approx(13_400 / 72, rel=0.01)
    assert gpu["memory_gb_per_s"] == 576_000 / 72


@pytest.mark.parametrize("name", model_names())
def test_entry_carries_its_file_name_and_sources(name: str) -> None:
    spec = load_model(name)
    assert spec.name == name
    assert spec.sources
    assert all(source.strip() for source in spec.sources)


def test_unknown_model_names_close_ones_and_all() -> None:
    with pytest.raises(InputError, match=r"did you mean mixtral-8x7b") as caught:
        load_model("Mixtral-8x7")
    assert caught.value.where == "model"
    assert all(name in caught.value.message for name in model_names())


@pytest.mark.parametrize("name", ["", "zzzz", "../models/opt-66b", "opt-66b.yaml"])
def test_only_listed_names_are_models(name: str) -> None:
    with pytest.raises(InputError, match="unknown model"):
        load_model(name)


def test_unknown_device() -> None:
    with pytest.raises(InputError, match="unknown device 'abacus'") as caught:
        load_device_document("abacus")
    assert caught.value.where == "device"


def test_overriding_a_merged_key_is_allowed() -> None:
    assert catalogue.parse_document("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\n", "x.yaml")["b"] == {"x": 3, "y": 2}


def test_device_documents_load() -> None:
    assert device_names() == sorted(device_names())
    assert all(load_device_document(name) for name in device_names())


def test_a_document_is_read_once_and_is_whoevers_asked_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_device_document("h100")
    monkeypatch.setattr(catalogue, "parse_document", lambda *_: pytest.fail("it was read before"))
    first["peak_tflop_per_s"]["bf16"] = 1
    assert load_device_document("h100")["peak_tflop_per_s"]["bf16"] > 1


@pytest.mark.parametrize(
    ("text", "where", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "x.yaml:3", "key 'a' is given twice"),
        ("a:\n  b: {c: 1, c: 1}\n", "x.yaml:2", "key 'c' is given twice"),
        ("- a\n", "x.yaml", "must be a mapping"),
        ("", "x.yaml", "must be a mapping"),
        ("? [a]\n: 1\n", "x.yaml:1", "not valid YAML"),
        ("a: 1\nb: [\n", "x.yaml:3", "not valid YAML"),
        ("a: !!python/object/apply:os.getcwd []\n", "x.yaml:1", "not valid YAML"),
    ],
)
def test_bad_documents_are_refused(text: str, where: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        catalogue.parse_document(text, "x.yaml")
    assert caught.value.where == where


@pytest.mark.parametrize(
    ("text", "value"), [("1e9", 1e9), ("-2.5e-3", -2.5e-3), ("+1E+2", 100.0), (".5e1", 5.0), ("1e", "1e")]
)
def test_exponents_are_numbers(text: str, value: float | str) -> None:
    assert catalogue.parse_document(f"x: {text}", "x.yaml")["x"] == value
