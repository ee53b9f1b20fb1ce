//! Conversion of checkpoints: what is planned, what is written, what stops it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::{checkpoint, convert, float_tensor, listing, load, run_plan, stored_as, target, tensor, weights, write_file};
use quantize::element::{Dtype, Source};
use quantize::engine;
use quantize::engine::{NonFinite, Run, Sums};
use quantize::error::Error;
use quantize::files::StoredDtype;
use quantize::files::convert::{Action, Failure, How, Memory, Plan, Rule, Selection, Step, Target};
use quantize::formats::{self, FORMATS};
use quantize::layout::{Layout, Options};
use quantize::level::Level;
use quantize::spec::{GroupSize, ScaleDtype};
use quantize::tensor::Quantized;

#[test]
fn matrices_are_planned_to_be_quantized_and_the_rest_is_kept_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("in");
    write_file(
        &path,
        &[
            float_tensor("matrix", StoredDtype::F32, &[3, 96]),
            float_tensor("stack", StoredDtype::F16, &[2, 3, 32]),
            float_tensor("ragged", StoredDtype::Bf16, &[3, 40]),
            float_tensor("narrow", StoredDtype::F32, &[3, 31]),
            float_tensor("vector", StoredDtype::F32, &[64]),
            float_tensor("scalar", StoredDtype::F64, &[]),
            float_tensor("empty", StoredDtype::F32, &[0, 64]),
            (tensor("ids", StoredDtype::I64, &[2, 64]), vec![7; 1024]),
        ],
        &[],
    );
    let plan = |target| {
        let plan = Plan::new(&checkpoint(&path), target, &Selection::default()).unwrap();
        let kept = |step: Step| match step.action {
            Action::Quantize => (step.name, "quantized".to_string()),
            Action::Keep(reason) | Action::Refuse(reason) => (step.name, reason),
            Action::Cast(..) | Action::Dequantize | Action::Repack | Action::Requantize => panic!("nothing is quantized yet"),
        };
        plan.steps.into_iter().map(kept).collect::<BTreeMap<String, String>>()
    };
    let common = [
        ("matrix", "quantized"),
        ("stack", "quantized"),
        ("vector", "1-d; a matrix has 2 axes or more"),
        ("scalar", "0-d; a matrix has 2 axes or more"),
        ("empty", "no elements"),
        ("ids", "int64 is not quantized"),
    ];
    let expect = |target, own: [(&str, &str); 2]| {
        let expected = common.into_iter().chain(own).map(|(name, reason)| (name.to_string(), reason.to_string())).collect();
        assert_eq!(plan(target), expected);
    };
    let blocks = "gguf:q4_0 needs a multiple of 32";
    let ragged = format!("last axis has 40 elements; {blocks}");
    let narrow = format!("last axis has 31 elements; {blocks}");
    expect(target("gguf:q4_0", None), [("ragged", &ragged), ("narrow", &narrow)]);
    expect(target("int4", None), [("ragged", "quantized"), ("narrow", "last axis has 31 elements; a group has 32")]);
    expect(target("uint4", Some(GroupSize::Row)), [("ragged", "quantized"), ("narrow", "quantized")]);
}

#[test]
fn a_converted_file_holds_the_parts_and_gives_every_tensor_back() {
    let folder = tempfile::tempdir().unwrap();
    let [path, small, back] = ["in", "small", "back"].map(|name| folder.path().join(name));
    let dtypes = [StoredDtype::F16, StoredDtype::Bf16, StoredDtype::F32, StoredDtype::F64];
    let mut tensors: Vec<_> = dtypes.iter().map(|&dtype| float_tensor(dtype.name(), dtype, &[2, 3, 70])).collect();
    tensors.push((tensor("ids", StoredDtype::I64, &[5]), (0..40).collect()));
    tensors.push((tensor("odd", StoredDtype::F8E4M3, &[3]), vec![1, 2, 3]));
    write_file(&path, &tensors, &[("format", "pt"), ("note", "kept")]);
    for (format, group_size) in
        [("int4", None), ("uint4", Some(GroupSize::Elements(7))), ("int4", Some(GroupSize::Row)), ("uint4", Some(GroupSize::Tensor))]
    {
        let effects = convert(&path, &small, target(format, group_size));
        assert_eq!(effects.iter().filter(|effect| effect.errors.is_some()).count(), 4);
        let file = checkpoint(&small);
        assert_eq!(file.container().metadata()["note"], "kept");
        convert(&small, &back, Target::Floats(None));
        let restored = checkpoint(&back);
        let metadata: Vec<_> = restored.container().metadata().keys().collect();
        assert_eq!(metadata, ["format", "note"]);

        for (original, bytes) in &tensors {
            let entry = restored.entries().iter().find(|entry| entry.name == original.name).unwrap();
            assert_eq!((entry.dtype, &entry.shape), (original.dtype, &original.shape));
            let Some(dtype) = original.dtype.float() else {
                assert_eq!(load(&file, &original.name), std::slice::from_ref(bytes), "copied");
                assert_eq!(load(&restored, &original.name), std::slice::from_ref(bytes), "copied twice");
                continue;
            };
            let options = Options { group_size, ..Options::default() };
            let layout = Layout::new(formats::find(format).unwrap().spec(), &original.shape, options).unwrap();
            let source = Source::from_bytes(bytes, dtype, &original.shape);
            let quantized = engine::quantize_owned(&source, layout).unwrap();
            assert_eq!(load(&file, &original.name), quantized.parts, "{format} {}", original.name);
            let decoded = engine::dequantize_owned(&quantized).unwrap();
            assert_eq!(load(&restored, &original.name), [stored_as(original.dtype, &decoded)], "{format} {}", original.name);
        }
    }
}

#[test]
fn every_format_and_variant_goes_into_a_file_and_back() {
    let folder = tempfile::tempdir().unwrap();
    let [path, small, back] = ["in", "small", "back"].map(|name| folder.path().join(name));
    let (shape, x) = ([16, 256], weights(16 * 256));
    write_file(&path, &[float_tensor("w", StoredDtype::F32, &shape)], &[]);
    for format in FORMATS {
        convert(&path, &small, Target::Format(format.spec(), Options::default()));
        let file = checkpoint(&small);
        let layout = file.entries()[0].layout().unwrap().clone();
        // An option of the encoder alone does not show in the file.
        assert_eq!((layout.spec.name, layout.spec.parts.len()), (format.spec().name, format.spec().parts.len()));
        let quantized = engine::quantize_owned(&Source::from_slice(&x, &shape), Layout { spec: format.spec(), ..layout }).unwrap();
        assert_eq!(load(&file, "w"), quantized.parts, "{:?}", quantized.layout);
        convert(&small, &back, Target::Floats(None));
        let decoded = engine::dequantize_owned(&quantized).unwrap();
        assert_eq!(load(&checkpoint(&back), "w"), [stored_as(StoredDtype::F32, &decoded)], "{:?}", quantized.layout);
    }
}

#[test]
fn what_is_quantized_already_becomes_another_format_without_loss_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let [path, first, second] = ["in", "first", "second"].map(|name| folder.path().join(name));
    write_file(&path, &[float_tensor("a", StoredDtype::F32, &[64, 64])], &[]);
    convert(&path, &first, target("int4", None));
    let values = |path: &Path| {
        let file = checkpoint(path);
        let layout = file.entries()[0].layout().unwrap().clone();
        engine::dequantize_owned(&Quantized { layout, parts: load(&file, "a") }).unwrap()
    };
    let plan = Plan::new(&checkpoint(&first), target("q4_0", None), &Selection::default()).unwrap();
    assert_eq!(plan.steps[0].action, Action::Repack);
    let effects = run_plan(&plan, &first, &second).unwrap();
    assert_eq!(effects[0].errors.unwrap().error_squares, 0.0);
    assert_eq!(values(&second), values(&first));

    let plan = Plan::new(&checkpoint(&first), target("nf4", None), &Selection::default()).unwrap();
    assert!(matches!(&plan.steps[0].action, Action::Refuse(reason) if reason.contains("different meanings")), "{:?}", plan.steps[0].action);
    let failure = run_plan(&plan, &first, &second).unwrap_err();
    assert!(matches!(failure, Failure { tensor: Some(name), error: Error::Lossy { .. } } if name == "a"));
    let requantize = Selection { requantize: true, ..Selection::default() };
    let plan = Plan::new(&checkpoint(&first), target("nf4", None), &requantize).unwrap();
    assert_eq!(plan.steps[0].action, Action::Requantize);
    run_plan(&plan, &first, &second).unwrap();
    assert_ne!(values(&second), values(&first));
}

#[test]
fn what_is_quantized_already_is_kept_where_it_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let [path, first, second] = ["in", "first", "second"].map(|name| folder.path().join(name));
    write_file(&path, &[float_tensor("a", StoredDtype::F32, &[64, 64]), float_tensor("b", StoredDtype::F32, &[64, 64])], &[]);
    let only_a = Selection { include: vec!["a".into()], ..Selection::default() };
    let plan = Plan::new(&checkpoint(&path), target("int4", None), &only_a).unwrap();
    run_plan(&plan, &path, &first).unwrap();
    // The scales of "a" are a matrix of floats too, but they are no tensor of the checkpoint.
    let actions = |plan: &Plan| plan.steps.iter().map(|step| (step.name.clone(), step.action.clone())).collect::<Vec<_>>();
    let plan = Plan::new(&checkpoint(&first), target("int4", None), &Selection::default()).unwrap();
    assert_eq!(actions(&plan), [("b".into(), Action::Quantize), ("a".into(), Action::Keep("already int4".into()))]);
    let all_but_a = Selection { exclude: vec!["a".into()], ..Selection::default() };
    let plan = Plan::new(&checkpoint(&first), target("q4_0", None), &all_but_a).unwrap();
    assert_eq!(actions(&plan), [("b".into(), Action::Quantize), ("a".into(), Action::Keep("excluded by 'a'".into()))]);
    run_plan(&plan, &first, &second).unwrap();
    assert_eq!(load(&checkpoint(&second), "a"), load(&checkpoint(&first), "a"));
    let formats: BTreeMap<_, _> =
        checkpoint(&second).entries().iter().map(|entry| (entry.name.clone(), entry.layout().unwrap().spec.name)).collect();
    assert_eq!(formats, BTreeMap::from([("a".into(), "int4"), ("b".into(), "gguf:q4_0")]));
}

/// More elements than the block that errors are measured and floats are decoded in.
#[test]
fn blocks_of_rows_make_no_difference() {
    let folder = tempfile::tempdir().unwrap();
    let [path, small, back] = ["in", "small", "back"].map(|name| folder.path().join(name));
    let shape = [3, 700, 2050];
    let (header, bytes) = float_tensor("w", StoredDtype::Bf16, &shape);
    write_file(&path, &[(header, bytes.clone())], &[]);
    for group_size in [GroupSize::Elements(32), GroupSize::Tensor] {
        let [effect] = convert(&path, &small, target("uint4", Some(group_size))).try_into().unwrap();
        convert(&small, &back, Target::Floats(None));
        let (file, run) = (checkpoint(&small), Run::serial(Level::current().unwrap()));
        let layout = file.entries()[0].layout().unwrap().clone();
        let source = Source::from_bytes(&bytes, Dtype::Bf16, &shape);
        let decoded = engine::dequantize_owned(&Quantized { layout, parts: load(&file, "w") }).unwrap();
        assert_eq!(load(&checkpoint(&back), "w"), [stored_as(StoredDtype::Bf16, &decoded)]);
        let sums = engine::compare(&source, &Source::from_slice(&decoded, &shape), &run).unwrap();
        assert_eq!(effect.errors.unwrap(), sums.into_iter().fold(Sums::default(), Sums::then));
    }
}

/// A file that is written block by block is that of tensors which are in memory whole: quantized, decoded and repacked.
#[test]
fn blocks_of_rows_make_no_difference_in_any_format() {
    let folder = tempfile::tempdir().unwrap();
    let [path, whole, blocks, quantized] = ["in", "whole", "blocks", "quantized"].map(|name| folder.path().join(name));
    let run = Run::serial(Level::current().unwrap());
    let same = |from: &Path, target: Target, what: &str| {
        let plan = Plan::new(&checkpoint(from), target, &Selection::default()).unwrap();
        if matches!(plan.steps[0].action, Action::Refuse(_)) {
            return;
        }
        let outcome = |to: &Path, block| {
            let how = How { block, ..How::default() };
            let done = plan.run(checkpoint(from), to, true, &how, &run, &mut |_, _| Ok(()));
            // What a format cannot hold is told in the same words.
            done.map(|effects| effects[0].errors).map_err(|failure| failure.error.to_string())
        };
        let (done, by_blocks) = (outcome(&whole, usize::MAX), outcome(&blocks, 1));
        assert_eq!(done, by_blocks, "{what}");
        if done.is_ok() {
            assert_eq!(fs::read(&whole).unwrap(), fs::read(&blocks).unwrap(), "{what}");
        }
    };
    for shape in [[40, 512], [24, 96], [9, 64]] {
        write_file(&path, &[float_tensor("w", StoredDtype::F32, &shape)], &[]);
        for format in FORMATS {
            let spec = format.spec();
            let target = Target::Format(spec, Options::default());
            let Ok(plan) = Plan::new(&checkpoint(&path), target, &Selection::default()) else { continue };
            if plan.steps[0].action != Action::Quantize {
                continue;
            }
            same(&path, target, spec.name);
            run_plan(&plan, &path, &quantized).unwrap();
            same(&quantized, Target::Floats(None), spec.name);
            for other in FORMATS.iter().filter(|_| shape[0] > 9) {
                let what = format!("{} to {}", spec.name, other.spec().name);
                let group_size = plan.steps[0].layout.as_ref().map(|layout| layout.group_size);
                let group_size = group_size.filter(|&size| other.spec().group_sizes.takes(size));
                let options = Options { group_size, ..Options::default() };
                same(&quantized, Target::Format(other.spec(), options), &what);
            }
        }
    }
}

#[test]
fn a_fault_in_a_later_block_is_told_as_that_of_the_tensor() {
    let folder = tempfile::tempdir().unwrap();
    let [path, out] = ["in", "out"].map(|name| folder.path().join(name));
    let mut x = weights(3 * 4 * 64);
    (x[5 * 64 + 7], x[11 * 64 + 3]) = (f32::NAN, f32::INFINITY);
    let write = |x: &[f32]| write_file(&path, &[(tensor("w", StoredDtype::F32, &[3, 4, 64]), stored_as(StoredDtype::F32, x))], &[]);
    let failed = |format: &str| {
        let how = How { block: 64, ..How::default() };
        let plan = Plan::new(&checkpoint(&path), target(format, None), &Selection::default()).unwrap();
        plan.run(checkpoint(&path), &out, true, &how, &Run::serial(Level::current().unwrap()), &mut |_, _| Ok(())).unwrap_err().error
    };
    write(&x);
    let error = failed("int4");
    assert!(matches!(&error, Error::NonFinite { count: 2, first, .. } if *first == [1, 1, 7]), "{error}");
    (x[5 * 64 + 7], x[11 * 64 + 3]) = (0.0, 1e30);
    write(&x);
    let error = failed("int4");
    assert!(matches!(&error, Error::ScaleOverflow { group, .. } if *group == [2, 3, 0]), "{error}");
}

#[test]
fn a_limit_of_memory_cuts_tensors_or_names_the_one_that_cannot_be_cut() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("in");
    write_file(&path, &[float_tensor("w", StoredDtype::F32, &[64, 512])], &[]);
    let plan = |format| Plan::new(&checkpoint(&path), target(format, None), &Selection::default()).unwrap();
    let least = 8 * 512 * 32;
    assert_eq!(plan("gptq").within(least as u64).unwrap(), Memory { block: 8 * 512, room: 0, peak: least as u64 });
    // The rows of eight are then cut from parts that are put together: codes, zero points and scales of groups of 128.
    let turned = 64 * 512 / 2 + 64 * 4 / 2 + 64 * 4 * 2;
    assert_eq!(
        plan("gptq").within(least as u64 + 5000).unwrap(),
        Memory { block: 8 * 512 + 5000 / 32, room: 5000, peak: least as u64 + 5000 }
    );
    let found = plan("gptq").within(2 * least as u64 - 32).unwrap();
    assert_eq!((found.room, found.peak), (least - 32, (least + turned) as u64));
    let message = plan("gptq").within(8 * 512 * 32 - 1).unwrap_err().to_string();
    assert!(message.contains("tensor 'w' takes 131072 bytes"), "{message}");
    let message = plan("hqq").within(100_000).unwrap_err().to_string();
    assert!(message.contains("tensor 'w' takes 1048576 bytes"), "{message}");
    assert_eq!(plan("hqq").within(1 << 20).unwrap().peak, 1 << 20);
}

#[test]
fn the_first_rule_that_matches_decides() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("in");
    write_file(&path, &["a.up", "a.down", "b.up", "b.down"].map(|name| float_tensor(name, StoredDtype::F32, &[2, 64])), &[]);
    let rule = |pattern: &str, format: Option<&str>| {
        let format = format.map(|name| (formats::find(name).unwrap().spec(), Options::default()));
        Rule { pattern: pattern.into(), format }
    };
    let rules = vec![rule("a.*", Some("uint4")), rule("*.down", Some("gguf:q4_0")), rule("b.u?", None), rule("*", Some("awq"))];
    let selection = Selection { exclude: vec!["a.down".into()], rules, ..Selection::default() };
    let plan = Plan::new(&checkpoint(&path), target("int4", None), &selection).unwrap();
    let told = |step: &Step| {
        let becomes = match &step.action {
            Action::Keep(reason) => reason.clone(),
            _ => step.layout.as_ref().unwrap().spec.name.to_string(),
        };
        (step.name.clone(), becomes, step.rule.clone().unwrap_or_default())
    };
    let mut told: Vec<_> = plan.steps.iter().map(told).collect();
    told.sort();
    let expected = [
        ("a.down", "excluded by 'a.down'", ""),
        ("a.up", "uint4", "a.*"),
        ("b.down", "gguf:q4_0", "*.down"),
        ("b.up", "kept by rule 'b.u?'", "b.u?"),
    ];
    assert_eq!(told, expected.map(|(name, becomes, rule)| (name.into(), becomes.into(), rule.into())));
    let misspelt = Selection { rules: vec![rule("c.*", None)], ..Selection::default() };
    let message = Plan::new(&checkpoint(&path), target("int4", None), &misspelt).unwrap_err().to_string();
    assert_eq!(message, "a rule is 'c.*'; no tensor of the file matches it");
}

#[test]
fn names_and_patterns_select_and_must_mean_something() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("in");
    let names = ["layers.0.up", "layers.0.down", "layers.1.up", "head"];
    write_file(&path, &names.map(|name| float_tensor(name, StoredDtype::F32, &[2, 32])), &[]);
    let plan = |include: &[&str], exclude: &[&str], keep: &[&str]| {
        let owned = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
        let selection = Selection { include: owned(include), exclude: owned(exclude), keep: owned(keep), ..Selection::default() };
        let plan = Plan::new(&checkpoint(&path), target("int4", None), &selection).map_err(|error| error.to_string())?;
        let reason = |step: Step| match step.action {
            Action::Keep(reason) => (step.name, reason),
            _ => (step.name, String::new()),
        };
        Ok::<_, String>(plan.steps.into_iter().map(reason).collect::<BTreeMap<_, _>>())
    };
    let all = |reasons: [&str; 4]| Ok(names.iter().zip(reasons).map(|(name, reason)| (name.to_string(), reason.to_string())).collect());
    assert_eq!(plan(&[], &[], &[]), all(["", "", "", ""]));
    assert_eq!(plan(&["layers.*"], &["*.down"], &["layers.1.up"]), all(["", "excluded by '*.down'", "kept by name", "not included"]));
    assert_eq!(plan(&["*.up", "head"], &[], &[]), all(["", "not included", "", ""]));
    let refused = |argument: &str, pattern: &str, why: &str| Err(format!("{argument} is '{pattern}'; no tensor of the file {why}"));
    assert_eq!(plan(&["layer.*"], &[], &[]), refused("include", "layer.*", "matches it"));
    assert_eq!(plan(&[], &["head", "tail"], &[]), refused("exclude", "tail", "matches it"));
    assert_eq!(plan(&[], &[], &["hea*"]), refused("keep", "hea*", "has that name"));
}

#[test]
fn options_that_a_format_does_not_take_are_refused_whatever_the_file_holds() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("in");
    write_file(&path, &[], &[]);
    let plan = |target| Plan::new(&checkpoint(&path), target, &Selection::default()).unwrap_err().to_string();
    assert_eq!(plan(target("gguf:q4_0", Some(GroupSize::Elements(64)))), "group_size is 64; gguf:q4_0 takes 32");
    let options = Options { scale_dtype: Some(ScaleDtype::F32), ..Options::default() };
    let float_scales = Target::Format(formats::find("gguf:q4_0").unwrap().spec(), options);
    assert!(plan(float_scales).contains("has no option scale_dtype"));
}

#[test]
fn a_part_never_takes_the_name_of_another_tensor() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("in");
    write_file(&path, &[float_tensor("w", StoredDtype::F32, &[2, 32]), float_tensor("w.scales", StoredDtype::F32, &[2])], &[]);
    let error = Plan::new(&checkpoint(&path), target("int4", None), &Selection::default()).unwrap_err();
    assert!(error.to_string().contains("the name of a part is 'w.scales'"), "{error}");
    let keep = Selection { keep: vec!["w".into()], ..Selection::default() };
    Plan::new(&checkpoint(&path), target("int4", None), &keep).unwrap();
}

#[test]
fn values_that_cannot_be_quantized_stop_the_job_and_name_the_tensor() {
    let folder = tempfile::tempdir().unwrap();
    let (path, out) = (folder.path().join("in"), folder.path().join("out"));
    let mut wrong = float_tensor("wrong", StoredDtype::F32, &[2, 32]);
    wrong.1[132..136].copy_from_slice(&f32::NAN.to_le_bytes());
    write_file(&path, &[float_tensor("right", StoredDtype::F32, &[2, 32]), wrong], &[]);
    let plan = Plan::new(&checkpoint(&path), target("int4", None), &Selection::default()).unwrap();
    let Failure { tensor, error } = run_plan(&plan, &path, &out).unwrap_err();
    assert_eq!(tensor.as_deref(), Some("wrong"));
    assert!(matches!(error, Error::NonFinite { count: 1, ref first, .. } if *first == [1, 1]), "{error}");
    assert_eq!(listing(folder.path()), ["in"]);

    let run = Run::serial(Level::current().unwrap());
    let effects =
        plan.run(checkpoint(&path), &out, false, &How { nonfinite: NonFinite::Zero, ..How::default() }, &run, &mut |_, _| Ok(())).unwrap();
    assert_eq!(effects.iter().map(|effect| effect.replaced).collect::<Vec<_>>(), [0, 1]);

    let mut large = float_tensor("large", StoredDtype::F32, &[1, 32]);
    large.1 = stored_as(StoredDtype::F32, &[1e30; 32]);
    write_file(&path, &[large], &[]);
    let plan = Plan::new(&checkpoint(&path), target("int4", None), &Selection::default()).unwrap();
    let Failure { tensor, error } = run_plan(&plan, &path, &out).unwrap_err();
    assert!(tensor.as_deref() == Some("large") && matches!(error, Error::ScaleOverflow { .. }), "{error}");
}

#[test]
fn a_caller_that_stops_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let (path, out) = (folder.path().join("in"), folder.path().join("out"));
    write_file(&path, &["a", "b", "c"].map(|name| float_tensor(name, StoredDtype::F32, &[2, 32])), &[]);
    let plan = Plan::new(&checkpoint(&path), target("int4", None), &Selection::default()).unwrap();
    let run = Run::serial(Level::current().unwrap());
    let mut names = Vec::new();
    let stop = &mut |bytes: u64, name: &str| {
        names.push((name.to_string(), bytes));
        if names.len() == 2 { Err(Error::Cancelled) } else { Ok(()) }
    };
    let failure = plan.run(checkpoint(&path), &out, false, &How::default(), &run, stop).unwrap_err();
    assert!(matches!(failure, Failure { tensor: None, error: Error::Cancelled }));
    assert_eq!(names, [("a".to_string(), 256), ("b".to_string(), 256)]);
    assert_eq!(listing(folder.path()), ["in"]);
}

#[test]
fn a_file_can_be_replaced_by_its_own_conversion() {
    let folder = tempfile::tempdir().unwrap();
    let [path, other] = ["in", "other"].map(|name| folder.path().join(name));
    write_file(&path, &[float_tensor("w", StoredDtype::F32, &[64, 64]), float_tensor("v", StoredDtype::F32, &[64])], &[]);
    convert(&path, &other, target("int4", None));
    convert(&path, &path, target("int4", None));
    assert_eq!(fs::read(&path).unwrap(), fs::read(&other).unwrap());
    assert_eq!(listing(folder.path()), ["in", "other"]);
}
