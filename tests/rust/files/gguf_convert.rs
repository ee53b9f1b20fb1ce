//! Conversion of GGUF files: which tensors become 4-bit, which refuse the job, what the new file says of itself.

use std::fs;
use std::path::Path;

use super::gguf::{File, key, line};
use super::{checkpoint, convert, listing, load, run_plan, stored_as, target, weights};
use quantize::element::Source;
use quantize::engine;
use quantize::error::Error;
use quantize::files::StoredDtype;
use quantize::files::convert::{Action, Failure, Fallback, Plan, Selection, Target};
use quantize::files::gguf::{Value, mixture};
use quantize::formats;
use quantize::layout::{Layout, Options};

/// A model as a converter writes it: F32 vectors, F16 and BF16 matrices, a stack of experts, what stays float, a foreign type.
fn model() -> File {
    let shapes: [(&str, u32, &[u64]); 9] = [
        ("token_embd.weight", 1, &[256, 6]),
        ("output_norm.weight", 0, &[256]),
        ("blk.0.attn_q.weight", 30, &[256, 4]),
        ("blk.0.attn_q.bias", 0, &[256, 1]),
        ("blk.0.ffn_gate_inp.weight", 0, &[256, 2]),
        ("blk.0.ffn_up_exps.weight", 0, &[256, 3, 2]),
        ("blk.0.ffn_down.weight", 11, &[256, 2]),
        ("blk.0.indices", 26, &[3]),
        ("position_embd.weight", 0, &[256, 2]),
    ];
    let mut offset = 0;
    let (mut lines, mut data) = (Vec::new(), Vec::new());
    for (name, kind, axes) in shapes {
        lines.push(line(name, axes, kind, offset));
        let count = axes.iter().product::<u64>() as usize;
        data.extend(match kind {
            0 => stored_as(StoredDtype::F32, &weights(count)),
            1 => stored_as(StoredDtype::F16, &weights(count)),
            30 => stored_as(StoredDtype::Bf16, &weights(count)),
            11 => (0..220).map(|i| i as u8).collect(),
            _ => (0..12).collect(),
        });
        data.resize(data.len().next_multiple_of(32), 0);
        offset = data.len() as u64;
    }
    let keys = [
        key("general.architecture", 8, [&5u64.to_le_bytes()[..], b"llama"].concat()),
        key("general.file_type", 4, 1u32.to_le_bytes()),
        key("general.alignment", 4, 32u32.to_le_bytes()),
        key("llama.rope.freq_base", 6, 1e6f32.to_le_bytes()),
        key("split.count", 2, 1u16.to_le_bytes()),
    ];
    File { data, ..File::new(&keys, &lines, 0) }
}

fn keys(path: &Path) -> Vec<(String, Value)> {
    checkpoint(path).container().keys().iter().map(|key| (key.name.clone(), key.value())).collect()
}

fn said(name: &str, value: Value) -> (String, Value) {
    (name.into(), value)
}

#[test]
fn matrices_become_4_bit_and_all_else_is_kept_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let [path, small, back] = ["in.gguf", "small.gguf", "back.gguf"].map(|name| folder.path().join(name));
    fs::write(&path, model().bytes()).unwrap();
    let file_types = [
        ("gguf:q8_0", 7),
        ("gguf:q5_0", 8),
        ("gguf:q5_1", 9),
        ("gguf:q5_k", 16),
        ("gguf:q6_k", 18),
        ("gguf:q4_0", 2),
        ("gguf:q4_1", 3),
        ("gguf:q4_k", 14),
        ("gguf:iq4_nl", 25),
        ("gguf:iq4_xs", 30),
        ("gguf:mxfp4", 38),
        ("gguf:nvfp4", 39),
    ];
    for (format, file_type) in file_types {
        let plan = Plan::new(&checkpoint(&path), target(format, None), &Selection::default()).unwrap();
        let actions: Vec<_> = plan.steps.iter().map(|step| (step.name.as_str(), step.action.clone())).collect();
        let keep = |reason: &str| Action::Keep(reason.into());
        let expected = [
            ("token_embd.weight", Action::Quantize),
            ("output_norm.weight", keep("1-d; a matrix has 2 axes or more")),
            ("blk.0.attn_q.weight", Action::Quantize),
            ("blk.0.attn_q.bias", keep("its name does not end in weight")),
            ("blk.0.ffn_gate_inp.weight", keep("a router of experts, which llama.cpp keeps")),
            ("blk.0.ffn_up_exps.weight", Action::Quantize),
            ("blk.0.ffn_down.weight", keep("Q3_K is not quantized")),
            ("blk.0.indices", keep("int32 is not quantized")),
            ("position_embd.weight", keep("an embedding of positions, which llama.cpp keeps")),
        ];
        assert_eq!(actions, expected);
        run_plan(&plan, &path, &small).unwrap();
        let written = fs::metadata(&small).unwrap().len();
        assert!(plan.steps.iter().map(|step| step.bytes_after).sum::<u64>() < written && written.is_multiple_of(32));

        let (before, after) = (checkpoint(&path), checkpoint(&small));
        let order: Vec<&str> = after.entries().iter().map(|entry| entry.name.as_str()).collect();
        let expected = [
            "output_norm.weight",
            "position_embd.weight",
            "token_embd.weight",
            "blk.0.attn_q.bias",
            "blk.0.attn_q.weight",
            "blk.0.ffn_down.weight",
            "blk.0.ffn_gate_inp.weight",
            "blk.0.ffn_up_exps.weight",
            "blk.0.indices",
        ];
        assert_eq!(order, expected);
        for (step, entry) in plan.steps.iter().zip(before.entries()) {
            let own = load(&before, &entry.name);
            if step.action != Action::Quantize {
                assert_eq!(load(&after, &entry.name), own, "{}", entry.name);
                continue;
            }
            let layout = Layout::new(formats::find(format).unwrap().spec(), &entry.shape, Options::default()).unwrap();
            let source = Source::from_bytes(&own[0], entry.dtype.float().unwrap(), &entry.shape);
            assert_eq!(load(&after, &entry.name), engine::quantize_owned(&source, layout).unwrap().parts, "{format} {}", entry.name);
        }
        let expected = [
            said("general.architecture", Value::Text("llama".into())),
            said("llama.rope.freq_base", Value::Float(1e6)),
            said("general.quantization_version", Value::Unsigned(2)),
            said("general.file_type", Value::Unsigned(file_type)),
        ];
        assert_eq!(keys(&small), expected);

        convert(&small, &back, Target::Floats(None));
        let restored = checkpoint(&back);
        assert_eq!(keys(&back).last().unwrap(), &said("general.file_type", Value::Unsigned(0)));
        for name in ["token_embd.weight", "blk.0.ffn_up_exps.weight"] {
            let entry = after.entries().iter().find(|entry| entry.name == name).unwrap();
            let layout = entry.layout().unwrap().clone();
            let quantized = quantize::tensor::Quantized { layout, parts: load(&after, name) };
            let decoded = engine::dequantize_owned(&quantized).unwrap();
            assert_eq!(load(&restored, name), [stored_as(StoredDtype::F32, &decoded)], "{format} {name}");
        }
        assert_eq!(load(&restored, "blk.0.ffn_down.weight"), load(&before, "blk.0.ffn_down.weight"));
    }
}

#[test]
fn a_file_of_which_nothing_changes_keeps_its_keys() {
    let folder = tempfile::tempdir().unwrap();
    let [path, out] = ["in.gguf", "out.gguf"].map(|name| folder.path().join(name));
    fs::write(&path, model().bytes()).unwrap();
    convert(&path, &out, Target::Floats(None));
    let expected: Vec<_> =
        keys(&path).into_iter().filter(|(name, _)| !["general.alignment", "split.count"].contains(&name.as_str())).collect();
    assert_eq!(keys(&out), expected);
    for entry in checkpoint(&path).entries() {
        assert_eq!(load(&checkpoint(&out), &entry.name), load(&checkpoint(&path), &entry.name));
    }
}

#[test]
fn rows_that_the_block_does_not_divide_refuse_the_job() {
    let folder = tempfile::tempdir().unwrap();
    let [path, out] = ["in.gguf", "out.gguf"].map(|name| folder.path().join(name));
    let data = stored_as(StoredDtype::F32, &weights(2 * 288));
    fs::write(&path, File { data, ..File::new(&[], &[line("blk.0.ffn_up.weight", &[288, 2], 0, 0)], 0) }.bytes()).unwrap();
    let plan = Plan::new(&checkpoint(&path), target("gguf:q4_k", None), &Selection::default()).unwrap();
    let reason = "last axis has 288 elements; gguf:q4_k needs a multiple of 256";
    assert_eq!(plan.steps[0].action, Action::Refuse(reason.into()));
    let Failure { tensor, error } = run_plan(&plan, &path, &out).unwrap_err();
    assert_eq!(tensor.as_deref(), Some("blk.0.ffn_up.weight"));
    assert_eq!(error.to_string(), format!("{reason}: keep the tensor out with exclude, name a fallback, or choose another format"));
    assert_eq!(listing(folder.path()), ["in.gguf"]);
    let keep = Selection { exclude: vec!["*".into()], ..Selection::default() };
    let plan = Plan::new(&checkpoint(&path), target("gguf:q4_k", None), &keep).unwrap();
    run_plan(&plan, &path, &out).unwrap();
}

#[test]
fn a_file_stays_in_its_container() {
    let folder = tempfile::tempdir().unwrap();
    let [path, gguf, other] = ["in.gguf", "out.GGUF", "out.safetensors"].map(|name| folder.path().join(name));
    fs::write(&path, model().bytes()).unwrap();
    let refusal = |from: &Path, to: &Path, format: &str| {
        let plan = Plan::new(&checkpoint(from), target(format, None), &Selection::default());
        let failure = plan.map_err(Failure::from).and_then(|plan| run_plan(&plan, from, to)).unwrap_err();
        assert!(failure.tensor.is_none() && matches!(failure.error, Error::Value { .. }));
        failure.error.to_string()
    };
    assert!(refusal(&path, &other, "gguf:q4_0").contains("expected one that ends in .gguf"));
    assert!(refusal(&path, &gguf, "int4").starts_with("format is int4; a GGUF file takes gguf:q4_0, gguf:q4_1,"));
    super::write_file(&other, &[super::float_tensor("w", StoredDtype::F32, &[2, 32])], &[]);
    assert!(refusal(&other, &gguf, "gguf:q4_0").contains("expected one that ends in .safetensors"));
}

#[test]
fn a_tensor_whose_factor_is_another_tensor_is_not_decoded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("in.gguf");
    let lines = [line("a.weight", &[64], 40, 0), line("a.scale", &[1], 0, 64), line("b.weight", &[64], 40, 96)];
    fs::write(&path, File::new(&[], &lines, 160).bytes()).unwrap();
    let plan = Plan::new(&checkpoint(&path), Target::Floats(None), &Selection::default()).unwrap();
    let actions: Vec<_> = plan.steps.into_iter().map(|step| step.action).collect();
    let reason = "'a.scale' has its factor, which decoding does not apply";
    assert_eq!(actions, [Action::Keep(reason.into()), Action::Keep("not quantized".into()), Action::Dequantize]);
}

/// The plan of a file of float matrices of so many columns: what each step does and the formats that come of it.
fn plan_of(names: &[&str], columns: u64, wanted: Target, fallback: Option<Fallback>) -> quantize::error::Result<Plan> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("in.gguf");
    let bytes = (8 * columns).next_multiple_of(32);
    let lines: Vec<Vec<u8>> = names.iter().zip(0..).map(|(name, at)| line(name, &[columns, 2], 0, at * bytes)).collect();
    let keys =
        [key("general.architecture", 8, [&5u64.to_le_bytes()[..], b"llama"].concat()), key("llama.block_count", 4, 8u32.to_le_bytes())];
    let file = File { data: vec![0; names.len() * bytes as usize], ..File::new(&keys, &lines, 0) };
    fs::write(&path, file.bytes()).unwrap();
    Plan::new(&checkpoint(&path), wanted, &Selection { fallback, ..Selection::default() })
}

/// What each tensor of the new file is stored as, or why it cannot be.
fn outcomes(plan: &Plan) -> Vec<String> {
    let outcome = |step: &quantize::files::convert::Step| match (&step.action, &step.layout) {
        (Action::Quantize, Some(layout)) => layout.spec.name.to_string(),
        (Action::Cast(dtype, _), _) => dtype.name().to_string(),
        (Action::Refuse(reason) | Action::Keep(reason), _) => reason.clone(),
        other => panic!("{other:?}"),
    };
    plan.steps.iter().map(outcome).collect()
}

#[test]
fn a_fallback_stands_in_where_rows_do_not_divide() {
    let format = |name: &str| formats::find(name).unwrap().spec();
    let one = |wanted: &str, columns, fallback| {
        let plan = plan_of(&["blk.0.ffn_up.weight"], columns, target(wanted, None), fallback).unwrap();
        let [step] = &plan.steps[..] else { panic!("one tensor") };
        assert_eq!(step.wanted.unwrap().0.name, wanted);
        outcomes(&plan).remove(0)
    };
    let rules = [
        ("gguf:q4_k", 288, "gguf:q5_0"),
        ("gguf:q5_k", 288, "gguf:q5_1"),
        ("gguf:q6_k", 288, "gguf:q8_0"),
        ("gguf:iq4_xs", 288, "gguf:iq4_nl"),
        ("gguf:q4_k", 48, "float16"),
        ("gguf:q4_0", 48, "float16"),
        ("gguf:q4_k", 512, "gguf:q4_k"),
        ("gguf:nvfp4", 96, "last axis has 96 elements; gguf:nvfp4 needs a multiple of 64"),
    ];
    for (wanted, columns, expected) in rules {
        assert_eq!(one(wanted, columns, Some(Fallback::Llama)), expected, "{wanted} of {columns}");
    }
    assert_eq!(one("gguf:q4_k", 288, Some(Fallback::Format(format("gguf:q8_0")))), "gguf:q8_0");
    let reason = "last axis has 48 elements; gguf:q4_k needs a multiple of 256";
    let neither = one("gguf:q4_k", 48, Some(Fallback::Format(format("gguf:q8_0"))));
    assert_eq!(neither, format!("{reason}, and the fallback: last axis has 48 elements; gguf:q8_0 needs a multiple of 32"));
    let plan = plan_of(&["a.weight"], 288, target("gguf:q4_k", None), Some(Fallback::Llama)).unwrap();
    assert_eq!(plan.steps[0].why.as_deref(), Some("last axis has 288 elements; gguf:q4_k needs a multiple of 256"));

    let refusal = |wanted, fallback| plan_of(&["a.weight"], 32, wanted, Some(fallback)).unwrap_err().to_string();
    assert!(refusal(target("gguf:q4_0", None), Fallback::Format(format("int4"))).starts_with("format is int4; a GGUF file takes"));
    assert_eq!(refusal(Target::Floats(None), Fallback::Llama), "fallback is given; floats fit any tensor");
}

#[test]
fn a_mixture_counts_what_the_selection_leaves_out() {
    let names = ["token_embd.weight", "blk.0.attn_v.weight", "blk.1.attn_v.weight", "blk.7.attn_v.weight", "blk.0.ffn_down.weight"];
    let medium = Target::Mixture(mixture::find("Q4_K_M").unwrap());
    let plan = plan_of(&names, 256, medium, None).unwrap();
    assert_eq!(outcomes(&plan), ["gguf:q6_k", "gguf:q4_k", "gguf:q4_k", "gguf:q6_k", "gguf:q6_k"]);
    let why: Vec<_> = plan.steps.iter().map(|step| step.why.as_deref()).collect();
    let more = "values of a layer of more bits";
    let expected = [Some("the embedding, which is the output too"), None, None, Some(more), Some("ffn_down of a layer of more bits")];
    assert_eq!(why, expected);

    let missing = plan_of(&names, 256, Target::Mixture(mixture::find("iq4_nl").unwrap()), None).unwrap_err().to_string();
    assert!(missing.starts_with("key 'llama.attention.head_count' is missing, or no number; the mixture goes by it"), "{missing}");
}

#[test]
fn vectors_of_half_floats_become_float32() {
    let folder = tempfile::tempdir().unwrap();
    let [path, out] = ["in.gguf", "out.gguf"].map(|name| folder.path().join(name));
    let lines = [line("a_norm.weight", &[32], 1, 0), line("b.bias", &[32], 30, 64), line("c.weight", &[32, 1], 0, 128)];
    let x = weights(32);
    let data = [(StoredDtype::F16, &x), (StoredDtype::Bf16, &x), (StoredDtype::F32, &x)].map(|(dtype, x)| stored_as(dtype, x)).concat();
    fs::write(&path, File { data, ..File::new(&[], &lines, 0) }.bytes()).unwrap();
    let plan = Plan::new(&checkpoint(&path), target("gguf:q4_0", None), &Selection::default()).unwrap();
    assert_eq!(outcomes(&plan), ["float32", "float32", "one row; a matrix has more"]);
    run_plan(&plan, &path, &out).unwrap();
    let written = checkpoint(&out);
    let half = |round: fn(f32) -> f32| [stored_as(StoredDtype::F32, &x.iter().map(|&x| round(x)).collect::<Vec<_>>())];
    assert_eq!(load(&written, "a_norm.weight"), half(|x| half::f16::from_f32(x).to_f32()));
    assert_eq!(load(&written, "b.bias"), half(|x| half::bf16::from_f32(x).to_f32()));

    let data = stored_as(StoredDtype::F32, &[1e5; 96]);
    fs::write(&path, File { data, ..File::new(&[], &[line("a.weight", &[48, 2], 0, 0)], 0) }.bytes()).unwrap();
    let selection = Selection { fallback: Some(Fallback::Llama), ..Selection::default() };
    let plan = Plan::new(&checkpoint(&path), target("gguf:q4_0", None), &selection).unwrap();
    let Failure { tensor, error } = run_plan(&plan, &path, &out).unwrap_err();
    assert_eq!(tensor.as_deref(), Some("a.weight"));
    assert!(error.to_string().starts_with("an element is 100000; float16 reaches 65504"), "{error}");
}

#[test]
fn mixtures_and_fallbacks_are_for_gguf_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("in.safetensors");
    super::write_file(&path, &[super::float_tensor("w", StoredDtype::F32, &[2, 32])], &[]);
    let refusal = |wanted, fallback| {
        let selection = Selection { fallback, ..Selection::default() };
        Plan::new(&checkpoint(&path), wanted, &selection).unwrap_err().to_string()
    };
    let mixed = refusal(Target::Mixture(mixture::find("q4_k_m").unwrap()), None);
    assert!(mixed.starts_with("format is q4_k_m; a mixture of llama.cpp is for GGUF files"), "{mixed}");
    assert!(refusal(target("int4", None), Some(Fallback::Llama)).starts_with("fallback is given; it is for GGUF files"));
}
