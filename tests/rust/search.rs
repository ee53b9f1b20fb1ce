//! The search for scales: no code and no scale beats what it finds, at every level the same.

use proptest::prelude::*;
use quantize::element::Source;
use quantize::engine::{self, Importance, Method, NonFinite, Run};
use quantize::formats::{FORMATS, Format};
use quantize::layout::{Layout, Options};
use quantize::level::Level;
use quantize::search::{Elements, Problem, Task};
use quantize::spec::{GroupSize, ScaleDtype, Spec};
use quantize::tensor::Quantized;

fn int4() -> &'static Spec {
    quantize::formats::find("int4").unwrap().spec()
}

/// The error of a scale with the codes nearest to it.
fn error(x: &[f32], weights: Option<&[f32]>, scale: f64) -> f64 {
    let one = |(i, &x): (usize, &f32)| {
        let code = if scale == 0.0 { 0.0 } else { (f64::from(x) / scale).round_ties_even().clamp(-8.0, 7.0) };
        weights.map_or(1.0, |weights| f64::from(weights[i])) * (f64::from(x) - scale * code).powi(2)
    };
    x.iter().enumerate().map(one).sum()
}

fn solve(level: Level, x: &[f32], weights: Option<&[f32]>, group: usize, dtype: ScaleDtype) -> (Vec<i8>, Vec<u32>) {
    let (mut codes, mut scales) = (vec![99; x.len()], vec![f32::NAN; x.len().div_ceil(group)]);
    let task = Task {
        level,
        x: Elements::Rows(x),
        weights,
        group,
        dtype,
        global: 1.0,
        codes: &mut codes,
        scales: &mut scales,
        offsets: &mut [],
        units: &mut [],
        nested: None,
    };
    let faults = Problem::of(int4()).unwrap().solve(task);
    assert!(!faults.any());
    (codes, scales.into_iter().map(f32::to_bits).collect())
}

/// Ordinary numbers, ties, zeros, and sizes far apart.
fn element() -> impl Strategy<Value = f32> {
    prop_oneof![
        6 => -2f32..2.0,
        2 => (-40i32..40).prop_map(|quarters| quarters as f32 / 4.0),
        1 => Just(0.0),
        1 => (-1f32..1.0).prop_map(|x| x * 1e-3),
    ]
}

proptest! {
    /// Any scale at all, of which there are many more than in a grid that a test can go through.
    #[test]
    fn no_scale_is_better(
        x in prop::collection::vec(element(), 1..70),
        tried in prop::collection::vec(0.02f64..0.6, 200),
        weights in prop::option::of(prop::collection::vec(0.01f32..1.0, 70)),
    ) {
        let weights = weights.as_deref().map(|weights| &weights[..x.len()]);
        let (codes, scales) = solve(Level::detect(), &x, weights, x.len(), ScaleDtype::F32);
        let scale = f64::from(f32::from_bits(scales[0]));
        let found = error(&x, weights, scale);
        let by_codes = x.iter().zip(&codes).enumerate().map(|(i, (&x, &code))| {
            weights.map_or(1.0, |weights| f64::from(weights[i])) * (f64::from(x) - scale * f64::from(code)).powi(2)
        });
        let energy = error(&x, weights, 0.0);
        prop_assert!(by_codes.sum::<f64>() <= found * (1.0 + 1e-6) + 1e-9 * energy, "codes are the nearest");
        let largest = f64::from(x.iter().fold(0.0f32, |largest, x| largest.max(x.abs())));
        for scale in tried.iter().flat_map(|part| [part * largest, -part * largest]) {
            prop_assert!(found <= error(&x, weights, scale) * (1.0 + 2e-6) + 3e-7 * energy, "{scale}");
        }
    }

    #[test]
    fn every_level_finds_the_same(
        x in prop::collection::vec(element(), 1..600),
        weighted: bool,
        group in prop::sample::select(vec![1usize, 7, 16, 32, 33, 300]),
        dtype in prop::sample::select(vec![ScaleDtype::F16, ScaleDtype::Bf16, ScaleDtype::F32]),
    ) {
        let weights: Vec<f32> = x.iter().map(|x| x * x).collect();
        let weights = weighted.then_some(&weights[..]);
        let expected = solve(Level::named("scalar").unwrap(), &x, weights, group, dtype);
        for level in Level::available() {
            prop_assert_eq!(&solve(level, &x, weights, group, dtype), &expected, "{}", level.name());
        }
    }

    /// Sixteen groups have the same scales one after the other and side by side.
    #[test]
    fn columns_are_rows(
        rows in prop::collection::vec(prop::array::uniform16(element()), 1..70),
        weights in prop::collection::vec(0f32..2.0, 70),
    ) {
        let weights = &weights[..rows.len()];
        let x: Vec<f32> = (0..16).flat_map(|lane| rows.iter().map(move |row| row[lane])).collect();
        let (_, expected) = solve(Level::detect(), &x, Some(&weights.repeat(16)), rows.len(), ScaleDtype::F16);
        let mut scales = [f32::NAN; 16];
        let task = Task {
            level: Level::detect(),
            x: Elements::Columns(&rows),
            weights: Some(weights),
            group: rows.len(),
            dtype: ScaleDtype::F16,
            global: 1.0,
            codes: &mut [],
            scales: &mut scales,
            offsets: &mut [],
            units: &mut [],
            nested: None,
        };
        prop_assert!(!Problem::of(int4()).unwrap().solve(task).any());
        prop_assert_eq!(scales.map(f32::to_bits).to_vec(), expected);
    }
}

fn encode(layout: &Layout, x: &[f32], importance: Importance<'_>, run: &Run<'_>) -> Quantized {
    let mut quantized = Quantized::zeroed(layout.clone()).unwrap();
    quantized.parts.iter_mut().for_each(|part| part.fill(0xa5));
    let mut parts: Vec<&mut [u8]> = quantized.parts.iter_mut().map(Vec::as_mut_slice).collect();
    let source = Source::from_slice(x, &layout.shape);
    engine::quantize_by(&source, layout, Method::Optimal(importance), NonFinite::Raise, &mut parts, run).unwrap();
    quantized
}

#[test]
fn every_format_at_every_level_and_on_any_threads() {
    let shape = [264, 2048];
    let mut state = 1u64;
    let x: Vec<f32> = (0..shape[0] * shape[1])
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let [a, b] = [state >> 40, state >> 16 & 0xff_ffff].map(|bits| bits as f32 / 16_777_216.0 - 0.5);
            a * b
        })
        .collect();
    let columns: Vec<f32> = (0..shape[1]).map(|column| 1.0 + (column % 7) as f32).collect();
    let columns = Source::from_slice(&columns, &shape[1..]);
    for spec in FORMATS.iter().map(|format| Format::spec(*format)).filter(|spec| Problem::of(spec).is_some()) {
        let layout = Layout::new(spec, &shape, Options::default()).unwrap();
        for importance in [Importance::Equal, Importance::Magnitude, Importance::Array(&columns)] {
            let run = |level: Level, threads: usize| Run { threads, ..Run::serial(level) };
            let expected = encode(&layout, &x, importance, &run(Level::detect(), 1));
            for other in [run(Level::detect(), 3), run(Level::named("scalar").unwrap(), 2)] {
                assert!(encode(&layout, &x, importance, &other).parts == expected.parts, "{}", spec.name);
            }
        }
    }
}

#[test]
fn the_largest_group_and_the_next() {
    let x = vec![0.5; quantize::search::LARGEST_GROUP + 2];
    for (elements, fits) in [(x.len() - 2, true), (x.len(), false)] {
        let options = Options { group_size: Some(GroupSize::Tensor), ..Options::default() };
        let layout = Layout::new(int4(), &[2, elements / 2], options).unwrap();
        let mut quantized = Quantized::zeroed(layout.clone()).unwrap();
        let mut parts: Vec<&mut [u8]> = quantized.parts.iter_mut().map(Vec::as_mut_slice).collect();
        let source = Source::from_slice(&x[..elements], &layout.shape);
        let method = Method::Optimal(Importance::Equal);
        let result = engine::quantize_by(&source, &layout, method, NonFinite::Raise, &mut parts, &Run::serial(Level::detect()));
        assert_eq!(result.is_ok(), fits);
    }
}
